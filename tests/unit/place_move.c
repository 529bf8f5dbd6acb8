/* runtime/place_move.h with many ranks (threads): every expert arrives with its weights and states wherever it goes, at any
 * layout; what fails on one rank leaves everything as it was on all; what one map saved another loads; maps as JSON. */
#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/io.h"
#include "base/rng.h"
#include "runtime/checkpoint.h"
#include "runtime/place_fault.h"
#include "runtime/place_file.h"
#include "runtime/place_move.h"
#include "tests/support/mesh.h"
#include "tests/support/slice_fill.h"
#include "tests/support/status_checks.h"

enum { EXPERTS = 6, LAYERS = 2, NO_LIMIT = 1 << 30 };

static const SliceParam params[] = {
    {"model.embed_tokens.weight", 0, 2, {96, 131}},
    {"model.layers.0.mlp.experts.*.w1.weight", 1, 3, {EXPERTS, 102, 89}},
    {"model.layers.0.mlp.experts.*.w2.weight", 2, 3, {EXPERTS, 89, 102}},
    {"model.layers.1.mlp.experts.*.w1.weight", 1, 3, {EXPERTS, 6, 3}},
    {"model.layers.1.self_attn.q_proj.weight", 0, 2, {102, 91}},
};

/* dp shard ep tp dense_shard; with 4 and 8 EP ranks slots are free, so experts move in chains as well as in cycles. */
static const MoeMesh meshes[] = {
    MESH(1, 1, 2, 1, 1), MESH(1, 1, 4, 1, 4), MESH(1, 2, 2, 1, 4), MESH(1, 1, 8, 1, 2),
    MESH(2, 1, 2, 2, 2), MESH(1, 2, 4, 1, 8), MESH(2, 2, 2, 1, 4),
};
enum { MESHES = sizeof meshes / sizeof *meshes };

static SliceRanks ranks_of(int mesh) {
    return slice_ranks(
        slice_plan(&meshes[mesh], EXPERTS, LAYERS, params, sizeof params / sizeof *params));
}

/* Maps of all layers, of the execution's sizes. */
typedef struct {
    MoePlaceMap maps[LAYERS];
    int32_t slots[LAYERS][64], primary[LAYERS][EXPERTS];
} Maps;

/* Each expert in a slot of its own, anywhere; with `part` most stay. */
static void random_maps(const SliceRanks *r, uint64_t seed, bool part, Maps *out) {
    for (size_t k = 0; k < LAYERS; k++) {
        const MoePlaceMap *now = moe_exec_map(r->x[0], k);
        int n = now->ranks * now->slots, changes = part ? 2 : n;
        int32_t *slots = out->slots[k];
        memcpy(slots, now->expert, (size_t)n * sizeof *slots);
        for (int i = n - 1; i > 0 && changes-- > 0; i--) {
            int j = (int)moe_rng_below(seed, k, (uint64_t)i, (uint64_t)i + 1);
            int32_t was = slots[i];
            slots[i] = slots[j];
            slots[j] = was;
        }
        for (int g = 0; g < n; g++)
            if (slots[g] >= 0)
                out->primary[k][slots[g]] = g;
        out->maps[k] = *now;
        out->maps[k].expert = slots;
        out->maps[k].primary = out->primary[k];
    }
}

/* The same, of maps that have copies: these are gone. */
static void random_primaries(const SliceRanks *r, uint64_t seed, bool part, Maps *out) {
    random_maps(r, seed, part, out);
    for (size_t k = 0; k < LAYERS; k++) {
        const MoePlaceMap *now = moe_exec_map(r->x[0], k);
        int n = now->ranks * now->slots, at = (int)moe_rng_below(seed, 5, k, (uint64_t)n);
        int32_t *slots = out->slots[k];
        bool seen[EXPERTS] = {false};
        for (int i = 0; i < n; i++) { /* of each expert's slots one, from anywhere on */
            int32_t *e = &slots[(at + i) % n];
            *e = *e < 0 || seen[*e] ? -1 : *e;
            if (*e >= 0) {
                seen[*e] = true;
                out->primary[k][*e] = (at + i) % n;
            }
        }
    }
}

