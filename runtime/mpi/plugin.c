/* The plugin: MPI behind plugin.h. Requests under way are kept in one table that MPI_Testsome looks at. */
#include "runtime/mpi/plugin.h"

#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static MPI_Comm channels
    [MOE_MPI_CHANNELS]; /* one communicator each, so that neither sees the other's messages */
static MPI_Request *requests;
static void **tokens;
static bool *sends;
static int n_requests, cap_requests; /* requests are in places 0 .. n-1, without gaps */

static bool failed(int code, const char *call, char *err, size_t n_err) {
    char text[MPI_MAX_ERROR_STRING] = "";
    int n = 0;
    if (code == MPI_SUCCESS)
        return false;
    MPI_Error_string(code, text, &n);
    snprintf(err, n_err, "%s failed: %.*s", call, n, text);
    return true;
}

static bool init(int *out_rank, int *out_size, char *err, size_t n_err) {
    int before = 0, level = 0;
    if (failed(MPI_Initialized(&before), "MPI_Initialized", err, n_err))
        return false;
    if (before) {
        snprintf(err, n_err, "MPI was started in this process before; it can be only once");
        return false;
    }
    if (failed(MPI_Init_thread(NULL, NULL, MPI_THREAD_FUNNELED, &level), "MPI_Init_thread", err,
               n_err))
        return false;
    MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
    if (level < MPI_THREAD_FUNNELED) {
        snprintf(err, n_err, "this MPI was built without support for processes with threads");
        return false;
    }
    for (int i = 0; i < MOE_MPI_CHANNELS; i++) {
        if (failed(MPI_Comm_dup(MPI_COMM_WORLD, &channels[i]), "MPI_Comm_dup", err, n_err))
            return false;
        MPI_Comm_set_errhandler(channels[i], MPI_ERRORS_RETURN);
    }
    return !failed(MPI_Comm_rank(MPI_COMM_WORLD, out_rank), "MPI_Comm_rank", err, n_err) &&
           !failed(MPI_Comm_size(MPI_COMM_WORLD, out_size), "MPI_Comm_size", err, n_err);
}

static bool broadcast(void *data, int n_bytes, char *err, size_t n_err) {
    return !failed(MPI_Bcast(data, n_bytes, MPI_BYTE, 0, channels[0]), "MPI_Bcast", err, n_err);
}

static bool grow(void) {
    int cap = cap_requests ? 2 * cap_requests : 256;
    MPI_Request *r = realloc(requests, (size_t)cap * sizeof *r);
    if (r)
        requests = r;
    void **t = realloc(tokens, (size_t)cap * sizeof *t);
    if (t)
        tokens = t;
    bool *s = realloc(sends, (size_t)cap * sizeof *s);
    if (s)
        sends = s;
    if (!r || !t || !s)
        return false;
    cap_requests = cap;
    return true;
}

static bool post(bool send, int channel, int peer, void *data, int n_bytes, void *token, char *err,
                 size_t n_err) {
    if (n_requests == cap_requests && !grow()) {
        snprintf(err, n_err, "out of memory for %d messages", n_requests);
        return false;
    }
    MPI_Request *r = &requests[n_requests];
    int code = send ? MPI_Isend(data, n_bytes, MPI_BYTE, peer, 0, channels[channel], r)
                    : MPI_Irecv(data, n_bytes, MPI_BYTE, peer, 0, channels[channel], r);
    if (failed(code, send ? "MPI_Isend" : "MPI_Irecv", err, n_err))
        return false;
    tokens[n_requests] = token;
    sends[n_requests++] = send;
    return true;
}

/* Places of ended requests are filled from the end of the table. */
static void close_gaps(void) {
    for (int i = 0; i < n_requests;) {
        if (requests[i] != MPI_REQUEST_NULL) {
            i++;
            continue;
        }
        n_requests--;
        requests[i] = requests[n_requests];
        tokens[i] = tokens[n_requests];
        sends[i] = sends[n_requests];
    }
}

enum { MOST = 64 };

/* What a message that has ended brought; false if it failed. */
static bool result(int place, int code, MPI_Status *status, long long *out_bytes, char *err,
                   size_t n_err) {
    int class = MPI_SUCCESS, count = 0;
    *out_bytes = 0;
    if (code != MPI_SUCCESS)
        MPI_Error_class(code, &class);
    if (class == MPI_ERR_TRUNCATE) {
        *out_bytes = 1ll << 40;
        return true;
    }
    if (failed(code, sends[place] ? "sending" : "receiving", err, n_err))
        return false;
    if (!sends[place]) {
        MPI_Get_count(status, MPI_BYTE, &count);
        *out_bytes = count;
    }
    return true;
}

static int test(int n_max, void **out_tokens, long long *out_bytes, char *err, size_t n_err) {
    int n = 0, places[MOST];
    MPI_Status statuses[MOST];
    if (!n_requests)
        return 0;
    /* MPI_Testsome gives at most as many as it looks at. */
    int first = 0, ended = 0;
    if (n_max > MOST)
        n_max = MOST;
    while (first < n_requests && ended < n_max) {
        int look = n_requests - first < n_max - ended ? n_requests - first : n_max - ended;
        int code = MPI_Testsome(look, requests + first, &n, places, statuses);
        if (code != MPI_ERR_IN_STATUS && failed(code, "MPI_Testsome", err, n_err))
            return -1;
        for (int i = 0; n != MPI_UNDEFINED && i < n; i++, ended++) {
            int place = first + places[i];
            int error = code == MPI_ERR_IN_STATUS ? statuses[i].MPI_ERROR : MPI_SUCCESS;
            out_tokens[ended] = tokens[place];
            if (!result(place, error, &statuses[i], &out_bytes[ended], err, n_err))
                return -1;
        }
        first += look;
    }
    if (ended)
        close_gaps();
    return ended;
}

static bool finalize(char *err, size_t n_err) {
    /* Standing receives will never be used. */
    for (int i = 0; i < n_requests; i++)
        if (requests[i] != MPI_REQUEST_NULL) {
            MPI_Cancel(&requests[i]);
            MPI_Wait(&requests[i], MPI_STATUS_IGNORE);
        }
    n_requests = 0;
    for (int i = 0; i < MOE_MPI_CHANNELS; i++)
        MPI_Comm_free(&channels[i]);
    free(requests);
    free(tokens);
    free(sends);
    requests = NULL;
    tokens = NULL;
    sends = NULL;
    cap_requests = 0;
    return !failed(MPI_Finalize(), "MPI_Finalize", err, n_err);
}

static void abort_job(int code) {
    MPI_Abort(MPI_COMM_WORLD, code);
}

static const char *version(void) { /* of the library */
    static char text[MPI_MAX_LIBRARY_VERSION_STRING];
    int n = 0;
    if (!*text && MPI_Get_library_version(text, &n) == MPI_SUCCESS)
        text[strcspn(text, ",\n")] = 0;
    return text;
}

const MoeMpi *moe_mpi_plugin(void);
const MoeMpi *moe_mpi_plugin(void) {
    static const MoeMpi api = {MOE_MPI_ABI, init,     broadcast, post,
                               test,        finalize, abort_job, version};
    return &api;
}
