/* The plan writer: plan.json is read back by the runtime's own reader, is the same twice, names its steps readably; the
 * directory replaces plans and nothing else, and a failure leaves what was there. */
#include <check.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include "base/io.h"
#include "base/json.h"
#include "passes/pipeline.h"
#include "passes/plan_json_internal.h"
#include "passes/plan_write.h"
#include "runtime/plan.h"
#include "tests/support/check_main.h"
#include "tests/support/files.h"
#include "tests/support/mesh.h"
#include "tests/support/pass_model.h"

static void ok(MoeStatus st) {
    ck_assert_msg(!st, "%s", moe_status_message(st));
}

static const int layers[] = {0, 1, 2};
static const MoePlanInfo info = {.tokenizer = "byte",
                                 .compile_line = "moec compile m",
                                 .logical_text = "moe 1\n",
                                 .vocab_size = 64,
                                 .flops_per_token = 1234.5,
                                 .moe_layers = layers,
                                 .n_moe_layers = 3,
                                 .experts = 4,
                                 .experts_per_token = 2,
                                 .want_text = true};

static char *build(MoePassModel *m, char **out_text) {
    char *json, *text;
    void *object;
    size_t n;
    ok(moe_plan_build(&m->cx, &info, &json, &object, &n, &text));
    ck_assert_ptr_nonnull(object);
    free(object);
    if (out_text)
        *out_text = text;
    else
        free(text);
    return json;
}

static const MoePlanStep *find_step(const MoePlanProgram *p, const char *name) {
    for (size_t i = 0; i < p->n_steps; i++)
        if (strcmp(p->steps[i].name, name) == 0)
            return &p->steps[i];
    return NULL;
}

static const MoePlanPort *find_port(const MoePlanPort *ports, size_t n, const char *name) {
    for (size_t i = 0; i < n; i++)
        if (strcmp(ports[i].name, name) == 0)
            return &ports[i];
    return NULL;
}

START_TEST(test_runtime_reads_it) {
    for (int bits = 0; bits < 8; bits++) {
        bool dense = bits & 4;
        MoePassModelOptions o = {.bf16 = bits & 1,
                                 .micro_batches = bits & 2 ? 4 : 1,
                                 .dense = dense,
                                 .recompute = MOE_RECOMPUTE_AUTO};
        MoePassModel m;
        ok(moe_pass_model_make(&o, &m));
        char *json = build(&m, NULL);
        MoePlan *p;
        ok(moe_plan_load_memory(json, strlen(json), "plan.json", NULL, 0, &p));
        ck_assert_int_eq(p->vocab_size, 64);
        ck_assert_int_eq(p->batch, 4);
        ck_assert_int_eq(p->micro_batches, o.micro_batches);
        ck_assert_str_eq(p->dtype, o.bf16 ? "bf16" : "f32");
        ck_assert_uint_eq(p->n_programs, 3);
        ck_assert_uint_eq(p->n_buffers, 3 * p->n_params); /* exp_avg and exp_avg_sq beside each */
        for (size_t i = 0; i < p->n_params; i++)
            ck_assert_uint_eq(p->params[i].n_states, 2);
        const MoePlanProgram *t = moe_plan_program(p, "train");
        ck_assert_ptr_nonnull(find_port(t->inputs, t->n_inputs, "bias1"));
        ck_assert_ptr_nonnull(find_port(t->outputs, t->n_outputs, "grad_norm"));
        const MoePlanPort *loss = find_port(t->outputs, t->n_outputs, "loss"),
                          *ids = find_port(t->inputs, t->n_inputs, "ids");
        ck_assert(loss && !loss->ragged && loss->elements == 1);
        ck_assert(ids && ids->ragged && ids->dtype == MOE_PLAN_I32);
        ck_assert_ptr_nonnull(find_step(t, "layers.1.self_attn.q_proj"));
        ck_assert_ptr_nonnull(find_step(t, "layers.1.self_attn.q_proj.dx"));
        ck_assert_ptr_nonnull(find_step(t, "layers.1.self_attn.q_proj.dw"));
        ck_assert_ptr_nonnull(find_step(t, "layers.1.self_attn.q_proj.update"));
        const MoePlanStep *up = find_step(t, dense ? "layers.2.mlp.gate_proj+up_proj"
                                                   : "layers.2.block_sparse_moe.experts.w1+w3");
        ck_assert_ptr_nonnull(up);
        ck_assert_int_eq(up->layer, 2);
        ck_assert_str_eq(up->kind, "gemm");
        /* (T or R) x 32 x 48, twice, and a little for the tail */
        double rows = (double)p->batch * (double)p->seq / o.micro_batches * (dense ? 1 : 2),
               flops = 2 * 2 * rows * 32 * 48;
        ck_assert_double_ge(up->flops, flops);
        ck_assert_double_le(up->flops, 1.5 * flops);
        ck_assert_double_gt(up->seconds, 0);
        if (o.micro_batches == 1) {
            ck_assert_uint_eq(t->n_accumulates, 0);
            ck_assert_uint_eq(t->n_batch_sums, 0);
        } else {
            ck_assert_uint_gt(t->n_accumulates, p->n_params); /* every gradient, and the losses */
            ck_assert_uint_ge(t->n_batch_sums, 1);
            ck_assert_uint_eq(t->accumulates[0].n_slots, 2);
            if (!dense)
                ck_assert(find_step(t, "layers.2.route_plan")->count);
            ck_assert(!find_step(t, "layers.1.self_attn.q_proj.dx")->count);
        }
        moe_plan_free(p);
        free(json);
        moe_pass_model_free(&m);
    }
}
END_TEST

