/* Reading text as byte tokens: the parts of tokens.c that look at text. Private to formats/. */
#ifndef MOE_FORMATS_TOKENS_TEXT_H
#define MOE_FORMATS_TOKENS_TEXT_H

#include <stddef.h>
#include <stdint.h>
#include "base/status.h"

/* Decodes the "text" of each line into out (room for n bytes; never needs more), a newline after
 * each document. */
MoeStatus moe_jsonl_decode(const char *path, const unsigned char *data, size_t n,
                           unsigned char *out, size_t *out_n);

#endif
