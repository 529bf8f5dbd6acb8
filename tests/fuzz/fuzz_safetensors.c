/* libFuzzer target: bytes as a safetensors file. Whatever opens must be consistent and readable to
 * its last byte. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/assert.h"
#include "formats/safetensors.h"

static void read_all(const MoeStTensor *t) {
    if (t->elements > 1 << 20)
        return; /* zero bits an element do not exist: this is only for speed */
    float *f = malloc((size_t)t->elements * sizeof *f + 1);
    int64_t *i = malloc((size_t)t->elements * sizeof *i + 1);
    MOE_ASSERT(f && i, "out of memory");
    moe_status_free(moe_st_read_f32(t, 0, t->elements, f));
    moe_status_free(moe_st_read_i64(t, 0, t->elements, i));
    free(f);
    free(i);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
    static int fd = -1;
    static char path[64];
    if (fd < 0) {
        fd = memfd_create("fuzz", 0);
        MOE_ASSERT(fd >= 0, "memfd_create");
        snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    }
    MOE_ASSERT(ftruncate(fd, 0) == 0 && pwrite(fd, data, n, 0) == (ssize_t)n,
               "cannot write the input");
    MoeSafetensors *s;
    MoeStatus st = moe_st_open(path, &s);
    if (st) {
        moe_status_free(st);
        return 0;
    }
    size_t total = 0;
    for (size_t i = 0; i < moe_st_count(s); i++) {
        const MoeStTensor *t = moe_st_at(s, i);
        MOE_ASSERT(moe_st_find(s, t->name) == t, "tensor %s is not found", t->name);
        total += t->n_bytes;
        read_all(t);
    }
    MOE_ASSERT(total <= n, "%zu bytes of tensors in a file of %zu", total, n);
    (void)moe_st_metadata(s, "format");
    moe_st_close(s);
    return 0;
}
