/* bf16 and f16 conversions: round to nearest even, NaN stays NaN (quiet). Inline: used in hot test loops. */
#ifndef MOE_BASE_HALF_H
#define MOE_BASE_HALF_H

#include <stdint.h>
#include <string.h>

static inline float moe_bf16_to_f32(uint16_t h) {
    uint32_t u = (uint32_t)h << 16;
    float f;
    memcpy(&f, &u, 4);
    return f;
}

static inline uint16_t moe_f32_to_bf16(float f) {
    uint32_t u;
    memcpy(&u, &f, 4);
    if ((u & 0x7fffffffu) > 0x7f800000u)
        return (uint16_t)((u >> 16) | 0x40u);
    return (uint16_t)((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
}

/* IEEE binary16. Out of line: only file readers need it. */
float moe_f16_to_f32(uint16_t h);
uint16_t moe_f32_to_f16(float f);

#endif
