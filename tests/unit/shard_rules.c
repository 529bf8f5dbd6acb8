/* State rules one by one: small sharded graphs in text, what the rules say of a value, or what they miss. */
#include <check.h>
#include <stdio.h>
#include <string.h>
#include "ir/text.h"
#include "passes/shard.h"
#include "tests/support/check_main.h"
#include "tests/support/mesh.h"

typedef struct {
    const char *what;
    MoeMesh mesh;
    const char *body;  /* graph lines; the state of %y is wanted */
    const char *state; /* or a part of the problem, behind '!' */
} Case;

#define TOK  "  %tok = input {name = \"tok\"} : segs<1,4>\n"
#define ROWS TOK "  %x = input {name = \"x\"} : f32[r<=8 @%tok, 4]\n"
#define HOME                                                                                       \
    ROWS "  %c = topk %x {k = 2} : i32[r<=8 @%tok, 2]\n"                                           \
         "  %seg, %src, %inv = route_plan %c {experts = 4} : segs<4,4>, i32[r<=16 @%seg], "        \
         "i32[r<=8 @%tok, 2]\n"
#define PLAN                                                                                       \
    HOME "  %te = input {name = \"tok_ep\"} : segs<1,4>\n"                                         \
         "  %er = input {name = \"ep_rank\"} : i32[1]\n"                                           \
         "  %place = input {name = \"place.0\"} : i32[4]\n"                                        \
         "  %all = all_gather_rows %c, %te {group = \"ep\", ranks = 2} : i32[r<=16 @%te, 2]\n"     \
         "  %send, %idx = send_plan %c, %place {slots = 2, ranks = 2, chunks = 1, expect = 8} : "  \
         "segs<2,1>, i32[r<=16 @%send]\n"                                                          \
         "  %recv, %es, %esrc, %einv = expert_plan %all, %place, %er {slots = 2, chunks = 1, "     \
         "expect_recv = 8, expect_rows = 16} : segs<1,4>, segs<2,4>, i32[r<=32 @%es], i32[r<=16 "  \
         "@%recv, 2]\n"
#define SENT                                                                                       \
    PLAN "  %u = a2a_dispatch %x, %idx, %einv {group = \"ep\"} : f32[r<=16 @%recv, 4]\n"           \
         "  %r = dispatch %u, %esrc, %einv : f32[r<=32 @%es, 4]\n"
#define EXPERTS                                                                                    \
    "  %w = param {name = \"w\", init = \"normal\", std = 0.02, decay = 1, whole = \"4,4,4\", "    \
    "expert = 1} : f32[2, 4, 4]\n"
#define ALL_EXPERTS                                                                                \
    "  %w = param {name = \"w\", init = \"normal\", std = 0.02, decay = 1, whole = \"4,4,4\", "    \
    "expert = 1} : f32[4, 4, 4]\n"
#define SLICE                                                                                      \
    "  %w = param {name = \"w\", init = \"normal\", std = 0.02, decay = 1, whole = \"4,4\"} : "    \
    "f32[16]\n"
#define WHOLE                                                                                      \
    "  %w = param {name = \"w\", init = \"normal\", std = 0.02, decay = 1, whole = \"4,4\"} : "    \
    "f32[4, 4]\n"
#define COLUMNS                                                                                    \
    "  %w = param {name = \"w\", init = \"normal\", std = 0.02, decay = 1, whole = \"8,4\", "      \
    "tp_dim = 0} : f32[4, 4]\n"
#define DOWN                                                                                       \
    "  %v = param {name = \"v\", init = \"normal\", std = 0.02, decay = 1, whole = \"4,8\", "      \
    "tp_dim = 1} : f32[4, 4]\n"
#define MATMUL(y, a, b)                                                                            \
    "  %" y " = matmul %" a ", %" b " {tb = 1, grouped = 0} : f32[r<=8 @%tok, 4]\n"
#define GROUPED(y, a, b, r)                                                                        \
    "  %" y " = matmul %" a ", %" b " {tb = 1, grouped = 1} : f32[" r ", 4]\n"
