/* See train_signal.h. Handlers touch a flag and _exit only. */
#include "runtime/train_signal.h"

#include <signal.h>
#include <stddef.h>
#include <unistd.h>

static const int stop_signals[] = {SIGTERM, SIGINT, SIGUSR1};
#define N_SIGNALS (sizeof stop_signals / sizeof *stop_signals)
static struct sigaction before[N_SIGNALS];
static volatile sig_atomic_t received;

static void on_signal(int sig) {
    if (received)
        _exit(128 + sig);
    received = sig;
}

void moe_signals_catch(void) {
    struct sigaction a = {.sa_handler = on_signal, .sa_flags = SA_RESTART};
    sigemptyset(&a.sa_mask);
    received = 0;
    for (size_t i = 0; i < N_SIGNALS; i++)
        sigaction(stop_signals[i], &a, &before[i]);
}

void moe_signals_restore(void) {
    for (size_t i = 0; i < N_SIGNALS; i++)
        sigaction(stop_signals[i], &before[i], NULL);
}

int moe_signals_received(void) {
    return received;
}
