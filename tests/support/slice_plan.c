/* See slice_plan.h. */
#include "tests/support/slice_plan.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "base/str.h"

static void print_dims(MoeStr *s, int rank, const int64_t *dims) {
    moe_str_putc(s, '[');
    for (int i = 0; i < rank; i++)
        moe_str_printf(s, "%s%lld", i ? ", " : "", (long long)dims[i]);
    moe_str_putc(s, ']');
}

/* What a rank's buffer of the parameter is (docs/RANKS.md). */
static int buffer_dims(const MoeMesh *m, int slots, const SliceParam *p, int64_t dims[4]) {
    bool expert = strchr(p->name, '*') != NULL;
    int lead = expert, parts = expert ? m->shard : m->dense_shard;
    int64_t n = 1;
    for (int i = 0; i < p->rank; i++) {
        dims[i] = expert && i == 0 ? slots : i == p->tp_dim ? p->dims[i] / m->tp : p->dims[i];
        n *= i < lead ? 1 : dims[i];
    }
    if (parts == 1)
        return p->rank;
    dims[lead] = moe_slice(n, MOE_SLICE_BLOCK, parts, 0).cap;
    return lead + 1;
}

static void add_param(MoeStr *params, MoeStr *buffers, const MoeMesh *m, int slots,
                      const SliceParam *p, int index) {
    static const char *const kinds[] = {"", ".exp_avg", ".exp_avg_sq"};
    bool expert = strchr(p->name, '*') != NULL;
    int64_t dims[4], n = 1;
    int rank = buffer_dims(m, slots, p, dims);
    for (int i = 0; i < rank; i++)
        n *= dims[i];
    moe_str_printf(params, "%s{\"name\": \"%s\", \"dims\": ", index ? ",\n" : "", p->name);
    print_dims(params, p->rank, p->dims);
    moe_str_printf(
        params,
        ", \"stacked\": %s, \"expert\": %s, \"tp_dim\": %d, \"init\": \"normal\", \"std\": 0.5, "
        "\"decay\": true, \"buffer\": %d, \"states\": [{\"name\": \"exp_avg\", \"buffer\": %d}, "
        "{\"name\": \"exp_avg_sq\", \"buffer\": %d}]}",
        expert ? "true" : "false", expert ? "true" : "false", p->tp_dim, 3 * index, 3 * index + 1,
        3 * index + 2);
    for (int k = 0; k < 3; k++) {
        moe_str_printf(buffers, "%s{\"name\": \"%s%s\", \"dtype\": \"f32\", \"dims\": ",
                       index || k ? ",\n" : "", p->name, kinds[k]);
        print_dims(buffers, rank, dims);
        moe_str_printf(buffers, ", \"bytes\": %lld}", (long long)n * 4);
    }
}

