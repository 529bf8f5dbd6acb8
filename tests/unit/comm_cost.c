/* What an exchange sends and needs beside the slab, computed by hand for one of each kind on a mesh of eight ranks. */
#include <check.h>
#include <string.h>
#include "ir/text.h"
#include "passes/comm_cost.h"
#include "tests/support/check_main.h"
#include "tests/support/mesh.h"

static const MoeMesh mesh = MESH(2, 2, 2, 1, 2); /* dp 2, shard 2, ep 2: data 8, expert_data 4 */

static const char text[] =
    "moe 1\ngraph @train {\n"
    "  %tok = input {name = \"tok\"} : segs<1,8>\n"
    "  %tok_ep = input {name = \"tok_ep\"} : segs<1,8>\n"
    "  %place = input {name = \"place.0\"} : i32[8]\n"
    "  %ep_rank = input {name = \"ep_rank\"} : i32[1]\n"
    "  %x = input {name = \"x\"} : bf16[r<=1024 @%tok, 64]\n"
    "  %ids = input {name = \"ids\"} : i32[r<=1024 @%tok, 2]\n"
    "  %p = param {name = \"p\", init = \"ones\", decay = 1} : f32[4096]\n"
    "  %q = param {name = \"q\", init = \"ones\", decay = 1} : bf16[4, 4096]\n"
    "  %gp = all_gather %p {group = \"dense_shard\", unit = 4096, dims = \"128,64\"} : f32[128, "
    "64]\n"
    "  %gq = all_gather %q {group = \"expert_shard\", unit = 4096, dims = \"4,128,64\"} : bf16[4, "
    "128, 64]\n"
    "  %home, %src_h, %inv_h = route_plan %ids {experts = 8} : segs<8,8>, i32[r<=2048 @%home], "
    "i32[r<=1024 @%tok, 2]\n"
    "  %all = all_gather_rows %ids, %tok_ep {group = \"ep\", ranks = 2} : i32[r<=2048 @%tok_ep, "
    "2]\n"
    "  %send, %idx = send_plan %ids, %place {slots = 4, ranks = 2, chunks = 1, expect = 1536} : "
    "segs<2,1>, i32[r<=2048 @%send]\n"
    "  %recv, %seg, %src, %inv = expert_plan %all, %place, %ep_rank {slots = 4, chunks = 1, "
    "expect_recv = 1536, expect_rows = 2048} : segs<1,8>, segs<4,8>, i32[r<=4096 @%seg], "
    "i32[r<=2048 "
    "@%recv, 2]\n"
    "  %rows = a2a_dispatch %x, %idx, %inv {group = \"ep\"} : bf16[r<=2048 @%recv, 64]\n"
    "  %y = dispatch %rows, %src, %inv : bf16[r<=4096 @%seg, 64]\n"
    "  %back = a2a_combine %y, %place, %src_h {group = \"ep\", slots = 4} : bf16[r<=2048 @%home, "
    "64]\n"
    "  %c = input {name = \"c\"} : f32[10]\n"
    "  %sum = all_reduce %c {group = \"data\"} : f32[10]\n"
    "  %small = reduce_scatter %gp {sum = \"data\", scatter = \"dense_shard\", unit = 4096, parts "
    "= "
    "2, outer = 0} : f32[4096]\n"
    "  %experts = input {name = \"e\"} : f32[4, 128, 64]\n"
    "  %es = reduce_scatter %experts {sum = \"expert_data\", scatter = \"expert_shard\", unit = "
    "4096, "
    "parts = 2, outer = 1} : f32[4, 4096]\n"
    "  %arrived = wait %es : f32[4, 4096]\n"
    "  output %back {name = \"back\"}\n  output %sum {name = \"sum\"}\n  output %small {name = "
    "\"s\"}\n"
    "  output %arrived {name = \"a\"}\n  output %gq {name = \"q\"}\n}\n";

static MoeModule *m;

static void setup(void) {
    MoeDiag d = {.file = "case", .source = text};
    m = moe_parse(&d);
    ck_assert_msg(m, "%s", moe_str_c(&d.text));
    moe_diag_free(&d);
}
static void teardown(void) {
    moe_module_destroy(m);
}

/* A group of its own. */
static MoeGroup group_of(const char *name) {
    MoeGraph *g = m->graphs[0];
    for (size_t i = 0; i < g->n_ops; i++)
        for (int k = 0; k < g->ops[i]->n_results; k++)
            if (g->ops[i]->results[k]->name && !strcmp(g->ops[i]->results[k]->name, name))
                return (MoeGroup){.graph = g, .ops = &g->ops[i], .n_ops = 1};
    ck_abort_msg("no value %%%s", name);
}

