/* Files: whole reads with caps, atomic durable writes, directory syncs. All writes of plans, checkpoints and runs
 * go through here. Paths in errors. */
#ifndef MOE_BASE_IO_H
#define MOE_BASE_IO_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "base/status.h"

MoeStatus moe_file_read(const char *path, size_t max_bytes, char **out_data,
                        size_t *out_n); /* malloc'd, NUL after the end */
/* Writes path.tmp-PID, fsync, rename over path, fsync of the directory. */
MoeStatus moe_file_write_atomic(const char *path, const void *data, size_t n);
bool moe_path_exists(const char *path);
bool moe_path_is_dir(const char *path);
MoeStatus moe_dir_make(const char *path); /* with parents; existing is fine */
MoeStatus moe_dir_sync(const char *path); /* fsync of a directory */
MoeStatus
moe_dir_remove(const char *path); /* recursive; absent is fine; refuses "", "/", "." and ".." */
MoeStatus moe_dir_list(const char *path, char ***out_names,
                       size_t *out_n); /* sorted, malloc'd; moe_dir_list_free */
void moe_dir_list_free(char **names, size_t n);
/* "a/b" + "c" -> malloc'd "a/b/c". */
char *moe_path_join(const char *dir, const char *name);

/* Read-only mapping of a whole file. */
typedef struct {
    const unsigned char *data;
    size_t n;
} MoeMap;
MoeStatus moe_map_open(const char *path,
                       MoeMap *out); /* an empty file gives n = 0, data non-NULL */
void moe_map_close(MoeMap *m);

/* A file being written for durability: write, then sync (fsync) and close. Errors name the path; short writes and
 * EINTR are handled; the running XXH3-128 of the bytes is kept. */
typedef struct MoeFileOut MoeFileOut;
MoeStatus moe_out_create(const char *path, MoeFileOut **out);
MoeStatus moe_out_write(MoeFileOut *f, const void *data, size_t n);
MoeStatus moe_out_finish(MoeFileOut *f, uint64_t *out_bytes,
                         char out_xxh3_hex[33]); /* fsync + close; frees f always */
void moe_out_abandon(MoeFileOut *f);             /* close, free; leaves the file to the caller */
/* XXH3-128 of memory, as 32 hex digits. */
void moe_hash_hex(const void *data, size_t n, char out[33]);
uint64_t moe_hash_64(const void *data, size_t n); /* XXH3-64 of memory */

#endif
