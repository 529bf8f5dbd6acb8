/* Communicators: how the ranks of a run exchange bytes. One primitive, `exchange`: lists of blocks to send and to receive,
 * matched a pair of ranks at a time. Everything else (all-gather, all-to-all, reductions = exchange + local tree) is made of
 * it, above (exec_comm.c), so that every communicator gives the same bits.
 *
 * All ranks of a communicator start the same exchanges in the same order; several may be under way. What rank p sends to
 * rank q in an exchange (its blocks for q, one after another) is as many bytes as q receives from p. Zero is allowed, in
 * which case neither side lists the other. A rank may send to itself. Buffers stay as they are from start to wait.
 *
 * Byte counts that differ end the exchange on both ranks with MOE_E_INTERNAL, naming the ranks, the exchange and the bytes
 * (few bytes may be on their way already: then the sender hears of it at its next call).
 *
 * Failures: a peer that died or is silent longer than the limit ends every wait with MOE_E_PEER, naming the rank, its
 * phase and the exchange; after that each call on the communicator returns at once with the same status. Calls are signs of
 * life; so is being at work without calls (computing, writing a file), unless for very long.
 * Called by one thread a rank. */
#ifndef MOE_RUNTIME_COMM_H
#define MOE_RUNTIME_COMM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "base/status.h"

typedef struct {
    int peer; /* rank in the communicator */
    void *base;
    int64_t row_bytes, n; /* n rows of row_bytes */
    const int32_t
        *index; /* NULL: rows 0..n-1, contiguous; else row i is base + index[i] * row_bytes */
} MoeBlock;

typedef struct MoeComm MoeComm;
typedef struct MoeRequest MoeRequest;

typedef struct {
    const char *name; /* "self", "threads", "mpi", "tcp" */
    MoeStatus (*start)(MoeComm *c, const MoeBlock *sends, size_t n_sends, const MoeBlock *recvs,
                       size_t n_recvs, const char *what, MoeRequest **out);
    MoeStatus (*wait)(MoeComm *c, MoeRequest *r);
    void (*poll)(MoeComm *c);
    MoeStatus (*status)(MoeComm *c);
    void (*phase)(MoeComm *c, int64_t step, const char *phase);
    void (*abort)(MoeComm *c, const char *why);
    void (*destroy)(MoeComm *c);
} MoeCommOps;

/* What every communicator's own struct begins with. */
struct MoeComm {
    const MoeCommOps *ops;
    int rank, size;
    double silence_limit; /* seconds that a peer may be silent; 15 */
};

/* The block arrays are copied; what they point to (rows, index) is borrowed until wait. `what` names the exchange in errors. */
MoeStatus moe_comm_start(MoeComm *c, const MoeBlock *sends, size_t n_sends, const MoeBlock *recvs,
                         size_t n_recvs, const char *what, MoeRequest **out);
/* Frees r, also on error. Every request is waited for, in any order; meanwhile all others under way go on too. */
MoeStatus moe_comm_wait(MoeComm *c, MoeRequest *r);
/* start and wait. */
MoeStatus moe_comm_exchange(MoeComm *c, const MoeBlock *sends, size_t n_sends,
                            const MoeBlock *recvs, size_t n_recvs, const char *what);
/* Lets transfers under way go on; cheap; called between kernels. It also counts as a sign of life. */
void moe_comm_poll(MoeComm *c);
/* What a call would return now if it failed; NULL if nothing has. For who waits for something else meanwhile (a device). */
MoeStatus moe_comm_status(MoeComm *c);
/* Where this rank stands, for the others' error messages: step 17, "forward layers.3". phase is copied. */
void moe_comm_phase(MoeComm *c, int64_t step, const char *phase);
/* Tells all ranks that this one gives up: their calls return MOE_E_PEER with `why`. */
void moe_comm_abort(MoeComm *c, const char *why);
void moe_comm_destroy(MoeComm *c); /* NULL is fine */

/* Made of exchanges, for the host's small agreements. Every rank gives n bytes; out holds size*n, by rank. */
MoeStatus moe_comm_all_gather(MoeComm *c, const void *mine, int64_t n_bytes, void *out,
                              const char *what);
MoeStatus moe_comm_barrier(MoeComm *c, const char *what);
/* NULL on every rank if mine is NULL on every rank; else the lowest failing rank's message on every rank, with its number
 * (that rank itself gets its own status back). Takes mine. */
MoeStatus moe_comm_agree(MoeComm *c, MoeStatus mine, const char *what);

MoeStatus moe_comm_self(MoeComm **out);
/* n ranks in this process: out[0..n-1], one for each rank's thread; the last one destroyed frees what they share. */
MoeStatus moe_comm_threads(int n, MoeComm **out);
/* MPI_COMM_WORLD, through the plugin libmoe_mpi.so beside the program (or in $MOEC_PLUGIN_DIR): MOE_E_INPUT if it, or MPI,
 * is not there. */
MoeStatus moe_comm_mpi(MoeComm **out);
/* Whether the plugin can be opened, and with it MPI, without starting MPI: what moe_comm_mpi would say. */
MoeStatus moe_comm_mpi_check(void);

#endif
