/* Philox4x32-10 (Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3", SC'11).
 * Key = seed; counter words 0-1 = counter, words 2-3 = stream. */
#include "base/rng.h"

#include <math.h>
#include <string.h>
#include <xxhash.h>

#include "base/assert.h"

__extension__ typedef unsigned __int128 Wide;

void moe_philox(uint64_t seed, uint64_t stream, uint64_t counter, uint32_t out[4]) {
    uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
    uint32_t c0 = (uint32_t)counter, c1 = (uint32_t)(counter >> 32);
    uint32_t c2 = (uint32_t)stream, c3 = (uint32_t)(stream >> 32);
    for (int round = 0; round < 10; round++) {
        uint64_t p0 = (uint64_t)0xd2511f53u * c0, p1 = (uint64_t)0xcd9e8d57u * c2;
        c0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0;
        c1 = (uint32_t)p1;
        c2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
        c3 = (uint32_t)p0;
        k0 += 0x9e3779b9u; /* Weyl steps: golden ratio, sqrt(3) - 1 */
        k1 += 0xbb67ae85u;
    }
    out[0] = c0;
    out[1] = c1;
    out[2] = c2;
    out[3] = c3;
}

static uint64_t word_pair(const uint32_t *w) {
    return (uint64_t)w[1] << 32 | w[0];
}

uint64_t moe_rng_u64(uint64_t seed, uint64_t stream, uint64_t index) {
    uint32_t w[4];
    moe_philox(seed, stream, index, w);
    return word_pair(w);
}

double moe_rng_uniform(uint64_t seed, uint64_t stream, uint64_t index) {
    return (double)(moe_rng_u64(seed, stream, index) >> 11) * 0x1p-53;
}

double moe_rng_normal(uint64_t seed, uint64_t stream, uint64_t index) {
    uint32_t w[4];
    moe_philox(seed, stream, index, w);
    double u = ((double)(word_pair(w) >> 11) + 1) * 0x1p-53; /* (0, 1]: the logarithm is finite */
    double v = (double)(word_pair(w + 2) >> 11) * 0x1p-53;
    return sqrt(-2 * log(u)) * cos(6.283185307179586 * v);
}

uint64_t moe_rng_below(uint64_t seed, uint64_t stream, uint64_t index, uint64_t n) {
    MOE_ASSERT(n > 0, "moe_rng_below of an empty range");
    return (uint64_t)((Wide)moe_rng_u64(seed, stream, index) * n >> 64);
}

uint64_t moe_hash_name(const char *name) {
    return XXH3_64bits(name, strlen(name));
}
