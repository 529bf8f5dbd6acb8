/* runtime/plan.h: reading, refusing damaged plans (every entry), linking object code. */
#include <check.h>
#include <stdlib.h>
#include <string.h>

#include <llvm-c/Core.h>
#include <llvm-c/IRReader.h>
#include <llvm-c/Target.h>
#include <llvm-c/TargetMachine.h>

#include "base/io.h"
#include "runtime/exec.h"
#include "tests/support/check_main.h"
#include "tests/support/fake_plan.h"
#include "tests/support/files.h"
#include "tests/support/status_checks.h"

static json_t *fake_json(int micro_batches) {
    MoeStr text = {0};
    json_t *j = NULL;
    fake_plan_json(
        &(FakePlanOptions){
            .batch = 8, .seq = 4, .virtual_shards = 4, .micro_batches = micro_batches},
        &text);
    OK(moe_json_load_text(moe_str_c(&text), text.len, "fake", &j));
    moe_str_free(&text);
    return j;
}

static MoeStatus load_json(const json_t *j, MoePlan **out) {
    char *text = json_dumps(j, 0);
    MoeStatus st = moe_plan_load_memory(text, strlen(text), "p.json", NULL, 0, out);
    free(text);
    return st;
}

START_TEST(test_reads) {
    json_t *j = fake_json(2);
    MoePlan *p;
    OK(load_json(j, &p));
    ck_assert_int_eq(p->batch, 8);
    ck_assert_int_eq(p->seq, 4);
    ck_assert_int_eq(p->n_params, 2);
    ck_assert_str_eq(p->params[1].name, "model.layers.0.experts.*.u.weight");
    ck_assert(p->params[1].stacked && p->params[1].decay && p->params[1].n_states == 2);
    ck_assert_int_eq(p->buffers[3].elements, 24);
    ck_assert_int_eq(p->n_programs, 3);
    const MoePlanProgram *g = moe_plan_program(p, "train");
    ck_assert_int_eq(g->n_steps, 6);
    ck_assert(g->steps[0].count && g->steps[3].phase == MOE_PHASE_BWD &&
              g->steps[5].phase == MOE_PHASE_UPD);
    ck_assert_int_eq(g->n_accumulates, 2);
    ck_assert_int_eq(g->accumulates[1].n_slots, 1);
    ck_assert_int_eq(g->n_batch_sums, 1);
    ck_assert_ptr_null(moe_plan_program(p, "nothing"));
    moe_plan_free(p);
    moe_plan_free(NULL);
    json_decref(j);
}
END_TEST

/* "a.b[3].c" -> the holder of the last part; the last part in *out_key or *out_index. */
static json_t *holder(json_t *j, const char *path, char *out_key, int *out_index) {
    *out_index = -1;
    char copy[200];
    snprintf(copy, sizeof copy, "%s", path);
    json_t *parent = j;
    for (char *part = strtok(copy, "."); part; part = strtok(NULL, ".")) {
        if (*out_index >= 0)
            parent = json_array_get(parent, (size_t)*out_index);
        else if (parent != j || out_key[0])
            parent = out_key[0] ? json_object_get(parent, out_key) : parent;
        *out_index = part[0] >= '0' && part[0] <= '9' ? atoi(part) : -1;
        snprintf(out_key, 64, "%s", *out_index < 0 ? part : "");
    }
    return parent;
}

static void set_at(json_t *j, const char *path, const char *value) {
    char key[64] = "";
    int index;
    json_t *at = holder(j, path, key, &index), *v = json_loads(value, JSON_DECODE_ANY, NULL);
    ck_assert_msg(v && at, "%s", path);
    ck_assert(index >= 0 ? !json_array_set_new(at, (size_t)index, v)
                         : !json_object_set_new(at, key, v));
}

