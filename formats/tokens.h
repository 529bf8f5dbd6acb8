/* Token sources: plain text (byte tokenizer), JSONL with a "text" field, token files (raw u16/u32, llm.c .bin). Memory-mapped where they can be;
 * a source is one long stream of int32 tokens, documents joined (JSONL: each text followed by the end-of-text id where the tokenizer has one;
 * the byte tokenizer has none: a newline (10) ends each document). Plain text may hold any bytes; JSONL must be UTF-8. */
#ifndef MOE_FORMATS_TOKENS_H
#define MOE_FORMATS_TOKENS_H

#include <stdbool.h>
#include <stdint.h>
#include "base/status.h"

typedef struct MoeTokens MoeTokens;
typedef enum {
    MOE_DATA_AUTO,
    MOE_DATA_TEXT,
    MOE_DATA_JSONL,
    MOE_DATA_U16,
    MOE_DATA_U32,
    MOE_DATA_LLMC
} MoeDataFormat;

/* AUTO: by name (.jsonl, .u16, .u32, .bin with llm.c's header or an error that says how to name the format) else text. tokenizer: "byte".
 * Every id is checked against vocab_size: the error names the position and id. Bad JSONL names the line; not UTF-8, the line and byte. */
MoeStatus moe_tokens_open(const char *path, MoeDataFormat format, const char *tokenizer,
                          int64_t vocab_size, MoeTokens **out);
void moe_tokens_close(MoeTokens *t);
int64_t moe_tokens_count(const MoeTokens *t);
void moe_tokens_read(const MoeTokens *t, int64_t first, int64_t n, int32_t *out);
double
moe_tokens_bytes_per_token(const MoeTokens *t); /* for bits per byte; 0 if unknown (token files) */
bool moe_data_format_from_name(const char *name,
                               MoeDataFormat *out); /* auto text jsonl u16 u32 llmc */

#endif
