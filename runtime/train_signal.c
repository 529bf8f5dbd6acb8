/* See train_signal.h. Handlers touch a flag, write and _exit only. */
#include "runtime/train_signal.h"

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stddef.h>
#include <unistd.h>

static void on_signal(int sig);
static void on_bus_error(int sig);
static const struct {
    int sig;
    void (*handler)(int);
} caught[] = {
    {SIGTERM, on_signal}, {SIGINT, on_signal}, {SIGUSR1, on_signal}, {SIGBUS, on_bus_error}};
#define N_SIGNALS (sizeof caught / sizeof *caught)
static struct sigaction before[N_SIGNALS];
static atomic_int received; /* lock-free: for the handler and for all ranks' threads */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int catching; /* ranks of this process that train */

static void on_signal(int sig) {
    if (atomic_exchange(&received, sig))
        _exit(128 + sig);
}

/* A page of a mapped file that is not there any more. */
static void on_bus_error(int sig) {
    static const char text[] =
        "moec: error: a file was cut short, or cannot be read any more, while it was in use (the "
        "training data?); the last checkpoint is as it was\n";
    (void)sig;
    ssize_t said = write(STDERR_FILENO, text, sizeof text - 1);
    (void)said;
    _exit(1);
}

void moe_signals_catch(void) {
    pthread_mutex_lock(&lock);
    if (catching++ == 0) {
        atomic_store(&received, 0);
        for (size_t i = 0; i < N_SIGNALS; i++) {
            struct sigaction a = {.sa_handler = caught[i].handler, .sa_flags = SA_RESTART};
            sigemptyset(&a.sa_mask);
            sigaction(caught[i].sig, &a, &before[i]);
        }
    }
    pthread_mutex_unlock(&lock);
}

void moe_signals_restore(void) {
    pthread_mutex_lock(&lock);
    for (size_t i = 0; i < N_SIGNALS && catching == 1; i++)
        sigaction(caught[i].sig, &before[i], NULL);
    catching--;
    pthread_mutex_unlock(&lock);
}

int moe_signals_received(void) {
    return atomic_load(&received);
}