static bool has_maps(const SliceRanks *r, const Maps *m) {
    for (int q = 0; q < r->n; q++)
        for (size_t k = 0; k < LAYERS; k++)
            if (!moe_place_map_equal(moe_exec_map(r->x[q], k), &m->maps[k]))
                return false;
    return true;
}

typedef struct {
    const MoePlan *plan;
    const MoePlaceMap *to;
    int64_t limit;
    MoePlaceMoved moved[64];
    const char *dir;
} Call;

static MoeStatus move_rank(void *ctx, int rank, MoeExec *x) {
    Call *c = ctx;
    return moe_place_move(c->plan, x, c->to, c->limit, &c->moved[rank]);
}

static MoeStatus save_rank(void *ctx, int rank, MoeExec *x) {
    const Call *c = ctx;
    MoeTrainState s = {.step = 1, .updates = 1};
    (void)rank;
    return moe_checkpoint_save(c->plan, x, c->dir, &s);
}

static MoeStatus load_rank(void *ctx, int rank, MoeExec *x) {
    const Call *c = ctx;
    MoeTrainState s;
    bool found = false;
    (void)rank;
    MoeStatus st = moe_checkpoint_load_newest(c->plan, x, c->dir, true, &s, &found);
    return st || found ? st : moe_error(MOE_E_INPUT, "no checkpoint");
}

/* What a move says of itself, from the maps. */
static void check_numbers(const SliceRanks *r, const MoePlaceMap *was, const MoePlaceMap *to,
                          const Call *c) {
    const MoeMesh *m = &r->plan->mesh;
    int experts = 0;
    int64_t bytes = 0;
    for (size_t k = 0; k < LAYERS; k++)
        for (int e = 0; e < EXPERTS; e++) {
            if (was[k].primary[e] / was[k].slots == to[k].primary[e] / to[k].slots)
                continue;
            experts++;
            for (size_t i = 0; i < r->plan->n_params; i++) {
                const MoePlanParam *p = &r->plan->params[i];
                int64_t slot = r->plan->buffers[p->buffer].bytes / was[k].slots;
                if (moe_param_layer(r->plan, p) == (int)k)
                    bytes += 3 * slot * m->dp * m->shard * m->tp;
            }
        }
    for (int q = 0; q < r->n; q++) {
        ck_assert_int_eq(c->moved[q].experts, experts);
        ck_assert_int_eq(c->moved[q].bytes, bytes);
        ck_assert(!c->moved[q].given_up);
    }
}

/* Many moves one after another: everything is where the map says, slots that are free are zero. */
START_TEST(test_moves) {
    SliceRanks r = ranks_of(_i);
    Maps to, was;
    int moved = 0, batches = 0;
    slice_fill(&r, 3);
    ck_assert(slice_holds(&r, 3));
    for (int turn = 0; turn < 12; turn++) {
        Call c = {.plan = r.plan, .to = to.maps, .limit = turn % 3 ? NO_LIMIT : 1};
        random_maps(&r, 0, true, &was);
        for (size_t k = 0; k < LAYERS; k++)
            moe_place_map_copy(&was.maps[k], moe_exec_map(r.x[0], k));
        random_maps(&r, (uint64_t)turn + 1, turn % 2, &to);
        OK(slice_ranks_run(&r, move_rank, &c, NULL));
        ck_assert(has_maps(&r, &to));
        ck_assert_msg(slice_holds(&r, 3), "turn %d", turn);
        check_numbers(&r, was.maps, to.maps, &c);
        moved += c.moved[0].experts;
        batches += c.limit == 1 ? c.moved[0].batches : 0;
        if (c.limit == NO_LIMIT)
            ck_assert_int_le(c.moved[0].batches, 1);
    }
    ck_assert_int_gt(moved, 10);
    ck_assert_int_gt(batches, 4);
    Call c = {.plan = r.plan, .to = to.maps, .limit = NO_LIMIT};
    OK(slice_ranks_run(&r, move_rank, &c, NULL)); /* to where everything is */
    ck_assert(c.moved[0].batches == 0 && c.moved[0].bytes == 0 && slice_holds(&r, 3));
    slice_ranks_free(&r);
}
END_TEST

