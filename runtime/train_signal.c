/* See train_signal.h. Handlers touch a flag and _exit only. */
#include "runtime/train_signal.h"

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stddef.h>
#include <unistd.h>

static const int stop_signals[] = {SIGTERM, SIGINT, SIGUSR1};
#define N_SIGNALS (sizeof stop_signals / sizeof *stop_signals)
static struct sigaction before[N_SIGNALS];
static atomic_int received; /* lock-free: for the handler and for all ranks' threads */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int catching; /* ranks of this process that train */

static void on_signal(int sig) {
    if (atomic_exchange(&received, sig))
        _exit(128 + sig);
}

void moe_signals_catch(void) {
    struct sigaction a = {.sa_handler = on_signal, .sa_flags = SA_RESTART};
    sigemptyset(&a.sa_mask);
    pthread_mutex_lock(&lock);
    if (catching++ == 0) {
        atomic_store(&received, 0);
        for (size_t i = 0; i < N_SIGNALS; i++)
            sigaction(stop_signals[i], &a, &before[i]);
    }
    pthread_mutex_unlock(&lock);
}

void moe_signals_restore(void) {
    pthread_mutex_lock(&lock);
    for (size_t i = 0; i < N_SIGNALS && catching == 1; i++)
        sigaction(stop_signals[i], &before[i], NULL);
    catching--;
    pthread_mutex_unlock(&lock);
}

int moe_signals_received(void) {
    return atomic_load(&received);
}
