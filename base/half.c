/* IEEE binary16 <-> binary32, round to nearest even. */
#include "base/half.h"

float moe_f16_to_f32(uint16_t h) {
    uint32_t sign = (uint32_t)(h & 0x8000u) << 16;
    uint32_t exponent = (h >> 10) & 0x1fu;
    uint32_t fraction = h & 0x3ffu;
    uint32_t u;
    if (exponent == 31) {
        u = sign | 0x7f800000u | (fraction << 13);
        if (fraction)
            u |= 0x00400000u; /* quiet */
    } else if (exponent) {
        u = sign | ((exponent + 112) << 23) | (fraction << 13);
    } else {
        float f = (float)fraction * 0x1p-24f; /* zero and subnormals: exact */
        memcpy(&u, &f, 4);
        u |= sign;
    }
    float f;
    memcpy(&f, &u, 4);
    return f;
}

uint16_t moe_f32_to_f16(float f) {
    uint32_t u;
    memcpy(&u, &f, 4);
    uint16_t sign = (uint16_t)((u >> 16) & 0x8000u);
    u &= 0x7fffffffu;
    if (u > 0x7f800000u)
        return (uint16_t)(sign | 0x7e00u | ((u >> 13) & 0x3ffu));
    if (u >= 0x477ff000u) /* 65520, half way past the largest finite value, and above */
        return (uint16_t)(sign | 0x7c00u);
    if (u < 0x33000001u) /* at most half of the smallest subnormal: ties go to even, zero */
        return sign;
    uint32_t exponent = u >> 23;
    uint32_t shift = 13, bits = u - (112u << 23);
    if (exponent < 113) { /* subnormal result: the hidden bit becomes explicit */
        shift = 126 - exponent;
        bits = (u & 0x7fffffu) | 0x800000u;
    }
    uint32_t kept = bits >> shift;
    uint32_t rest = bits & ((1u << shift) - 1), half = 1u << (shift - 1);
    if (rest > half || (rest == half && (kept & 1)))
        kept++; /* a carry into the exponent is right: the next binade */
    return (uint16_t)(sign | kept);
}
