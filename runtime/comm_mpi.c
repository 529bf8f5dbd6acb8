/* Ranks as processes that MPI started: the transport over the plugin libmoe_mpi.so (runtime/mpi/plugin.h), which is opened
 * when a run asks for it. */
#include <dlfcn.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>

#include "base/io.h"
#include "base/str.h"
#include "runtime/comm_wire.h"
#include "runtime/mpi/plugin.h"

#define PLUGIN "libmoe_mpi.so"

/* The plugin. */

/* The program's own directory with `below` after it, malloc'd; NULL where unknown. */
static char *beside_program(const char *below) {
    char path[PATH_MAX];
    ssize_t n = readlink("/proc/self/exe", path, sizeof path - 1);
    if (n <= 0)
        return NULL;
    path[n] = 0;
    char *slash = strrchr(path, '/');
    if (!slash)
        return NULL;
    *slash = 0;
    return moe_path_join(path, below);
}

/* Opens the plugin in dir; NULL if it is not there, or cannot be opened: then tried says why. Its symbols and those of MPI
 * are global: MPI's own plugins look for them. */
static void *open_in(const char *dir, MoeStr *tried) {
    char *path = moe_path_join(dir, PLUGIN);
    if (!path)
        return NULL;
    void *lib = NULL;
    if (!moe_path_exists(path)) {
        moe_str_printf(tried, "\n  %s is not there", path);
    } else {
        lib = dlopen(path, RTLD_NOW | RTLD_GLOBAL);
        if (!lib)
            moe_str_printf(tried, "\n  %s cannot be opened: %s", path, dlerror());
    }
    free(path);
    return lib;
}

static void *find_plugin(MoeStr *tried) {
    const char *named = getenv("MOEC_PLUGIN_DIR");
    if (named && *named)
        return open_in(named, tried);
    static const char *const places[] = {".", "..", "../lib", "../lib/moec"};
    void *lib = NULL;
    for (size_t i = 0; i < sizeof places / sizeof *places && !lib; i++) {
        char *dir = beside_program(places[i]);
        if (dir)
            lib = open_in(dir, tried);
        free(dir);
    }
    return lib;
}

/* The plugin stays open: MPI does not bear being closed. */
static MoeStatus load(const MoeMpi **out) {
    MoeStr tried = {0};
    MoeMpiPlugin *get = NULL;
    void *lib = find_plugin(&tried);
    if (lib)
        *(void **)&get = dlsym(lib, MOE_MPI_SYMBOL);
    const MoeMpi *api = get ? get() : NULL;
    MoeStatus st = NULL;
    if (!lib)
        st = moe_error(
            MOE_E_INPUT,
            "ranks over MPI need moec's plugin " PLUGIN " and the MPI library it was built "
            "with; install Open MPI (Debian: openmpi-bin libopenmpi-dev) and build moec again, or "
            "set MOEC_PLUGIN_DIR to the plugin's directory. Looked for:%s",
            moe_str_c(&tried));
    else if (!api || api->abi != MOE_MPI_ABI)
        st = moe_error(MOE_E_INPUT,
                       PLUGIN " is of another version of moec (%d, expected %d); build it again",
                       api ? api->abi : 0, MOE_MPI_ABI);
    moe_str_free(&tried);
    *out = api;
    return st;
}

MoeStatus moe_comm_mpi_check(void) {
    const MoeMpi *api;
    return load(&api);
}

/* The transport. */

typedef struct {
    MoeTransport base;
    const MoeMpi *mpi;
    int rank;
} MpiTransport;

static MoeStatus mpi_post(MoeTransport *base, MoeWireOp *op, int *out_peer) {
    const MoeMpi *mpi = ((MpiTransport *)base)->mpi;
    char err[512];
    *out_peer = op->peer;
    if (mpi->post(op->send, (int)op->channel, op->peer, op->data, (int)op->bytes, op, err,
                  sizeof err))
        return NULL;
    return moe_error(MOE_E_PEER, "%s", err);
}

/* MPI cannot sleep until something comes; a pause leaves the core to others. The kernel rounds pauses up by 50 us if it is
 * not asked to be precise. */
static void pause_us(int us) {
    static bool precise;
    if (!precise)
        prctl(PR_SET_TIMERSLACK, 1000ul);
    precise = true;
    struct timespec t = {0, us * 1000l};
    nanosleep(&t, NULL);
}

static MoeStatus mpi_progress(MoeTransport *base, int wait_us, MoeWireOp **out_done,
                              int *out_peer) {
    enum { MOST = 64 };
    const MoeMpi *mpi = ((MpiTransport *)base)->mpi;
    void *tokens[MOST];
    long long bytes[MOST];
    char err[512];
    *out_peer = -1;
    int n = mpi->test(MOST, tokens, bytes, err, sizeof err);
    if (n < 0)
        return moe_error(MOE_E_PEER, "%s", err);
    for (int i = n - 1; i >= 0; i--) {
        MoeWireOp *op = tokens[i];
        if (!op->send) {
            op->bad = op->channel == MOE_WIRE_BODY ? bytes[i] != op->bytes : bytes[i] > op->bytes;
            op->bytes = bytes[i];
        }
        op->next = *out_done;
        *out_done = op;
    }
    if (!n && wait_us)
        pause_us(wait_us);
    return NULL;
}