/* Copies in some of the slots that random_maps left empty. */
static void add_copies(Maps *m, uint64_t seed) {
    for (size_t k = 0; k < LAYERS; k++)
        for (int g = 0; g < m->maps[k].ranks * m->maps[k].slots; g++) {
            int first = g / m->maps[k].slots * m->maps[k].slots;
            int e = (int)moe_rng_below(seed, 7 + k, (uint64_t)g, EXPERTS + 2);
            bool held = false;
            for (int h = first; h < first + m->maps[k].slots; h++)
                held = held || m->slots[k][h] == e;
            if (m->slots[k][g] < 0 && e < EXPERTS && !held)
                m->slots[k][g] = e;
        }
}

/* What a step leaves in the slots of copies. */
static void soil_copies(SliceRanks *r) {
    for (int q = 0; q < r->n; q++)
        for (size_t i = 0; i < r->plan->n_params; i++) {
            const MoePlanParam *p = &r->plan->params[i];
            int k = moe_param_layer(r->plan, p), ep = moe_mesh_coords(&r->plan->mesh, q).ep;
            const MoePlaceMap *m = k < 0 ? NULL : moe_exec_map(r->x[q], (size_t)k);
            size_t bytes = m ? (size_t)(r->plan->buffers[p->buffer].bytes / m->slots) : 0;
            for (int s = 0; m && s < m->slots; s++) {
                int e = m->expert[ep * m->slots + s];
                if (e >= 0 && m->primary[e] != ep * m->slots + s)
                    memset((char *)moe_exec_buffer(r->x[q], p->buffer) + (size_t)s * bytes, 0x5a,
                           bytes);
            }
        }
}

/* With slots for copies: primaries go where copies were and the other way round. */
START_TEST(test_copies) {
    MoeMesh mesh = meshes[_i];
    mesh.extra_slots = 1 + _i % 2;
    SliceRanks r =
        slice_ranks(slice_plan(&mesh, EXPERTS, LAYERS, params, sizeof params / sizeof *params));
    int copies = 0;
    slice_fill(&r, 4);
    for (int turn = 0; turn < 10; turn++) {
        Maps to;
        Call c = {.plan = r.plan, .to = to.maps, .limit = turn % 3 ? NO_LIMIT : 1};
        SliceFill f = {.step = 4, .check = true};
        random_primaries(&r, (uint64_t)turn + 60, turn % 2, &to);
        add_copies(&to, (uint64_t)turn + 90);
        for (int g = 0; g < to.maps[1].ranks * to.maps[1].slots; g++)
            copies += to.slots[1][g] >= 0;
        OK(slice_ranks_run(&r, move_rank, &c, NULL));
        ck_assert(has_maps(&r, &to));
        for (int q = 0; q < r.n; q++)
            slice_fill_rank(&f, r.plan, r.x[q]);
        ck_assert_int_eq(f.wrong, 0);
        soil_copies(&r);
    }
    ck_assert_int_gt(copies, 10 * EXPERTS + 5);
    slice_ranks_free(&r);
}
END_TEST

