/* libFuzzer target: the first byte picks format and vocab_size, the rest is the file. What opens
 * has ids in range. */
#include <stdint.h>
#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/assert.h"
#include "formats/tokens.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
    static int fd = -1;
    static char path[64];
    static const MoeDataFormat formats[] = {MOE_DATA_TEXT, MOE_DATA_JSONL, MOE_DATA_U16,
                                            MOE_DATA_U32,  MOE_DATA_LLMC,  MOE_DATA_AUTO};
    static const int64_t sizes[] = {256, 65536, 1000, 1};
    if (n < 1)
        return 0;
    if (fd < 0) {
        fd = memfd_create("fuzz", 0);
        MOE_ASSERT(fd >= 0, "memfd_create");
        snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    }
    size_t pick = data[0];
    int64_t vocab_size = sizes[pick / 6 % 4];
    MOE_ASSERT(ftruncate(fd, 0) == 0 && pwrite(fd, data + 1, n - 1, 0) == (ssize_t)(n - 1),
               "cannot write the input");
    MoeTokens *t;
    MoeStatus st = moe_tokens_open(path, formats[pick % 6], "byte", vocab_size, &t);
    if (st) {
        moe_status_free(st);
        return 0;
    }
    int64_t count = moe_tokens_count(t);
    MOE_ASSERT(count > 0, "an open source without tokens");
    for (int64_t i = 0; i < count;) {
        int32_t ids[100];
        int64_t k = count - i < 100 ? count - i : 100;
        moe_tokens_read(t, i, k, ids);
        for (int64_t j = 0; j < k; j++)
            MOE_ASSERT(ids[j] >= 0 && ids[j] < vocab_size, "id %d", (int)ids[j]);
        i += k;
    }
    moe_tokens_close(t);
    return 0;
}
