/* memplan: placement by itself; then whole plans run on a slab of tags. Every step checks that what it reads still stands
 * where it was written, through all micro-batches, the counting pass and the folding of partial sums: buffers that overlap
 * in time and place, a wrong alias or a value freed too early all show up as a foreign tag. */
#include <check.h>
#include <stdlib.h>
#include <string.h>
#include "base/arena.h"
#include "base/kernel_abi.h"
#include "base/rng.h"
#include "ir/text.h"
#include "passes/group.h"
#include "passes/memplan.h"
#include "passes/pipeline.h"
#include "tests/support/check_main.h"
#include "tests/support/files.h"
#include "tests/support/mesh.h"
#include "tests/support/pass_model.h"
#include "tests/support/status_checks.h"

static void ok(MoeStatus st) {
    ck_assert_msg(!st, "%s", moe_status_message(st));
}

/* ---- placement ---- */

static void check_no_overlap(const MoeInterval *v, size_t n, int64_t peak) {
    for (size_t i = 0; i < n; i++) {
        ck_assert_int_ge(v[i].offset, 0);
        ck_assert_int_eq(v[i].offset % MOE_BUFFER_ALIGN, 0);
        ck_assert_int_le(v[i].offset + v[i].bytes, peak);
        for (size_t k = 0; k < i; k++) {
            bool time = v[i].start <= v[k].end && v[k].start <= v[i].end;
            bool place =
                v[i].offset < v[k].offset + v[k].bytes && v[k].offset < v[i].offset + v[i].bytes;
            ck_assert_msg(!time || !place, "buffers %zu and %zu overlap", k, i);
        }
    }
}

START_TEST(test_place_random) {
    for (uint64_t seed = 0; seed < 60; seed++) {
        MoeArena *a = moe_arena_create();
        MoeInterval v[80], w[80];
        size_t n = (size_t)moe_rng_below(seed, 0, 0, 80);
        for (size_t i = 0; i < n; i++) {
            int start = (int)moe_rng_below(seed, 1, i, 50);
            v[i] = (MoeInterval){.bytes = 64 * (int64_t)(1 + moe_rng_below(seed, 2, i, 100)),
                                 .start = start,
                                 .end = start +
                                        (int)moe_rng_below(seed, 3, i, (uint64_t)(50 - start))};
            w[i] = v[i];
        }
        int64_t bound = moe_place_lower_bound(v, n, 50, NULL), peak = moe_place(v, n, bound, a);
        check_no_overlap(v, n, peak);
        ck_assert_int_ge(peak, bound);
        ck_assert_msg((double)peak <= 1.15 * (double)bound, "seed %d: %ld over %ld", (int)seed,
                      (long)peak, (long)bound);
        ck_assert_int_eq(moe_place(w, n, bound, a), peak); /* twice the same */
        for (size_t i = 0; i < n; i++)
            ck_assert_int_eq(w[i].offset, v[i].offset);
        moe_arena_destroy(a);
    }
}
END_TEST

START_TEST(test_place_stack_is_perfect) { /* forward and backward: last made, first freed */
    MoeArena *a = moe_arena_create();
    MoeInterval v[40];
    for (int i = 0; i < 40; i++)
        v[i] = (MoeInterval){.bytes = 64 * (1 + (i * 37) % 11), .start = i, .end = 79 - i};
    int step;
    int64_t bound = moe_place_lower_bound(v, 40, 80, &step);
    ck_assert_int_eq(step, 39);
    ck_assert_int_eq(moe_place(v, 40, bound, a), bound);
    moe_arena_destroy(a);
}
END_TEST

/* ---- buffers of both kinds ---- */

static int64_t counted(const MoeSlabBuffer *b) {
    return b->expect >= 0 ? b->expect : b->bytes;
}

/* Elastic buffers have room for the worst case, whatever lives at the time. */
static void check_slab(const MoeSlabBuffer *v, size_t n, const MoeSlab *slab) {
    int64_t seam = slab->slab_bytes - slab->elastic_bytes, live = 0;
    for (size_t i = 0; i < n; i++) {
        int64_t now = 0, last = slab->slab_bytes - MOE_BUFFER_SLACK;
        ck_assert_int_eq(v[i].offset % MOE_BUFFER_ALIGN, 0);
        ck_assert_int_ge(v[i].offset, v[i].expect >= 0 ? seam : 0);
        ck_assert_int_le(v[i].offset + v[i].bytes, last);
        ck_assert(v[i].offset >= seam || v[i].offset + v[i].bytes <= seam - MOE_BUFFER_SLACK);
        for (size_t k = 0; k < n; k++) {
            now += v[k].start <= v[i].start && v[i].start <= v[k].end ? counted(&v[k]) : 0;
            if (k < i && v[i].start <= v[k].end && v[k].start <= v[i].end)
                ck_assert_msg(v[i].offset + v[i].bytes <= v[k].offset ||
                                  v[k].offset + v[k].bytes <= v[i].offset,
                              "buffers %zu and %zu overlap", k, i);
        }
        live = now > live ? now : live;
    }
    ck_assert_int_eq(live, slab->lower_bound);
    ck_assert_int_ge(seam - MOE_BUFFER_SLACK + slab->elastic_expect, live);
}

