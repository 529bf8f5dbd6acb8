/* What CUDA C++ has built in, for a C++ compiler of the host: force-included before a kernel's text (nvrtc.c), so that the
 * text of device/ compiles for the simulator unchanged. A block's threads are coroutines of one thread of the host
 * (block.c); shared variables are variables of the unit, of which one block runs at a time. */
#ifndef MOE_TESTS_SIM_CUDA_HOST_H
#define MOE_TESTS_SIM_CUDA_HOST_H
#ifdef __cplusplus

#define MOE_SIM 1
#include "tests/sim/kernel_api.h"

#define __host__
#define __device__
#define __global__
#define __constant__    static const
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__    __attribute__((noinline))
#define __grid_constant__
#define __restrict__ __restrict
#define __align__(n) __attribute__((aligned(n)))
#define __launch_bounds__(...)
#define __shared__ static __attribute__((used, section("moe_shared"), aligned(16)))

/* The unit's two ends of static shared memory, and its door (kernel_api.h). */
extern "C" {
extern char __start_moe_shared[] __attribute__((weak, visibility("hidden")));
extern char __stop_moe_shared[] __attribute__((weak, visibility("hidden")));
__attribute__((visibility("default"), used)) MoeSimModule moe_sim_module = {
    MOE_SIM_VERSION, nullptr, nullptr, __start_moe_shared, __stop_moe_shared};
}
#define MOE_SIM_API  (moe_sim_module.api)
#define MOE_SIM_SELF (moe_sim_module.self)

#define threadIdx (MOE_SIM_SELF->thread)
#define blockIdx  (MOE_SIM_SELF->block)
#define blockDim  (MOE_SIM_SELF->block_dim)
#define gridDim   (MOE_SIM_SELF->grid_dim)
#define warpSize  32

#define MOE_SHARED(name) char *const name = MOE_SIM_SELF->shared

/* Before a move of so many bytes as a whole, which the compiler may well do in pieces. */
#define MOE_ALIGNED(p, bytes)                                                                      \
    ((__UINTPTR_TYPE__)(p) % (bytes)                                                               \
         ? MOE_SIM_API->fail("a misaligned access of " #bytes " bytes")                            \
         : (void)0)

/* How the simulator calls a kernel: MOE_ENTRY(name, threads), after the kernel's definition. */
template <class... A> struct MoeSimCall;
template <class T> struct MoeSimBare { typedef T type; };
template <class T> struct MoeSimBare<const T> { typedef T type; };
template <class T> T &moe_sim_param(void *p) {
    return *(T *)p;
}
template <int... I> struct MoeSimIndices {};
template <int N, int... I> struct MoeSimCount : MoeSimCount<N - 1, N - 1, I...> {};
template <int... I> struct MoeSimCount<0, I...> { typedef MoeSimIndices<I...> type; };
template <class... A, int... I>
inline void moe_sim_apply(void (*f)(A...), void *const *params, MoeSimIndices<I...>) {
    f(moe_sim_param<typename MoeSimBare<A>::type>(params[I])...);
    (void)params;
}
template <class... A> inline void moe_sim_spread(void (*f)(A...), void *const *params) {
    moe_sim_apply(f, params, typename MoeSimCount<(int)sizeof...(A)>::type());
}
template <class... A>
constexpr MoeSimEntry moe_sim_entry(unsigned threads, void (*)(A...), void (*call)(void *const *)) {
    return MoeSimEntry{threads, (unsigned)sizeof...(A), {(unsigned)sizeof(A)...}, call};
}
#define MOE_ENTRY(name, threads)                                                                   \
    static void name##_call(void *const *params) {                                                 \
        moe_sim_spread(name, params);                                                              \
    }                                                                                              \
    extern "C" __attribute__((visibility("default"), used))                                        \
    const MoeSimEntry moe_sim_entry_##name = moe_sim_entry(threads, name, name##_call);

/* ---- libm; the names that CUDA and C share are C's ---- */

