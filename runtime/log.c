/* RUN/log.jsonl and RUN/trace.csv: whole lines only, cut back on resume. See log.h. */
#include "runtime/log.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/io.h"

/* A file that grows by whole lines. */
typedef struct {
    char *path;
    int fd; /* -1: none */
    off_t size;
} Lines;

struct MoeLog {
    Lines log, trace, placement;
    char *run_dir;
    int64_t last_step; /* when it was opened */
    int n_experts;
    MoeStr text;
};

/* ---- cutting back ---- */

/* The step that a line belongs to; -1 when it is none of ours. */
static int64_t line_step(const char *line, const char *end, bool csv) {
    static const char head[] = "{\"step\": ";
    size_t skip = csv ? 0 : sizeof head - 1;
    if ((size_t)(end - line) <= skip || (!csv && memcmp(line, head, skip)))
        return -1;
    int64_t step = 0;
    const char *p = line + skip;
    if (*p < '0' || *p > '9')
        return -1;
    for (; p < end && *p >= '0' && *p <= '9' && step < INT64_MAX / 10 - 1; p++)
        step = step * 10 + (*p - '0');
    return p < end && *p == ',' ? step : -1;
}

int64_t moe_log_keep_bytes(const char *text, int64_t n, bool csv, int64_t last_step) {
    int64_t keep = 0;
    bool header = csv;
    while (keep < n) {
        const char *line = text + keep, *end = memchr(line, '\n', (size_t)(n - keep));
        if (!end)
            break;
        bool is_header = header && end - line >= 5 && !memcmp(line, "step,", 5);
        header = false;
        if (!is_header) {
            int64_t step = line_step(line, end, csv);
            if (step < 0 || step > last_step)
                break;
        }
        keep = end + 1 - text;
    }
    return keep;
}

