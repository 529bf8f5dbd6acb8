/* libFuzzer target: a checkpoint directory whose manifest and tensor tables are the input. Nothing crashes, a refusal is
 * damage (or another version), and a checkpoint that verifies has every element of every tensor exactly once.
 *
 * The input is a manifest's JSON with two helps, so that more than the seal is tried: "tensors" {FILE: {NAME: as in a
 * safetensors header}} makes the files, with zeros up to the last byte that it names; and where an entry of "files" has "*" for
 * bytes, blocks or xxh3, the right value is put. The seal is made last. Seeds: tests/fuzz/corpus/manifest. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/assert.h"
#include "base/io.h"
#include "runtime/checkpoint_internal.h"

enum { MOST_DATA = 4096, MOST_FILES = 8, MOST_ELEMENTS = 1 << 16 };

static char dir[256];

static void remove_directory(void) {
    moe_status_free(moe_dir_remove(dir));
}

static const char *directory(void) {
    if (!dir[0]) {
        const char *base = getenv("TMPDIR");
        snprintf(dir, sizeof dir, "%s/moec-fuzz-XXXXXX", base ? base : "/tmp");
        MOE_ASSERT(mkdtemp(dir), "cannot make %s", dir);
        atexit(remove_directory);
    }
    return dir;
}

static void write_file(const char *name, const void *data, size_t n) {
    char *path = moe_path_join(directory(), name);
    FILE *f = fopen(path, "wb");
    MOE_ASSERT(f && fwrite(data, 1, n, f) == n && fclose(f) == 0, "cannot write %s", path);
    free(path);
}

/* A name that stays in the directory. */
static bool is_plain(const char *name) {
    size_t n = strlen(name);
    return n > 0 && n < 64 && !strchr(name, '/') && name[0] != '.' && strcmp(name, "manifest.json");
}

static void fill_entry(json_t *entry, int64_t block, const void *data, size_t n) {
    const char *bytes = json_string_value(json_object_get(entry, "bytes")),
               *blocks = json_string_value(json_object_get(entry, "blocks")),
               *whole = json_string_value(json_object_get(entry, "xxh3"));
    char hash[33];
    if (bytes && !strcmp(bytes, "*"))
        json_object_set_new(entry, "bytes", json_integer((json_int_t)n));
    moe_hash_hex(data, n, hash);
    if (whole && !strcmp(whole, "*"))
        json_object_set_new(entry, "xxh3", json_string(hash));
    if (!blocks || strcmp(blocks, "*") || block < 1 || block > MOE_BLOCK_BYTES)
        return;
    MoeStr hex = {0};
    for (size_t at = 0; at < n; at += (size_t)block) {
        size_t here = n - at < (size_t)block ? n - at : (size_t)block;
        uint64_t of_block = moe_hash_64((const char *)data + at, here);
        moe_hex_put(&hex, &of_block, 1);
    }
    json_object_set_new(entry, "blocks", json_string(moe_str_c(&hex)));
    moe_str_free(&hex);
}

static size_t data_bytes(const json_t *header) {
    json_int_t last = 0;
    const char *name;
    json_t *t;
    json_object_foreach((json_t *)(uintptr_t)header, name, t) {
        json_int_t end = json_integer_value(json_array_get(json_object_get(t, "data_offsets"), 1));
        last = end > last ? end : last;
    }
    return (size_t)(last < MOST_DATA ? last : MOST_DATA);
}

/* length, header, zeros */
static void make_file(json_t *manifest, const char *name, const json_t *header) {
    char *text = json_dumps(header, JSON_COMPACT);
    uint64_t length = text ? strlen(text) : 0;
    size_t n = 8 + length + data_bytes(header), i;
    char *data = calloc(1, n);
    MOE_ASSERT(data, "out of memory");
    memcpy(data, &length, 8);
    if (text)
        memcpy(data + 8, text, length);
    write_file(name, data, n);
    json_int_t block = json_integer_value(json_object_get(manifest, "block_bytes"));
    json_t *entry;
    json_array_foreach(json_object_get(manifest, "files"), i, entry) {
        const char *own = json_string_value(json_object_get(entry, "name"));
        if (own && !strcmp(own, name))
            fill_entry(entry, block, data, n);
    }
    free(data);
    free(text);
}