extern "C" {
float expf(float), exp2f(float), expm1f(float), logf(float), log2f(float), log10f(float),
    log1pf(float);
float sqrtf(float), powf(float, float), tanhf(float), sinf(float), cosf(float), tanf(float),
    erff(float);
float fabsf(float), fmaxf(float, float), fminf(float, float), fmaf(float, float, float);
float floorf(float), ceilf(float), truncf(float), rintf(float), roundf(float), fmodf(float, float);
float ldexpf(float, int), copysignf(float, float), scalbnf(float, int), nearbyintf(float);
double exp(double), log(double), sqrt(double), fabs(double), fma(double, double, double),
    pow(double, double);
double floor(double), ceil(double), cos(double), sin(double), rint(double), fmax(double, double),
    fmin(double, double);
void *memcpy(void *, const void *, __SIZE_TYPE__);
void *memset(void *, int, __SIZE_TYPE__);
void *malloc(__SIZE_TYPE__);
void free(void *);
}

#define MOE_SIM_CAST(name, to, from)                                                               \
    __forceinline__ to name(from v) {                                                              \
        return __builtin_bit_cast(to, v);                                                          \
    }
MOE_SIM_CAST(__float_as_int, int, float)
MOE_SIM_CAST(__float_as_uint, unsigned, float)
MOE_SIM_CAST(__int_as_float, float, int)
MOE_SIM_CAST(__uint_as_float, float, unsigned)
MOE_SIM_CAST(__double_as_longlong, long long, double)
MOE_SIM_CAST(__longlong_as_double, double, long long)
#undef MOE_SIM_CAST

__forceinline__ float __fadd_rn(float a, float b) {
    return a + b;
}
__forceinline__ float __fsub_rn(float a, float b) {
    return a - b;
}
__forceinline__ float __fmul_rn(float a, float b) {
    return a * b;
}
__forceinline__ float __fdiv_rn(float a, float b) {
    return a / b;
}
__forceinline__ float __fmaf_rn(float a, float b, float c) {
    return fmaf(a, b, c);
}
__forceinline__ float __fsqrt_rn(float a) {
    return sqrtf(a);
}
__forceinline__ float __frcp_rn(float a) {
    return 1.0f / a;
}
__forceinline__ float rsqrtf(float a) {
    return 1.0f / sqrtf(a);
}
__forceinline__ int __float2int_rn(float a) {
    return (int)rintf(a);
}
__forceinline__ int __float2int_rz(float a) {
    return (int)a;
}
__forceinline__ float __int2float_rn(int a) {
    return (float)a;
}
__forceinline__ float __uint2float_rn(unsigned a) {
    return (float)a;
}
__forceinline__ bool isnan(float a) {
    return a != a;
}
__forceinline__ bool isinf(float a) {
    return fabsf(a) == __builtin_inff();
}
__forceinline__ bool isfinite(float a) {
    return fabsf(a) < __builtin_inff();
}

#define MOE_SIM_MIN_MAX(T)                                                                         \
    __forceinline__ T min(T a, T b) {                                                              \
        return b < a ? b : a;                                                                      \
    }                                                                                              \
    __forceinline__ T max(T a, T b) {                                                              \
        return a < b ? b : a;                                                                      \
    }
MOE_SIM_MIN_MAX(int)
MOE_SIM_MIN_MAX(unsigned)
MOE_SIM_MIN_MAX(long)
MOE_SIM_MIN_MAX(unsigned long)
MOE_SIM_MIN_MAX(long long)
MOE_SIM_MIN_MAX(unsigned long long)
#undef MOE_SIM_MIN_MAX
__forceinline__ float min(float a, float b) {
    return fminf(a, b);
}
__forceinline__ float max(float a, float b) {
    return fmaxf(a, b);
}
__forceinline__ int abs(int a) {
    return a < 0 ? -a : a;
}