START_TEST(test_slab_random) {
    for (uint64_t seed = 0; seed < 60; seed++) {
        MoeArena *a = moe_arena_create();
        MoeSlabBuffer v[90];
        size_t n = (size_t)moe_rng_below(seed, 0, 0, 90);
        for (size_t i = 0; i < n; i++) {
            int start = (int)moe_rng_below(seed, 1, i, 40);
            int64_t bytes = 64 * (int64_t)(1 + moe_rng_below(seed, 2, i, 100));
            bool elastic = moe_rng_below(seed, 5, i, 3) == 0;
            v[i] = (MoeSlabBuffer){.bytes = bytes,
                                   .expect = elastic ? bytes : -1,
                                   .start = start,
                                   .end = start +
                                          (int)moe_rng_below(seed, 3, i, (uint64_t)(40 - start))};
            if (elastic)
                v[i].bytes *= (int64_t)(2 + moe_rng_below(seed, 4, i, 7));
        }
        MoeSlab slab = moe_slab_place(v, n, 40, a);
        check_slab(v, n, &slab);
        int64_t touched = slab.slab_bytes - slab.elastic_bytes + slab.elastic_expect;
        ck_assert_msg((double)touched <= 1.6 * (double)slab.lower_bound + MOE_BUFFER_SLACK,
                      "seed %d: %ld for %ld", (int)seed, (long)touched, (long)slab.lower_bound);
        moe_arena_destroy(a);
    }
}
END_TEST

/* Equal values, as a layer's are: as many lanes as live at a time, each sized for the worst. */
START_TEST(test_lanes_of_equal_values) {
    MoeArena *a = moe_arena_create();
    MoeSlabBuffer v[30];
    for (int i = 0; i < 30; i++)
        v[i] = (MoeSlabBuffer){.bytes = 4096, .expect = 640, .start = i, .end = i + 2};
    MoeSlab slab = moe_slab_place(v, 30, 32, a);
    ck_assert_int_eq(slab.elastic_expect, 3 * 640);
    ck_assert_int_eq(slab.elastic_bytes, 3 * 4096 + MOE_BUFFER_SLACK);
    ck_assert_int_eq(slab.slab_bytes, slab.elastic_bytes + MOE_BUFFER_SLACK);
    slab = moe_slab_place(v, 0, 0, a);
    ck_assert_int_eq(slab.elastic_bytes, 0);
    moe_arena_destroy(a);
}
END_TEST

/* Rows come and go, then gradients stay: they take the lanes that are idle by then, but for the one that is too large. */
START_TEST(test_known_sizes_move_into_idle_lanes) {
    MoeArena *a = moe_arena_create();
    MoeSlabBuffer v[7];
    for (int i = 0; i < 3; i++) {
        v[i] = (MoeSlabBuffer){.bytes = 8192, .expect = 1024, .start = 0, .end = 2};
        v[3 + i] = (MoeSlabBuffer){.bytes = 512, .expect = -1, .start = 3 + i, .end = 9};
    }
    v[6] = (MoeSlabBuffer){.bytes = 2048, .expect = -1, .start = 4, .end = 9};
    MoeSlab slab = moe_slab_place(v, 7, 10, a);
    check_slab(v, 7, &slab);
    ck_assert_int_eq(slab.elastic_expect, 3 * 1024);
    ck_assert_int_eq(slab.slab_bytes - slab.elastic_bytes, 2048 + MOE_BUFFER_SLACK);
    for (int i = 3; i < 6; i++) { /* within what is there anyway */
        int64_t at = v[i].offset - (slab.slab_bytes - slab.elastic_bytes);
        ck_assert_int_ge(at, 0);
        ck_assert_int_le(at % 8192 + v[i].bytes, 1024);
    }
    moe_arena_destroy(a);
}
END_TEST

/* ---- the slab of tags ---- */

enum { UNIT = MOE_BUFFER_ALIGN };

typedef struct {
    const MoeGraph *g;
    const MoeMemoryPlan *m;
    MoeGroups gs;
    int64_t *slab; /* tag of every unit */
    int64_t n_units;
    const MoeValue **of; /* by value id of a param or state: the value whose bits it holds */
    bool *count;
} Machine;

static const MoeValue *root_of(const Machine *x, const MoeValue *v) {
    while (x->m->values[v->id].alias)
        v = x->m->values[v->id].alias;
    return v;
}

/* What was offloaded. */
static bool is_outside(const MoeValue *v) {
    if (v->def->opcode == MOE_OP_WAIT)
        v = v->def->operands[0];
    return v->def->opcode == MOE_OP_OFFLOAD;
}

static bool has_memory(const MoeValue *v) {
    return v->def->opcode != MOE_OP_CONST && v->def->opcode != MOE_OP_INPUT && !is_outside(v);
}

static void tag_range(Machine *x, int64_t offset, int64_t bytes, int64_t tag, const char *what) {
    ck_assert_msg(offset >= 0 && offset + bytes + MOE_BUFFER_SLACK <= x->m->slab_bytes,
                  "%s outside the slab", what);
    for (int64_t u = offset / UNIT; u < (offset + bytes + UNIT - 1) / UNIT; u++)
        x->slab[u] = tag;
}

static void write_value(Machine *x, const MoeValue *v) {
    const MoeValue *r = root_of(x, v);
    if (is_outside(v)) {
        ck_assert_msg(x->m->values[r->id].offset < 0, "what was offloaded has memory");
        return;
    }
    if (r->def->opcode == MOE_OP_PARAM || r->def->opcode == MOE_OP_STATE) {
        x->of[r->id] = v;
        return;
    }
    ck_assert_msg(x->m->values[r->id].offset >= 0, "an output of %s has no memory",
                  moe_op_info(v->def->opcode)->name);
    tag_range(x, x->m->values[r->id].offset, moe_type_bytes(&v->type), v->id, "a value");
}

