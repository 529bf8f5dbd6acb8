#!/usr/bin/env bash
# A dozen layouts of ranks, MPI among them, give the bits of one rank. The whole matrix is tests/same-bits.
. "$(dirname "$0")/lib.sh"
if ! command -v mpirun >/dev/null; then skip "layouts of ranks: no mpirun"; done_testing; exit; fi
MOEC=$MOEC tests/same-bits --some --work "$WORK/same-bits" >"$WORK/log" 2>&1
grep -E '^(ok|not ok|    )' "$WORK/log" || cat "$WORK/log"
grep -qE '^same-bits: 12 the same, 0 different$' "$WORK/log" || failures=$((failures + 1))
done_testing