__forceinline__ int __popc(unsigned v) {
    return __builtin_popcount(v);
}
__forceinline__ int __popcll(unsigned long long v) {
    return __builtin_popcountll(v);
}
__forceinline__ int __clz(int v) {
    return v ? __builtin_clz((unsigned)v) : 32;
}
__forceinline__ int __clzll(long long v) {
    return v ? __builtin_clzll((unsigned long long)v) : 64;
}
__forceinline__ int __ffs(int v) {
    return __builtin_ffs(v);
}
__forceinline__ int __ffsll(long long v) {
    return __builtin_ffsll(v);
}
__forceinline__ unsigned __brev(unsigned v) {
    return __builtin_bitreverse32(v);
}
__forceinline__ int __mulhi(int a, int b) {
    return (int)((long long)a * b >> 32);
}
__forceinline__ unsigned __umulhi(unsigned a, unsigned b) {
    return (unsigned)((unsigned long long)a * b >> 32);
}
__forceinline__ unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
    return (unsigned long long)((unsigned __int128)a * b >> 64);
}
__forceinline__ unsigned __byte_perm(unsigned a, unsigned b, unsigned s) {
    unsigned long long both = (unsigned long long)b << 32 | a;
    unsigned out = 0;
    for (int i = 0; i < 4; i++)
        out |= (unsigned)(both >> 8 * (s >> 4 * i & 7) & 0xff) << 8 * i;
    return out;
}
__forceinline__ unsigned __funnelshift_r(unsigned lo, unsigned hi, unsigned n) {
    return (unsigned)(((unsigned long long)hi << 32 | lo) >> (n & 31));
}
__forceinline__ unsigned __funnelshift_l(unsigned lo, unsigned hi, unsigned n) {
    return (unsigned)(((unsigned long long)hi << 32 | lo) << (n & 31) >> 32);
}

/* ---- memory ---- */

template <class T> __forceinline__ T __ldg(const T *p) {
    return *p;
}
template <class T> __forceinline__ T __ldcs(const T *p) {
    return *p;
}
template <class T> __forceinline__ T __ldcg(const T *p) {
    return *p;
}
template <class T> __forceinline__ void __stcs(T *p, T v) {
    *p = v;
}
template <class T> __forceinline__ void __stcg(T *p, T v) {
    *p = v;
}
__forceinline__ void __threadfence() {
    asm volatile("" ::: "memory");
}
__forceinline__ void __threadfence_block() {
    asm volatile("" ::: "memory");
}
__forceinline__ void __threadfence_system() {
    asm volatile("" ::: "memory");
}
__forceinline__ void __trap() {
    MOE_SIM_API->fail("__trap()");
}
__forceinline__ void __nanosleep(unsigned) {
    MOE_SIM_API->relax("__nanosleep");
}

/* Blocks run one after another, and switches are calls: an atomic is what it says, at once. Integers alone. */
#define MOE_SIM_ATOMICS(T)                                                                         \
    __forceinline__ T atomicAdd(T *p, T v) {                                                       \
        T old = *p;                                                                                \
        *p = old + v;                                                                              \
        return old;                                                                                \
    }                                                                                              \
    __forceinline__ T atomicExch(T *p, T v) {                                                      \
        T old = *p;                                                                                \
        *p = v;                                                                                    \
        return old;                                                                                \
    }                                                                                              \
    __forceinline__ T atomicMin(T *p, T v) {                                                       \
        T old = *p;                                                                                \
        if (v < old)                                                                               \
            *p = v;                                                                                \
        return old;                                                                                \
    }                                                                                              \
    __forceinline__ T atomicMax(T *p, T v) {                                                       \
        T old = *p;                                                                                \
        if (v > old)                                                                               \
            *p = v;                                                                                \
        return old;                                                                                \
    }                                                                                              \
    __forceinline__ T atomicAnd(T *p, T v) {                                                       \
        T old = *p;                                                                                \
        *p = old & v;                                                                              \
        return old;                                                                                \
    }                                                                                              \
    __forceinline__ T atomicOr(T *p, T v) {                                                        \
        T old = *p;                                                                                \
        *p = old | v;                                                                              \
        return old;                                                                                \
    }                                                                                              \
    __forceinline__ T atomicCAS(T *p, T is, T v) {                                                 \
        T old = *p;                                                                                \
        if (old == is)                                                                             \
            *p = v;                                                                                \
        return old;                                                                                \
    }