static void read_value(const Machine *x, const MoeValue *v, const char *reader) {
    if (!has_memory(v))
        return;
    const MoeValue *r = root_of(x, v), *made = v;
    /* with one micro-batch the result of accumulate and batch_sum is its operand, never written itself */
    if (!x->m->n_accumulates)
        while (made->def->opcode == MOE_OP_ACCUMULATE || made->def->opcode == MOE_OP_BATCH_SUM)
            made = made->def->operands[0];
    if (r->def->opcode == MOE_OP_PARAM || r->def->opcode == MOE_OP_STATE) {
        ck_assert_msg(x->of[r->id] == made, "%s reads a parameter or state that was overwritten",
                      reader);
        return;
    }
    int64_t off = x->m->values[r->id].offset;
    for (int64_t u = off / UNIT; u < (off + moe_type_bytes(&v->type) + UNIT - 1) / UNIT; u++)
        CHECK_EACH(x->slab[u] == made->id, "%s: the value of %s is gone (value %d stands there)",
                   reader, moe_op_info(v->def->opcode)->name, (int)x->slab[u]);
}

/* Until an exchange ends nobody touches what it reads and writes. */
static void run_wait(Machine *x, const MoeGroup *g) {
    for (size_t i = 0; i < g->n_ops; i++) {
        const MoeGroup *exchange = &x->gs.groups[x->gs.step_of[g->ops[i]->operands[0]->id]];
        for (size_t k = 0; k < exchange->n_inputs; k++)
            read_value(x, exchange->inputs[k], "an exchange under way");
        for (size_t k = 0; k < exchange->n_outputs; k++)
            read_value(x, exchange->outputs[k], "an exchange under way");
    }
    for (size_t i = 0; i < g->n_outputs; i++) {
        ck_assert(is_outside(g->outputs[i]) ||
                  root_of(x, g->outputs[i]) == root_of(x, g->outputs[i]->def->operands[0]));
        write_value(x, g->outputs[i]);
    }
}

static void run_step(Machine *x, size_t s) {
    const MoeGroup *g = &x->gs.groups[s];
    const char *name = moe_op_info(g->ops[0]->opcode)->name;
    int64_t work = 1000000000 + (int64_t)s;
    if (g->ops[0]->opcode == MOE_OP_WAIT) {
        run_wait(x, g);
        return;
    }
    for (size_t i = 0; i < g->n_inputs; i++)
        read_value(x, g->inputs[i], name);
    if (x->m->workspace_bytes[s]) {
        tag_range(x, x->m->workspace_offset[s], x->m->workspace_bytes[s], work, "a workspace");
        for (size_t i = 0; i < g->n_inputs; i++)
            read_value(x, g->inputs[i], name);
    }
    for (size_t i = 0; i < g->n_outputs; i++)
        write_value(x, g->outputs[i]);
    for (size_t i = 0; i < g->n_outputs; i++)
        read_value(x, g->outputs[i], name); /* outputs do not overlap each other */
    if (x->m->workspace_bytes[s])
        for (int64_t u = x->m->workspace_offset[s] / UNIT;
             u < (x->m->workspace_offset[s] + x->m->workspace_bytes[s]) / UNIT; u++)
            CHECK_EACH(x->slab[u] == work, "%s: its workspace overlaps an output", name);
}

static void run_phases(Machine *x, MoePhase first, MoePhase last, bool count_only) {
    for (size_t s = 0; s < x->gs.n_groups; s++) {
        MoePhase ph = x->gs.groups[s].ops[0]->phase;
        if (ph >= first && ph <= last && (!count_only || x->count[s]))
            run_step(x, s);
    }
}

static void check_slot(const Machine *x, const MoeAccumulateMemory *a, int slot, int64_t tag) {
    for (int64_t u = a->slot_offset[slot] / UNIT;
         u < (a->slot_offset[slot] + a->slot_bytes + UNIT - 1) / UNIT; u++)
        CHECK_EACH(x->slab[u] == tag, "a partial sum is gone");
}

static int64_t slot_tag(size_t acc, int slot) {
    return 2000000000 + (int64_t)acc * 64 + slot;
}

static void fold(Machine *x, int m, int n_micro) {
    for (size_t i = 0; i < x->m->n_accumulates; i++) {
        const MoeAccumulateMemory *a = &x->m->accumulates[i];
        int b = 0;
        read_value(x, a->op->operands[0], "folding");
        for (; m >> b & 1; b++)
            check_slot(x, a, b, slot_tag(i, b));
        if (m + 1 < n_micro)
            tag_range(x, a->slot_offset[b], a->slot_bytes, slot_tag(i, b), "a slot");
        else
            write_value(x, a->op->results[0]);
    }
}