/* ---- the program of a rank ---- */

static const MoeMesh meshes[] = {
    MESH(1, 1, 2, 1, 1), MESH(1, 2, 1, 1, 2), MESH(1, 2, 2, 1, 4), MESH(2, 1, 2, 1, 1)};

static MoePlan *load(MoePassModel *m) {
    MoePlan *p;
    char *json = build(m, NULL);
    ok(moe_plan_load_memory(json, strlen(json), "plan.json", NULL, 0, &p));
    free(json);
    return p;
}

static const MoePlanParam *find_param(const MoePlan *p, const char *name) {
    for (size_t i = 0; i < p->n_params; i++)
        if (strcmp(p->params[i].name, name) == 0)
            return &p->params[i];
    ck_abort_msg("no parameter %s", name);
}

/* What the runtime's reader checks by itself: groups, sizes against the mesh, places, waits. Here: the layout, and who sends what. */
START_TEST(test_runtime_reads_a_rank) {
    for (size_t i = 0; i < sizeof meshes / sizeof *meshes; i++) {
        const MoeMesh *mesh = &meshes[i];
        MoePassModelOptions o = {.mesh = *mesh, .bf16 = i & 1, .recompute = MOE_RECOMPUTE_LAYER};
        MoePassModel m;
        ok(moe_pass_model_make(&o, &m));
        MoePlan *p = load(&m);
        ck_assert_int_eq(p->ranks, moe_mesh_size(mesh));
        ck_assert_mem_eq(&p->mesh, mesh, sizeof *mesh);
        ck_assert_int_eq(p->slots, 4 / mesh->ep);
        const MoePlanParam *w =
                               find_param(p, "model.layers.1.block_sparse_moe.experts.*.w1.weight"),
                           *q = find_param(p, "model.layers.1.self_attn.q_proj.weight");
        ck_assert(w->rank == 3 && w->dims[0] == 4 && w->dims[1] == 48 && w->dims[2] == 32);
        ck_assert_int_eq(w->expert, mesh->ep > 1 || mesh->shard > 1);
        ck_assert(q->rank == 2 && q->dims[0] == 32 && q->dims[1] == 32 && !q->expert);
        ck_assert_int_eq(q->tp_dim, -1);
        const MoePlanProgram *t = moe_plan_program(p, "train");
        ck_assert_int_eq(t->elastic_bytes > 0, mesh->ep > 1);
        ck_assert_int_gt(t->mem_communication, 0);
        const MoePlanStep *gather = find_step(t, "layers.1.gather"),
                          *send = find_step(t, "layers.1.dispatch.send"),
                          *home = find_step(t, "layers.1.combine.home"),
                          *again = find_step(t, "layers.1.dispatch.send.again"),
                          *norm = find_step(t, "norm.gather");
        ck_assert_int_eq(gather != NULL, mesh->shard * mesh->ep > 1 && mesh->dense_shard > 1);
        ck_assert_int_eq(send && home && again, mesh->ep > 1);
        ck_assert_int_eq(norm != NULL, mesh->dense_shard > 1 || mesh->ep > 1);
        if (send) {
            ck_assert_str_eq(send->kind, "comm");
            ck_assert_int_eq(send->layer, 1);
            ck_assert_uint_eq(send->n_comm, 2); /* the rows and their weights */
            ck_assert(send->kernel == NULL && !send->start && send->wait < 0);
            const MoePlanComm *c = &send->comm[0];
            ck_assert_int_eq(c->op, MOE_PLAN_A2A_DISPATCH);
            ck_assert_int_eq(c->group, MOE_GROUP_EP);
            ck_assert_int_eq(c->row_bytes, o.bf16 ? 64 : 128); /* hidden_size 32 */
            ck_assert(p->mesh.ep != 2 || c->bytes > 0);
            /* the rows that arrive: as many as were sent, when routing is balanced */
            const MoePlanValue *in = &t->values[c->out];
            ck_assert(in->elastic && in->row_bytes == c->row_bytes);
            ck_assert_int_eq(in->bytes, c->capacity * c->row_bytes);
            ck_assert_int_lt(in->expect, in->bytes);
            ck_assert_int_eq(in->rows, c->in[3]);
            ck_assert_double_le(send->bytes, (double)in->expect * 1.2);
            ck_assert_double_gt(send->seconds, 0);
        }
        moe_plan_free(p);
        moe_pass_model_free(&m);
    }
}
END_TEST