/* Each damage, and what the error must name. */
START_TEST(test_damage) {
    static const struct {
        const char *path, *value, *named;
    } cases[] = {
        {"target", "3", "target"},
        {"batch", "0", "batch"},
        {"batch", "\"8\"", "batch"},
        {"seq", "1099511627776", "2^31"},
        {"virtual_shards", "3", "powers of two"},
        {"micro_batches", "8", "powers of two"},
        {"moe_layers", "[\"x\"]", "moe_layers"},
        {"experts", "0", "experts"},
        {"buffers.2.bytes", "31", "buffers[2].bytes"},
        {"buffers.3.dims", "[4, -2, 3]", "buffers[3].dims"},
        {"buffers.3.dims", "[1,1,1,1,1,1,1,1,1]", "rank 9"},
        {"buffers.1.dtype", "\"f16\"", "buffers[1].dtype"},
        {"params.0.buffer", "6", "params[0].buffer"},
        {"params.0.buffer", "-1", "params[0].buffer"},
        {"params.0.buffer", "1", "params[0].states[0].buffer"},
        {"params.1.dims", "[4, 3, 2]", "params[1].dims"},
        {"params.1.name", "\"no.star\"", "params[1].name"},
        {"params.1.states.1.buffer", "4", "params[1].states[1].buffer"},
        {"params.0.init", "\"uniform\"", "params[0].init"},
        {"params.0.std", "-1", "params[0].std"},
        {"programs.train.slab_bytes", "64", "slab"},
        {"programs.train.slab_bytes", "-1", "slab_bytes"},
        {"programs.train.values.0.buffer", "60", "programs.train.values[0].buffer"},
        {"programs.train.values.18.slab", "3", "programs.train.values[18].slab"},
        {"programs.train.values.18.slab", "1000000000", "programs.train.values[18].slab"},
        {"programs.train.values.18.bytes", "1000000000", "programs.train.values[18].bytes"},
        {"programs.train.inputs.0.value", "99", "programs.train.inputs[0].value"},
        {"programs.train.inputs.0.value", "0", "programs.train.inputs[0].value"},
        {"programs.train.inputs.1.dims", "[4096]", "programs.train.inputs[1].value"},
        {"programs.train.outputs.1.name", "\"loss\"", "programs.train.outputs[1].name"},
        {"programs.train.steps.2.bufs.1", "[99, 0]", "programs.train.steps[2].bufs[1]"},
        {"programs.train.steps.2.bufs.1", "[1, 4096]", "programs.train.steps[2].bufs[1]"},
        {"programs.train.steps.2.bufs.1", "[1, -4]", "programs.train.steps[2].bufs[1]"},
        {"programs.train.steps.2.bufs.1", "7", "programs.train.steps[2].bufs[1]"},
        {"programs.train.steps.2.kernel", "\"a b\"", "programs.train.steps[2].kernel"},
        {"programs.train.steps.0.phase", "\"update\"", "programs.train.steps[1].phase"},
        {"programs.train.steps.0.phase", "\"later\"", "programs.train.steps[0].phase"},
        {"programs.train.accumulates.1.elements", "9", "programs.train.accumulates[1].elements"},
        {"programs.train.accumulates.1.slots", "[]", "programs.train.accumulates[1].slots"},
        {"programs.train.batch_sums.0.value", "-2", "programs.train.batch_sums[0].value"},
        {"programs", "[]", "programs"},
        {"model", "1", "model"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        json_t *j = fake_json(2);
        MoePlan *p = NULL;
        set_at(j, cases[i].path, cases[i].value);
        const char *wrong = moe_test_error(load_json(j, &p), MOE_E_CORRUPT, "p.json",
                                           "damaged plan", cases[i].named, NULL);
        ck_assert_msg(!wrong, "%s = %s: %s", cases[i].path, cases[i].value, wrong);
        json_decref(j);
    }
    json_t *j = fake_json(2);
    MoePlan *p = NULL;
    set_at(j, "format_version", "2");
    FAILS(load_json(j, &p), MOE_E_INPUT, "another moec", "compile it again");
    json_decref(j);
    /* Folds in a plan of one micro-batch. */
    j = fake_json(2);
    set_at(j, "micro_batches", "1");
    FAILS(load_json(j, &p), MOE_E_CORRUPT, "accumulates", "empty with one micro-batch");
    json_decref(j);
    /* Ports that the runtime needs. */
    static const char *const renamed[][2] = {{"programs.train.outputs.0.name", "loss"},
                                             {"programs.train.inputs.0.name", "tok"},
                                             {"programs.train.outputs.5.name", "segs.0"},
                                             {"programs.eval.outputs.0.name", "nll_sum"},
                                             {"programs.logits.outputs.0.name", "logits"}};
    for (size_t i = 0; i < 5; i++) {
        MoeExec *x;
        j = fake_json(1);
        set_at(j, renamed[i][0], "\"other\"");
        OK(load_json(j, &p));
        FAILS(moe_exec_create(p, NULL, 1, &x), MOE_E_CORRUPT, "damaged plan", renamed[i][1]);
        moe_plan_free(p);
        json_decref(j);
    }
}
END_TEST

/* Every value of the file in turn made something else: an error or a plan, never a crash
 * (sanitizers watch). */
static int n_changed, n_refused;

static void try_load(json_t *root) {
    MoePlan *p = NULL;
    MoeExec *x = NULL;
    MoeStatus st = load_json(root, &p);
    n_changed++;
    n_refused += st != NULL;
    moe_status_free(st);
    if (p && p->batch * p->seq < 1000 && moe_plan_program(p, "train") &&
        moe_plan_program(p, "train")->slab_bytes < 1 << 20) {
        moe_status_free(moe_exec_create(p, NULL, 1, &x));
        moe_exec_destroy(x);
    }
    moe_plan_free(p);
}

static void change_all(json_t *root, json_t *at) {
    static const char *const values[] = {"-1",    "null", "7",  "1152921504606846976",
                                         "\"x\"", "[]",   "{}", "1e300"};
    const char *key;
    json_t *v;
    size_t i;
    for (size_t k = 0; k < sizeof values / sizeof *values; k++) {
        json_t *bad = json_loads(values[k], JSON_DECODE_ANY, NULL);
        void *next;
        json_object_foreach_safe(at, next, key, v) {
            json_incref(v);
            json_object_set(at, key, bad);
            try_load(root);
            json_object_set_new(at, key, v);
        }
        for (i = 0; json_is_array(at) && i < json_array_size(at); i++) {
            v = json_incref(json_array_get(at, i));
            json_array_set(at, i, bad);
            try_load(root);
            json_array_set_new(at, i, v);
        }
        json_decref(bad);
    }
    json_object_foreach(at, key, v) change_all(root, v);
    json_array_foreach(at, i, v) change_all(root, v);
}

START_TEST(test_every_value) {
    json_t *j = fake_json(2);
    json_object_del(json_object_get(j, "programs"), "logits"); /* large */
    change_all(j, json_object_get(j, "programs"));
    change_all(j, json_object_get(j, "params"));
    change_all(j, json_object_get(j, "buffers"));
    ck_assert_int_gt(n_changed, 1000);
    ck_assert_int_gt(n_refused, n_changed / 2);
    json_decref(j);
}
END_TEST

/* ---- several ranks ---- */

/* Two ranks that divide three experts: every collective, one of them split, an elastic value, sliced and whole
 * parameters. */
static const char ranks_json[] =
    "{\"format_version\": 1, \"abi\": 1, \"target\": \"cpu:generic\", \"model\": {}, "
    "\"tokenizer\": \"byte\","
    " \"vocab_size\": 256, \"batch\": 4, \"seq\": 2, \"virtual_shards\": 4, \"micro_batches\": 1, "
    "\"dtype\": \"f32\","
    " \"moe_layers\": [0], \"experts\": 3, \"experts_per_token\": 2, \"ranks\": 4, \"slots\": 2,"
    " \"mesh\": {\"dp\": 1, \"shard\": 2, \"ep\": 2, \"tp\": 1, \"dense_shard\": 4},"
    " \"buffers\": [{\"name\": \"w\", \"dtype\": \"f32\", \"dims\": [4096], \"bytes\": 16384},"
    "  {\"name\": \"m\", \"dtype\": \"f32\", \"dims\": [4096], \"bytes\": 16384},"
    "  {\"name\": \"e\", \"dtype\": \"f32\", \"dims\": [2, 4096], \"bytes\": 32768}],"
    " \"params\": [{\"name\": \"w\", \"dims\": [128, 100], \"stacked\": false, \"expert\": false, "
    "\"tp_dim\": -1, \"init\": \"ones\","
    "   \"decay\": true, \"buffer\": 0, \"states\": [{\"name\": \"m\", \"buffer\": 1}]},"
    "  {\"name\": \"e.*\", \"dims\": [3, 80, 60], \"stacked\": true, \"expert\": true, \"tp_dim\": "
    "1, \"init\": \"ones\","
    "   \"decay\": true, \"buffer\": 2, \"states\": []}],"
    " \"programs\": {\"t\": {\"slab_bytes\": 262144, \"slab_lower_bound\": 1, \"scratch_bytes\": "
    "0, \"elastic_bytes\": 65536,"
    "  \"elastic_expect\": 512,"
    "  \"values\": [{\"buffer\": 0}, {\"slab\": 0, \"bytes\": 51200}, {\"slab\": 51200, \"bytes\": "
    "51200},"
    "   {\"slab\": 102400, \"bytes\": 64}, {\"slab\": 102464, \"bytes\": 64}, {\"input\": "
    "\"segs\", \"bytes\": 100},"
    "   {\"slab\": 196608, \"bytes\": 1024, \"expect\": 512, \"rows\": 5, \"row_bytes\": 8},"
    "   {\"slab\": 102528, \"bytes\": 16384}],"
    "  \"inputs\": [], \"outputs\": [],"
    "  \"steps\": ["
    "   {\"name\": \"a\", \"kind\": \"comm\", \"phase\": \"forward\", \"count\": false, \"layer\": "
    "0, \"start\": true, \"comm\": ["
    "    {\"op\": \"all_gather\", \"in\": [0], \"out\": 1, \"dtype\": \"f32\", \"group\": "
    "\"dense_shard\", \"unit\": 4096, \"outer\": 1,"
    "     \"elements\": 12800},"
    "    {\"op\": \"all_gather_rows\", \"in\": [3], \"out\": 4, \"group\": \"ep\", \"row_bytes\": "
    "8, \"rows\": 4}]},"
    "   {\"name\": \"b\", \"kind\": \"comm\", \"phase\": \"forward\", \"count\": false, \"layer\": "
    "0, \"comm\": ["
    "    {\"op\": \"a2a_dispatch\", \"in\": [3, 5, 5, 5], \"out\": 6, \"group\": \"ep\", "
    "\"row_bytes\": 8, \"chunks\": 2, \"capacity\": 128, \"chunk\": 1},"
    "    {\"op\": \"a2a_combine\", \"in\": [3, 5, 5, 5], \"out\": 4, \"group\": \"ep\", "
    "\"row_bytes\": 8, \"slots\": 2, \"experts\": 3, \"range\": [0, 1]}]},"
    "   {\"name\": \"w\", \"kind\": \"wait\", \"phase\": \"backward\", \"count\": false, "
    "\"layer\": 0, \"wait\": 0},"
    "   {\"name\": \"c\", \"kind\": \"comm\", \"phase\": \"reduce\", \"count\": false, \"layer\": "
    "-1, \"comm\": ["
    "    {\"op\": \"reduce_scatter\", \"in\": [2], \"out\": 7, \"sum\": \"data\", \"scatter\": "
    "\"dense_shard\", \"unit\": 4096,"
    "     \"outer\": 1, \"elements\": 12800},"
    "    {\"op\": \"all_reduce\", \"in\": [3], \"out\": 4, \"dtype\": \"i32\", \"group\": "
    "\"data\", \"elements\": 16},"
    "    {\"op\": \"all_gather_rows\", \"in\": [3, 5], \"out\": 6, \"group\": \"ep\", "
    "\"row_bytes\": 8}]},"
    "   {\"name\": \"k\", \"kernel\": \"k\", \"kind\": \"gemm\", \"phase\": \"reduce\", \"count\": "
    "false, \"layer\": 0,"
    "    \"bufs\": [[3, 0], [5, 0]], \"slots\": [1, 2], \"segs\": 5}]}}}";

static json_t *json_of_ranks(void) {
    json_t *j = NULL;
    OK(moe_json_load_text(ranks_json, sizeof ranks_json - 1, "ranks", &j));
    return j;
}

START_TEST(test_ranks) {
    json_t *j = json_of_ranks();
    MoePlan *p;
    MoeExec *x;
    OK(load_json(j, &p));
    ck_assert(p->ranks == 4 && p->slots == 2 && p->mesh.shard == 2 && p->mesh.dense_shard == 4);
    ck_assert(p->params[1].expert && p->params[1].tp_dim == 1 && p->params[1].dims[0] == 3);
    ck_assert_int_eq(p->params[0].elements, 12800);
    ck_assert_int_eq(p->buffers[p->params[0].buffer].elements, 4096); /* of 4 blocks, one each */
    const MoePlanProgram *g = moe_plan_program(p, "t");
    ck_assert(g->steps[0].start && g->steps[0].n_comm == 2 && !g->steps[0].kernel);
    ck_assert(g->steps[2].wait == 0 && g->steps[0].wait == -1 && g->steps[3].wait == -1);
    ck_assert(g->steps[3].comm[0].group == MOE_GROUP_DATA &&
              g->steps[3].comm[0].scatter == MOE_GROUP_DENSE_SHARD);
    ck_assert(g->steps[1].comm[0].lo == 1 && g->steps[1].comm[0].hi == 2); /* chunks */
    ck_assert(g->steps[1].comm[1].lo == 0 && g->steps[1].comm[1].hi == 1); /* slots */
    ck_assert(g->steps[4].slot_lo == 1 && g->steps[4].slot_hi == 2 && g->steps[4].segs == 5);
    ck_assert(g->values[6].elastic && g->values[6].rows == 5 && g->values[6].row_bytes == 8);
    FAILS(moe_exec_create(p, NULL, 1, &x), MOE_E_MISUSE, "for 4 ranks", "--ranks 1");
    moe_plan_free(p);
    json_decref(j);
}
END_TEST

START_TEST(test_ranks_damage) {
    static const struct {
        const char *path, *value, *named;
    } cases[] = {
        {"ranks", "2", "ranks is 2, but the mesh has 4"},
        {"ranks", "0", "ranks"},
        {"slots", "3", "slots is 3, expected 2"},
        {"mesh.ep", "0", "mesh.ep"},
        {"mesh.ep", "3", "mesh does not hold together"},
        {"mesh.dp", "4", "virtual shards"},
        {"mesh.dense_shard", "3", "dense shard degree 3"},
        {"mesh", "7", "mesh.dp"},
        {"params.0.dims", "[200, 100]", "params[0].buffer"},
        {"params.0.tp_dim", "2", "params[0].tp_dim"},
        {"params.1.dims", "[2, 80, 60]", "params[1].expert"},
        {"params.1.expert", "false", "params[1].buffer"},
        {"params.1.tp_dim", "0", "params[1].tp_dim"},
        {"params.0.expert", "true", "params[0].expert"},
        {"programs.t.elastic_bytes", "300000", "elastic_bytes"},
        {"programs.t.elastic_bytes", "1024", "values[6].slab"},
        {"programs.t.elastic_expect", "70000", "elastic_expect"},
        {"programs.t.values.6.expect", "1025", "values[6].expect"},
        {"programs.t.values.6.rows", "8", "values[6].rows"},
        {"programs.t.values.6.row_bytes", "0", "values[6].row_bytes"},
        {"programs.t.values.6.slab", "1024", "values[6].slab"},
        {"programs.t.values.1.bytes", "300000", "values[1].bytes"},
        {"programs.t.values.5.bytes", "4", "values[6].rows"},
        {"programs.t.steps.0.comm", "[]", "steps[0].comm"},
        {"programs.t.steps.0.comm.0.op", "\"gather\"", "steps[0].comm[0].op"},
        {"programs.t.steps.0.comm.0.in", "[0, 1]", "steps[0].comm[0].in"},
        {"programs.t.steps.0.comm.0.in", "[12]", "steps[0].comm[0].in"},
        {"programs.t.steps.0.comm.0.out", "-1", "steps[0].comm[0].out"},
        {"programs.t.steps.0.comm.0.out", "3", "steps[0].comm[0].out"},
        {"programs.t.steps.0.comm.0.group", "\"dense\"", "steps[0].comm[0].group"},
        {"programs.t.steps.0.comm.0.group", "\"ep\"", "steps[0].comm[0].in"},
        {"programs.t.steps.0.comm.0.dtype", "\"f64\"", "steps[0].comm[0].dtype"},
        {"programs.t.steps.0.comm.0.elements", "12801", "steps[0].comm[0].out"},
        {"programs.t.steps.0.comm.0.unit", "0", "steps[0].comm[0].unit"},
        {"programs.t.steps.0.comm.0.outer", "0", "steps[0].comm[0].outer"},
        {"programs.t.steps.0.comm.1.rows", "5", "steps[0].comm[1].out"},
        {"programs.t.steps.0.comm.1.out", "3", "[1] has its result where [1] reads value 3"},
        {"programs.t.steps.0.comm.1.in", "[1]", "[0] has its result where [1] reads value 1"},
        {"programs.t.steps.1.comm.0.out", "4", "steps[1].comm[0].out"},
        {"programs.t.steps.1.comm.0.chunks", "13", "steps[1].comm[0].in"},
        {"programs.t.steps.1.comm.0.capacity", "129", "steps[1].comm[0].out"},
        {"programs.t.steps.1.comm.0.group", "\"data\"", "steps[1].comm[0].group"},
        {"programs.t.steps.1.comm.1.slots", "7", "steps[1].comm[1].in"},
        {"programs.t.steps.1.comm.1.experts", "5", "steps[1].comm[1].experts"},
        {"programs.t.steps.1.comm.1.row_bytes", "0", "steps[1].comm[1].row_bytes"},
        {"programs.t.steps.1.comm.0.chunk", "2", "steps[1].comm[0].chunk"},
        {"programs.t.steps.1.comm.1.range", "[1, 1]", "steps[1].comm[1].range is no range of the 2"},
        {"programs.t.steps.1.comm.1.range", "[0, 3]", "steps[1].comm[1].range is no range of the 2"},
        {"programs.t.steps.1.comm.1.range", "[0, 1, 2]", "steps[1].comm[1].range"},
        {"programs.t.steps.4.slots", "[-1, 2]", "steps[4].slots is no range of the 2"},
        {"programs.t.steps.4.slots", "7", "steps[4].slots"},
        {"programs.t.steps.4.segs", "8", "steps[4].segs"},
        {"programs.t.steps.0.start", "false", "wait 0 is not a step that starts"},
        {"programs.t.steps.2.wait", "1", "wait 1 is not a step that starts"},
        {"programs.t.steps.2.wait", "2", "steps[2].wait"},
        {"programs.t.steps.2.count", "true", "another time"},
        {"programs.t.steps.2.phase", "\"reduce\"", "another time"},
        {"programs.t.steps.1.start", "true", "steps[1].start is true, and no step waits"},
        {"programs.t.steps.3.comm.0.scatter", "\"ep\"", "steps[3].comm[0].out"},
        {"programs.t.steps.3.comm.0.sum", "\"ep\"", "dense_shard is not inside ep"},
        {"programs.t.steps.3.comm.1.dtype", "\"bf16\"", "sums are f32 or i32"},
        {"programs.t.steps.3.comm.1.elements", "17", "steps[3].comm[1].in"},
        {"programs.t.steps.3.comm.2.in", "[3, 1, 5]", "steps[3].comm[2].in"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        json_t *j = json_of_ranks();
        MoePlan *p = NULL;
        set_at(j, cases[i].path, cases[i].value);
        const char *wrong =
            moe_test_error(load_json(j, &p), MOE_E_CORRUPT, "damaged plan", cases[i].named, NULL);
        ck_assert_msg(!wrong, "%s = %s: %s", cases[i].path, cases[i].value, wrong);
        json_decref(j);
    }
    json_t *j = json_of_ranks();
    change_all(j, j);
    ck_assert_int_gt(n_refused, n_changed / 2);
    json_decref(j);
}
END_TEST

/* The same with a second division: layers 1 and 2 have their experts over all four ranks, the last layer over shards alone.
 * Parameter 2 is of the first of these, and so is an exchange. */
static json_t *json_of_divisions(void) {
    json_t *j = json_of_ranks();
    set_at(j, "mesh.layers",
           "[{\"first\": 1, \"last\": 2, \"dp\": 1, \"shard\": 1, \"ep\": 4},"
           " {\"first\": 3, \"last\": 3, \"dp\": 2, \"shard\": 2, \"ep\": 1}]");
    set_at(j, "moe_layers", "[0, 1, 2, 3]");
    json_array_append_new(json_object_get(j, "buffers"),
                          json_pack("{s:s, s:s, s:[i,i,i], s:i}", "name", "f", "dtype", "f32",
                                    "dims", 1, 80, 60, "bytes", 19200));
    json_array_append_new(json_object_get(j, "params"),
                          json_pack("{s:s, s:[i,i,i], s:b, s:b, s:i, s:i, s:s, s:b, s:i, s:[]}",
                                    "name", "f.*", "dims", 3, 80, 60, "stacked", 1, "expert", 1,
                                    "tp_dim", 1, "mesh", 1, "init", "ones", "decay", 1, "buffer", 3,
                                    "states"));
    set_at(j, "programs.t.steps.3.comm.2.group", "\"ep.1\"");
    return j;
}

START_TEST(test_divisions) {
    json_t *j = json_of_divisions();
    MoePlan *p;
    OK(load_json(j, &p));
    ck_assert(p->mesh.n_ranges == 2 && p->mesh.ranges[0].ep == 4 && p->mesh.ranges[1].dp == 2);
    ck_assert_int_eq(moe_mesh_of_layer(&p->mesh, 0), 0);
    ck_assert_int_eq(moe_mesh_of_layer(&p->mesh, 2), 1);
    ck_assert_int_eq(moe_mesh_of_layer(&p->mesh, 3), 2);
    ck_assert(p->params[1].division == 0 && p->params[2].division == 1);
    ck_assert_int_eq(p->buffers[p->params[2].buffer].dims[0], 1); /* three experts on four ranks */
    const MoePlanComm *c = &moe_plan_program(p, "t")->steps[3].comm[2];
    ck_assert(c->group == moe_mesh_group_in(MOE_GROUP_EP, 1) && c->group != MOE_GROUP_EP);
    moe_plan_free(p);
    json_decref(j);
}
END_TEST

START_TEST(test_divisions_damage) {
    static const char range[] = "{\"first\": 5, \"last\": 5, \"dp\": 1, \"shard\": 1, \"ep\": 4}";
    static const struct {
        const char *path, *value, *named;
    } cases[] = {
        {"mesh.layers", "7", "mesh.layers"},
        {"mesh.layers", "{}", "mesh.layers"},
        {"mesh.layers.0", "7", "mesh.layers[0].first"},
        {"mesh.layers.1.ep", "0", "mesh.layers[1].ep"},
        {"mesh.layers.1.ep", "\"1\"", "mesh.layers[1].ep"},
        {"mesh.layers.0.shard", "4097", "mesh.layers[0].shard"},
        {"mesh.layers.0.first", "-1", "mesh.layers[0].first"},
        {"mesh.layers.0.last", "0", "layers 1 to 0: no range"},
        {"mesh.layers.1.first", "2", "layers 1 to 2 and layers 2 to 3"},
        {"mesh.layers.0.ep", "2", "1 x 1 x 2 (data parallel x hybrid shard"},
        {"mesh.layers.1.dp", "4", "are not the 4 data ranks"},
        {"mesh.dp", "2", "ranks"},
        {"params.2.mesh", "3", "params[2].mesh"},
        {"params.2.mesh", "-1", "params[2].mesh"},
        {"params.2.mesh", "null", "params[2].mesh"},
        {"params.2.mesh", "0", "params[2].buffer"},
        {"params.2.mesh", "2", "params[2].buffer"},
        {"params.1.mesh", "1", "params[1].buffer"},
        {"params.0.mesh", "1", "params[0].mesh is 1, but the parameter is no expert's"},
        {"programs.t.steps.3.comm.2.group", "\"ep.3\"", "steps[3].comm[2].group"},
        {"programs.t.steps.3.comm.2.group", "\"ep.0\"", "steps[3].comm[2].group"},
        {"programs.t.steps.3.comm.2.group", "\"data.1\"", "steps[3].comm[2].group"},
        {"programs.t.steps.3.comm.2.group", "\"ep.16\"", "steps[3].comm[2].group"},
        {"programs.t.steps.0.comm.1.group", "\"ep.1\"", "steps[0].comm[1].out"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        json_t *j = json_of_divisions();
        MoePlan *p = NULL;
        set_at(j, cases[i].path, cases[i].value);
        const char *wrong =
            moe_test_error(load_json(j, &p), MOE_E_CORRUPT, "damaged plan", cases[i].named, NULL);
        ck_assert_msg(!wrong, "%s = %s: %s", cases[i].path, cases[i].value, wrong);
        json_decref(j);
    }
    json_t *j = json_of_divisions(),
           *ranges = json_object_get(json_object_get(j, "mesh"), "layers");
    MoePlan *p = NULL;
    while (json_array_size(ranges) <= MOE_MAX_RANGES)
        json_array_append_new(ranges, json_loads(range, 0, NULL));
    FAILS(load_json(j, &p), MOE_E_CORRUPT, "mesh.layers has 16 ranges, at most 15");
    json_decref(j);
    j = json_of_divisions();
    n_changed = n_refused = 0;
    change_all(j, json_object_get(j, "mesh"));
    change_all(j, json_object_get(j, "params"));
    ck_assert_int_gt(n_changed, 100);
    ck_assert_int_gt(n_refused, n_changed / 2);
    json_decref(j);
}
END_TEST

/* ---- linking ---- */

/* A kernel that needs memcpy and libm from the process: out[i] = expf(in[i]) for task i. */
static const char kernel_ir[] = "declare float @expf(float)\n"
                                "declare ptr @memcpy(ptr, ptr, i64)\n"
                                "define i64 @k_exp_tasks(ptr %bufs) {\n  ret i64 3\n}\n"
                                "define void @k_exp(ptr %bufs, i64 %task, ptr %scratch) {\n"
                                "  %in = load ptr, ptr %bufs\n"
                                "  %q = getelementptr ptr, ptr %bufs, i64 1\n"
                                "  %out = load ptr, ptr %q\n"
                                "  %p = getelementptr float, ptr %in, i64 %task\n"
                                "  %c = call ptr @memcpy(ptr %scratch, ptr %p, i64 4)\n"
                                "  %v = load float, ptr %scratch\n"
                                "  %e = call float @expf(float %v)\n"
                                "  %r = getelementptr float, ptr %out, i64 %task\n"
                                "  store float %e, ptr %r\n  ret void\n}\n";

static LLVMMemoryBufferRef compile(const char *ir) {
    char *error = NULL, *triple = LLVMGetDefaultTargetTriple();
    LLVMModuleRef m;
    LLVMTargetRef target;
    LLVMMemoryBufferRef object;
    LLVMContextRef cx = LLVMContextCreate();
    LLVMInitializeNativeTarget();
    LLVMInitializeNativeAsmPrinter();
    ck_assert(!LLVMParseIRInContext(
        cx, LLVMCreateMemoryBufferWithMemoryRangeCopy(ir, strlen(ir), "ir"), &m, &error));
    ck_assert(!LLVMGetTargetFromTriple(triple, &target, &error));
    LLVMTargetMachineRef tm = LLVMCreateTargetMachine(
        target, triple, "generic", "", LLVMCodeGenLevelDefault, LLVMRelocPIC, LLVMCodeModelDefault);
    ck_assert(!LLVMTargetMachineEmitToMemoryBuffer(tm, m, LLVMObjectFile, &error, &object));
    LLVMDisposeTargetMachine(tm);
    LLVMDisposeModule(m);
    LLVMContextDispose(cx);
    LLVMDisposeMessage(triple);
    return object;
}

/* A plan of one program with one step of `kernel`. */
static void link_plan_json(MoeStr *s, const char *kernel, const char *hash) {
    moe_str_printf(s,
                   "{\"format_version\": 1, \"abi\": 1, \"target\": \"cpu:generic\", \"model\": "
                   "{}, \"tokenizer\": \"byte\", \"vocab_size\": 256,"
                   "\"batch\": 1, \"seq\": 1, \"virtual_shards\": 1, \"micro_batches\": 1, "
                   "\"dtype\": \"f32\", \"moe_layers\": [],"
                   "\"experts\": 0, \"experts_per_token\": 0, \"kernels_xxh3\": \"%s\", "
                   "\"params\": [], \"buffers\": [],"
                   "\"programs\": {\"p\": {\"slab_bytes\": 128, \"slab_lower_bound\": 128, "
                   "\"scratch_bytes\": 64,"
                   "\"values\": [{\"slab\": 0, \"bytes\": 12}, {\"slab\": 64, \"bytes\": 12}], "
                   "\"inputs\": [], \"outputs\": [],"
                   "\"steps\": [{\"name\": \"s\", \"kernel\": \"%s\", \"phase\": \"forward\", "
                   "\"count\": false, \"kind\": \"k\","
                   "\"layer\": -1, \"bufs\": [[0, 0], [1, 0]]}]}}}",
                   hash, kernel);
}

static void write_plan(const char *dir, const char *kernel, const char *hash, const void *object,
                       size_t n) {
    MoeStr s = {0};
    char *json = moe_path_join(dir, "plan.json"), *obj = moe_path_join(dir, "kernels.o");
    OK(moe_dir_make(dir));
    link_plan_json(&s, kernel, hash);
    OK(moe_file_write_atomic(json, s.data, s.len));
    OK(moe_file_write_atomic(obj, object, n));
    moe_str_free(&s);
    free(json);
    free(obj);
}

START_TEST(test_links) {
    LLVMMemoryBufferRef object = compile(kernel_ir);
    const void *data = LLVMGetBufferStart(object);
    size_t n = LLVMGetBufferSize(object);
    char hash[33], *dir = strdup(moe_test_path("a.plan"));
    moe_hash_hex(data, n, hash);
    MoePlan *p = NULL;
    write_plan(dir, "k_exp", hash, data, n);
    OK(moe_plan_load(dir, &p));
    ck_assert_str_eq(p->dir, dir);
    const MoePlanStep *s = &p->programs[0].steps[0];
    float in[3] = {0, 1, -2}, out[3] = {0}, scratch[16];
    void *bufs[] = {in, out};
    ck_assert_int_eq(s->tasks(bufs), 3);
    for (int t = 0; t < 3; t++)
        s->run(bufs, t, scratch);
    ck_assert_float_eq(out[0], 1);
    ck_assert_float_eq_tol(out[1], 2.7182817f, 1e-6f);
    ck_assert_float_eq_tol(out[2], 0.13533528f, 1e-6f);
    moe_plan_free(p);

    write_plan(dir, "k_other", hash, data, n);
    FAILS(moe_plan_load(dir, &p), MOE_E_CORRUPT, "programs.p.steps[0]", "k_other");
    write_plan(dir, "exit", hash, data,
               n); /* the process has it; a plan's kernels come from the plan */
    FAILS(moe_plan_load(dir, &p), MOE_E_CORRUPT, "programs.p.steps[0]", "exit");
    write_plan(dir, "k_exp", "00000000000000000000000000000000", data, n);
    FAILS(moe_plan_load(dir, &p), MOE_E_CORRUPT, "kernels.o does not match");
    char junk[] = "not an object file at all, whatever it says";
    moe_hash_hex(junk, sizeof junk, hash);
    write_plan(dir, "k_exp", hash, junk, sizeof junk);
    FAILS(moe_plan_load(dir, &p), MOE_E_CORRUPT, dir);
    FAILS(moe_plan_load(moe_test_path("absent.plan"), &p), MOE_E_INPUT, "absent.plan",
          "moec compile");
    FAILS(moe_plan_load(moe_test_dir(), &p), MOE_E_INPUT, "plan.json");
    LLVMDisposeMemoryBuffer(object);
    free(dir);
}
END_TEST

START_TEST(test_target) {
    MoePlan *p = NULL;
    json_t *j = fake_json(1);
    char *text;
    set_at(j, "target", "\"npu:one\"");
    text = json_dumps(j, 0);
    FAILS(moe_plan_load_memory(text, strlen(text), "p", "x", 1, &p), MOE_E_INPUT, "npu:one",
          "compile");
    free(text);
    json_decref(j);
}
END_TEST

int main(void) {
    Suite *s = suite_create("plan");
    TCase *t = tcase_create("plan");
    tcase_set_timeout(t, 120);
    tcase_add_test(t, test_reads);
    tcase_add_test(t, test_damage);
    tcase_add_test(t, test_every_value);
    tcase_add_test(t, test_ranks);
    tcase_add_test(t, test_ranks_damage);
    tcase_add_test(t, test_divisions);
    tcase_add_test(t, test_divisions_damage);
    tcase_add_test(t, test_links);
    tcase_add_test(t, test_target);
    suite_add_tcase(s, t);
    return moe_check_main(s);
}
