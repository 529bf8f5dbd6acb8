/* Going from one stack to another: a context is a stack pointer, registers that calls keep lie on the stack. */
#ifndef MOE_TESTS_SIM_SWITCH_H
#define MOE_TESTS_SIM_SWITCH_H

#include <stddef.h>

typedef struct {
    void *
        sp; /* of a context that is not running; elsewhere than on x86-64 and aarch64 a ucontext_t */
} MoeSimContext;

/* A context that begins with start() on the stack that ends at `top` (a multiple of 16); start must not return. */
void moe_sim_context(MoeSimContext *c, char *top, size_t bytes, void (*start)(void));
/* Keeps where the caller is in *from, goes on with *to. */
void moe_sim_switch(MoeSimContext *from, MoeSimContext *to);

#endif