static void run_program(MoePassModel *model, size_t index) {
    MoeArena *arena = moe_arena_create();
    const MoeProgram *p = &model->cx.programs[index];
    int n_micro = model->cx.options.micro_batches;
    Machine x = {.g = p->graph, .m = &p->memory, .n_units = p->memory.slab_bytes / UNIT + 1};
    x.gs = moe_groups_of(x.g, arena);
    x.slab = MOE_NEW_N(arena, int64_t, x.n_units);
    x.of = MOE_NEW_N(arena, const MoeValue *, x.g->n_values);
    x.count = MOE_NEW_N(arena, bool, x.gs.n_groups);
    bool any_count = false;
    for (int64_t i = 0; i < x.n_units; i++)
        x.slab[i] = -1;
    for (size_t s = 0; s < p->n_steps; s++)
        any_count |= x.count[s] = p->steps[s].count_pass;
    for (size_t i = 0; i < x.g->n_ops; i++)
        if (x.g->ops[i]->opcode == MOE_OP_PARAM || x.g->ops[i]->opcode == MOE_OP_STATE)
            x.of[x.g->ops[i]->results[0]->id] = x.g->ops[i]->results[0];
    bool has_sums = false;
    for (size_t i = 0; n_micro > 1 && i < x.g->n_ops; i++) {
        const MoeOp *op = x.g->ops[i];
        has_sums |= op->opcode == MOE_OP_BATCH_SUM;
        if (op->opcode == MOE_OP_BATCH_SUM)
            write_value(&x, op->results[0]); /* zeroed before the counting pass */
    }
    ck_assert_int_eq(any_count, has_sums);
    for (int m = 0; has_sums && m < n_micro; m++) {
        run_phases(&x, MOE_PHASE_FORWARD, MOE_PHASE_FORWARD, true);
        for (size_t i = 0; i < x.g->n_ops; i++)
            if (x.g->ops[i]->opcode == MOE_OP_BATCH_SUM) {
                read_value(&x, x.g->ops[i]->operands[0], "the counting pass");
                read_value(&x, x.g->ops[i]->results[0], "the counting pass");
            }
    }
    if (x.m->n_accumulates == 0)
        n_micro = 1;
    for (int m = 0; m < n_micro; m++) {
        run_phases(&x, MOE_PHASE_FORWARD, MOE_PHASE_BACKWARD, false);
        for (size_t i = 0; i < x.g->n_ops; i++)
            if (x.g->ops[i]->opcode == MOE_OP_OUTPUT &&
                x.g->ops[i]->operands[0]->def->phase == MOE_PHASE_FORWARD &&
                x.g->ops[i]->operands[0]->def->opcode != MOE_OP_ACCUMULATE)
                read_value(&x, x.g->ops[i]->operands[0], "an output of the micro-batch");
        fold(&x, m, n_micro);
    }
    run_phases(&x, MOE_PHASE_REDUCE, MOE_PHASE_UPDATE, false);
    for (size_t i = 0; i < x.g->n_ops; i++) {
        const MoeOp *op = x.g->ops[i];
        if (op->opcode == MOE_OP_OUTPUT)
            read_value(&x, op->operands[0], "an output");
        if (op->opcode == MOE_OP_ASSIGN)
            ck_assert_msg(x.of[op->operands[0]->id] == op->operands[1],
                          "an assigned value is not in its place");
    }
    moe_arena_destroy(arena);
}

START_TEST(test_values_stay_while_they_are_read) {
    static const int micro[] = {1, 2, 4};
    for (int bits = 0; bits < 48; bits++) {
        MoePassModelOptions o = {.dense = bits & 1,
                                 .bf16 = bits & 2,
                                 .refuse_alias = false,
                                 .micro_batches = micro[bits / 4 % 3],
                                 .recompute = bits / 12 == 0   ? MOE_RECOMPUTE_NONE
                                              : bits / 12 == 1 ? MOE_RECOMPUTE_CHEAP
                                              : bits / 12 == 2 ? MOE_RECOMPUTE_LAYER
                                                               : MOE_RECOMPUTE_AUTO};
        MoePassModel m;
        ok(moe_pass_model_make(&o, &m));
        for (size_t i = 0; i < m.cx.module->n_graphs; i++)
            run_program(&m, i);
        moe_pass_model_free(&m);
    }
}
END_TEST

static int64_t n_loads(const MoeProgram *p) {
    int64_t n = 0;
    for (size_t i = 0; i < p->graph->n_ops; i++)
        n += p->graph->ops[i]->opcode == MOE_OP_LOAD;
    return n;
}

/* Offload: rows leave, come back in time, and the peak falls. On one rank and on two, with overlap. */
START_TEST(test_values_that_leave_come_back) {
    static const int micro[] = {1, 2, 4};
    for (int i = 0; i < 18; i++) {
        MoePassModelOptions o = {.layers = 6,
                                 .batch = 16,
                                 .bf16 = i % 2,
                                 .micro_batches = micro[i % 3],
                                 .recompute = i / 3 % 2 ? MOE_RECOMPUTE_CHEAP : MOE_RECOMPUTE_NONE,
                                 .loading_horizon = i / 6};
        if (i / 3 % 2) {
            o.mesh = (MoeMesh)MESH(1, 1, 2, 1, 1);
            o.overlap = true;
            o.overlap_chunks = 1;
            o.micro_batches = o.micro_batches > 2 ? 2 : o.micro_batches;
        }
        MoePassModel kept, gone;
        ok(moe_pass_model_make(&o, &kept));
        o.offload = true;
        ok(moe_pass_model_make(&o, &gone));
        const MoeProgram *p = &gone.cx.programs[0];
        ck_assert_msg(n_loads(p) > 0, "case %d: nothing leaves", i);
        ck_assert_int_eq(n_loads(&kept.cx.programs[0]), 0);
        ck_assert_int_gt(p->memory.offloaded, 0);
        ck_assert_int_lt(p->memory.lower_bound, kept.cx.programs[0].memory.lower_bound);
        for (size_t k = 0; k < gone.cx.module->n_graphs; k++)
            run_program(&gone, k);
        moe_pass_model_free(&kept);
        moe_pass_model_free(&gone);
    }
}
END_TEST