/* Exchanges that are started: each ends at a step that names it. */
START_TEST(test_runtime_reads_waits) {
    MoePassModelOptions o = {
        .mesh = meshes[2], .layers = 2, .passes = "grad,decompose,shard,recompute"};
    MoePassModel m;
    ok(moe_pass_model_make(&o, &m));
    for (size_t k = 0; k < m.cx.module->n_graphs; k++)
        moe_pass_start_collectives(m.cx.module->graphs[k], 5);
    MoePipelineOptions rest = {
        .passes = "fuse,memplan,kernels", .verify_each = true, .out = stdout, .err = stderr};
    ok(moe_pipeline_run(&m.cx, &rest));
    MoePlan *p = load(&m);
    const MoePlanProgram *t = moe_plan_program(p, "train");
    int n_waits = 0;
    for (size_t i = 0; i < t->n_steps; i++) {
        const MoePlanStep *s = &t->steps[i];
        if (s->wait < 0)
            continue;
        n_waits++;
        char name[256];
        snprintf(name, sizeof name, "%s.wait", t->steps[s->wait].name);
        ck_assert_str_eq(s->name, name);
        ck_assert_str_eq(s->kind, "wait");
        ck_assert(t->steps[s->wait].start && (size_t)s->wait < i);
    }
    ck_assert_int_gt(n_waits, 10);
    moe_plan_free(p);
    moe_pass_model_free(&m);
}
END_TEST

