/* Bodies for the functions of codegen/cuda/device/ptx.cuh on the host, by what the PTX manual says the instructions do.
 * Products accumulate in f32, a chain of FMAs over ascending k; copies land when the simulator likes (kernel_api.h). */
#ifndef MOE_TESTS_SIM_PTX_SIM_H
#define MOE_TESTS_SIM_PTX_SIM_H
#ifdef __cplusplus

namespace moe {

__device__ __forceinline__ unsigned shared_addr(const void *p) {
    return MOE_SIM_API->shared_addr(p);
}

/* ---- copies of a thread ---- */

struct SimCopy {
    void *dst;
    const void *src;
    unsigned bytes;
};
inline void sim_copy16(void *data) {
    SimCopy *c = (SimCopy *)data;
    char all[16] = {0};
    if (c->bytes)
        memcpy(all, c->src, c->bytes);
    memcpy(c->dst, all, 16);
}

__device__ __forceinline__ void cp_async16(unsigned dst, const void *src, unsigned bytes) {
    if (dst % 16 || (bytes && (__UINTPTR_TYPE__)src % 16) || bytes > 16)
        MOE_SIM_API->fail("cp.async: an address that is no multiple of 16, or more than 16 bytes");
    SimCopy c = {MOE_SIM_API->shared_at(dst, 16), src, bytes};
    MOE_SIM_API->push(MOE_SIM_COPIES, sim_copy16, &c, sizeof c);
}
__device__ __forceinline__ void cp_async_commit() {
    MOE_SIM_API->commit(MOE_SIM_COPIES);
}
template <int N> __device__ __forceinline__ void cp_async_wait() {
    MOE_SIM_API->drain(MOE_SIM_COPIES, N);
}

/* ---- fragments ---- */

struct SimMatrices {
    const unsigned short *row; /* the 8 elements whose address this lane gives */
    unsigned r[4];
};
/* Matrix m's row i is what lane 8 m + i points at. */
template <bool TRANS> inline void sim_ldmatrix(void *const *args) {
    for (int lane = 0; lane < 32; lane++)
        for (int m = 0; m < 4; m++) {
            unsigned v[2];
            for (int e = 0; e < 2; e++) {
                int i = lane / 4, k = 2 * (lane % 4) + e;
                v[e] = ((SimMatrices *)args[8 * m + (TRANS ? k : i)])->row[TRANS ? i : k];
            }
            ((SimMatrices *)args[lane])->r[m] = v[0] | v[1] << 16;
        }
}
template <bool TRANS>
__device__ __forceinline__ void sim_load_matrices(unsigned (&r)[4], unsigned addr,
                                                  const char *what) {
    if (addr % 16)
        MOE_SIM_API->fail("ldmatrix: a row's address is no multiple of 16");
    SimMatrices m = {(const unsigned short *)MOE_SIM_API->shared_at(addr, 16), {}};
    MOE_SIM_API->warp(0xffffffffu, what, sim_ldmatrix<TRANS>, &m);
    for (int i = 0; i < 4; i++)
        r[i] = m.r[i];
}
__device__ __forceinline__ void ldmatrix_x4(unsigned (&r)[4], unsigned addr) {
    sim_load_matrices<false>(r, addr, "ldmatrix.x4");
}
__device__ __forceinline__ void ldmatrix_x4_trans(unsigned (&r)[4], unsigned addr) {
    sim_load_matrices<true>(r, addr, "ldmatrix.x4.trans");
}

/* ---- mma.sync ---- */

inline float sim_bf16(unsigned pair, int which) {
    return __uint_as_float(which ? pair & 0xffff0000u : pair << 16);
}

struct SimMma {
    float c[4];
    unsigned a[4], b[2];
};
/* c += a b; a 16x16 row-major, b 16x8 column-major, by the manual's fragments of m16n8k16. */
inline void sim_mma(void *const *args) {
    float a[16][16], b[16][8], c[16][8];
    for (int lane = 0; lane < 32; lane++) {
        const SimMma *f = (const SimMma *)args[lane];
        int g = lane / 4, t = 2 * (lane % 4);
        for (int e = 0; e < 2; e++) {
            a[g][t + e] = sim_bf16(f->a[0], e), a[g + 8][t + e] = sim_bf16(f->a[1], e);
            a[g][t + 8 + e] = sim_bf16(f->a[2], e), a[g + 8][t + 8 + e] = sim_bf16(f->a[3], e);
            b[t + e][g] = sim_bf16(f->b[0], e), b[t + 8 + e][g] = sim_bf16(f->b[1], e);
            c[g][t + e] = f->c[e], c[g + 8][t + e] = f->c[2 + e];
        }
    }
    for (int i = 0; i < 16; i++)
        for (int k = 0; k < 16; k++)
            for (int j = 0; j < 8; j++)
                c[i][j] = fmaf(a[i][k], b[k][j], c[i][j]);
    for (int lane = 0; lane < 32; lane++) {
        SimMma *f = (SimMma *)args[lane];
        int g = lane / 4, t = 2 * (lane % 4);
        for (int e = 0; e < 2; e++)
            f->c[e] = c[g][t + e], f->c[2 + e] = c[g + 8][t + e];
    }
}
__device__ __forceinline__ void mma_bf16(float (&c)[4], const unsigned (&a)[4], unsigned b0,
                                         unsigned b1) {
    SimMma f = {{c[0], c[1], c[2], c[3]}, {a[0], a[1], a[2], a[3]}, {b0, b1}};
    MOE_SIM_API->warp(0xffffffffu, "mma.sync", sim_mma, &f);
    for (int i = 0; i < 4; i++)
        c[i] = f.c[i];
}

/* ---- numbers ---- */

__device__ __forceinline__ float ex2(float x) {
    float y = exp2f(fabsf(x) < 0x1p-126f ? 0.0f : x);
    return y < 0x1p-126f ? 0.0f : y;
}
__device__ __forceinline__ unsigned sim_to_bf16(float f) {
    unsigned u = __float_as_uint(f);
    return (u & 0x7fffffffu) > 0x7f800000u ? 0x7fff : (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
}
__device__ __forceinline__ unsigned cvt_bf16x2(float low, float high) {
    return sim_to_bf16(low) | sim_to_bf16(high) << 16;
}

} /* namespace moe */

#endif
#endif
