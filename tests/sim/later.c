/* block.h: copies and products that land later; the block's window of shared memory; the door for kernels. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "tests/sim/block_internal.h"
#include "tests/sim/tensor_map.h"

void moe_sim_land(Queue *q, size_t i) {
    Later l = q->items[i];
    memmove(q->items + i, q->items + i + 1, (q->n - i - 1) * sizeof *q->items);
    q->n--;
    l.act(l.data);
}

/* ---- what lands later ---- */

static Later *queue_add(Queue *q, MoeSimLater act, const void *data, unsigned bytes) {
    if (bytes > MOE_SIM_DATA)
        moe_sim_fail("%u bytes of data for what lands later: %d at most", bytes, MOE_SIM_DATA);
    if (q->n == q->cap) {
        q->cap = q->cap ? 2 * q->cap : 8;
        q->items = realloc(q->items, q->cap * sizeof *q->items);
        if (!q->items)
            abort();
    }
    Later *l = &q->items[q->n++];
    l->act = act;
    l->group = q->groups;
    memcpy(l->data, data, bytes);
    return l;
}

static bool at_once(void) {
    return moe_sim_now.async == EARLY || (moe_sim_now.async == MIXED && moe_sim_roll() & 1);
}

static Queue *queue_of(MoeSimQueue q) {
    unsigned i = index_of(moe_sim_now.current);
    if (q == MOE_SIM_COPIES_END)
        q = MOE_SIM_COPIES;
    return &moe_sim_threads[q == MOE_SIM_PRODUCTS ? i & ~127u : i].queues[q];
}

/* Products land in order: they add up in the same registers. So does what is to come after all copies. */
static void api_push(MoeSimQueue which, MoeSimLater act, const void *data, unsigned bytes) {
    Queue *q = queue_of(which);
    queue_add(q, act, data, bytes);
    if (at_once() && (which == MOE_SIM_COPIES || which == MOE_SIM_STORES || q->n == 1))
        moe_sim_land(q, q->n - 1);
}
static void api_commit(MoeSimQueue which) {
    queue_of(which)->groups++;
}
static void api_drain(MoeSimQueue which, unsigned left) {
    Queue *q = queue_of(which);
    while (q->n && q->items[0].group + left < q->groups)
        moe_sim_land(q, 0);
}
static void api_later(MoeSimLater act, const void *data, unsigned bytes) {
    queue_add(&moe_sim_now.later, act, data, bytes);
    if (at_once())
        moe_sim_land(&moe_sim_now.later, moe_sim_now.later.n - 1);
}

/* ---- shared memory ---- */

/* The window's addresses, below 256 KB (a descriptor has room for no more): 1 KB that is the system's, static memory, dynamic
 * memory. Low bits are the host's. */
enum { WINDOW_STATIC = 1 << 10, WINDOW_LOW = 1023 };

static size_t static_bytes(void) {
    const MoeSimModule *m = moe_sim_now.launch->module;
    return m->shared ? (size_t)(m->shared_end - m->shared) : 0;
}
static unsigned window_static(void) {
    return WINDOW_STATIC + (unsigned)((uintptr_t)moe_sim_now.launch->module->shared & WINDOW_LOW);
}
static unsigned window_dynamic(void) {
    return 2 * WINDOW_STATIC + (unsigned)((static_bytes() + WINDOW_LOW) / 1024 * 1024) +
           (unsigned)((uintptr_t)moe_sim_now.current->self.shared & WINDOW_LOW);
}

static unsigned api_shared_addr(const void *p) {
    const char *c = p;
    const MoeSimSelf *me = &moe_sim_now.current->self;
    const MoeSimModule *m = moe_sim_now.launch->module;
    if (c >= me->shared && c <= me->shared + me->shared_bytes)
        return window_dynamic() + (unsigned)(c - me->shared);
    if (m->shared && c >= m->shared && c <= m->shared_end)
        return window_static() + (unsigned)(c - m->shared);
    moe_sim_fail("address %p is not in the block's shared memory (%u bytes at %p, dynamic)", p,
                 me->shared_bytes, (void *)me->shared);
}

static void *api_shared_at(unsigned addr, unsigned bytes) {
    const MoeSimSelf *me = &moe_sim_now.current->self;
    unsigned from = window_dynamic();
    bool dynamic = addr >= from;
    from = dynamic ? from : window_static();
    size_t all = dynamic ? me->shared_bytes : static_bytes();
    if (addr < from || addr - from + (size_t)bytes > all)
        moe_sim_fail("shared memory: %u bytes at %lld of %zu (%s)", bytes, (long long)addr - from,
                     all, dynamic ? "dynamic" : "static");
    return (dynamic ? me->shared : moe_sim_now.launch->module->shared) + (addr - from);
}

static const void *api_tensor_map(const void *map) {
    const char *why;
    const MoeSimTensorMap *m = moe_sim_tensor_map_read(map, &why);
    if (!m)
        moe_sim_fail("tensor map at %p: %s", map, why);
    return m;
}

static void api_fail(const char *why) {
    moe_sim_fail("%s", why);
}

const MoeSimApi moe_sim_api = {
    moe_sim_warp,  moe_sim_warpgroup, moe_sim_barrier, moe_sim_wait, moe_sim_relax,
    api_push,      api_commit,        api_drain,       api_later,    api_shared_addr,
    api_shared_at, api_tensor_map,    api_fail,
};