MoePlan *slice_plan(const MoeMesh *m, int experts, int n_layers, const SliceParam *params,
                    size_t n_params) {
    MoeStr text = {0}, list = {0}, buffers = {0}, layers = {0}, values = {0}, inputs = {0};
    int slots = moe_mesh_slots(m, experts);
    MoePlan *plan = NULL;
    for (size_t i = 0; i < n_params; i++)
        add_param(&list, &buffers, m, slots, &params[i], (int)i);
    for (int k = 0; k < n_layers; k++) {
        const char *comma = k ? ", " : "";
        moe_str_printf(&layers, "%s%d", comma, k);
        moe_str_printf(&values, "%s{\"input\": \"place.%d\", \"bytes\": %d}", comma, k,
                       4 * experts);
        moe_str_printf(
            &inputs,
            "%s{\"name\": \"place.%d\", \"value\": %d, \"dtype\": \"i32\", \"dims\": [%d], "
            "\"ragged\": false}",
            comma, k, k, experts);
    }
    for (int k = 0; k < n_layers && moe_mesh_has_copies(m); k++) {
        moe_str_printf(&values, ", {\"input\": \"copies.%d\", \"bytes\": %d}", k,
                       4 * slots * m->ep);
        moe_str_printf(
            &inputs,
            ", {\"name\": \"copies.%d\", \"value\": %d, \"dtype\": \"i32\", \"dims\": [%d], "
            "\"ragged\": false}",
            k, n_layers + k, slots * m->ep);
    }
    moe_str_printf(
        &text,
        "{\"format_version\": 1, \"abi\": 1, \"target\": \"cpu:generic\", \"compile\": \"by "
        "hand\", "
        "\"model\": {\"model_type\": \"mixtral\", \"torch_dtype\": \"float32\"}, \"tokenizer\": "
        "\"byte\", "
        "\"vocab_size\": 256, \"batch\": 8, \"seq\": 8, \"virtual_shards\": 64, \"micro_batches\": "
        "1, "
        "\"dtype\": \"f32\", \"ranks\": %d, \"mesh\": {\"dp\": %d, \"shard\": %d, \"ep\": %d, "
        "\"tp\": %d, "
        "\"dense_shard\": %d, \"extra_slots\": %d}, \"slots\": %d, \"moe_layers\": [%s], "
        "\"experts\": %d, "
        "\"experts_per_token\": 1, \"flops_per_token\": 1.0, \"kernels_xxh3\": "
        "\"00\",\n\"params\": [%s],\n"
        "\"buffers\": [%s],\n\"programs\": {\"maps\": {\"slab_bytes\": 64, \"slab_lower_bound\": "
        "0, "
        "\"scratch_bytes\": 0, \"memory\": {\"activations\": 0, \"gradients\": 0, \"workspace\": "
        "0, "
        "\"other\": 0}, \"values\": [%s], \"inputs\": [%s], \"outputs\": [], \"steps\": [], "
        "\"batch_sums\": [], \"accumulates\": []}}}",
        moe_mesh_size(m), m->dp, m->shard, m->ep, m->tp, m->dense_shard, m->extra_slots, slots,
        moe_str_c(&layers), experts, moe_str_c(&list), moe_str_c(&buffers), moe_str_c(&values),
        moe_str_c(&inputs));
    MoeStatus st = moe_plan_load_memory(moe_str_c(&text), text.len, "slices", NULL, 0, &plan);
    MOE_ASSERT(!st, "slice plan: %s", moe_status_message(st));
    MoeStr *all[] = {&text, &list, &buffers, &layers, &values, &inputs};
    for (int i = 0; i < 6; i++)
        moe_str_free(all[i]);
    return plan;
}

SliceRanks slice_ranks(MoePlan *plan) {
    SliceRanks r = {plan, plan->ranks, NULL, NULL};
    r.comms = calloc((size_t)r.n, sizeof *r.comms);
    r.x = calloc((size_t)r.n, sizeof *r.x);
    MoeStatus st = moe_comm_threads(r.n, r.comms);
    for (int i = 0; i < r.n && !st; i++)
        st = moe_exec_create(plan, r.comms[i], 1, &r.x[i]);
    MOE_ASSERT(!st, "slice ranks: %s", moe_status_message(st));
    return r;
}

void slice_ranks_free(SliceRanks *r) {
    for (int i = 0; i < r->n; i++) {
        moe_exec_destroy(r->x[i]);
        moe_comm_destroy(r->comms[i]);
    }
    free(r->comms);
    free(r->x);
    moe_plan_free(r->plan);
    *r = (SliceRanks){0};
}

typedef struct {
    SliceRankFn fn;
    void *ctx;
    int rank;
    MoeExec *x;
    MoeStatus st;
    pthread_t thread;
} Task;

static void *run_task(void *arg) {
    Task *t = arg;
    t->st = t->fn(t->ctx, t->rank, t->x);
    return NULL;
}

MoeStatus slice_ranks_run(SliceRanks *r, SliceRankFn fn, void *ctx, MoeStatus *out_statuses) {
    Task *tasks = calloc((size_t)r->n, sizeof *tasks);
    MoeStatus first = NULL;
    for (int i = 0; i < r->n; i++) {
        tasks[i] = (Task){.fn = fn, .ctx = ctx, .rank = i, .x = r->x[i]};
        int failed = pthread_create(&tasks[i].thread, NULL, run_task, &tasks[i]);
        MOE_ASSERT(!failed, "no thread for rank %d", i);
    }
    for (int i = 0; i < r->n; i++)
        pthread_join(tasks[i].thread, NULL);
    for (int i = 0; i < r->n; i++) {
        if (out_statuses)
            out_statuses[i] = tasks[i].st;
        else if (!first)
            first = tasks[i].st;
        else
            moe_status_free(tasks[i].st);
    }
    free(tasks);
    return first;
}
