#!/usr/bin/env bash
# Some fifteen layouts of ranks, MPI and tensor parallelism among them, give the bits of one rank, or of their degree. The whole matrix is tests/same-bits.
. "$(dirname "$0")/lib.sh"
if ! command -v mpirun >/dev/null; then skip "layouts of ranks: no mpirun"; done_testing; exit; fi
MOEC=$MOEC tests/same-bits --some --work "$WORK/same-bits" >"$WORK/log" 2>&1
grep -E '^(ok|not ok|    )' "$WORK/log" || cat "$WORK/log"
grep -qE "^same-bits: $(tests/same-bits --some --list | wc -l) the same, 0 different$" "$WORK/log" || failures=$((failures + 1))
done_testing