#define GATHER                                                                                     \
    "  %g = all_gather %w {group = \"dense_shard\", unit = 4096, dims = \"4,4\"} : f32[4, 4]\n"

#define DP    MESH(2, 1, 1, 1, 1)
#define SHARD MESH(1, 2, 1, 1, 2)
#define EP    MESH(1, 1, 2, 1, 1)
#define EP_DP MESH(2, 1, 2, 1, 1)
#define EP_SH MESH(1, 2, 2, 1, 2)
#define TP    MESH(1, 1, 1, 2, 1)

static const Case cases[] = {
    {"rows in, rows out", DP, ROWS WHOLE MATMUL("y", "x", "w"), "rows of this rank's tokens"},
    {"a gathered parameter", SHARD, SLICE GATHER "  %y = mul %g, %g : f32[4, 4]\n", "whole"},
    {"a slice is no matrix", SHARD,
     "  %w = param {name = \"w\", init = \"ones\", decay = 0, whole = \"4\"} : f32[4]\n" ROWS
     "  %y = mul %x, %w : f32[r<=8 @%tok, 4]\n",
     "!operand 0 of mul is rows of this rank's tokens; expected a slice of group dense_shard"},
    {"slices and numbers", SHARD,
     SLICE "  %lr = input {name = \"lr\"} : f32[1]\n  %y = mul %w, %lr : f32[16]\n",
     "a slice of group dense_shard"},
    {"a slice is gathered in its own group", SHARD,
     SLICE "  %y = all_gather %w {group = \"data\", unit = 4096, dims = \"4,4\"} : f32[4, 4]\n",
     "!all_gather runs in group data, but what it gets needs group dense_shard"},
    {"cut where it was cut", SHARD,
     SLICE "  %y = all_gather %w {group = \"dense_shard\", unit = 1, dims = \"4,4\"} : f32[4, 4]\n",
     "!all_gather: unit = 1, but these slices are cut at multiples of 4096 elements"},
    {"what is whole is not gathered", DP,
     WHOLE "  %v = mul %w, %w : f32[4, 4]\n  %s = row_sum %v : f32[4, 1]\n  %o = input {name = "
           "\"o\"} : f32[4]\n"
           "  %y = all_gather %o {group = \"dense_shard\", unit = 4096, dims = \"4\"} : f32[4]\n",
     "!operand 0 of all_gather is whole; expected a slice"},
    {"sums over rows are terms", DP, ROWS "  %y = col_sum %x : f32[4]\n",
     "a term of a sum over group data"},
    {"on one data rank they are whole", TP, ROWS "  %y = col_sum %x : f32[4]\n", "whole"},
    {"a gradient is a term", DP, ROWS "  %y = weight_grad %x, %x {grouped = 0} : f32[4, 4]\n",
     "a term of a sum over group data"},
    {"a term is not scaled", DP, ROWS "  %s = col_sum %x : f32[4]\n  %y = mul %s, %s : f32[4]\n",
     "!operand 0 of mul is a term of a sum over group data; expected it whole"},
    {"terms of floats are not added", DP,
     ROWS "  %s = col_sum %x : f32[4]\n  %y = add %s, %s : f32[4]\n",
     "!operand 0 of add is a term of a sum"},
    {"terms of integers are", DP,
     ROWS "  %n = row_count %tok : i32[1]\n  %y = add %n, %n : i32[1]\n",
     "a term of a sum over group data"},
    {"accumulate takes no term", DP,
     ROWS "  %s = col_sum %x : f32[4]\n  %y = accumulate %s : f32[4]\n",
     "!operand 0 of accumulate is a term of a sum over group data; expected it summed over ranks"},
    {"batch_sum takes no term", DP,
     ROWS "  %n = row_count %tok : i32[1]\n  %y = batch_sum %n : i32[1]\n",
     "!operand 0 of batch_sum is a term"},
    {"all_reduce sums", DP,
     ROWS "  %s = col_sum %x : f32[4]\n  %y = all_reduce %s {group = \"data\"} : f32[4]\n",
     "whole"},
    {"in the term's group", DP,
     ROWS "  %s = col_sum %x : f32[4]\n  %y = all_reduce %s {group = \"world\"} : f32[4]\n",
     "!operand 0 of all_reduce is a term of a sum over group data; expected a term of a sum over "
     "group world"},
    {"not twice", DP,
     ROWS "  %s = col_sum %x : f32[4]\n  %t = all_reduce %s {group = \"data\"} : f32[4]\n  %y = "
          "all_reduce %t {group = \"data\"} : f32[4]\n",
     "!operand 0 of all_reduce is whole"},
    {"reduce_scatter makes slices", SHARD,
     ROWS "  %s = col_sum %x : f32[4]\n  %y = reduce_scatter %s {sum = \"data\", scatter = "
          "\"dense_shard\", unit = 4096, parts = 2, outer = 0} : f32[4]\n",
     "a slice of group dense_shard"},
    {"as many as the group has ranks", SHARD,
     ROWS "  %s = col_sum %x : f32[4]\n  %y = reduce_scatter %s {sum = \"data\", scatter = "
          "\"dense_shard\", unit = 4096, parts = 4, outer = 0} : f32[4]\n",
     "!reduce_scatter: parts = 4, but group dense_shard has 2 ranks"},
    {"of the right group", SHARD,
     ROWS "  %s = col_sum %x : f32[4]\n  %y = reduce_scatter %s {sum = \"data\", scatter = "
          "\"expert_shard\", unit = 4096, parts = 2, outer = 0} : f32[4]\n",
     "!a sum over group data is shared out in group dense_shard, not expert_shard"},
    {"an output is whole", DP, ROWS "  %y = col_sum %x : f32[4]\n  output %y {name = \"y\"}\n",
     "!operand 0 of output is a term"},
    {"new and old alike", SHARD, SLICE "  %y = input {name = \"y\"} : f32[16]\n  assign %w, %y\n",
     "!assign: the new value is whole, what it is assigned to is a slice of group dense_shard"},
    {"pairs meet all experts", DP,
     HOME ALL_EXPERTS
     "  %r = dispatch %x, %src, %inv : f32[r<=16 @%seg, 4]\n" GROUPED("y", "r", "w", "r<=16 @%seg"),
     "rows of this rank's (expert, token) pairs"},
    {"their gradient", DP,
     HOME "  %r = dispatch %x, %src, %inv : f32[r<=16 @%seg, 4]\n  %y = weight_grad %r, %r "
          "{grouped = 1} : f32[4, 4, 4]\n",
     "a term of a sum over group expert_data"},
    {"columns of pairs have no subtree", DP,
     HOME "  %r = dispatch %x, %src, %inv : f32[r<=16 @%seg, 4]\n  %y = col_sum %r : f32[4]\n",
     "!expected rows of tokens"},
    {"expert rows meet the slots' experts", EP, SENT EXPERTS GROUPED("y", "r", "w", "r<=32 @%es"),
     "rows of the experts in this rank's slots"},
    {"one rank has all their rows", EP,
     SENT "  %y = weight_grad %r, %r {grouped = 1} : f32[2, 4, 4]\n", "for this rank's slots"},
    {"or a part of them", EP_DP, SENT "  %y = weight_grad %r, %r {grouped = 1} : f32[2, 4, 4]\n",
     "a term of a sum over group expert_data, for this rank's slots"},
    {"pairs do not meet slots", EP,
     HOME EXPERTS "  %te = input {name = \"pairs\"} : segs<2,4>\n  %r = input {name = \"r\"} : "
                  "f32[r<=16 @%te, 4]\n" GROUPED("y", "r", "w", "r<=16 @%te"),
     "!operand 1 of matmul is for this rank's slots; expected it for all experts, as the rows are"},
    {"rows are summed at home", EP,
     SENT "  %y = gather_sum %r, %esrc, %einv : f32[r<=16 @%recv, 4]\n",
     "!expected the rows at home (a2a_combine)"},
    {"there they are", EP,
     SENT "  %h = a2a_combine %r, %place, %src {group = \"ep\", slots = 2} : f32[r<=16 @%seg, 4]\n "
          " %y = gather_sum %h, %src, %inv : f32[r<=8 @%tok, 4]\n",
     "rows of this rank's tokens"},
    {"counts are of own rows", EP, SENT "  %y = expert_counts %es : i32[2]\n",
     "!expected its own rows: ranks would count one twice"},
    {"own pairs are", EP, SENT "  %y = expert_counts %seg : i32[4]\n",
     "a term of a sum over group data"},
    {"received rows have no sum", EP,
     PLAN "  %u = a2a_dispatch %x, %idx, %einv {group = \"ep\"} : f32[r<=16 @%recv, 4]\n  %y = "
          "col_sum %u : f32[4]\n",
     "!col_sum sums over received rows"},
    {"only expert_plan reads ep_rank", EP,
     PLAN "  %f = convert %er {to = \"f32\"} : f32[1]\n  %y = mul %x, %f : f32[r<=8 @%tok, 4]\n",
     "!operand 0 of convert is a rank's own number"},
    {"everybody's choices", EP,
     HOME
     "  %er = input {name = \"ep_rank\"} : i32[1]\n  %place = input {name = \"place.0\"} : i32[4]\n"
     "  %y, %es, %s, %i = expert_plan %c, %place, %er {slots = 2, chunks = 1, expect_recv = 8, "
     "expect_rows = 16} : segs<1,4>, segs<2,4>, i32[r<=16 @%es], i32[r<=8 @%y, 2]\n",
     "!expected the choices of the EP group's tokens"},
    {"slots as the mesh has", EP,
     HOME "  %place = input {name = \"place.0\"} : i32[4]\n"
          "  %y, %idx = send_plan %c, %place {slots = 3, ranks = 2, chunks = 1, expect = 8} : "
          "segs<2,1>, i32[r<=16 @%y]\n",
     "!send_plan: slots = 3, but 4 experts over 2 ranks take 2 each"},
    {"blocks of a slice", SHARD, SLICE "  %y = block_squares %w : f32[1]\n",
     "a slice of group dense_shard"},
    {"the tree wants all blocks", SHARD,
     SLICE "  %b = block_squares %w : f32[1]\n  %y = block_tree %b : f32[1]\n",
     "!operand 0 of block_tree is a slice of group dense_shard; expected all blocks"},
    {"of all slots", EP,
     EXPERTS "  %b = block_squares %w : f32[2, 1]\n  %p = input {name = \"place.0\"} : i32[2]\n  "
             "%y = block_tree %b, %p : f32[1]\n",
     "!expected what all slots have"},
    {"in the order of experts", EP,
     EXPERTS "  %b = block_squares %w : f32[2, 1]\n  %a = all_gather_rows %b {group = \"ep\", "
             "ranks = 2} : f32[4, 1]\n  %y = block_tree %a : f32[1]\n",
     "!expected the blocks in order (place orders slots)"},
    {"then it is whole", EP,
     EXPERTS
     "  %b = block_squares %w : f32[2, 1]\n  %a = all_gather_rows %b {group = \"ep\", ranks = 2} : "
     "f32[4, 1]\n  %p = input {name = \"place.0\"} : i32[4]\n  %y = block_tree %a, %p : f32[1]\n",
     "whole"},
    {"a slice has no sum of squares", EP_SH,
     "  %w = param {name = \"w\", init = \"normal\", std = 0.02, decay = 1, whole = \"4,4,4\", "
     "expert = 1} : f32[2, 16]\n  %y = sum_squares %w : f32[1]\n",
     "!expected it whole (a slice: block_squares)"},
    {"columns over tp", TP, ROWS COLUMNS MATMUL("y", "x", "w"),
     "divided over group tp, rows of this rank's tokens"},
    {"rows over tp", TP, ROWS COLUMNS DOWN MATMUL("h", "x", "w") MATMUL("y", "h", "v"),
     "a term of a sum over group tp, rows of this rank's tokens"},
    {"rows over tp need columns", TP, ROWS DOWN MATMUL("y", "x", "v"),
     "!operand 0 of matmul is rows of this rank's tokens; expected it divided over group tp like "
     "the other operands"},
    {"terms over tp are added", TP,
     ROWS COLUMNS DOWN MATMUL("h", "x", "w")
         MATMUL("d", "h", "v") "  %y = add %d, %d : f32[r<=8 @%tok, 4]\n",
     "a term of a sum over group tp, rows of this rank's tokens"},
    {"but not to a whole", TP,
     ROWS COLUMNS DOWN MATMUL("h", "x", "w")
         MATMUL("d", "h", "v") "  %y = add %d, %x : f32[r<=8 @%tok, 4]\n",
     "!operand 0 of add is a term of a sum over group tp"},
    {"nor squared", TP,
     ROWS COLUMNS DOWN MATMUL("h", "x", "w")
         MATMUL("d", "h", "v") "  %y = mul %d, %d : f32[r<=8 @%tok, 4]\n",
     "!operand 0 of mul is a term of a sum over group tp"},
    {"all_reduce over tp", TP,
     ROWS COLUMNS DOWN MATMUL("h", "x", "w")
         MATMUL("d", "h", "v") "  %y = all_reduce %d {group = \"tp\"} : f32[r<=8 @%tok, 4]\n",
     "rows of this rank's tokens"},
    {"a maximum wants whole rows", TP,
     ROWS COLUMNS MATMUL("h", "x", "w") "  %y = row_max %h : f32[r<=8 @%tok, 1]\n",
     "!expected it whole on each TP rank"},
    {"a sum of columns over tp", TP,
     ROWS COLUMNS MATMUL("h", "x", "w") "  %y = row_sum %h : f32[r<=8 @%tok, 1]\n",
     "a term of a sum over group tp, rows of this rank's tokens"},
    {"a part's squares", TP, COLUMNS "  %y = sum_squares %w : f32[1]\n",
     "a term of a sum over group tp"},
    {"parts of rows are no output", TP,
     ROWS COLUMNS MATMUL("y", "x", "w") "  output %y {name = \"y\"}\n",
     "!expected it whole, or whole rows, or a slice"},
};

