/* Elementwise ops of the graph on floats (ir/ops.def): one function an op, by its name. Divisions and roots are correctly
 * rounded, exp and log those of CUDA (2 ulp); nothing is fast-math. NaN operands give NaN: a poisoned loss must be seen. */
#ifndef MOE_DEVICE_MATH
#define MOE_DEVICE_MATH

namespace moe {

__device__ __forceinline__ float ew_add(float a, float b) {
    return a + b;
}
__device__ __forceinline__ float ew_sub(float a, float b) {
    return a - b;
}
__device__ __forceinline__ float ew_mul(float a, float b) {
    return a * b;
}
__device__ __forceinline__ float ew_div(float a, float b) {
    return a / b;
}
__device__ __forceinline__ float ew_max(float a, float b) {
    return max_nan(a, b);
}
__device__ __forceinline__ float ew_min(float a, float b) {
    return min_nan(a, b);
}
__device__ __forceinline__ float ew_neg(float x) {
    return -x;
}
__device__ __forceinline__ float ew_exp(float x) {
    return expf(x);
}
__device__ __forceinline__ float ew_log(float x) {
    return logf(x);
}
__device__ __forceinline__ float ew_sqrt(float x) {
    return sqrtf(x);
}
__device__ __forceinline__ float ew_rsqrt(float x) {
    return 1.0f / sqrtf(x);
}

/* 1 / (1 + e^-x). z = e^-|x| never overflows; for x < 0 the quotient z / (1 + z) keeps its accuracy down to denormals. */
__device__ __forceinline__ float ew_sigmoid(float x) {
    float z = expf(-fabsf(x));
    return (x < 0.0f ? z : 1.0f) / (1.0f + z);
}

__device__ __forceinline__ i32 ew_add(i32 a, i32 b) {
    return (i32)((u32)a + (u32)b);
}
__device__ __forceinline__ i32 ew_sub(i32 a, i32 b) {
    return (i32)((u32)a - (u32)b);
}
__device__ __forceinline__ i32 ew_mul(i32 a, i32 b) {
    return (i32)((u32)a * (u32)b);
}
__device__ __forceinline__ i32 ew_max(i32 a, i32 b) {
    return most(a, b);
}
__device__ __forceinline__ i32 ew_min(i32 a, i32 b) {
    return least(a, b);
}

} /* namespace moe */

#endif
