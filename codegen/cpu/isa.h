/* What the CPU code generator knows of an instruction set: vector width, register tile, bf16 dot
 * products. */
#ifndef MOE_CODEGEN_CPU_ISA_H
#define MOE_CODEGEN_CPU_ISA_H

#include <stdbool.h>
#include "base/status.h"

typedef struct {
    char cpu[64];   /* LLVM's name: "znver4", "x86-64-v3", ... */
    char *features; /* LLVM feature string ("" for a named CPU; the host's for native); malloc'd */
    char triple[64];
    int lanes;     /* f32 lanes of a vector: 16 AVX-512, 8 AVX2, 4 otherwise */
    bool bf16_dot; /* vdpbf16ps on 512-bit vectors */
    bool fma;
    int tile_rows;    /* register tile: rows x vectors */
    int tile_vectors; /* 8x3 AVX-512; 6x2 AVX2; 6x2 with 4 lanes otherwise */
} MoeIsa;

/* cpu: "native" or a name LLVM knows. */
MoeStatus moe_isa_get(const char *cpu, MoeIsa *out);
void moe_isa_free(MoeIsa *isa);
bool moe_isa_runs_here(const char *cpu);

/* "19.1.7": of the library that this program runs with. */
void moe_isa_llvm_version(char out[32]);

#endif