static MoeStatus lines_open(Lines *l, const char *run_dir, const char *name, bool csv,
                            int64_t last_step) {
    l->path = moe_path_join(run_dir, name);
    l->fd = open(l->path, O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
    if (l->fd < 0)
        return moe_error_errno("cannot open %s", l->path);
    MoeMap map;
    MOE_TRY(moe_map_open(l->path, &map));
    l->size = (off_t)moe_log_keep_bytes((const char *)map.data, (int64_t)map.n, csv, last_step);
    bool cut = (size_t)l->size < map.n;
    moe_map_close(&map);
    if (cut && ftruncate(l->fd, l->size))
        return moe_error_errno("cannot cut %s back to step %lld", l->path, (long long)last_step);
    return NULL;
}

static MoeStatus lines_append(Lines *l, const char *data, size_t n) {
    size_t done = 0;
    while (done < n) {
        ssize_t k = write(l->fd, data + done, n - done);
        if (k < 0 && errno == EINTR)
            continue;
        if (k <= 0) {
            MoeStatus st = moe_error_errno("cannot write %s", l->path);
            if (done && ftruncate(l->fd, l->size))
                moe_status_free(moe_error_errno("cannot cut %s",
                                                l->path)); /* the next open cuts the torn line */
            return st;
        }
        done += (size_t)k;
    }
    l->size += (off_t)n;
    return NULL;
}

MoeStatus moe_log_open(const char *run_dir, bool trace, int n_experts, int64_t last_step,
                       MoeLog **out) {
    *out = NULL;
    MoeLog *l = calloc(1, sizeof *l);
    if (!l)
        return moe_error(MOE_E_NOMEM, "no memory for the log");
    l->log.fd = l->trace.fd = l->placement.fd = -1;
    l->run_dir = strdup(run_dir);
    l->last_step = last_step;
    l->n_experts = n_experts;
    MoeStatus st = lines_open(&l->log, run_dir, "log.jsonl", false, last_step);
    if (!st && trace)
        st = lines_open(&l->trace, run_dir, "trace.csv", true, last_step);
    char *placement = moe_path_join(run_dir, "placement.jsonl");
    if (!st && moe_path_exists(placement))
        st = lines_open(&l->placement, run_dir, "placement.jsonl", false, last_step);
    free(placement);
    if (!st && trace && l->trace.size == 0) {
        moe_str_append(&l->text, "step,layer,rank");
        for (int e = 0; e < n_experts; e++)
            moe_str_printf(&l->text, ",e%d", e);
        moe_str_putc(&l->text, '\n');
        st = lines_append(&l->trace, moe_str_c(&l->text), l->text.len);
    }
    if (st) {
        moe_log_close(l);
        return st;
    }
    *out = l;
    return NULL;
}

void moe_log_close(MoeLog *l) {
    if (!l)
        return;
    if (l->log.fd >= 0)
        close(l->log.fd);
    if (l->trace.fd >= 0)
        close(l->trace.fd);
    if (l->placement.fd >= 0)
        close(l->placement.fd);
    free(l->log.path);
    free(l->trace.path);
    free(l->placement.path);
    free(l->run_dir);
    moe_str_free(&l->text);
    free(l);
}

MoeStatus moe_log_sync(MoeLog *l) {
    if (fsync(l->log.fd))
        return moe_error_errno("cannot sync %s", l->log.path);
    if (l->trace.fd >= 0 && fsync(l->trace.fd))
        return moe_error_errno("cannot sync %s", l->trace.path);
    if (l->placement.fd >= 0 && fsync(l->placement.fd))
        return moe_error_errno("cannot sync %s", l->placement.path);
    return NULL;
}

MoeStatus moe_log_placement(MoeLog *l, const char *lines, size_t n) {
    if (l->placement.fd < 0 && !l->placement.path)
        MOE_TRY(lines_open(&l->placement, l->run_dir, "placement.jsonl", false, l->last_step));
    return l->placement.fd < 0 ? NULL : lines_append(&l->placement, lines, n);
}

/* ---- records ---- */

/* 17 digits: equal bits print equal. JSON has no NaN: null. */
static void put_number(MoeStr *s, const char *key, double v) {
    if (isfinite(v))
        moe_str_printf(s, ", \"%s\": %.17g", key, v);
    else
        moe_str_printf(s, ", \"%s\": null", key);
}

static void put_list(MoeStr *s, const char *key, const double *v, size_t n) {
    moe_str_printf(s, ", \"%s\": [", key);
    for (size_t i = 0; i < n; i++)
        moe_str_printf(s, "%s%.17g", i ? ", " : "", isfinite(v[i]) ? v[i] : 0.0);
    moe_str_putc(s, ']');
}

void moe_log_format(const MoeLogRecord *r, MoeStr *out) {
    moe_str_printf(out, "{\"step\": %lld", (long long)r->step);
    put_number(out, "loss", r->loss);
    put_number(out, "ce_loss", r->ce_loss);
    put_number(out, "aux_loss", r->has_aux ? r->aux_loss : NAN);
    put_number(out, "grad_norm", r->grad_norm);
    put_number(out, "lr", r->lr);
    moe_str_printf(out, ", \"tokens\": %lld", (long long)r->tokens);
    put_number(out, "seconds", r->seconds);
    if (r->emulated)
        put_number(out, "emulated_seconds", r->emulated_seconds);
    if (r->emulated)
        put_number(out, "emulated_exposed", r->emulated_exposed);
    if (r->emulated)
        put_number(out, "emulated_a2a_exposed", r->emulated_a2a_exposed);
    put_number(out, "tokens_per_second", r->tokens_per_second);
    put_number(out, "mfu", r->mfu);
    moe_str_printf(out, ", \"memory_bytes\": %lld", (long long)r->memory_bytes);
    if (r->n_ranks > 1)
        moe_str_printf(out, ", \"memory_bytes_max\": %lld", (long long)r->memory_bytes_max);
    if (r->n_ranks > 1)
        put_number(out, "compute_imbalance", r->compute_imbalance);
    put_list(out, "imbalance", r->imbalance, r->n_layers);
    put_list(out, "expert_imbalance", r->expert_imbalance, r->n_layers);
    if (r->skipped)
        moe_str_append(out, ", \"skipped\": true");
    if (r->fast_reduce)
        moe_str_append(out, ", \"fast_reduce\": true");
    if (r->has_eval) {
        put_number(out, "eval_loss", r->eval_loss);
        put_number(out, "eval_bits_per_byte", r->eval_bits_per_byte);
        moe_str_printf(out, ", \"eval_tokens\": %lld", (long long)r->eval_tokens);
    }
    moe_str_append(out, "}\n");
}

/* Rows of the trace: rank is the virtual shard, so that the file is the same at any layout. */
static void format_load(MoeStr *s, int64_t step, const int32_t *load, const int *layers,
                        size_t n_layers, int n_shards, int n_experts) {
    for (size_t k = 0; k < n_layers; k++)
        for (int v = 0; v < n_shards; v++) {
            moe_str_printf(s, "%lld,%d,%d", (long long)step, layers[k], v);
            for (int e = 0; e < n_experts; e++)
                moe_str_printf(s, ",%d", *load++);
            moe_str_putc(s, '\n');
        }
}

MoeStatus moe_log_step(MoeLog *l, const MoeLogRecord *r, const int32_t *load, const int *layers,
                       int n_shards) {
    MoeStatus st = NULL;
    if (l->trace.fd >= 0 && load) {
        moe_str_clear(&l->text);
        format_load(&l->text, r->step, load, layers, r->n_layers, n_shards, l->n_experts);
        st = lines_append(&l->trace, moe_str_c(&l->text), l->text.len);
    }
    moe_str_clear(&l->text);
    moe_log_format(r, &l->text);
    MoeStatus st2 = lines_append(&l->log, moe_str_c(&l->text), l->text.len);
    if (!st)
        return st2;
    moe_status_free(st2);
    return st;
}

/* ---- reading the trace back ---- */

/* The next number of a line and the ',' or newline after it. */
static bool next_number(const char **p, const char *end, int64_t *out) {
    const char *q = *p;
    int64_t v = 0;
    if (q >= end || *q < '0' || *q > '9')
        return false;
    for (; q < end && *q >= '0' && *q <= '9' && v < INT64_MAX / 10 - 1; q++)
        v = v * 10 + (*q - '0');
    *p = q < end ? q + 1 : end;
    *out = v;
    return true;
}

static bool open_trace(const char *run_dir, MoeMap *out) {
    char *path = moe_path_join(run_dir, "trace.csv");
    MoeStatus st = moe_path_exists(path) ? moe_map_open(path, out) : moe_error(MOE_E_IO, "no trace");
    bool there = !st;
    free(path);
    moe_status_free(st);
    return there;
}

bool moe_trace_sum(const char *run_dir, const int *layers, size_t n_layers, size_t n_experts,
                   int64_t *out) {
    MoeMap map;
    if (!open_trace(run_dir, &map))
        return false;
    bool any = false;
    const char *p = (const char *)map.data, *stop = p + map.n;
    while (p < stop) {
        const char *end = memchr(p, '\n', (size_t)(stop - p));
        int64_t step, layer, rank, tokens;
        if (!end)
            break;
        if (next_number(&p, end, &step) && next_number(&p, end, &layer) &&
            next_number(&p, end, &rank)) {
            size_t k = 0;
            while (k < n_layers && layers[k] != layer)
                k++;
            for (size_t e = 0; k < n_layers && e < n_experts && next_number(&p, end, &tokens); e++)
                out[k * n_experts + e] += tokens;
            any = any || k < n_layers;
        }
        p = end + 1;
    }
    moe_map_close(&map);
    return any;
}

/* The first line of the part that begins with the last line of a step before `first`, found from the end. */
static const char *seek_step(const char *text, const char *stop, int64_t first) {
    const char *p = stop;
    while (p > text) {
        const char *line = p - 1;
        int64_t step;
        while (line > text && line[-1] != '\n')
            line--;
        const char *at = line;
        if (next_number(&at, p, &step) && step < first)
            break;
        p = line;
    }
    return p;
}

bool moe_trace_steps(const char *run_dir, const int *layers, size_t n_layers, int n_shards, int n_experts,
                     int64_t first, int64_t last, int32_t *out, bool *there) {
    size_t V = (size_t)n_shards, E = (size_t)n_experts, steps = (size_t)(last - first + 1);
    size_t *rows = calloc(steps + 1, sizeof *rows); /* whole ones of each step */
    MoeMap map;
    bool any = false;
    if (!rows || !open_trace(run_dir, &map)) {
        free(rows);
        return false;
    }
    const char *stop = (const char *)map.data + map.n, *p = seek_step((const char *)map.data, stop, first);
    for (const char *end; p < stop && (end = memchr(p, '\n', (size_t)(stop - p))); p = end + 1) {
        int64_t step, layer, rank, tokens;
        size_t k = 0, e = 0;
        if (!next_number(&p, end, &step) || !next_number(&p, end, &layer) || !next_number(&p, end, &rank))
            continue;
        while (k < n_layers && layers[k] != layer)
            k++;
        if (step < first || step > last || k == n_layers || rank >= n_shards)
            continue;
        int32_t *row = out + (((size_t)(step - first) * n_layers + k) * V + (size_t)rank) * E;
        for (; e < E && next_number(&p, end, &tokens); e++)
            row[e] = (int32_t)(tokens < INT32_MAX ? tokens : INT32_MAX);
        rows[step - first] += e == E;
    }
    for (size_t i = 0; i < steps; i++) {
        there[i] = rows[i] == n_layers * V;
        any = any || there[i];
    }
    free(rows);
    moe_map_close(&map);
    return any;
}
