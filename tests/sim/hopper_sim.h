/* Bodies for the Hopper functions of codegen/cuda/device/ptx.cuh on the host: mbarriers, copies by tensor map, products of
 * a warpgroup on operands in shared memory with a swizzle of 128 bytes, by what the PTX manual says. Products accumulate
 * as mma.sync's in ptx_sim.h; they and copies land when the simulator likes (kernel_api.h). */
#ifndef MOE_TESTS_SIM_HOPPER_SIM_H
#define MOE_TESTS_SIM_HOPPER_SIM_H
#ifdef __cplusplus

#include "tests/sim/tensor_map.h"

namespace moe {

struct MoeMap;

/* ---- mbarrier: 8 bytes of shared memory ---- */

struct SimBarrier {
    unsigned short count;
    short pending; /* arrivals that are missing in this phase */
    int bytes;     /* announced and not there yet; below 0: there before they were announced */
};
/* The phase's parity is the highest bit of count. */
enum { SIM_PHASE = 0x8000 };

inline SimBarrier *sim_barrier(unsigned bar) {
    if (bar % 8)
        MOE_SIM_API->fail("an mbarrier's address is no multiple of 8");
    SimBarrier *b = (SimBarrier *)MOE_SIM_API->shared_at(bar, 8);
    int count = b->count & ~SIM_PHASE;
    if (count == 0 || count == 0x7fff || b->pending < 0 || b->pending > count)
        MOE_SIM_API->fail(
            "an mbarrier that was not initialised, or is overwritten, or has too many arrivals");
    return b;
}
inline void sim_barrier_step(SimBarrier *b) {
    if (b->pending || b->bytes)
        return;
    b->count ^= SIM_PHASE;
    b->pending = (short)(b->count & ~SIM_PHASE);
}
inline void sim_barrier_arrive(SimBarrier *b) {
    if (b->pending == 0)
        MOE_SIM_API->fail("an mbarrier gets more arrivals in a phase than its count");
    b->pending--;
    sim_barrier_step(b);
}

__device__ __forceinline__ void mbar_init(unsigned bar, unsigned count) {
    if (bar % 8 || count == 0 || count >= 0x7fff)
        MOE_SIM_API->fail(
            "mbarrier.init: an address that is no multiple of 8, or a count that cannot be");
    *(SimBarrier *)MOE_SIM_API->shared_at(bar, 8) =
        SimBarrier{(unsigned short)count, (short)count, 0};
}
__device__ __forceinline__ void mbar_init_fence() {}
__device__ __forceinline__ void mbar_arrive(unsigned bar) {
    sim_barrier_arrive(sim_barrier(bar));
}
__device__ __forceinline__ void mbar_expect(unsigned bar, unsigned bytes) {
    SimBarrier *b = sim_barrier(bar);
    b->bytes += (int)bytes;
    sim_barrier_arrive(b);
}
struct SimBarrierWait {
    SimBarrier *b;
    unsigned parity;
};
inline int sim_barrier_ended(void *arg) {
    SimBarrierWait *w = (SimBarrierWait *)arg;
    return (w->b->count & SIM_PHASE ? 1u : 0u) != w->parity;
}
__device__ __forceinline__ void mbar_wait(unsigned bar, unsigned parity) {
    if (parity > 1)
        MOE_SIM_API->fail("mbarrier: a parity that is neither 0 nor 1");
    SimBarrierWait w = {sim_barrier(bar), parity};
    MOE_SIM_API->wait(parity ? "mbarrier, parity 1" : "mbarrier, parity 0", sim_barrier_ended, &w);
}
inline void sim_arrive_later(void *data) {
    sim_barrier_arrive(*(SimBarrier **)data);
}
__device__ __forceinline__ void cp_async_arrive(unsigned bar) {
    SimBarrier *b = sim_barrier(bar);
    MOE_SIM_API->push(MOE_SIM_COPIES_END, sim_arrive_later, &b, sizeof b);
}
__device__ __forceinline__ void fence_async() {
    asm volatile("" ::: "memory");
}

/* ---- copies by tensor map ---- */

struct SimBox {
    const MoeSimTensorMap *map;
    char *dst;
    SimBarrier *bar;
    int at[5]; /* element, innermost first */
};

/* Where in a tile at a multiple of 1024 the byte at `off` lies. */
inline unsigned sim_swizzle(unsigned off, unsigned bytes) {
    return bytes == 128  ? off ^ (off >> 3 & 0x70)
           : bytes == 64 ? off ^ (off >> 3 & 0x30)
           : bytes == 32 ? off ^ (off >> 3 & 0x10)
                         : off;
}

/* One row of the box: elements that lie outside of the tensor are 0. */
inline void sim_box_row(const SimBox *b, const char *src, char *row) {
    const MoeSimTensorMap *m = b->map;
    long long from = b->at[0] < 0 ? -(long long)b->at[0] : 0, to = (long long)m->dims[0] - b->at[0];
    memset(row, 0, (unsigned long)m->box[0] * m->element_bytes);
    to = to < m->box[0] ? to : m->box[0];
    if (src && to > from)
        memcpy(row + from * m->element_bytes, src + (b->at[0] + from) * m->element_bytes,
               (unsigned long)(to - from) * m->element_bytes);
}

inline void sim_box_copy(void *data) {
    const SimBox *b = (const SimBox *)data;
    const MoeSimTensorMap *m = b->map;
    unsigned row_bytes = m->box[0] * m->element_bytes, rows = 1;
    for (int d = 1; d < m->rank; d++)
        rows *= m->box[d];
    for (unsigned r = 0; r < rows; r++) {
        char row[2048];
        const char *src = (const char *)m->address;
        for (unsigned d = 1, i = r; d < m->rank; i /= m->box[d], d++) {
            long long c = (long long)b->at[d] + i % m->box[d];
            src = !src || c < 0 || c >= (long long)m->dims[d]
                      ? nullptr
                      : src + c * (long long)m->strides[d - 1];
        }
        sim_box_row(b, src, row);
        for (unsigned k = 0; k < row_bytes; k += 16)
            memcpy(b->dst + sim_swizzle(r * row_bytes + k, m->swizzle), row + k, 16);
    }
    b->bar->bytes -= (int)(rows * row_bytes);
    sim_barrier_step(b->bar);
}

inline void sim_box(unsigned dst, const void *map, int rank, int c0, int c1, int c2, unsigned bar) {
    SimBox b = {(const MoeSimTensorMap *)MOE_SIM_API->tensor_map(map),
                nullptr,
                sim_barrier(bar),
                {c0, c1, c2, 0, 0}};
    unsigned bytes = b.map->element_bytes;
    for (int d = 0; d < b.map->rank; d++)
        bytes *= b.map->box[d];
    if (b.map->rank != rank)
        MOE_SIM_API->fail(
            "a copy by tensor map with another number of coordinates than the map has");
    if (dst % (b.map->swizzle ? 1024 : 128))
        MOE_SIM_API->fail(
            "a copy by tensor map to an address that is no multiple of 128, or, swizzled, of 1024");
    b.dst = (char *)MOE_SIM_API->shared_at(dst, bytes);
    MOE_SIM_API->later(sim_box_copy, &b, sizeof b);
}
__device__ __forceinline__ void tma_load_2d(unsigned dst, const MoeMap &map, int c0, int c1,
                                            unsigned bar) {
    sim_box(dst, &map, 2, c0, c1, 0, bar);
}
__device__ __forceinline__ void tma_load_3d(unsigned dst, const MoeMap &map, int c0, int c1, int c2,
                                            unsigned bar) {
    sim_box(dst, &map, 3, c0, c1, c2, bar);
}

/* ---- products of a warpgroup ---- */

__device__ __forceinline__ unsigned long long wgmma_desc(unsigned addr, unsigned leading,
                                                         unsigned stride) {
    return (unsigned long long)((addr & 0x3ffffu) >> 4) | (unsigned long long)(leading >> 4) << 16 |
           (unsigned long long)(stride >> 4) << 32 | 1ull << 62;
}

struct SimProduct {
    float *c[128];
    unsigned long long a, b;
};
struct SimProductArg {
    float *c;
    unsigned long long a, b;
};

/* Sixteen k of row i (of a) or column i (of b) of an operand. */
inline void sim_operand(unsigned long long desc, int i, bool trans, float (&out)[16]) {
    unsigned addr = (unsigned)(desc & 0x3fff) << 4, leading = (unsigned)(desc >> 16 & 0x3fff) << 4,
             stride = (unsigned)(desc >> 32 & 0x3fff) << 4;
    const char *line = nullptr;
    unsigned at = ~0u;
    for (int k = 0; k < 16; k++) {
        unsigned p = trans ? addr + i / 64 * leading + i % 64 * 2 + k / 8 * stride + k % 8 * 128
                           : addr + i / 8 * stride + i % 8 * 128 + k * 2;
        p = sim_swizzle(p, 128);
        if ((p & ~127u) != at) {
            at = p & ~127u;
            line = (const char *)MOE_SIM_API->shared_at(at, 128);
        }
        out[k] = __uint_as_float((unsigned)*(const unsigned short *)(line + p % 128) << 16);
    }
}

template <int N, bool TRANS_A, bool TRANS_B> inline void sim_product(void *data) {
    SimProduct *p = *(SimProduct **)data;
    float b[16][N];
    for (int n = 0; n < N; n++) {
        float k_of[16];
        sim_operand(p->b, n, TRANS_B, k_of);
        for (int k = 0; k < 16; k++)
            b[k][n] = k_of[k];
    }
    for (int m = 0; m < 64; m++) {
        float a[16], c[N];
        int first = m / 16 * 32 + m % 8 * 4, h = m / 8 % 2;
        sim_operand(p->a, m, TRANS_A, a);
        for (int n = 0; n < N; n++)
            c[n] = p->c[first + n % 8 / 2][n / 8 * 4 + 2 * h + n % 2];
        for (int k = 0; k < 16; k++)
            for (int n = 0; n < N; n++)
                c[n] = fmaf(a[k], b[k][n], c[n]);
        for (int n = 0; n < N; n++)
            p->c[first + n % 8 / 2][n / 8 * 4 + 2 * h + n % 2] = c[n];
    }
    free(p);
}

/* The 128 threads are here: the product is under way. */
template <int N, bool TRANS_A, bool TRANS_B> inline void sim_product_issue(void *const *args) {
    SimProduct *p = (SimProduct *)malloc(sizeof *p);
    const SimProductArg *first = (const SimProductArg *)args[0];
    p->a = first->a;
    p->b = first->b;
    for (int i = 0; i < 128; i++) {
        const SimProductArg *of = (const SimProductArg *)args[i];
        if (of->a != p->a || of->b != p->b)
            MOE_SIM_API->fail("wgmma: threads of a warpgroup give different operands");
        p->c[i] = of->c;
    }
    MOE_SIM_API->push(MOE_SIM_PRODUCTS, sim_product<N, TRANS_A, TRANS_B>, &p, sizeof p);
}
template <int N, bool TRANS_A, bool TRANS_B>
__device__ __forceinline__ void wgmma(float (&c)[N / 2], unsigned long long a,
                                      unsigned long long b) {
    SimProductArg arg = {c, a, b};
    MOE_SIM_API->warpgroup("wgmma", sim_product_issue<N, TRANS_A, TRANS_B>, &arg);
}
inline void sim_product_commit(void *const *) {
    MOE_SIM_API->commit(MOE_SIM_PRODUCTS);
}
__device__ __forceinline__ void wgmma_fence() {
    asm volatile("" ::: "memory");
}
__device__ __forceinline__ void wgmma_commit() {
    int nothing = 0;
    MOE_SIM_API->warpgroup("wgmma.commit_group", sim_product_commit, &nothing);
}
template <int N> __device__ __forceinline__ void wgmma_wait() {
    MOE_SIM_API->drain(MOE_SIM_PRODUCTS, N);
}
template <int N> __device__ __forceinline__ void wgmma_hold(float (&)[N]) {
    asm volatile("" ::: "memory");
}
template <int N> __device__ __forceinline__ void reg_dec() {}
template <int N> __device__ __forceinline__ void reg_inc() {}
__device__ __forceinline__ void named_barrier(int id, int threads) {
    MOE_SIM_API->barrier((unsigned)id, (unsigned)threads, MOE_SIM_SYNC, 0);
}

} /* namespace moe */

#endif
#endif
