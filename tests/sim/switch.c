/* switch.h */
#include "tests/sim/switch.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__x86_64__)
/* The stack of a waiting context, from its pointer up: r15 r14 r13 r12 rbx rbp, where to go on. */
__asm__(".text\n"
        ".globl moe_sim_switch\n"
        ".hidden moe_sim_switch\n"
        ".type moe_sim_switch, @function\n"
        "moe_sim_switch:\n"
        "  push %rbp\n  push %rbx\n  push %r12\n  push %r13\n  push %r14\n  push %r15\n"
        "  mov %rsp, (%rdi)\n"
        "  mov (%rsi), %rsp\n"
        "  pop %r15\n  pop %r14\n  pop %r13\n  pop %r12\n  pop %rbx\n  pop %rbp\n"
        "  ret\n"
        ".size moe_sim_switch, .-moe_sim_switch\n");

void moe_sim_context(MoeSimContext *c, char *top, size_t bytes, void (*start)(void)) {
    (void)bytes;
    void **sp = (void **)(void *)top;
    *--sp = NULL; /* where start would return to */
    *--sp = (void *)(uintptr_t)start;
    for (int i = 0; i < 6; i++)
        *--sp = NULL;
    c->sp = sp;
}
#elif defined(__aarch64__)
__asm__(".text\n"
        ".globl moe_sim_switch\n"
        ".hidden moe_sim_switch\n"
        ".type moe_sim_switch, %function\n"
        "moe_sim_switch:\n"
        "  sub sp, sp, #160\n"
        "  stp x19, x20, [sp]\n  stp x21, x22, [sp, #16]\n  stp x23, x24, [sp, #32]\n"
        "  stp x25, x26, [sp, #48]\n  stp x27, x28, [sp, #64]\n  stp x29, x30, [sp, #80]\n"
        "  stp d8, d9, [sp, #96]\n  stp d10, d11, [sp, #112]\n"
        "  stp d12, d13, [sp, #128]\n  stp d14, d15, [sp, #144]\n"
        "  mov x9, sp\n  str x9, [x0]\n  ldr x9, [x1]\n  mov sp, x9\n"
        "  ldp x19, x20, [sp]\n  ldp x21, x22, [sp, #16]\n  ldp x23, x24, [sp, #32]\n"
        "  ldp x25, x26, [sp, #48]\n  ldp x27, x28, [sp, #64]\n  ldp x29, x30, [sp, #80]\n"
        "  ldp d8, d9, [sp, #96]\n  ldp d10, d11, [sp, #112]\n"
        "  ldp d12, d13, [sp, #128]\n  ldp d14, d15, [sp, #144]\n"
        "  add sp, sp, #160\n"
        "  ret\n"
        ".size moe_sim_switch, .-moe_sim_switch\n");

void moe_sim_context(MoeSimContext *c, char *top, size_t bytes, void (*start)(void)) {
    (void)bytes;
    char *sp = top - 160;
    memset(sp, 0, 160);
    void *at = (void *)(uintptr_t)start;
    memcpy(sp + 88, &at, sizeof at); /* x30 */
    c->sp = sp;
}
#else
#include <ucontext.h>
/* Contexts are kept for the next block's threads: one a place in memory, never freed. */
void moe_sim_context(MoeSimContext *c, char *top, size_t bytes, void (*start)(void)) {
    ucontext_t *u = c->sp;
    if (!u && !(u = calloc(1, sizeof *u)))
        abort();
    getcontext(u);
    u->uc_stack.ss_sp = top - bytes;
    u->uc_stack.ss_size = bytes;
    makecontext(u, start, 0);
    c->sp = u;
}
void moe_sim_switch(MoeSimContext *from, MoeSimContext *to) {
    if (!from->sp && !(from->sp = calloc(1, sizeof(ucontext_t))))
        abort();
    swapcontext(from->sp, to->sp);
}
#endif