START_TEST(test_bytes_sent) {
    /* Sums of eight ranks of which four want the same slice: in two turns, if that saves enough. */
    MoeSumShares twice = moe_sum_shares(8, 2, 8192, 4096, 1),
                 direct = moe_sum_shares(8, 1, 10, 1, 1);
    ck_assert(twice.twice && !direct.twice);
    const struct {
        const char *value;
        double bytes;
    } cases[] = {
        {"gp", 4096 * 4},               /* this rank's half, to the other rank */
        {"gq", 4 * 4096 * 2},           /* of each of four tensors */
        {"all", 1024 * 2 * 4},          /* all rows, to the other rank */
        {"rows", 1536 / 2 * 64 * 2},    /* half of what goes out stays here */
        {"back", 2048 / 2 * 64 * 2},    /* half of the experts' rows came from here */
        {"sum", 7 * 10 * 4},            /* to each of the others */
        {"small", (7 + 3) * 1024 * 4},  /* quarters of a slice: to be summed, then to its owners */
        {"es", (3 + 1) * 4 * 2048 * 4}, /* four tensors; two ranks want each slice: halves of it */
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        MoeGroup g = group_of(cases[i].value);
        ck_assert_msg(moe_comm_sent_bytes(g.ops[0], &mesh) == cases[i].bytes, "%s: %g, not %g",
                      cases[i].value, moe_comm_sent_bytes(g.ops[0], &mesh), cases[i].bytes);
    }
}
END_TEST

/* A rank copies 1 byte/s, and so do the links: seconds are bytes, whoever carries them. */
START_TEST(test_what_cores_do) {
    const struct {
        const char *value;
        double own, link, again, fold;
    } cases[] = {
        {"gp", 2 * 4096 * 4, 4096 * 4, 0, 0},      /* its own half is read and written */
        {"rows", 2 * 768 * 64 * 2, 768 * 64 * 2, 0, 0},
        {"back", 2 * 1024 * 64 * 2, 1024 * 64 * 2, 0, 0},
        {"sum", 0, 7 * 10 * 4, 0, 9 * 10 * 4},     /* eight terms are read, one sum is written */
        {"small", 0, 7 * 1024 * 4, 3 * 1024 * 4, 9 * 1024 * 4},
        {"arrived", 0, 0, 0, 0},
    };
    MoeCommModel model = {.mesh = mesh, .cluster = {.nodes = 1, .ranks_per_node = 8, .links = {{0, 1}, {0, 1}}}};
    for (int g = 0; g < MOE_N_GROUPS; g++) {
        bool there = moe_mesh_has_group(&mesh, (MoeMeshGroup)g);
        model.peers[g][MOE_LINK_INTRA] = there ? moe_mesh_group_size(&mesh, (MoeMeshGroup)g) - 1 : 0;
        model.owners[g][MOE_LINK_INTRA] = 3;
    }
    model.cluster.rates.threads = 1;
    model.cluster.rates.tables[MOE_RATE_copy] = (MoeRateTable){1, {{1, 1}}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        MoeGroup g = group_of(cases[i].value);
        model.cluster.by_cores = false;
        MoeCoreSeconds c = moe_comm_cores(&g, &model);
        MoeLinkSeconds l = moe_comm_links(&g, &model);
        ck_assert_msg(c.own == cases[i].own && c.fold == cases[i].fold && c.copy[0] == 0 && c.copy[1] == 0,
                      "%s: own %g, fold %g", cases[i].value, c.own, c.fold);
        ck_assert_msg(l.first[0] == cases[i].link && l.second[0] == cases[i].again, "%s: %g, then %g", cases[i].value,
                      l.first[0], l.second[0]);
        model.cluster.by_cores = true;
        c = moe_comm_cores(&g, &model);
        MoeLinkSeconds none = moe_comm_links(&g, &model);
        ck_assert(c.copy[0] == l.first[0] && c.copy[1] == l.second[0] && none.first[0] == 0 && none.second[0] == 0);
    }
}
END_TEST

START_TEST(test_staging) { /* the other ranks' terms of what this rank sums up, in whole 64s */
    const struct {
        const char *value;
        int64_t bytes;
    } cases[] = {{"gp", 0},
                 {"rows", 0},
                 {"back", 0},
                 {"sum", (7 * 10 * 4 + 63) / 64 * 64},
                 {"small", 7 * 1024 * 4},
                 {"es", 3 * 4 * 2048 * 4},
                 {"arrived", 0}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        MoeGroup g = group_of(cases[i].value);
        ck_assert_msg(moe_comm_staging(&g, &mesh) == cases[i].bytes, "%s: %lld", cases[i].value,
                      (long long)moe_comm_staging(&g, &mesh));
    }
}
END_TEST

int main(void) {
    Suite *s = suite_create("comm_cost");
    TCase *c = tcase_create("comm_cost");
    tcase_add_checked_fixture(c, setup, teardown);
    tcase_add_test(c, test_bytes_sent);
    tcase_add_test(c, test_what_cores_do);
    tcase_add_test(c, test_staging);
    suite_add_tcase(s, c);
    return moe_check_main(s);
}