/* A rank that fails at any point before the commit: nothing has moved, and everything may move after that. */
START_TEST(test_fails) {
    static const char *const points[] = {"listed",  "staged", "started",
                                         "arrived", "hashed", "confirmed"};
    SliceRanks r = ranks_of(1);
    Maps to, was;
    slice_fill(&r, 5);
    for (size_t p = 0; p < sizeof points / sizeof *points; p++)
        for (int rank = 0; rank < r.n; rank++) {
            char fault[64];
            MoeStatus each[64];
            Call c = {.plan = r.plan, .to = to.maps, .limit = NO_LIMIT};
            random_maps(&r, 0, true, &was);
            for (size_t k = 0; k < LAYERS; k++)
                moe_place_map_copy(&was.maps[k], moe_exec_map(r.x[0], k));
            random_maps(&r, 100 * p + (uint64_t)rank + 1, false, &to);
            moe_place_fault_reset();
            snprintf(fault, sizeof fault, "fail %s %d 1", points[p], rank);
            setenv("MOEC_MOVE_FAULT", fault, 1);
            OK(slice_ranks_run(&r, move_rank, &c, each));
            unsetenv("MOEC_MOVE_FAULT");
            for (int q = 0; q < r.n; q++) {
                ck_assert(c.moved[q].given_up);
                FAILS(each[q], MOE_E_IO, points[p], "MOEC_MOVE_FAULT");
            }
            ck_assert(has_maps(&r, &was) && slice_holds(&r, 5));
            OK(slice_ranks_run(&r, move_rank, &c, NULL));
            ck_assert(has_maps(&r, &to) && slice_holds(&r, 5));
        }
    slice_ranks_free(&r);
}
END_TEST

/* A bit that changed on the way is seen, named, and nothing moves. */
START_TEST(test_damage) {
    SliceRanks r = ranks_of(2);
    Maps to, was;
    MoeStatus each[64];
    Call c = {.plan = r.plan, .to = to.maps, .limit = NO_LIMIT};
    slice_fill(&r, 5);
    random_maps(&r, 0, true, &was);
    for (size_t k = 0; k < LAYERS; k++)
        moe_place_map_copy(&was.maps[k], moe_exec_map(r.x[0], k));
    random_maps(&r, 1, false, &to);
    moe_place_fault_reset();
    setenv("MOEC_MOVE_FAULT", "flip arrived 3 1", 1);
    OK(slice_ranks_run(&r, move_rank, &c, each));
    unsetenv("MOEC_MOVE_FAULT");
    for (int q = 0; q < r.n; q++)
        FAILS(each[q], MOE_E_IO, "damaged", "expert", "layer", "XXH3");
    ck_assert(has_maps(&r, &was) && slice_holds(&r, 5));
    slice_ranks_free(&r);
}
END_TEST

/* In several batches: those before the failure have moved, the others have not, and each expert is in one slot. */
START_TEST(test_fails_later) {
    SliceRanks r = ranks_of(3);
    Maps to, was;
    int between = 0;
    slice_fill(&r, 6);
    for (int n = 1; n < 8; n++) {
        char fault[64];
        MoeStatus each[64];
        Call c = {.plan = r.plan, .to = to.maps, .limit = 1};
        random_maps(&r, 0, true, &was);
        for (size_t k = 0; k < LAYERS; k++)
            moe_place_map_copy(&was.maps[k], moe_exec_map(r.x[0], k));
        random_maps(&r, 40 + (uint64_t)n, false, &to);
        moe_place_fault_reset();
        snprintf(fault, sizeof fault, "fail hashed 2 %d", n);
        setenv("MOEC_MOVE_FAULT", fault, 1);
        OK(slice_ranks_run(&r, move_rank, &c, each));
        unsetenv("MOEC_MOVE_FAULT");
        for (int q = 0; q < r.n; q++)
            moe_status_free(each[q]);
        between += each[0] && !has_maps(&r, &was) && !has_maps(&r, &to);
        for (size_t k = 0; k < LAYERS; k++)
            OK(moe_place_map_check(moe_exec_map(r.x[n % r.n], k), (int)k, "after a failure"));
        ck_assert(slice_holds(&r, 6));
    }
    ck_assert_int_gt(between, 2);
    slice_ranks_free(&r);
}
END_TEST