static const MoeValue *find(const MoeGraph *g, const char *name) {
    for (size_t i = 0; i < g->n_ops; i++)
        for (int k = 0; k < g->ops[i]->n_results; k++) {
            const MoeValue *v = g->ops[i]->results[k];
            if (v->name && strcmp(v->name, name) == 0)
                return v;
        }
    return NULL;
}

START_TEST(test_rule) {
    const Case *c = &cases[_i];
    char source[4096];
    snprintf(source, sizeof source, "moe 1\ngraph @g {\n%s}\n", c->body);
    MoeDiag d = {.file = "input", .source = source};
    MoeModule *m = moe_parse(&d);
    ck_assert_msg(m, "%s: %s", c->what, moe_str_c(&d.text));
    MoeGraph *g = m->graphs[0];
    MoeShardRules r = {.mesh = &c->mesh, .g = g, .a = m->arena};
    const char *problem = NULL;
    for (size_t i = 0; i < g->n_ops && !problem; i++)
        problem = moe_shard_derive(&r, g->ops[i]);
    if (c->state[0] == '!') {
        ck_assert_msg(problem, "%s: nothing was missed", c->what);
        ck_assert_msg(strstr(problem, c->state + 1), "%s: \"%s\" lacks \"%s\"", c->what, problem,
                      c->state + 1);
    } else {
        ck_assert_msg(!problem, "%s: %s", c->what, problem);
        const char *text = moe_shard_state_text(moe_shard_state(&r, find(g, "y")), m->arena);
        ck_assert_msg(strcmp(text, c->state) == 0, "%s: %%y is %s, expected %s", c->what, text,
                      c->state);
    }
    moe_module_destroy(m);
    moe_diag_free(&d);
}
END_TEST

int main(void) {
    Suite *s = suite_create("shard_rules");
    TCase *t = tcase_create("shard_rules");
    tcase_add_loop_test(t, test_rule, 0, (int)(sizeof cases / sizeof cases[0]));
    suite_add_tcase(s, t);
    return moe_check_main(s);
}
