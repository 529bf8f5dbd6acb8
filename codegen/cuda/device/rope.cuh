/* Rotary positions, rotate-half form: pairs (i, i + half) of each head turn by pos * inv_freq[i].
 *
 * Angles are formed in f32 as transformers does it; their cos and sin in f64: reduction by multiples of pi/2, then Taylor
 * polynomials (angles below 2^27). A thread has VEC neighbouring pairs of a row, the same in every head. */
#ifndef MOE_DEVICE_ROPE
#define MOE_DEVICE_ROPE

namespace moe {

/* cos and sin of an angle >= 0, rounded to f32. */
__device__ __forceinline__ void cos_sin(float angle, float &cosine, float &sine) {
    const double x = (double)angle;
    const i64 n = (i64)(x * 0.63661977236758134 + 0.5);
    const double turns = (double)n;
    /* pi/2 in two parts, the first of 33 bits: turns times it is exact while turns < 2^20 */
    double y = x - turns * 0x1.921fb544p+0;
    y = y - turns * 0x1.0b4611a626331p-34;
    const double z = y * y;
    double s = 1.0 / 6227020800;
    s = s * z + -1.0 / 39916800;
    s = s * z + 1.0 / 362880;
    s = s * z + -1.0 / 5040;
    s = s * z + 1.0 / 120;
    s = s * z + -1.0 / 6;
    s = (s * z + 1.0) * y;
    double c = -1.0 / 87178291200;
    c = c * z + 1.0 / 479001600;
    c = c * z + -1.0 / 3628800;
    c = c * z + 1.0 / 40320;
    c = c * z + -1.0 / 720;
    c = c * z + 1.0 / 24;
    c = c * z + -1.0 / 2;
    c = c * z + 1.0;
    const double sv = n & 1 ? c : s, cv = n & 1 ? s : c;
    sine = (float)(n & 2 ? -sv : sv);
    cosine = (float)((n + 1) & 2 ? -cv : cv);
}

/* Rows first .. end-1 of x -> y: HEADS heads of 2 * HALF columns; row r has position r mod seq. */
template <int HEADS, int HALF, int VEC, bool INVERSE, class T>
__device__ __forceinline__ void rope(const T *x, T *y, const float *inv_freq, i64 first, i64 end,
                                     i64 seq) {
    constexpr int PER_ROW = HALF / VEC, AT_ONCE = HEADS < 4 ? HEADS : 4;
    const i64 stride = (i64)gridDim.x * blockDim.x, n = (end - first) * PER_ROW;
    for (i64 task = (i64)blockIdx.x * blockDim.x + threadIdx.x; task < n; task += stride) {
        const i64 row = first + task / PER_ROW;
        const int i = (int)(task % PER_ROW) * VEC;
        const float pos = (float)(row % seq);
        float c[VEC], s[VEC];
#pragma unroll
        for (int k = 0; k < VEC; k++) {
            cos_sin(pos * inv_freq[i + k], c[k], s[k]);
            s[k] = INVERSE ? -s[k] : s[k];
        }
        const T *from = x + row * (HEADS * 2 * HALF) + i;
        T *to = y + row * (HEADS * 2 * HALF) + i;
        for (int h = 0; h < HEADS; h += AT_ONCE) {
            float left[AT_ONCE][VEC], right[AT_ONCE][VEC];
#pragma unroll
            for (int m = 0; m < AT_ONCE; m++)
                if (h + m < HEADS) {
                    load_n(from + (h + m) * 2 * HALF, left[m]);
                    load_n(from + (h + m) * 2 * HALF + HALF, right[m]);
                }
#pragma unroll
            for (int m = 0; m < AT_ONCE; m++)
                if (h + m < HEADS) {
                    float turned_left[VEC], turned_right[VEC];
#pragma unroll
                    for (int k = 0; k < VEC; k++) {
                        turned_left[k] = fmaf(-right[m][k], s[k], left[m][k] * c[k]);
                        turned_right[k] = fmaf(left[m][k], s[k], right[m][k] * c[k]);
                    }
                    store_n(to + (h + m) * 2 * HALF, turned_left);
                    store_n(to + (h + m) * 2 * HALF + HALF, turned_right);
                }
        }
    }
}

} /* namespace moe */

#endif
