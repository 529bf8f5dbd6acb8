/* What every kernel may use: types, bf16, the kernel's frame, reductions over a warp and a block, wide loads and stores.
 *
 * CUDA C++ without headers of CUDA or of C++: NVRTC compiles it for a device, and a host compiler for the simulator
 * (MOE_SIM), which declares the built-ins beforehand. Compiled with --fmad=false: a product and a sum are two roundings
 * wherever the text does not say fmaf, so that fusing ops never changes bits. */
#ifndef MOE_DEVICE_PRELUDE
#define MOE_DEVICE_PRELUDE

namespace moe {

typedef int i32;
typedef unsigned int u32;
typedef long long i64;
typedef unsigned long long u64;
typedef unsigned char u8;
typedef unsigned short bf16; /* in memory; values are computed with as float */

#define MOE_INFINITY __int_as_float(0x7f800000)

/* ---- the frame of a kernel ---- */

/* The arguments: the step's stop flag, then its buffers in the plan's order. */
template <int N> struct MoeArgs {
    int *stop;
    void *p[N > 0 ? N : 1];
};

/* A tensor map as the driver encodes it; kernels pass its address on and never look inside. */
struct alignas(64) MoeMap {
    u64 opaque[16];
};

template <class T, int N> __device__ __forceinline__ T *buf(const MoeArgs<N> &a, int i) {
    return (T *)a.p[i];
}

} /* namespace moe */

/* MOE_KERNEL(name, buffers, threads of a block, blocks a multiprocessor at least) { body; a: the arguments }
 * Returns at once where the step was stopped. MOE_KERNEL_1 .. _4: with tensor maps m0 .. m3. */
#ifndef MOE_ENTRY
#define MOE_ENTRY(name, threads) /* the simulator's: how a host calls the kernel */
#endif
#define MOE_FRAME(name, threads, min_blocks, params, refs, names)                                  \
    static __device__ __forceinline__ void name##_body refs;                                       \
    extern "C" __global__ void __launch_bounds__(threads, min_blocks) name params {                \
        if (*a.stop == 0)                                                                          \
            name##_body names;                                                                     \
    }                                                                                              \
    MOE_ENTRY(name, threads)                                                                       \
    static __device__ __forceinline__ void name##_body refs
#define MOE_ARGS(n) const __grid_constant__ moe::MoeArgs<n> a
#define MOE_MAP(m)  const __grid_constant__ moe::MoeMap m
#define MOE_ARGS_REF(n) const moe::MoeArgs<n> &a
#define MOE_MAP_REF(m)  const moe::MoeMap &m
#define MOE_KERNEL(name, n, threads, min_blocks)                                                   \
    MOE_FRAME(name, threads, min_blocks, (MOE_ARGS(n)), (MOE_ARGS_REF(n)), (a))
#define MOE_KERNEL_1(name, n, threads, min_blocks)                                                 \
    MOE_FRAME(name, threads, min_blocks, (MOE_ARGS(n), MOE_MAP(m0)),                               \
              (MOE_ARGS_REF(n), MOE_MAP_REF(m0)), (a, m0))
#define MOE_KERNEL_2(name, n, threads, min_blocks)                                                 \
    MOE_FRAME(name, threads, min_blocks, (MOE_ARGS(n), MOE_MAP(m0), MOE_MAP(m1)),                  \
              (MOE_ARGS_REF(n), MOE_MAP_REF(m0), MOE_MAP_REF(m1)), (a, m0, m1))
#define MOE_KERNEL_3(name, n, threads, min_blocks)                                                 \
    MOE_FRAME(name, threads, min_blocks, (MOE_ARGS(n), MOE_MAP(m0), MOE_MAP(m1), MOE_MAP(m2)),     \
              (MOE_ARGS_REF(n), MOE_MAP_REF(m0), MOE_MAP_REF(m1), MOE_MAP_REF(m2)),                \
              (a, m0, m1, m2))
#define MOE_KERNEL_4(name, n, threads, min_blocks)                                                 \
    MOE_FRAME(name, threads, min_blocks,                                                           \
              (MOE_ARGS(n), MOE_MAP(m0), MOE_MAP(m1), MOE_MAP(m2), MOE_MAP(m3)),                   \
              (MOE_ARGS_REF(n), MOE_MAP_REF(m0), MOE_MAP_REF(m1), MOE_MAP_REF(m2),                 \
               MOE_MAP_REF(m3)),                                                                   \
              (a, m0, m1, m2, m3))

/* The block's dynamic shared memory; its size is the launch's. */
#ifndef MOE_SHARED
#define MOE_SHARED(name) extern __shared__ __align__(128) char name[]
#endif

