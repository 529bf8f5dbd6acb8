#!/usr/bin/env bash
# Kernels for NVIDIA GPUs through NVIDIA's own compiler (NVRTC, which needs no GPU): a plan with every part of the device library, for every
# architecture, in f32 and bf16, compiles without warnings, spills no register, and takes the registers, shared memory and stack that
# tests/golden/cuda/resources.txt says, a table that is one NVRTC's (another one's figures are not compared). A second time all code comes from the
# cache. MOE_BLESS=1 writes the table anew. Other models: tests/cuda-compile.
cuda=${MOEC_CUDA_PATH:-} # where NVRTC may be; lib.sh drops all settings
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/lib_cuda.sh"
[ -z "$cuda" ] || export MOEC_CUDA_PATH=$cuda
TABLE=$ROOT/tests/golden/cuda/resources.txt
VERSION=$(nvrtc_version "$MOEC")
if [ -z "$VERSION" ]; then skip "no NVRTC on this machine (moec doctor says what to install)"; done_testing; exit 0; fi
pinned=$(sed -nE '1s/^# NVRTC ([0-9.]+):.*/\1/p' "$TABLE" 2>/dev/null)
[ -z "${MOE_BLESS:-}" ] || pinned=$VERSION
export MOEC_CACHE=$WORK/cache

# One layer, all its matrices of one shape, so that few kernels differ by extents alone. Two ranks with copies of experts have the kernels of one rank and,
# beyond them, those that plan exchanges and copies and add up the copies' gradients.
tiny_config "$WORK/config.json" num_hidden_layers=1 hidden_size=64 intermediate_size=64 num_key_value_heads=4
NAME=copies
compile() { # compile ARCH DTYPE [SECONDS]: $WORK/ARCH-DTYPE.plan, what moec says in .log; DTYPE fast: bf16 with --fast-reduce
  local flags=(--dtype "$2")
  [ "$2" != fast ] || flags=(--dtype bf16 --fast-reduce)
  timeout -s KILL "${3:-300}" "$MOEC" compile "$WORK/config.json" -o "$WORK/$1-$2.plan" --target "cuda:$1" "${flags[@]}" --batch 4 --seq 16 \
    --ranks 2 --expert-parallel-degree 2 --extra-slots 1 >"$WORK/$1-$2.log" 2>&1
}
rows() { # rows ARCH DTYPE: the table's. Kernels are told apart by what they compute: their numbers change with any that comes before
  cuda_kernels "$WORK/$1-$2.plan" | awk -F '\t' -v arch="$1" -v dtype="$2" -v plan="$NAME" '
    { sub(/_[0-9]+$/, "", $1); n[sprintf("%-6s %-4s %s %4d %7d %6d %6d", arch, dtype, plan, $2, $3, $4, $5) "|" $1 ($7 ? ": " $7 : "")]++ }
    END { for (k in n) { split(k, a, "|"); printf "%s %3d  %s\n", a[1], n[k], a[2] } }' | sort -k 9 -k 4,4n
}
spill_nothing() { ! cuda_kernels "$1" | awk -F '\t' '$5 { print $1 " spills " $5 " bytes: " $7 }' | grep .; }
warn_nothing() { ! cuda_kernels "$1" | awk -F '\t' '$6 { print $1 ": " $6 " warnings: " $7 }' | grep .; }
# What moec says of the kernels, compared with their comments.
says() { # says LOG PLAN COMPILED CACHED
  local n; n=$(cuda_kernels "$2" | grep -c .)
  cat "$1"
  grep -qE "^  $n kernels: $3 compiled, $4 from the cache; at most $(cuda_kernels "$2" | cut -f 2 | sort -n | tail -n 1) registers a thread" "$1"
}