static const MoeMesh meshes[] = {MESH(1, 1, 2, 1, 1), MESH(1, 2, 1, 1, 2), MESH(1, 2, 2, 1, 4),
                                 MESH(2, 1, 2, 1, 1), MESH(1, 1, 4, 1, 1), MESH(1, 4, 1, 1, 1)};

/* The program of a rank, collectives at once or started early. */
START_TEST(test_values_of_a_rank_stay) {
    static const size_t gaps[] = {0, 3, 40};
    static const MoeRecompute levels[] = {MOE_RECOMPUTE_NONE, MOE_RECOMPUTE_CHEAP,
                                          MOE_RECOMPUTE_LAYER};
    for (int i = 0; i < 54; i++) {
        MoePassModelOptions o = {.mesh = meshes[i % 6],
                                 .bf16 = i % 4 == 1,
                                 .micro_batches = i % 6 < 2 && i / 6 % 2 ? 2 : 1,
                                 .layers = 2,
                                 .recompute = levels[i / 6 % 3],
                                 .passes = "grad,decompose,shard,recompute"};
        size_t gap = gaps[i / 18];
        MoePassModel m;
        ok(moe_pass_model_make(&o, &m));
        for (size_t k = 0; k < m.cx.module->n_graphs; k++)
            moe_pass_start_collectives(m.cx.module->graphs[k], gap);
        MoePipelineOptions p = {
            .passes = "fuse,memplan,kernels", .verify_each = true, .out = stdout, .err = stderr};
        ok(moe_pipeline_run(&m.cx, &p));
        int n_waits = 0;
        for (size_t k = 0; k < m.cx.programs[0].n_steps; k++)
            n_waits += m.cx.programs[0].steps[k].group.ops[0]->opcode == MOE_OP_WAIT;
        ck_assert_int_eq(n_waits > 0, gap > 0);
        for (size_t k = 0; k < m.cx.module->n_graphs; k++)
            run_program(&m, k);
        moe_pass_model_free(&m);
    }
}
END_TEST

/* What routing decides lies in the slab's end, and counts with its expected size; one rank has none of it. */
START_TEST(test_elastic_values_lie_behind_the_others) {
    for (size_t i = 0; i < sizeof meshes / sizeof *meshes; i++) {
        MoePassModelOptions o = {.mesh = meshes[i], .batch = 8, .seq = 32};
        MoePassModel m;
        ok(moe_pass_model_make(&o, &m));
        const MoeMemoryPlan *p = &m.cx.programs[0].memory;
        int64_t seam = p->slab_bytes - p->elastic_bytes, n_elastic = 0, used = 0;
        for (int v = 0; v < m.cx.programs[0].graph->n_values; v++) {
            const MoeValueMemory *x = &p->values[v];
            if (x->offset < 0)
                continue;
            ck_assert(x->expect < 0 || x->offset >= seam);
            ck_assert_int_lt(x->expect, x->bytes);
            n_elastic += x->expect >= 0;
            used = x->expect > used ? x->expect : used;
        }
        bool ep = meshes[i].ep > 1;
        ck_assert_int_eq(n_elastic > 0, ep);
        ck_assert_int_eq(p->elastic_bytes > 0, ep);
        ck_assert_int_ge(p->elastic_expect, used);
        ck_assert_int_le(p->elastic_expect, p->elastic_bytes);
        /* balanced routing sends as many rows as one rank has: the worst case is ep times that */
        ck_assert(!ep || p->elastic_bytes > 3 * p->elastic_expect / 2);
        ck_assert_int_eq(p->activations + p->gradients + p->workspace + p->other, p->lower_bound);
        ck_assert_int_le(p->lower_bound, seam + p->elastic_expect);
        ck_assert_int_gt(p->comm_bytes, 0);
        moe_pass_model_free(&m);
    }
    MoePassModelOptions one = {0};
    MoePassModel m;
    ok(moe_pass_model_make(&one, &m));
    ck_assert_int_eq(m.cx.programs[0].memory.elastic_bytes, 0);
    ck_assert_int_eq(m.cx.programs[0].memory.comm_bytes, 0);
    moe_pass_model_free(&m);
}
END_TEST

START_TEST(test_peak_is_near_the_lower_bound) {
    for (int bits = 0; bits < 16; bits++) {
        MoePassModelOptions o = {.dense = bits & 1,
                                 .bf16 = bits & 2,
                                 .layers = 4,
                                 .batch = 8,
                                 .seq = 64,
                                 .micro_batches = bits & 4 ? 4 : 1,
                                 .recompute = bits & 8 ? MOE_RECOMPUTE_CHEAP : MOE_RECOMPUTE_LAYER};
        MoePassModel m;
        ok(moe_pass_model_make(&o, &m));
        for (size_t i = 0; i < m.cx.module->n_graphs; i++) {
            const MoeMemoryPlan *p = &m.cx.programs[i].memory;
            ck_assert_int_ge(p->slab_bytes, p->lower_bound);
            ck_assert_msg((double)p->slab_bytes <= 1.05 * (double)p->lower_bound + MOE_BUFFER_SLACK,
                          "case %d @%s: %ld over %ld", bits, m.cx.module->graphs[i]->name,
                          (long)p->slab_bytes, (long)p->lower_bound);
            ck_assert_int_eq(p->activations + p->gradients + p->workspace + p->other,
                             p->lower_bound);
        }
        moe_pass_model_free(&m);
    }
}
END_TEST

