/* Counter-based random numbers (Philox4x32-10; Salmon et al., SC'11): the value depends on (seed, stream, index)
 * alone, so it is the same on any layout and thread count. */
#ifndef MOE_BASE_RNG_H
#define MOE_BASE_RNG_H

#include <stdint.h>

void moe_philox(uint64_t seed, uint64_t stream, uint64_t counter, uint32_t out[4]);
uint64_t moe_rng_u64(uint64_t seed, uint64_t stream, uint64_t index);
/* Uniform in [0, 1), 53 bits. */
double moe_rng_uniform(uint64_t seed, uint64_t stream, uint64_t index);
/* Standard normal (Box-Muller on one Philox block); the same double on every IEEE machine with the same libm. */
double moe_rng_normal(uint64_t seed, uint64_t stream, uint64_t index);
/* Uniform in [0, n), n > 0, unbiased to 2^-64. */
uint64_t moe_rng_below(uint64_t seed, uint64_t stream, uint64_t index, uint64_t n);
/* A stable 64-bit hash of a name (XXH3), to make streams from parameter names. */
uint64_t moe_hash_name(const char *name);

#endif