# f32 kernels have the same text everywhere: sm_100 does without.
all=("sm_80 f32" "sm_80 bf16" "sm_90a f32" "sm_90a bf16" "sm_100 bf16") compiled=()
for each in "${all[@]}"; do
  read -r arch dtype <<<"$each"
  case=$arch-$dtype plan=$WORK/$arch-$dtype.plan
  if compile "$arch" "$dtype"; then ok "$case compiles"
  elif grep -q "does not know the options for $arch" "$WORK/$case.log"; then skip "$case: NVRTC $VERSION is too old"; continue
  else not_ok "$case compiles" "$WORK/$case.log"; continue; fi
  compiled+=("$each")
  expect "$case spills nothing" spill_nothing "$plan"
  expect "$case: moec says how many kernels" says "$WORK/$case.log" "$plan" '[1-9][0-9]*' '[0-9]+'
  [ "$VERSION" != "$pinned" ] || expect "$case: no warnings" warn_nothing "$plan"
done
[ ${#compiled[@]} != 0 ] || { done_testing; exit 0; }

every_part() { # each part of the device library is in a plan
  ls codegen/cuda/device/*.cuh | sed 's|.*/||' | sort >"$WORK/parts"
  sed -nE 's|^#line 1 "device/(.*)"$|\1|p' "$WORK"/*.plan/kernels.cu | sort -u | comm -23 "$WORK/parts" - >"$WORK/unused"
  [ ! -s "$WORK/unused" ] || { echo "no kernel uses:"; cat "$WORK/unused"; return 1; }
}
if [ ${#compiled[@]} = ${#all[@]} ]; then expect "every part of the device library" every_part; fi

# Weight gradients without trees; all other kernels come from the cache.
fast_grads() { NAME=grads rows "$1" fast | grep -E " (wgrad|xent_dw)"; }
for arch in sm_80 sm_90a; do
  expect "$arch, --fast-reduce compiles" compile $arch fast
  expect "$arch, --fast-reduce spills nothing" spill_nothing "$WORK/$arch-fast.plan"
done

# Again: nothing is compiled.
read -r arch dtype <<<"${compiled[0]}"
plan=$WORK/$arch-$dtype.plan
cp "$plan/kernels.cubin" "$WORK/first.cubin"
expect "$arch-$dtype again" compile "$arch" "$dtype" 20
expect "all of it from the cache" says "$WORK/$arch-$dtype.log" "$plan" 0 "$(cuda_kernels "$plan" | grep -c .)"
expect "the same code" cmp "$WORK/first.cubin" "$plan/kernels.cubin"

# The table.
{
  echo "# NVRTC $VERSION: what ptxas makes of the kernels of tests/e2e/cuda_compile.sh; MOE_BLESS=1 with that script writes this file."
  echo "# arch, dtype, plan, registers a thread, bytes of shared memory a block, of stack a thread, spilled; how many such kernels; which"
  for each in "${compiled[@]}"; do rows $each; done
  for arch in sm_80 sm_90a; do fast_grads $arch; done
} >"$WORK/table"
if [ -n "${MOE_BLESS:-}" ]; then
  if [ ${#compiled[@]} = ${#all[@]} ]; then mkdir -p "${TABLE%/*}" && cp "$WORK/table" "$TABLE" && ok "written: $TABLE"
  else not_ok "not all was compiled: the table stays as it is"; fi
elif [ "$VERSION" != "$pinned" ]; then
  skip "registers, shared memory and stack are not compared: the table is NVRTC ${pinned:-(none)}'s, here is $VERSION"
elif diff -U0 "$TABLE" "$WORK/table" >"$WORK/diff"; then
  ok "registers, shared memory and stack are the table's"
else
  not_ok "registers, shared memory and stack are the table's"
  echo "    - is the table, + is now; if it is right, write it anew: MOE_BLESS=1 MOEC=$MOEC BUILD=$BUILD $0"
  sed -n '3,$ { /^@@/d; s/^/    /; p }' "$WORK/diff" | head -n 40
  echo "    ($(grep -c '^[-+][^-+]' "$WORK/diff") lines differ)"
fi
done_testing