namespace moe {

/* ---- numbers ---- */

/* A number that a generic lambda can take as a constant: decltype(n)::value. */
template <int N> struct Int {
    static constexpr int value = N;
};

template <class T> __device__ __forceinline__ T least(T a, T b) {
    return a < b ? a : b;
}
template <class T> __device__ __forceinline__ T most(T a, T b) {
    return a > b ? a : b;
}
template <class T> __device__ __forceinline__ T ceil_div(T a, T b) {
    return (a + b - 1) / b;
}

__device__ __forceinline__ float from_bf16(bf16 h) {
    return __uint_as_float((u32)h << 16);
}

/* To nearest, ties to even; a NaN stays one (quiet, its upper bits kept), as on the host. */
__device__ __forceinline__ bf16 to_bf16(float f) {
    u32 u = __float_as_uint(f);
    u32 rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
    return (bf16)((u & 0x7fffffffu) > 0x7f800000u ? (u >> 16) | 0x40u : rounded);
}

/* f after a way through bf16. */
__device__ __forceinline__ float round_bf16(float f) {
    return from_bf16(to_bf16(f));
}

/* The larger, the smaller; NaN if one is NaN. */
__device__ __forceinline__ float max_nan(float a, float b) {
    return a != a || a > b ? a : b;
}
__device__ __forceinline__ float min_nan(float a, float b) {
    return a != a || a < b ? a : b;
}

/* ---- memory ---- */

/* One element as a number, and back. i32 stays i32. */
__device__ __forceinline__ float load(const float *p) {
    return *p;
}
__device__ __forceinline__ float load(const bf16 *p) {
    return from_bf16(*p);
}
__device__ __forceinline__ i32 load(const i32 *p) {
    return *p;
}
__device__ __forceinline__ void store(float *p, float v) {
    *p = v;
}
__device__ __forceinline__ void store(bf16 *p, float v) {
    *p = to_bf16(v);
}
__device__ __forceinline__ void store(i32 *p, i32 v) {
    *p = v;
}

/* Words that one instruction moves. */
struct alignas(16) Words4 {
    u32 x, y, z, w;
};
struct alignas(8) Words2 {
    u32 x, y;
};

#ifndef MOE_ALIGNED
#define MOE_ALIGNED(p, bytes) ((void)0) /* the simulator's: a device would trap */
#endif

__device__ __forceinline__ Words4 load_words4(const void *p) {
    MOE_ALIGNED(p, 16);
    return *(const Words4 *)p;
}
__device__ __forceinline__ Words2 load_words2(const void *p) {
    MOE_ALIGNED(p, 8);
    return *(const Words2 *)p;
}
__device__ __forceinline__ void store_words4(void *p, Words4 v) {
    MOE_ALIGNED(p, 16);
    *(Words4 *)p = v;
}
__device__ __forceinline__ void store_words2(void *p, Words2 v) {
    MOE_ALIGNED(p, 8);
    *(Words2 *)p = v;
}

__device__ __forceinline__ float low_bf16(u32 pair) {
    return __uint_as_float(pair << 16);
}
__device__ __forceinline__ float high_bf16(u32 pair) {
    return __uint_as_float(pair & 0xffff0000u);
}
__device__ __forceinline__ u32 pack_bf16(float low, float high) {
    return (u32)to_bf16(low) | (u32)to_bf16(high) << 16;
}

/* N elements at p, in accesses of up to 16 bytes: p is a multiple of least(N * size of an element, 16). N: 1, 2, 4, 8. */
template <int N> __device__ __forceinline__ void load_n(const float *p, float (&v)[N]) {
    if constexpr (N == 1) {
        v[0] = *p;
    } else if constexpr (N == 2) {
        Words2 w = load_words2(p);
        v[0] = __uint_as_float(w.x), v[1] = __uint_as_float(w.y);
    } else {
#pragma unroll
        for (int i = 0; i < N; i += 4) {
            Words4 w = load_words4(p + i);
            v[i] = __uint_as_float(w.x), v[i + 1] = __uint_as_float(w.y);
            v[i + 2] = __uint_as_float(w.z), v[i + 3] = __uint_as_float(w.w);
        }
    }
}

template <int N> __device__ __forceinline__ void load_n(const i32 *p, i32 (&v)[N]) {
    if constexpr (N == 1) {
        v[0] = *p;
    } else if constexpr (N == 2) {
        Words2 w = load_words2(p);
        v[0] = (i32)w.x, v[1] = (i32)w.y;
    } else {
#pragma unroll
        for (int i = 0; i < N; i += 4) {
            Words4 w = load_words4(p + i);
            v[i] = (i32)w.x, v[i + 1] = (i32)w.y, v[i + 2] = (i32)w.z, v[i + 3] = (i32)w.w;
        }
    }
}

template <int N> __device__ __forceinline__ void load_n(const bf16 *p, float (&v)[N]) {
    if constexpr (N == 1) {
        v[0] = from_bf16(*p);
    } else if constexpr (N == 2) {
        u32 w = *(const u32 *)p;
        v[0] = low_bf16(w), v[1] = high_bf16(w);
    } else if constexpr (N == 4) {
        Words2 w = load_words2(p);
        v[0] = low_bf16(w.x), v[1] = high_bf16(w.x), v[2] = low_bf16(w.y), v[3] = high_bf16(w.y);
    } else {
#pragma unroll
        for (int i = 0; i < N; i += 8) {
            Words4 w = load_words4(p + i);
            v[i] = low_bf16(w.x), v[i + 1] = high_bf16(w.x);
            v[i + 2] = low_bf16(w.y), v[i + 3] = high_bf16(w.y);
            v[i + 4] = low_bf16(w.z), v[i + 5] = high_bf16(w.z);
            v[i + 6] = low_bf16(w.w), v[i + 7] = high_bf16(w.w);
        }
    }
}

template <int N> __device__ __forceinline__ void store_n(float *p, const float (&v)[N]) {
    if constexpr (N == 1) {
        *p = v[0];
    } else if constexpr (N == 2) {
        store_words2(p, Words2{__float_as_uint(v[0]), __float_as_uint(v[1])});
    } else {
#pragma unroll
        for (int i = 0; i < N; i += 4)
            store_words4(p + i, Words4{__float_as_uint(v[i]), __float_as_uint(v[i + 1]),
                                       __float_as_uint(v[i + 2]), __float_as_uint(v[i + 3])});
    }
}

template <int N> __device__ __forceinline__ void store_n(i32 *p, const i32 (&v)[N]) {
    if constexpr (N == 1) {
        *p = v[0];
    } else if constexpr (N == 2) {
        store_words2(p, Words2{(u32)v[0], (u32)v[1]});
    } else {
#pragma unroll
        for (int i = 0; i < N; i += 4)
            store_words4(p + i,
                         Words4{(u32)v[i], (u32)v[i + 1], (u32)v[i + 2], (u32)v[i + 3]});
    }
}

template <int N> __device__ __forceinline__ void store_n(bf16 *p, const float (&v)[N]) {
    if constexpr (N == 1) {
        *p = to_bf16(v[0]);
    } else if constexpr (N == 2) {
        *(u32 *)p = pack_bf16(v[0], v[1]);
    } else if constexpr (N == 4) {
        store_words2(p, Words2{pack_bf16(v[0], v[1]), pack_bf16(v[2], v[3])});
    } else {
#pragma unroll
        for (int i = 0; i < N; i += 8)
            store_words4(p + i, Words4{pack_bf16(v[i], v[i + 1]), pack_bf16(v[i + 2], v[i + 3]),
                                       pack_bf16(v[i + 4], v[i + 5]), pack_bf16(v[i + 6], v[i + 7])});
    }
}

/* ---- threads ---- */

__device__ __forceinline__ int lane() {
    return (int)(threadIdx.x & 31u);
}
__device__ __forceinline__ int warp() {
    return (int)(threadIdx.x >> 5);
}

/* Over the WIDTH lanes (a power of two) of each aligned run of a warp; every lane gets the result. All lanes of the
 * warp take part. The order is that of a tree by halves: lanes at a distance of WIDTH/2 first. */
template <int WIDTH = 32> __device__ __forceinline__ float warp_sum(float v) {
#pragma unroll
    for (int d = WIDTH / 2; d > 0; d /= 2)
        v += __shfl_xor_sync(0xffffffffu, v, d);
    return v;
}
template <int WIDTH = 32> __device__ __forceinline__ float warp_max(float v) {
#pragma unroll
    for (int d = WIDTH / 2; d > 0; d /= 2)
        v = max_nan(v, __shfl_xor_sync(0xffffffffu, v, d));
    return v;
}
template <int WIDTH = 32> __device__ __forceinline__ i32 warp_sum(i32 v) {
#pragma unroll
    for (int d = WIDTH / 2; d > 0; d /= 2)
        v += __shfl_xor_sync(0xffffffffu, v, d);
    return v;
}

} /* namespace moe */

#endif
