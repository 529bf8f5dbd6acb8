/* Instructions that C++ has no word for, one function each, as the PTX manual describes them. In the simulator (MOE_SIM) they
 * have other bodies (tests/sim/ptx_sim.h).
 *
 * Addresses of shared memory are those of the block's shared window: shared_addr(p), then plain arithmetic. */
#ifndef MOE_DEVICE_PTX
#define MOE_DEVICE_PTX

#ifndef MOE_SIM
namespace moe {

__device__ __forceinline__ u32 shared_addr(const void *p) {
    return (u32)__cvta_generic_to_shared(p);
}

/* ---- copies from global to shared memory that go on beside the thread ---- */

/* 16 bytes to dst: `bytes` (0 .. 16) from src, then zeros. dst and src are multiples of 16; src is not read if bytes is 0. */
__device__ __forceinline__ void cp_async16(u32 dst, const void *src, u32 bytes) {
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;"
                 :
                 : "r"(dst), "l"(src), "r"(bytes)
                 : "memory");
}
/* The thread's copies since the last call are a group. */
__device__ __forceinline__ void cp_async_commit() {
    asm volatile("cp.async.commit_group;" ::: "memory");
}
/* Waits until at most the N youngest groups of the thread are under way. */
template <int N> __device__ __forceinline__ void cp_async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

/* ---- products of a warp ---- */

/* Four 8x8 matrices of 16-bit elements: lane l gives the address of row l % 8 (16 bytes) of matrix l / 8. r[i] of lane l: elements
 * 2 * (l % 4) and the next of row l / 4 of matrix i. */
__device__ __forceinline__ void ldmatrix_x4(u32 (&r)[4], u32 addr) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(addr)
                 : "memory");
}
/* The same of the transposed matrices: r[i] of lane l: rows 2 * (l % 4) and the next, column l / 4. */
__device__ __forceinline__ void ldmatrix_x4_trans(u32 (&r)[4], u32 addr) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(addr)
                 : "memory");
}
/* c += a b: 16x8 floats, a 16x16 and b 16x8 of bf16. With g = lane / 4, t = 2 * (lane % 4): c: (g, t), (g, t+1), (g+8, t), (g+8, t+1);
 * a: (g, t..), (g+8, t..), (g, t+8..), (g+8, t+8..); b0: (t.., g), b1: (t+8.., g). */
__device__ __forceinline__ void mma_bf16(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, "
                 "{%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/* ---- numbers ---- */

/* 2^x to about 2 ulp; results below 2^-126 are 0. */
__device__ __forceinline__ float ex2(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
/* Two floats as a pair of bf16, to nearest even. */
__device__ __forceinline__ u32 cvt_bf16x2(float low, float high) {
    u32 pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
}

} /* namespace moe */
#endif

#endif