START_TEST(test_one_rank_has_no_exchanges) {
    MoePassModelOptions o = {0};
    MoePassModel m;
    ok(moe_pass_model_make(&o, &m));
    MoePlan *p = load(&m);
    ck_assert_int_eq(p->ranks, 1);
    ck_assert_int_eq(p->slots, 4);
    for (size_t g = 0; g < p->n_programs; g++) {
        ck_assert_int_eq(p->programs[g].elastic_bytes, 0);
        ck_assert_int_eq(p->programs[g].mem_communication, 0);
        for (size_t i = 0; i < p->programs[g].n_steps; i++)
            ck_assert(p->programs[g].steps[i].kernel && !p->programs[g].steps[i].n_comm);
    }
    moe_plan_free(p);
    moe_pass_model_free(&m);
}
END_TEST

START_TEST(test_same_bytes_twice) {
    MoePassModelOptions o = {.bf16 = true, .micro_batches = 2, .recompute = MOE_RECOMPUTE_LAYER};
    MoePassModel a, b;
    ok(moe_pass_model_make(&o, &a));
    ok(moe_pass_model_make(&o, &b));
    char *x = build(&a, NULL), *y = build(&b, NULL);
    ck_assert_str_eq(x, y);
    free(x);
    free(y);
    moe_pass_model_free(&a);
    moe_pass_model_free(&b);
}
END_TEST

static MoeStatus write_plan(const char *dir, const MoePlanInfo *with) {
    MoePassModelOptions o = {.layers = 1};
    MoePassModel m;
    ok(moe_pass_model_make(&o, &m));
    MoeStatus st = moe_plan_write(&m.cx, with, dir);
    moe_pass_model_free(&m);
    return st;
}

static char *path_of(const char *dir, const char *name) {
    static char path[8192];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    return path;
}

/* Entries of the test directory whose name begins like this. */
static int count_entries(const char *prefix) {
    char **names;
    size_t n;
    int found = 0;
    ok(moe_dir_list(moe_test_dir(), &names, &n));
    for (size_t i = 0; i < n; i++)
        found += strncmp(names[i], prefix, strlen(prefix)) == 0;
    moe_dir_list_free(names, n);
    return found;
}

START_TEST(test_writes_and_replaces) {
    char dir[4096];
    snprintf(dir, sizeof dir, "%s", moe_test_path("one.plan"));
    ok(write_plan(dir, &info));
    static const char *const files[] = {"plan.json", "kernels.o", "kernels.ll", "model.moe",
                                        "step.moe"};
    for (size_t i = 0; i < 5; i++)
        ck_assert_msg(moe_path_exists(path_of(dir, files[i])), "%s is missing", files[i]);
    MoePlanInfo other = info;
    other.compile_line = "the second";
    other.want_text = false;
    snprintf(dir + strlen(dir), 2, "/"); /* a slash behind the name changes nothing */
    ok(write_plan(dir, &other));
    ck_assert(!moe_path_exists(path_of(dir, "kernels.ll"))); /* nothing of the first is left */
    json_t *json;
    const char *line = NULL;
    ok(moe_json_load_file(path_of(dir, "plan.json"), 1 << 24, &json));
    ok(moe_json_str(json, "plan", "compile", true, &line));
    ck_assert_str_eq(line, "the second");
    json_decref(json);
    ck_assert_int_eq(count_entries("one.plan"), 1); /* no .tmp, no .old */
}
END_TEST

START_TEST(test_refuses_what_is_no_plan) {
    const char *wrong;
    wrong = moe_test_error(write_plan(moe_test_file("a_file", "x", 1), &info), MOE_E_INPUT,
                           "a_file", "not a directory", NULL);
    ck_assert_msg(!wrong, "%s", wrong);
    char dir[4096];
    snprintf(dir, sizeof dir, "%s", moe_test_path("thesis"));
    ok(moe_dir_make(dir));
    ok(moe_file_write_atomic(path_of(dir, "chapter1"), "work", 4));
    wrong = moe_test_error(write_plan(dir, &info), MOE_E_INPUT, "thesis", "not a plan", NULL);
    ck_assert_msg(!wrong, "%s", wrong);
    ok(moe_file_write_atomic(path_of(dir, "plan.json"), "{}", 2));
    wrong = moe_test_error(write_plan(dir, &info), MOE_E_INPUT, "thesis", "chapter1", NULL);
    ck_assert_msg(!wrong, "%s", wrong);
    ck_assert(moe_path_exists(path_of(dir, "chapter1")));
    wrong = moe_test_error(write_plan("", &info), MOE_E_MISUSE, "name", NULL);
    ck_assert_msg(!wrong, "%s", wrong);
    ck_assert_int_eq(count_entries("thesis"), 1);
}
END_TEST