/* A map that is wrong, on all ranks or on one, moves nothing. */
START_TEST(test_wrong_maps) {
    SliceRanks r = ranks_of(0);
    Maps to, was;
    MoeStatus each[64];
    Call c = {.plan = r.plan, .to = to.maps, .limit = NO_LIMIT};
    slice_fill(&r, 7);
    random_maps(&r, 0, true, &was);
    for (size_t k = 0; k < LAYERS; k++)
        moe_place_map_copy(&was.maps[k], moe_exec_map(r.x[0], k));
    random_maps(&r, 9, false, &to);
    to.slots[1][0] = to.slots[1][1];
    OK(slice_ranks_run(&r, move_rank, &c, each));
    for (int q = 0; q < r.n; q++)
        FAILS(each[q], MOE_E_INPUT, "layer 1", "expert");
    ck_assert(has_maps(&r, &was) && slice_holds(&r, 7));
    FAILS(moe_exec_set_map(r.x[0], 0, (int32_t[]){0, 1, 2, 3, 4, 0}, was.primary[0]), MOE_E_INPUT,
          "layer 0");
    FAILS(moe_exec_set_map(r.x[0], 0, (int32_t[]){0, 1, 2, 3, 4, 6}, was.primary[0]), MOE_E_INPUT,
          "layer 0", "6");
    ck_assert(has_maps(&r, &was));
    slice_ranks_free(&r);
}
END_TEST

/* A checkpoint under one map: taken with its map where it fits; under any other map, and at another layout, the same tensors. */
START_TEST(test_checkpoints) {
    SliceRanks a = ranks_of(_i), same = ranks_of(_i), other = ranks_of(_i),
               wider = ranks_of((_i + 1) % MESHES);
    char run[600];
    Maps saved, kept;
    Call c = {.plan = a.plan, .to = saved.maps, .limit = NO_LIMIT, .dir = run};
    snprintf(run, sizeof run, "%s/run", moe_test_dir());
    OK(moe_dir_remove(run));
    OK(moe_dir_make(run));
    slice_fill(&a, 8);
    random_maps(&a, 21, false, &saved);
    OK(slice_ranks_run(&a, move_rank, &c, NULL));
    OK(slice_ranks_run(&a, save_rank, &c, NULL));
    c.plan = same.plan;
    OK(slice_ranks_run(&same, load_rank, &c, NULL));
    ck_assert(has_maps(&same, &saved) && slice_holds(&same, 8));
    random_maps(&other, 22, false, &kept);
    for (int q = 0; q < other.n; q++) {
        for (size_t k = 0; k < LAYERS; k++)
            OK(moe_exec_set_map(other.x[q], k, kept.slots[k], kept.primary[k]));
        moe_exec_keep_maps(other.x[q], true);
    }
    c.plan = other.plan;
    OK(slice_ranks_run(&other, load_rank, &c, NULL));
    ck_assert(has_maps(&other, &kept) && slice_holds(&other, 8));
    c.plan = wider.plan;
    OK(slice_ranks_run(&wider, load_rank, &c, NULL));
    ck_assert(slice_holds(&wider, 8));
    SliceRanks *all[] = {&a, &same, &other, &wider};
    for (int i = 0; i < 4; i++)
        slice_ranks_free(all[i]);
}
END_TEST

/* ---- maps as JSON ---- */

static MoeStatus read_text(MoeExec *x, const MoePlan *plan, const char *text) {
    return moe_place_file_read(moe_test_file("placement.json", text, strlen(text)), plan, x);
}