START_TEST(test_in_place_saves_memory) {
    MoePassModelOptions with = {.batch = 8, .seq = 64}, without = with;
    MoePassModel a, b;
    ok(moe_pass_model_make(&with, &a));
    without.refuse_alias = true; /* adamw cannot then be in place either: the error says so */
    const char *wrong = moe_test_error(moe_pass_model_make(&without, &b), MOE_E_INTERNAL,
                                       "in place", "@train", "another order", NULL);
    ck_assert_msg(!wrong, "%s", wrong);
    int n_alias = 0;
    const MoeProgram *p = &a.cx.programs[0];
    for (int i = 0; i < p->graph->n_values; i++)
        n_alias += p->memory.values[i].alias &&
                   p->memory.values[i].alias->def->phase != MOE_PHASE_UPDATE &&
                   p->memory.values[i].alias->def->opcode != MOE_OP_PARAM &&
                   p->memory.values[i].alias->def->opcode != MOE_OP_STATE;
    ck_assert_int_gt(n_alias, 0);
    moe_pass_model_free(&a);
    moe_pass_model_free(&b);
}
END_TEST

#define HEAD                                                                                       \
    "moe 1\ngraph @train {\n"                                                                      \
    "  %p = param {name = \"p\", init = \"normal\", std = 0.1, decay = 1} : f32[16, 16]\n"         \
    "  %x = input {name = \"x\"} : f32[16, 16]\n"

static MoeStatus plan_text(const char *text, MoePassContext *cx, MoeFakeTarget *t) {
    MoeDiag d = {.file = "case", .source = text};
    MoeModule *m = moe_parse(&d);
    ck_assert_msg(m, "%s", moe_str_c(&d.text));
    moe_diag_free(&d);
    moe_fake_target_init(t);
    *cx = (MoePassContext){
        .module = m, .target = &t->base, .arena = m->arena, .options = {.micro_batches = 1}};
    MoePipelineOptions o = {
        .passes = "fuse,memplan", .verify_each = true, .out = stdout, .err = stderr};
    return moe_pipeline_run(cx, &o);
}