START_TEST(test_failure_leaves_the_former_plan) {
    char dir[4096];
    snprintf(dir, sizeof dir, "%s", moe_test_path("kept.plan"));
    ok(write_plan(dir, &info));
    char tmp[4200];
    snprintf(tmp, sizeof tmp, "%s.tmp-%ld", dir, (long)getpid());
    /* the graph's output is a constant: plan.json cannot be made, after the directory was */
    MoePassModelOptions o = {.layers = 1};
    MoePassModel m;
    ok(moe_pass_model_make(&o, &m));
    MoeGraph *g = m.cx.module->graphs[0];
    for (size_t i = 0; i < g->n_ops; i++)
        if (g->ops[i]->opcode == MOE_OP_OUTPUT)
            for (size_t k = 0; k < i; k++)
                if (g->ops[k]->opcode == MOE_OP_CONST)
                    g->ops[i]->operands[0] = g->ops[k]->results[0];
    const char *wrong =
        moe_test_error(moe_plan_write(&m.cx, &info, dir), MOE_E_INPUT, "constant", NULL);
    ck_assert_msg(!wrong, "%s", wrong);
    moe_pass_model_free(&m);
    ck_assert(!moe_path_exists(tmp));
    json_t *json;
    ok(moe_json_load_file(path_of(dir, "plan.json"), 1 << 24, &json));
    json_decref(json);
}
END_TEST

/* The shape of a launch: nothing where the device is told none, all of it where it is. */
START_TEST(test_launch_shapes) {
    MoeTensorMap map = {.buf = 1,
                        .dtype = MOE_BF16,
                        .rank = 3,
                        .dims = {72, 512, 8},
                        .strides = {144, 73728},
                        .box = {64, 128, 1},
                        .swizzle = 128};
    MoeLaunchShape none = {0}, shape = {.grid = 132, .block = 384, .shared_bytes = 231424};
    json_t *o = json_object(), *want;
    moe_plan_json_shape(&none, o);
    ck_assert_uint_eq(json_object_size(o), 0);
    moe_plan_json_shape(&shape, o);
    want = json_pack("{s:i, s:i, s:i}", "grid", 132, "block", 384, "shared", 231424);
    ck_assert(json_equal(o, want));
    json_decref(want);
    shape.maps = &map;
    shape.n_maps = 1;
    moe_plan_json_shape(&shape, o);
    want = json_pack("[{s:i, s:s, s:[i,i,i], s:[i,i], s:[i,i,i], s:i}]", "buf", 1, "dtype", "bf16",
                     "dims", 72, 512, 8, "strides", 144, 73728, "box", 64, 128, 1, "swizzle", 128);
    ck_assert(json_equal(json_object_get(o, "maps"), want));
    json_decref(want);
    json_decref(o);
}
END_TEST

int main(void) {
    Suite *s = suite_create("plan_write");
    TCase *c = tcase_create("plan_write");
    tcase_set_timeout(c, 60);
    tcase_add_test(c, test_runtime_reads_it);
    tcase_add_test(c, test_runtime_reads_a_rank);
    tcase_add_test(c, test_runtime_reads_waits);
    tcase_add_test(c, test_one_rank_has_no_exchanges);
    tcase_add_test(c, test_same_bytes_twice);
    tcase_add_test(c, test_writes_and_replaces);
    tcase_add_test(c, test_refuses_what_is_no_plan);
    tcase_add_test(c, test_failure_leaves_the_former_plan);
    tcase_add_test(c, test_launch_shapes);
    suite_add_tcase(s, c);
    return moe_check_main(s);
}
