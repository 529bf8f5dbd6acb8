/* What the runtime itself does to values on the device, between the steps of a plan: base/cuda_abi.h has the kernels and their
 * buffers, codegen/cuda/runtime_kernels.c puts them into every plan. */
#ifndef MOE_DEVICE_RUNTIME
#define MOE_DEVICE_RUNTIME

namespace moe {

/* A number that came in place of a buffer. */
template <int N> __device__ __forceinline__ i64 number(const MoeArgs<N> &a, int i) {
    return (i64)a.p[i];
}

__device__ __forceinline__ i64 first_index() {
    return (i64)blockIdx.x * blockDim.x + threadIdx.x;
}
__device__ __forceinline__ i64 index_stride() {
    return (i64)gridDim.x * blockDim.x;
}

/* The tree over micro-batches: out = slot[s-1] + ( .. (slot[0] + source)), older operands on the left. Element by element, so
 * out may be any of the others. */
template <int N> __device__ __forceinline__ void rt_fold(const MoeArgs<N> &a) {
    const float *source = buf<const float>(a, 0);
    float *out = buf<float>(a, 1);
    const i64 n = number(a, 2);
    const int slots = (int)number(a, 3);
    for (i64 i = first_index(); i < n; i += index_stride()) {
        float v = source[i];
        for (int s = 0; s < slots; s++)
            v = buf<const float>(a, 4 + s)[i] + v;
        out[i] = v;
    }
}

__device__ __forceinline__ void rt_add_i32(const MoeArgs<3> &a) {
    const i32 *source = buf<const i32>(a, 0);
    i32 *sum = buf<i32>(a, 1);
    const i64 n = number(a, 2);
    for (i64 i = first_index(); i < n; i += index_stride())
        sum[i] = (i32)((u32)sum[i] + (u32)source[i]);
}

/* A table of rows in which the slots outside [lo, hi) are empty and every row keeps its place. */
__device__ __forceinline__ void rt_window(const MoeArgs<5> &a) {
    const i32 *all = buf<const i32>(a, 0);
    i32 *window = buf<i32>(a, 1);
    const i64 n = number(a, 2);
    const i32 lo = all[number(a, 3)], hi = all[number(a, 4)];
    for (i64 i = first_index(); i < n; i += index_stride())
        window[i] = least(most(all[i], lo), hi);
}

/* An elastic value (MoeRtElastic). */
struct Elastic {
    const i32 *rows;
    i64 limit, seen, need;
};

/* One block. What does not fit stops the program before a kernel touches it. */
__device__ __forceinline__ void rt_guard_rows(const MoeArgs<3> &a) {
    Elastic *e = buf<Elastic>(a, 0);
    const i64 n = number(a, 1);
    for (i64 i = threadIdx.x; i < n; i += blockDim.x) {
        const i64 rows = *e[i].rows;
        e[i].seen = most(e[i].seen, rows);
        if (rows > e[i].limit) {
            e[i].need = rows;
            *a.stop = (int)number(a, 2);
        }
    }
}

__device__ __forceinline__ bool is_finite(float v) {
    return (__float_as_uint(v) & 0x7f800000u) != 0x7f800000u;
}

__device__ __forceinline__ void rt_guard_finite(const MoeArgs<2> &a, int code) {
    if (threadIdx.x == 0 && !(is_finite(*buf<const float>(a, 0)) && is_finite(*buf<const float>(a, 1))))
        *a.stop = code;
}

} /* namespace moe */

#endif