START_TEST(test_files) {
    SliceRanks r = ranks_of(0); /* 2 EP ranks of 3 slots */
    MoeExec *x = r.x[0];
    OK(read_text(x, r.plan,
                 "{\"format_version\": 1, \"layers\": [{\"layer\": 1, \"slots\": [[5, 4, 3], [2, "
                 "1, 0]]}]}"));
    for (int e = 0; e < EXPERTS; e++)
        ck_assert(moe_exec_place(x, 0)[e] == e && moe_exec_place(x, 1)[e] == 5 - e);
    json_t *json = moe_place_json(r.plan, x);
    OK(moe_place_json_take(json, "here", r.plan, r.x[1]));
    ck_assert(moe_place_map_equal(moe_exec_map(r.x[1], 1), moe_exec_map(x, 1)));
    json_decref(json);
    static const struct {
        const char *text, *words[2];
    } bad[] = {
        {"{\"format_version\": 2, \"layers\": []}", {"version 2", "1"}},
        {"{\"format_version\": 1}", {"layers", "placement.json"}},
        {"{\"format_version\": 1, \"layers\": [{\"layer\": 7, \"slots\": []}]}",
         {"layer 7", "no MoE layer"}},
        {"{\"format_version\": 1, \"layers\": [{\"layer\": 0, \"slots\": [[0, 1, 2]]}]}",
         {"2 EP ranks", "3 slots"}},
        {"{\"format_version\": 1, \"layers\": [{\"layer\": 0, \"slots\": [[0, 1, 2], [3, 4]]}]}",
         {"layer 0", "3 slots"}},
        {"{\"format_version\": 1, \"layers\": [{\"layer\": 0, \"slots\": [[0, 1, 2], [3, 4, 4]]}]}",
         {"layer 0", "4"}},
        {"{\"format_version\": 1, \"layers\": [{\"layer\": 0, \"slots\": [[0, 1, 2], [3, 4, 6]]}]}",
         {"layer 0", "6"}},
        {"{\"format_version\": 1, \"layers\": [{\"layer\": 0, \"slots\": [[0, 1, 2], [3, 4, "
         "-1]]}]}",
         {"layer 0", "5"}},
        {"{\"format_version\": 1, \"layers\": [{\"layer\": 0, \"slots\": [[0, 1, 2], [3, 4, 1]]}]}",
         {"layer 0", "5"}},
        {"{\"format_version\": 1, \"layers\": [{\"layer\": 0, \"slots\": [[0, 1, 2], [3, 4, "
         "2.5]]}]}",
         {"layer 0", "slot 2"}},
        {"{\"format_version\": 1, \"layers\": [{\"layer\": 0, \"slots\": [[0, 1, 2], [3, 4, 5]], "
         "\"primary\": [0, 1]}]}",
         {"primary", "6"}},
        {"{\"format_version\": 1, \"layers\": [{\"layer\": 0, \"slots\": [[0, 1, 2], [3, 4, 5]], "
         "\"primary\": [0, 1, 2, 3, 4, 4]}]}",
         {"layer 0", "expert 5"}},
        {"{\"format_version\": 1, \"layers\": [{\"layer\": 0, \"slots\": [[0, 1, 2], [3, 4, 5]]}, "
         "{\"layer\": 0, \"slots\": [[0, 1, 2], [3, 4, 5]]}]}",
         {"layer 0", "twice"}},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        FAILS(read_text(x, r.plan, bad[i].text), MOE_E_INPUT, bad[i].words[0], bad[i].words[1]);
        ck_assert_int_eq(moe_exec_place(x, 0)[5], 5);
    }
    slice_ranks_free(&r);
}
END_TEST

int main(void) {
    Suite *s = suite_create("place_move");
    TCase *c = tcase_create("moves");
    tcase_set_timeout(c, 120);
    tcase_add_loop_test(c, test_moves, 0, MESHES);
    tcase_add_loop_test(c, test_copies, 0, MESHES);
    tcase_add_test(c, test_fails);
    tcase_add_test(c, test_damage);
    tcase_add_test(c, test_fails_later);
    tcase_add_test(c, test_wrong_maps);
    tcase_add_loop_test(c, test_checkpoints, 0, MESHES);
    tcase_add_test(c, test_files);
    suite_add_tcase(s, c);
    SRunner *runner = srunner_create(s);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed != 0;
}
