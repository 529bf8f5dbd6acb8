/* What the plugin libmoe_mpi.so offers: the few calls of MPI that runtime/comm_mpi.c needs, so that moec itself needs no MPI
 * and the plugin nothing of moec. Built against the MPI at hand, whose types appear nowhere here. One thread calls it. */
#ifndef MOE_RUNTIME_MPI_PLUGIN_H
#define MOE_RUNTIME_MPI_PLUGIN_H

#include <stdbool.h>
#include <stddef.h>

#define MOE_MPI_ABI      1
#define MOE_MPI_CHANNELS 2

typedef struct {
    int abi; /* MOE_MPI_ABI */
    /* All that return bool: false with a message in err. */
    bool (*init)(int *out_rank, int *out_size, char *err, size_t n_err);
    bool (*broadcast)(void *data, int n_bytes, char *err, size_t n_err); /* from rank 0 */
    /* Starts a message; `token` comes back from `test` when it has ended. Memory is borrowed until then. */
    bool (*post)(bool send, int channel, int peer, void *data, int n_bytes, void *token, char *err,
                 size_t n_err);
    /* At most n_max messages that have ended; returns how many, -1 with a message. out_bytes: received; bytes > room:
     * more came than there was room for. */
    int (*test)(int n_max, void **out_tokens, long long *out_bytes, char *err, size_t n_err);
    bool (*finalize)(char *err, size_t n_err);
    void (*abort)(int code);
    const char *(*version)(void); /* of the MPI library */
} MoeMpi;

/* The one symbol: const MoeMpi *moe_mpi_plugin(void) */
typedef const MoeMpi *MoeMpiPlugin(void);
#define MOE_MPI_SYMBOL "moe_mpi_plugin"

#endif
