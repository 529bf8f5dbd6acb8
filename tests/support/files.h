/* Files for tests: a temporary directory that is removed at exit, and files of given bytes. */
#ifndef MOE_TESTS_SUPPORT_FILES_H
#define MOE_TESTS_SUPPORT_FILES_H

#include <stddef.h>
#include "base/status.h"

/* This process's directory, made on first use ($TMPDIR or /tmp), removed when the process that made
 * it exits. */
const char *moe_test_dir(void);
/* Path of `name` in it; a few (8) stay valid at a time. */
const char *moe_test_path(const char *name);
/* Writes the bytes there; returns its path. Aborts on failure. */
const char *moe_test_file(const char *name, const void *data, size_t n);
/* NULL if `st` is an error of that code whose message holds every word (NULL ends the list); else
 * what is wrong. Frees st. */
const char *moe_test_error(MoeStatus st, MoeCode code, ...);

#endif