static const MoeMpi *to_abort;

/* At exit, after the program has said why. MPI ends the ranks that do not end by themselves. */
static void abort_at_exit(void) {
    to_abort->abort(1);
}

static bool mpi_destroy(MoeTransport *base, bool good) {
    MpiTransport *t = (MpiTransport *)base;
    char err[512];
    bool ended = good && t->mpi->finalize(err, sizeof err);
    /* One rank is enough; the others end without MPI_Finalize, which mpirun takes for a failure. With rank 0 gone it is
     * all there is. */
    if (!ended && t->rank == 0) {
        to_abort = t->mpi;
        atexit(abort_at_exit);
    }
    free(t);
    return ended;
}

static const MoeTransportOps mpi_ops = {mpi_post, mpi_progress, mpi_destroy};

/* The start. */

enum { MAX_PLACES = 16 };

/* Where rank 0's watch can be met; broadcast. */
typedef struct {
    unsigned char token[MOE_WATCH_TOKEN];
    int32_t n_places; /* 0: rank 0 could not open one */
    MoeAddress places[MAX_PLACES];
    char text[200]; /* for people: the places, or why there is none */
} Meeting;

static void call_meeting(Meeting *m, int *out_listener) {
    int port = 0;
    *out_listener = moe_socket_listen(NULL, 0, &port);
    if (*out_listener < 0) {
        MoeStatus st = moe_error_errno("rank 0 cannot listen for the other ranks");
        snprintf(m->text, sizeof m->text, "%s", moe_status_message(st));
        moe_status_free(st);
        return;
    }
    if (getrandom(m->token, sizeof m->token, 0) != sizeof m->token)
        memcpy(m->token, &(int64_t){(int64_t)getpid() << 32 ^ port}, sizeof(int64_t));
    m->n_places = (int32_t)moe_address_own(m->places, MAX_PLACES);
    size_t at = 0;
    for (int i = 0; i < m->n_places; i++) {
        char one[80];
        moe_address_set_port(&m->places[i], port);
        moe_address_text(&m->places[i], one);
        if (at + strlen(one) + 3 < sizeof m->text)
            at += (size_t)snprintf(m->text + at, sizeof m->text - at, "%s%s", at ? ", " : "", one);
    }
}

/* Messages to other ranks may still be on their way while this rank waits for them. */
static void keep_going(void *context) {
    MoeWireOp *done = NULL;
    int peer;
    moe_status_free(mpi_progress(context, 0, &done, &peer));
}

static MoeStatus meet(MpiTransport *t, int rank, int size, double silence_limit, MoeWatch **out) {
    Meeting m = {.n_places = 0};
    char err[512];
    int listener = -1;
    if (rank == 0)
        call_meeting(&m, &listener);
    if (!t->mpi->broadcast(&m, sizeof m, err, sizeof err)) {
        if (listener >= 0)
            close(listener);
        return moe_error(MOE_E_PEER, "%s", err);
    }
    if (!m.n_places) {
        if (listener >= 0)
            close(listener);
        return moe_error(MOE_E_IO, "%s", *m.text ? m.text : "rank 0 has no network address");
    }
    MoeWatchInit init = {.rank = rank,
                         .size = size,
                         .silence_limit = silence_limit,
                         .join_seconds = 60,
                         .listener = listener,
                         .places = m.places,
                         .n_places = (size_t)m.n_places,
                         .meeting = m.text,
                         .idle = keep_going,
                         .context = t};
    memcpy(init.token, m.token, sizeof m.token);
    MoeWatchPeer *peers;
    return moe_watch_open(&init, out, &peers, NULL, NULL);
}

MoeStatus moe_comm_mpi(MoeComm **out) {
    const MoeMpi *mpi;
    MOE_TRY(load(&mpi));
    char err[512];
    int rank = 0, size = 1;
    if (!mpi->init(&rank, &size, err, sizeof err))
        return moe_error(MOE_E_INPUT, "MPI cannot be started: %s", err);
    MpiTransport *t = malloc(sizeof *t);
    if (!t)
        return moe_error(MOE_E_NOMEM, "out of memory for MPI");
    *t = (MpiTransport){{&mpi_ops}, mpi, rank};
    MoeWatch *w = NULL;
    MoeStatus st = meet(t, rank, size, 15, &w);
    if (st) {
        mpi_destroy(&t->base, false);
        return st;
    }
    return moe_comm_wire("mpi", rank, size, &t->base, w, 15, out);
}