MOE_SIM_ATOMICS(int)
MOE_SIM_ATOMICS(unsigned)
MOE_SIM_ATOMICS(unsigned long long)
#undef MOE_SIM_ATOMICS
__forceinline__ int atomicSub(int *p, int v) {
    return atomicAdd(p, -v);
}
__forceinline__ unsigned atomicSub(unsigned *p, unsigned v) {
    return atomicAdd(p, 0u - v);
}

/* ---- vectors ---- */

#define MOE_SIM_VECTOR2(name, T, a)                                                                \
    struct alignas(a) name {                                                                       \
        T x, y;                                                                                    \
    };                                                                                             \
    __forceinline__ name make_##name(T x, T y) {                                                   \
        return name{x, y};                                                                         \
    }
#define MOE_SIM_VECTOR4(name, T, a)                                                                \
    struct alignas(a) name {                                                                       \
        T x, y, z, w;                                                                              \
    };                                                                                             \
    __forceinline__ name make_##name(T x, T y, T z, T w) {                                         \
        return name{x, y, z, w};                                                                   \
    }
MOE_SIM_VECTOR2(float2, float, 8)
MOE_SIM_VECTOR2(int2, int, 8)
MOE_SIM_VECTOR2(uint2, unsigned, 8)
MOE_SIM_VECTOR2(ulonglong2, unsigned long long, 16)
MOE_SIM_VECTOR4(float4, float, 16)
MOE_SIM_VECTOR4(int4, int, 16)
MOE_SIM_VECTOR4(uint4, unsigned, 16)
#undef MOE_SIM_VECTOR2
#undef MOE_SIM_VECTOR4

/* ---- barriers ---- */

__forceinline__ void __syncthreads() {
    MOE_SIM_API->barrier(0, 0, MOE_SIM_SYNC, 0);
}
__forceinline__ int __syncthreads_or(int v) {
    return MOE_SIM_API->barrier(0, 0, MOE_SIM_OR, v);
}
__forceinline__ int __syncthreads_and(int v) {
    return MOE_SIM_API->barrier(0, 0, MOE_SIM_AND, v);
}
__forceinline__ int __syncthreads_count(int v) {
    return MOE_SIM_API->barrier(0, 0, MOE_SIM_COUNT, v);
}

/* ---- a warp ---- */

inline void moe_sim_nothing(void *const *) {}
__forceinline__ void __syncwarp(unsigned mask = 0xffffffffu) {
    MOE_SIM_API->warp(mask, "__syncwarp", moe_sim_nothing, &mask);
}

template <class T> struct MoeSimShuffle {
    T in, out;
    int at; /* the lane it asks */
};
template <class T> void moe_sim_shuffle(void *const *args) {
    for (int i = 0; i < 32; i++) {
        MoeSimShuffle<T> *s = (MoeSimShuffle<T> *)args[i];
        if (!s)
            continue;
        MoeSimShuffle<T> *from = (MoeSimShuffle<T> *)args[s->at];
        if (!from)
            MOE_SIM_API->fail("a shuffle reads from a lane that is not in its mask");
        else
            s->out = from->in;
    }
}
template <class T>
__forceinline__ T moe_sim_shuffle_from(unsigned mask, T v, int at, const char *what) {
    MoeSimShuffle<T> s = {v, v, at};
    MOE_SIM_API->warp(mask, what, moe_sim_shuffle<T>, &s);
    return s.out;
}
/* The run of `width` lanes that holds this one: its first lane. */
__forceinline__ int moe_sim_run(int width) {
    return (int)MOE_SIM_SELF->lane & ~(width - 1);
}

template <class T> __forceinline__ T __shfl_sync(unsigned mask, T v, int from, int width = 32) {
    return moe_sim_shuffle_from(mask, v, moe_sim_run(width) + (from & (width - 1)), "__shfl_sync");
}
template <class T>
__forceinline__ T __shfl_up_sync(unsigned mask, T v, unsigned d, int width = 32) {
    int me = (int)MOE_SIM_SELF->lane, at = me - (int)d;
    return moe_sim_shuffle_from(mask, v, at < moe_sim_run(width) ? me : at, "__shfl_up_sync");
}
template <class T>
__forceinline__ T __shfl_down_sync(unsigned mask, T v, unsigned d, int width = 32) {
    int me = (int)MOE_SIM_SELF->lane, at = me + (int)d;
    return moe_sim_shuffle_from(mask, v, at >= moe_sim_run(width) + width ? me : at,
                                "__shfl_down_sync");
}
template <class T> __forceinline__ T __shfl_xor_sync(unsigned mask, T v, int bits, int width = 32) {
    int me = (int)MOE_SIM_SELF->lane, at = me ^ bits;
    return moe_sim_shuffle_from(mask, v, at >= moe_sim_run(width) + width ? me : at,
                                "__shfl_xor_sync");
}