START_TEST(test_assign_needs_the_old_value_no_more) {
    static const struct {
        const char *text, *why;
    } cases[] = {
        {HEAD "update:\n  %q = add %p, %x : f32[16, 16]\n  assign %p, %q\n}\n", NULL},
        {HEAD "update:\n  %q = neg %x : f32[16, 16]\n  assign %p, %q\n}\n",
         NULL}, /* the step does not even read it */
        {HEAD "  %q = add %p, %x : f32[16, 16]\nupdate:\n  assign %p, %q\n}\n",
         "before the update phase"},
        {HEAD "update:\n  %q = add %p, %x : f32[16, 16]\n  %y = matmul %p, %q {tb = 0, grouped = "
              "0} : f32[16, 16]\n"
              "  assign %p, %q\n  output %y {name = \"y\"}\n}\n",
         "read after the new one"},
        {HEAD
         "update:\n  %q = matmul %p, %x {tb = 0, grouped = 0} : f32[16, 16]\n  assign %p, %q\n}\n",
         "in another order"},
        {HEAD "update:\n  %q = add %p, %x : f32[16, 16]\n  assign %p, %q\n  output %p {name = "
              "\"old\"}\n}\n",
         "read after the new one"},
        {HEAD "update:\n  assign %p, %x\n}\n", "not made by a step"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        MoePassContext cx;
        MoeFakeTarget t;
        MoeStatus st = plan_text(cases[i].text, &cx, &t);
        if (!cases[i].why) {
            ok(st);
        } else {
            const char *wrong =
                moe_test_error(st, MOE_E_INTERNAL, "memplan", "@train", cases[i].why, NULL);
            ck_assert_msg(!wrong, "case %zu: %s", i, wrong);
        }
        moe_module_destroy(cx.module);
    }
}
END_TEST

/* ---- what recompute does to memory ---- */

static int64_t train_slab(const MoePassModelOptions *o, MoePassOptions *chosen) {
    MoePassModel m;
    ok(moe_pass_model_make(o, &m));
    int64_t n = m.cx.programs[0].memory.slab_bytes;
    ck_assert_str_eq(m.cx.module->graphs[0]->name, "train");
    if (chosen)
        *chosen = m.cx.options;
    moe_pass_model_free(&m);
    return n;
}

static int64_t declared(const MoePassModelOptions *o) {
    MoePassModel m;
    ok(moe_pass_model_make(o, &m));
    const MoeGraph *g = m.cx.module->graphs[0];
    int64_t n = 0;
    for (size_t i = 0; i < g->n_ops; i++)
        if (g->ops[i]->opcode == MOE_OP_PARAM || g->ops[i]->opcode == MOE_OP_STATE)
            n += moe_type_bytes(&g->ops[i]->results[0]->type);
    moe_pass_model_free(&m);
    return n;
}

START_TEST(test_recompute_levels_save_memory) {
    for (int bits = 0; bits < 4; bits++) {
        MoePassModelOptions o = {
            .dense = bits & 1, .bf16 = bits & 2, .layers = 6, .batch = 8, .seq = 64};
        int64_t none = train_slab(&o, NULL);
        o.recompute = MOE_RECOMPUTE_CHEAP;
        int64_t cheap = train_slab(&o, NULL);
        o.recompute = MOE_RECOMPUTE_LAYER;
        int64_t layer = train_slab(&o, NULL);
        ck_assert_msg(cheap < none, "%ld, %ld", (long)cheap, (long)none);
        ck_assert_msg(2 * layer < cheap + none, "%ld, %ld", (long)layer, (long)cheap);
        ck_assert_int_lt(layer, cheap);
    }
}
END_TEST

START_TEST(test_auto_keeps_the_limit_with_the_fewest_layers) {
    MoePassModelOptions o = {.layers = 6, .batch = 8, .seq = 64, .recompute = MOE_RECOMPUTE_CHEAP};
    int64_t cheap = train_slab(&o, NULL), fixed = declared(&o);
    o.recompute = MOE_RECOMPUTE_LAYER;
    int64_t layer = train_slab(&o, NULL);
    MoePassOptions chosen;
    o.recompute = MOE_RECOMPUTE_AUTO;
    ck_assert_int_eq(train_slab(&o, &chosen), cheap); /* no limit */
    o.memory_limit = fixed + cheap;
    ck_assert_int_eq(train_slab(&o, &chosen), cheap);
    ck_assert_int_eq(chosen.recompute, MOE_RECOMPUTE_CHEAP);
    int before = 0;
    for (int part = 3; part >= 0; part--) { /* tighter and tighter: more layers, and it holds */
        o.memory_limit = fixed + layer + (cheap - layer) * part / 4;
        int64_t slab = train_slab(&o, &chosen);
        ck_assert_int_le(fixed + slab, o.memory_limit);
        ck_assert_int_eq(chosen.recompute, MOE_RECOMPUTE_LAYER);
        ck_assert_int_ge(chosen.recompute_layers, before);
        ck_assert_int_ge(chosen.recompute_layers, 1);
        before = chosen.recompute_layers;
    }
    ck_assert_int_gt(before, 1);
    o.memory_limit = fixed + layer / 2;
    MoePassModel m;
    char bytes[32];
    snprintf(bytes, sizeof bytes, "%lld bytes", (long long)o.memory_limit);
    const char *wrong = moe_test_error(moe_pass_model_make(&o, &m), MOE_E_INPUT, bytes,
                                       "cannot be met", "micro-batches", NULL);
    ck_assert_msg(!wrong, "%s", wrong);
    moe_pass_model_free(&m);
}
END_TEST

/* Where the target gains by it, the bf16 copies of weights are kept as long as the limit has room for them: no parameter is rounded
 * twice. */
START_TEST(test_auto_keeps_weights_where_there_is_room) {
    MoePassModelOptions o = {.layers = 6, .batch = 8, .seq = 64, .bf16 = true, .recompute = MOE_RECOMPUTE_CHEAP};
    int64_t cheap = train_slab(&o, NULL), fixed = declared(&o);
    o.recompute = MOE_RECOMPUTE_AUTO;
    o.rounds_weights = true;
    MoePassOptions chosen;
    ck_assert_int_eq(train_slab(&o, &chosen), cheap); /* no limit */
    ck_assert(!chosen.keep_weights);
    o.memory_limit = 2 * (fixed + cheap);
    int64_t kept = train_slab(&o, &chosen);
    ck_assert(chosen.keep_weights && chosen.recompute == MOE_RECOMPUTE_CHEAP);
    ck_assert_int_gt(kept, cheap);
    o.memory_limit = fixed + kept;
    ck_assert_int_eq(train_slab(&o, &chosen), kept);
    MoePassModel m;
    ok(moe_pass_model_make(&o, &m));
    const MoeGraph *g = moe_module_find(m.cx.module, "train");
    for (size_t i = 0; i < g->n_ops; i++)
        if (g->ops[i]->opcode == MOE_OP_CONVERT && g->ops[i]->phase == MOE_PHASE_BACKWARD)
            ck_assert(g->ops[i]->operands[0]->def->opcode != MOE_OP_PARAM);
    moe_pass_model_free(&m);
    o.memory_limit = fixed + kept - 1;
    ck_assert_int_eq(train_slab(&o, &chosen), cheap);
    ck_assert(!chosen.keep_weights && chosen.recompute == MOE_RECOMPUTE_CHEAP);
    o.memory_limit = 2 * (fixed + cheap);
    o.rounds_weights = false;
    ck_assert_int_eq(train_slab(&o, &chosen), cheap);
}
END_TEST

START_TEST(test_recompute_repeats_what_it_may) {
    for (int level = MOE_RECOMPUTE_CHEAP; level <= MOE_RECOMPUTE_LAYER; level++) {
        MoePassModelOptions o = {.recompute = (MoeRecompute)level, .passes = "grad,decompose"};
        MoePassModel before, after;
        ok(moe_pass_model_make(&o, &before));
        o.passes = "grad,decompose,recompute";
        ok(moe_pass_model_make(&o, &after));
        int n[2][MOE_N_OPS] = {{0}};
        const MoeGraph *g[2] = {before.cx.module->graphs[0], after.cx.module->graphs[0]};
        for (int i = 0; i < 2; i++)
            for (size_t k = 0; k < g[i]->n_ops; k++)
                n[i][g[i]->ops[k]->opcode]++;
        ck_assert_int_eq(n[1][MOE_OP_TOPK], n[0][MOE_OP_TOPK]);
        ck_assert_int_eq(n[1][MOE_OP_ROUTE_PLAN], n[0][MOE_OP_ROUTE_PLAN]);
        ck_assert_int_eq(n[1][MOE_OP_ATTENTION],
                         n[0][MOE_OP_ATTENTION] * (level == MOE_RECOMPUTE_LAYER ? 2 : 1));
        if (level == MOE_RECOMPUTE_CHEAP)
            ck_assert_int_eq(n[1][MOE_OP_MATMUL], n[0][MOE_OP_MATMUL]);
        else
            ck_assert_int_gt(n[1][MOE_OP_MATMUL], n[0][MOE_OP_MATMUL]);
        ck_assert_int_gt(n[1][MOE_OP_SIGMOID], n[0][MOE_OP_SIGMOID]);
        moe_pass_model_free(&before);
        moe_pass_model_free(&after);
    }
}
END_TEST

static bool in_forward(const MoeValue *v) {
    return v->def->phase == MOE_PHASE_FORWARD && moe_op_info(v->def->opcode)->kind != MOE_KIND_DECL;
}

/* Of a rank's forward phase the backward phase reads no gathered parameter at any level; at the layer level no rows between ranks
 * but their plans and weights: it sends them again. */
START_TEST(test_recompute_between_ranks) {
    for (int level = MOE_RECOMPUTE_NONE; level <= MOE_RECOMPUTE_LAYER; level++)
        for (int bf16 = 0; bf16 < 2; bf16++) {
            MoePassModelOptions o = {.mesh = {1, 2, 2, 1, 4},
                                     .recompute = (MoeRecompute)level,
                                     .bf16 = bf16,
                                     .passes = "grad,decompose,shard,recompute"};
            MoePassModel m;
            ok(moe_pass_model_make(&o, &m));
            const MoeGraph *g = m.cx.module->graphs[0];
            int kept = 0, sent = 0, gathers = 0;
            bool *seen = MOE_NEW_N(m.cx.arena, bool, g->n_values); /* parameters gathered */
            for (size_t i = 0; i < g->n_ops; i++) {
                const MoeOp *op = g->ops[i];
                sent += op->opcode == MOE_OP_A2A_DISPATCH;
                if (op->opcode == MOE_OP_ALL_GATHER && op->phase == MOE_PHASE_BACKWARD) {
                    const MoeValue *p = op->operands[0];
                    while (p->def->opcode == MOE_OP_CONVERT)
                        p = p->def->operands[0];
                    ck_assert_msg(!seen[p->id], "%s is gathered twice", moe_attr_s(p->def, "name"));
                    seen[p->id] = true;
                    gathers++;
                }
                for (int k = 0; k < op->n_operands && op->phase == MOE_PHASE_BACKWARD; k++) {
                    const MoeValue *v = op->operands[k];
                    if (!in_forward(v))
                        continue;
                    ck_assert_int_ne(v->def->opcode, MOE_OP_ALL_GATHER);
                    const MoeValue *seg =
                        v->type.kind == MOE_TYPE_TENSOR ? v->type.dims[0].seg : NULL;
                    kept += seg && seg->def->opcode == MOE_OP_EXPERT_PLAN &&
                            v->type.dtype != MOE_I32 && moe_type_cols(&v->type) > 4;
                }
            }
            ck_assert_int_eq(kept > 0, level != MOE_RECOMPUTE_LAYER);
            ck_assert_int_eq(
                sent, 3 * (level == MOE_RECOMPUTE_LAYER ? 4 : 3)); /* rows, weights, gradients */
            ck_assert_int_gt(gathers, 3 * 9);
            moe_pass_model_free(&m);
        }
}
END_TEST

int main(void) {
    Suite *s = suite_create("memplan");
    TCase *c = tcase_create("memplan");
    tcase_set_timeout(c, 120);
    tcase_add_test(c, test_place_random);
    tcase_add_test(c, test_place_stack_is_perfect);
    tcase_add_test(c, test_values_stay_while_they_are_read);
    tcase_add_test(c, test_slab_random);
    tcase_add_test(c, test_lanes_of_equal_values);
    tcase_add_test(c, test_known_sizes_move_into_idle_lanes);
    tcase_add_test(c, test_values_of_a_rank_stay);
    tcase_add_test(c, test_values_that_leave_come_back);
    tcase_add_test(c, test_elastic_values_lie_behind_the_others);
    tcase_add_test(c, test_peak_is_near_the_lower_bound);
    tcase_add_test(c, test_in_place_saves_memory);
    tcase_add_test(c, test_assign_needs_the_old_value_no_more);
    tcase_add_test(c, test_recompute_levels_save_memory);
    tcase_add_test(c, test_auto_keeps_the_limit_with_the_fewest_layers);
    tcase_add_test(c, test_auto_keeps_weights_where_there_is_room);
    tcase_add_test(c, test_recompute_repeats_what_it_may);
    tcase_add_test(c, test_recompute_between_ranks);
    suite_add_tcase(s, c);
    return moe_check_main(s);
}
