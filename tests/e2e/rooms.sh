#!/usr/bin/env bash
# Who may include whom (docs/ARCHITECTURE.md), and what no file may hold.
. "$(dirname "$0")/lib.sh"
allowed() { # the rooms that a room may include, itself aside
  case $1 in
    base) ;;
    formats | ir | placement) echo base ;;
    passes) echo ir placement base ;;
    codegen) echo ir base ;;
    runtime) echo formats placement base ;;
    frontends) echo ir formats base ;;
    cli | tests | bench) echo base formats ir placement passes codegen runtime frontends cli tests ;;
  esac
}
rooms="base formats ir placement passes codegen runtime frontends cli tests"
sources() { find "$@" -type f \( -name '*.[ch]' -o -name '*.def' \) 2>/dev/null | sort; }
for room in $rooms; do
  [ -d "$room" ] || continue
  may=" $room $(allowed $room) "
  # Every include in quotes is written from the root and leads to an allowed room.
  sources "$room" | xargs -r grep -nE '^[[:space:]]*#[[:space:]]*include[[:space:]]*"' | while IFS=: read -r file line text; do
    path=${text#*\"}; path=${path%%\"*}
    target=${path%%/*}
    if [ ! -f "$path" ]; then echo "$file:$line: \"$path\" is not a path from the root"
    elif [[ "$may" != *" $target "* ]]; then echo "$file:$line: $room may not include $path"; fi
  done >"$WORK/.out"
  if [ -s "$WORK/.out" ]; then not_ok "$room includes only what it may" "$WORK/.out"; else ok "$room includes only what it may"; fi
done
# Libraries, each behind one door.
door() { # door NAME PATTERN ROOM...: who includes it
  sources $rooms | xargs grep -lE "^#[[:space:]]*include[[:space:]]*<($2)" | grep -vE "^($3)/" >"$WORK/.out"
  if [ -s "$WORK/.out" ]; then not_ok "$1 only in $3" "$WORK/.out"; else ok "$1 only in $3"; fi
}
door "LLVM" 'llvm' 'codegen|runtime|tests'
door "hwloc" 'hwloc' 'base'
door "MPI" 'mpi\.h' 'runtime/mpi'
door "xxHash" 'xxhash' 'base|formats|tests'
# Each header stands alone, has a guard and says what it is.
for h in $(sources $rooms | grep '\.h$'); do
  head -n 1 "$h" | grep -q '^/\*' || echo "$h: no comment at its top"
  grep -qE '^#ifndef MOE_' "$h" || echo "$h: no guard"
done >"$WORK/.out"
if [ -s "$WORK/.out" ]; then not_ok "headers have a guard and say what they are" "$WORK/.out"; else ok "headers have a guard and say what they are"; fi
for h in $(sources $rooms | grep '\.h$'); do printf '#include "%s"\n' "$h" >"$WORK/h.c"
  "${CC:-gcc}" -std=c11 -D_GNU_SOURCE -I. $(pkg-config --cflags jansson 2>/dev/null) -I"$(llvm-config-19 --includedir 2>/dev/null || echo /usr/include)" -fsyntax-only "$WORK/h.c" 2>&1 | head -n 2
done >"$WORK/.out"
if [ -s "$WORK/.out" ]; then not_ok "headers compile on their own" "$WORK/.out"; else ok "headers compile on their own"; fi
# One header a source: none that only gathers others.
for h in $(sources $rooms | grep '\.h$'); do
  if [ "$(grep -cE '^#[[:space:]]*include ".*\.h"' "$h")" -gt 1 ] && [ "$(grep -cvE '^[[:space:]]*(#|/\*|\*|\*/|$)' "$h")" = 0 ]; then echo "$h only includes others"; fi
done >"$WORK/.out"
if [ -s "$WORK/.out" ]; then not_ok "no umbrella header" "$WORK/.out"; else ok "no umbrella header"; fi
# No `default:` hides a new row of a table from the compiler: switches over enums list their cases (-Wswitch-enum checks them).
files() { if git rev-parse --git-dir >/dev/null 2>&1; then git ls-files -co --exclude-standard; else find . -type f -not -path './build*' -not -path './.git/*' | sed 's|^\./||'; fi; }
text_files() { files | grep -vE '\.(safetensors|bin|svg)$|^tests/fuzz/corpus/' | while read -r f; do [ -f "$f" ] && echo "$f"; done; }
clean() { # clean NAME PATTERN [EXCEPT]: no text file matches
  text_files | grep -vE "^tests/e2e/rooms.sh$|${3:-^$}" | tr '\n' '\0' | xargs -0 grep -nIE -e "$2" >"$WORK/.out"
  if [ -s "$WORK/.out" ]; then not_ok "$1" "$WORK/.out"; else ok "$1"; fi
}
clean "no unfinished places" '\b(TODO|FIXME|XXX|HACK)\b'
clean "no path of one machine" '(^|[^a-z.])/(work|home|Users)/[a-z]|\.\./shared'
clean "no numbers of a tracker" '\b[Ii]ssues? #?[0-9]+\b'
clean "no merge marks" '^(<<<<<<<|>>>>>>>) '
clean "no lines with space at the end" '[[:space:]]+$' '\.(md|json|txt|moe)$'
# Every script parses.
for f in $(text_files | while read -r f; do head -n 1 "$f" | grep -aqE '^#!.*\bbash' && echo "$f"; done) tests/e2e/lib.sh; do bash -n "$f" 2>&1; done >"$WORK/.out"
if [ -s "$WORK/.out" ]; then not_ok "every script parses" "$WORK/.out"; else ok "every script parses"; fi
find tests/e2e -name '*.sh' ! -name 'lib*.sh' ! -perm -u+x >"$WORK/.out" # tests/run passes over them
if [ -s "$WORK/.out" ]; then not_ok "every script can be run" "$WORK/.out"; else ok "every script can be run"; fi
# What the documents point at exists.
for doc in README.md docs/*.md tests/data/README.md; do
  [ -f "$doc" ] || continue
  grep -oE '\]\([^)#:]+\)' "$doc" | sed -E 's/^\]\(//; s/\)$//' | while read -r link; do
    [ -e "$(dirname "$doc")/$link" ] || [ -e "$link" ] || echo "$doc: $link"
  done
done >"$WORK/.out"
if [ -s "$WORK/.out" ]; then not_ok "links of the documents lead somewhere" "$WORK/.out"; else ok "links of the documents lead somewhere"; fi
done_testing