struct MoeSimVote {
    unsigned long long in;
    unsigned out;
};
inline void moe_sim_ballot(void *const *args) {
    unsigned bits = 0;
    for (int i = 0; i < 32; i++)
        bits |= (args[i] && ((MoeSimVote *)args[i])->in ? 1u : 0u) << i;
    for (int i = 0; i < 32; i++)
        if (args[i])
            ((MoeSimVote *)args[i])->out = bits;
}
inline void moe_sim_match(void *const *args) {
    for (int i = 0; i < 32; i++)
        for (int k = 0; args[i] && k < 32; k++)
            if (args[k] && ((MoeSimVote *)args[k])->in == ((MoeSimVote *)args[i])->in)
                ((MoeSimVote *)args[i])->out |= 1u << k;
}
__forceinline__ unsigned __ballot_sync(unsigned mask, int v) {
    MoeSimVote b = {(unsigned long long)(v != 0), 0};
    MOE_SIM_API->warp(mask, "__ballot_sync", moe_sim_ballot, &b);
    return b.out;
}
__forceinline__ int __any_sync(unsigned mask, int v) {
    return __ballot_sync(mask, v) != 0;
}
__forceinline__ int __all_sync(unsigned mask, int v) {
    return __ballot_sync(mask, v) == mask;
}
template <class T> __forceinline__ unsigned __match_any_sync(unsigned mask, T v) {
    MoeSimVote b = {0, 0};
    memcpy(&b.in, &v, sizeof v);
    MOE_SIM_API->warp(mask, "__match_any_sync", moe_sim_match, &b);
    return b.out;
}
template <class T> __forceinline__ unsigned __match_all_sync(unsigned mask, T v, int *same) {
    unsigned m = __match_any_sync(mask, v);
    *same = m == mask;
    return *same ? mask : 0;
}
/* sm_80's reductions of a warp. */
template <class T> __forceinline__ T moe_sim_reduce(unsigned mask, T v, T (*f)(T, T), T out) {
    bool any = false;
    for (int i = 0; i < 32; i++)
        if (mask >> i & 1) {
            T of = __shfl_sync(mask, v, i);
            out = any ? f(out, of) : of;
            any = true;
        }
    return out;
}
#define MOE_SIM_REDUCE(name, T, expr)                                                              \
    __forceinline__ T name(unsigned mask, T v) {                                                   \
        return moe_sim_reduce<T>(                                                                  \
            mask, v, [](T a, T b) -> T { return expr; }, v);                                       \
    }
MOE_SIM_REDUCE(__reduce_add_sync, int, (int)((unsigned)a + (unsigned)b))
MOE_SIM_REDUCE(__reduce_add_sync, unsigned, a + b)
MOE_SIM_REDUCE(__reduce_min_sync, int, b < a ? b : a)
MOE_SIM_REDUCE(__reduce_min_sync, unsigned, b < a ? b : a)
MOE_SIM_REDUCE(__reduce_max_sync, int, a < b ? b : a)
MOE_SIM_REDUCE(__reduce_max_sync, unsigned, a < b ? b : a)
MOE_SIM_REDUCE(__reduce_and_sync, unsigned, a &b)
MOE_SIM_REDUCE(__reduce_or_sync, unsigned, a | b)
MOE_SIM_REDUCE(__reduce_xor_sync, unsigned, a ^ b)
#undef MOE_SIM_REDUCE

#include "tests/sim/ptx_sim.h"
#include "tests/sim/hopper_sim.h"

#endif
#endif