static void make_files(json_t *manifest, char names[MOST_FILES][64], int *n) {
    const char *name;
    json_t *header;
    json_object_foreach(json_object_get(manifest, "tensors"), name,
                        header) if (*n < MOST_FILES && is_plain(name)) {
        snprintf(names[(*n)++], 64, "%s", name);
        make_file(manifest, name, header);
    }
    json_object_del(manifest, "tensors");
}

/* Element by element, what the census proves by a sum. */
static void check_cover(const MoeStored *s, size_t tensor) {
    int64_t n = s->tensors.items[tensor].elements;
    if (n > MOST_ELEMENTS)
        return; /* of a tensor without data: only an empty one verifies */
    int *held = calloc((size_t)n + 1, sizeof *held);
    MOE_ASSERT(held, "out of memory");
    for (size_t i = 0; i < s->n_files; i++) {
        MoeBlockFile *f;
        MoeStoredPiece *pieces;
        size_t n_pieces;
        MoeStatus st = moe_stored_file(s, i, &f);
        MOE_ASSERT(!st, "verified, and does not open");
        st = moe_stored_pieces(s, i, f, &pieces, &n_pieces);
        MOE_ASSERT(!st, "verified, and cannot be read");
        for (size_t k = 0; k < n_pieces; k++) {
            const MoePiece *p = &pieces[k].piece;
            for (int64_t e = p->first; pieces[k].tensor == tensor && e < p->first + p->count; e++) {
                int64_t at = e / p->width * p->stride + p->column + e % p->width;
                MOE_ASSERT(at >= 0 && at < n, "element %lld of %lld", (long long)at, (long long)n);
                held[at]++;
            }
        }
        free(pieces);
        moe_block_close(f);
    }
    for (int64_t e = 0; e < n; e++)
        MOE_ASSERT(held[e] == 1, "element %lld of %s is there %d times", (long long)e,
                   s->tensors.items[tensor].name, held[e]);
    free(held);
}

static void check_checkpoint(void) {
    json_t *manifest = NULL;
    MoeStored s;
    MoeTrainState state;
    MoeStatus st = moe_checkpoint_verify(directory(), &manifest);
    if (st) {
        MOE_ASSERT(moe_status_code(st) == MOE_E_CORRUPT || moe_status_code(st) == MOE_E_INPUT,
                   "code %d: %s", moe_status_code(st), moe_status_message(st));
        moe_status_free(st);
        return;
    }
    moe_status_free(moe_manifest_state_read(manifest, "manifest", &state));
    json_decref(manifest);
    st = moe_stored_open(directory(), &s);
    MOE_ASSERT(!st, "verified, and does not open again");
    for (size_t i = 0; i < s.tensors.n; i++)
        check_cover(&s, i);
    moe_stored_close(&s);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
    json_t *manifest = NULL;
    char names[MOST_FILES][64];
    int n_files = 0;
    write_file("manifest.json", data, n); /* as it is: no JSON, no seal */
    check_checkpoint();
    MoeStatus st = moe_json_load_text((const char *)data, n, "fuzz", &manifest);
    if (st || !json_is_object(manifest)) {
        moe_status_free(st);
        json_decref(manifest);
        return 0;
    }
    make_files(manifest, names, &n_files);
    MoeStr text = {0};
    moe_manifest_seal(manifest, &text);
    write_file("manifest.json", moe_str_c(&text), text.len);
    moe_str_free(&text);
    json_decref(manifest);
    check_checkpoint();
    for (int i = 0; i < n_files; i++) {
        char *path = moe_path_join(directory(), names[i]);
        unlink(path);
        free(path);
    }
    return 0;
}
