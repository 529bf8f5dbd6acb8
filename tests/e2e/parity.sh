#!/usr/bin/env bash
# Every fixture of tests/data against what Hugging Face transformers computed: both engines, both precisions, micro-batches, recompute levels,
# thread counts, CPU targets. The full sweep is for two fixtures; the others take the ones that can go wrong with shapes.
. "$(dirname "$0")/lib.sh"
PARITY=$BUILD/tests/parity
check() { expect "$1 ${*:2}" "$PARITY" "tests/data/$1" "${@:2}"; }

for dir in tests/data/*/; do
  name=$(basename "$dir")
  [ -f "$dir/expected.json" ] || continue
  check "$name" --engine interpreter
  check "$name" --threads 2
  check "$name" --dtype bf16
done
for name in mixtral llama; do
  check "$name" --threads 1
  for level in none cheap layer; do check "$name" --recompute "$level"; done
  for target in cpu:x86-64-v3 cpu:x86-64; do
    if [ "$(uname -m)" = x86_64 ]; then check "$name" --target "$target"; else skip "$name --target $target"; fi
  done
done
for name in mixtral mixtral_odd_batch llama_batch5; do
  for m in 2 4 8; do check "$name" --micro-batches $m; done
  check "$name" --micro-batches 4 --recompute layer --dtype bf16
done
# On several ranks: the bounds of one.
for layout in "--ranks 2 --expert-parallel-degree 2" "--ranks 4 --hybrid-shard-degree 4 --dtype bf16" \
  "--ranks 4 --expert-parallel-degree 2 --hybrid-shard-degree 2 --micro-batches 2" "--ranks 8 --expert-parallel-degree 4 --recompute layer" \
  "--ranks 2 --tensor-parallel-degree 2" "--ranks 4 --expert-parallel-degree 2 --tensor-parallel-degree 2"; do
  check mixtral $layout
done
for name in mixtral_odd_batch mixtral_top3_of_5 mixtral_tied mixtral_one_layer; do check $name --ranks 4 --expert-parallel-degree 2 --hybrid-shard-degree 2; done
for name in llama llama_batch5; do check $name --ranks 4 --hybrid-shard-degree 2; done
# It can fail: weights that are not the fixture's.
mkdir "$WORK/wrong"
cp tests/data/llama_odd/* "$WORK/wrong" && chmod -R u+w "$WORK/wrong"
python3 - "$WORK/wrong/model.safetensors" <<'PY'
import struct, sys
with open(sys.argv[1], "r+b") as f:
    n = struct.unpack("<Q", f.read(8))[0]
    f.seek(8 + n + 4)
    x = struct.unpack("<f", f.read(4))[0]
    f.seek(8 + n + 4)
    f.write(struct.pack("<f", x + 0.01))
PY
expect "parity notices a changed weight" bash -c '! "$0" "$1" && "$0" "$2"' "$PARITY" "$WORK/wrong" tests/data/llama_odd
done_testing
