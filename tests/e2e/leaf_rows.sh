#!/usr/bin/env bash
# The leaf of weight gradients as a constant of the plan (docs/NUMBERS.md, 4), and --fast-reduce: with every leaf the same bits on one rank, two,
# in micro-batches and with copies of experts, on the CPU and on a simulated GPU; other leaves have other bits; what a plan says of itself; runs that
# go on with the leaf they began with; fast-reduce repeats, is near, and is noted.
. "$(dirname "$0")/lib.sh"
make_text "$WORK/text.txt" 60000
tiny_config "$WORK/config.json" num_hidden_layers=1
SIM=$BUILD/tests/sim
run_moec() { "$MOEC" "$@"; }
# Two virtual shards of 1024 tokens: two leaves of 512, one of 1024.
size=(--batch 32 --seq 64 --virtual-shards 2)
compile() { run_moec compile "$WORK/config.json" -o "$WORK/$1.plan" "${size[@]}" -q "${@:2}"; }
train() { run_moec run "$WORK/$2.plan" --data "$WORK/text.txt" --out "$WORK/$1" --steps "$steps" --lr 0.003 --eval-batches 1 -q "${@:3}"; }
weights() { "$MOEC" export "$(newest "$WORK/$1")" -o "$WORK/$1.hf" -q && cat "$WORK/$1.hf/model.safetensors"; }
same_weights() { cmp <(weights "$1") <(weights "$2"); }
other_weights() { ! same_weights "$1" "$2"; }

# layouts NAME OPTIONS...: compiles and trains on one rank, two, two micro-batches, and two ranks with copies that move.
layouts() {
  local name=$1; shift
  must compile "$name" "$@"
  must compile "$name-r2" "$@" --ranks 2 --expert-parallel-degree 2
  must compile "$name-m2" "$@" --micro-batches 2
  must compile "$name-c" "$@" --ranks 2 --expert-parallel-degree 2 --extra-slots 1
  for plan in "$name" "$name-r2" "$name-m2"; do must train "$plan" "$plan"; done
  must train "$name-c" "$name-c" --placement eplb --placement-every 1 --placement-hysteresis 0
}

steps=3
for dtype in f32 bf16; do
  leaves="64 128 512 1024"
  [ $dtype = f32 ] || leaves="64 512"
  for leaf in $leaves; do
    name=$dtype-$leaf
    layouts $name --dtype $dtype --leaf-rows $leaf
    for other in r2 m2 c; do expect "$dtype, leaves of $leaf: $other as one rank" same_weights $name $name-$other; done
  done
  expect "$dtype: 64 and 512 are not the same bits" other_weights $dtype-64 $dtype-512
done
expect "f32: 512 and 1024 are not the same bits" other_weights f32-512 f32-1024
expect "copies were made" grep -q '"copies"\|"moves"\|"slot' "$WORK/f32-512-c/placement.jsonl"
must compile plain --dtype f32
expect "the CPU's leaf is 128" cmp "$WORK/plain.plan/kernels.o" "$WORK/f32-128.plan/kernels.o"

# What a plan says, and what is refused.
expect "the plan has it" python3 -c 'import json, sys
p = json.load(open(sys.argv[1])); assert p["leaf_rows"] == 512 and "fast_reduce" not in p, p["leaf_rows"]' "$WORK/f32-512.plan/plan.json"
expect "its graphs have it" grep -q "graph @train leaf_rows = 512 {" "$WORK/f32-512.plan/step.moe"
expect "explain says it" bash -c '"$0" explain "$1" | grep -q "leaves of 512 rows"' "$MOEC" "$WORK/f32-512.plan"
for bad in 32 100 8192 x; do refuses "--leaf-rows $bad" 2 "--leaf-rows $bad: expected auto, or a power of two from 64 to 4096" compile bad --leaf-rows $bad; done
cp "$WORK/f32-512.plan/model.moe" "$WORK/model.moe"
must run_moec compile "$WORK/model.moe" -o "$WORK/again.plan" "${size[@]}" -q
expect "compiled from its own text: the same code" cmp "$WORK/f32-512.plan/kernels.o" "$WORK/again.plan/kernels.o"

# A run goes on with its leaf.
must train stopped f32-512 --stop-after-step 1
refuses "another leaf" 1 "leaves of 512 rows, this plan has 64.*--leaf-rows 512" train stopped f32-64
refuses "another leaf, from a checkpoint" 1 "leaves of 512 rows, this plan has 64" train elsewhere f32-64 --resume "$WORK/stopped"
must train stopped f32-512-r2
expect "stopped and resumed on two ranks" same_weights f32-512 stopped

# fast-reduce.
near() {
  python3 - "$WORK/$1/log.jsonl" "$WORK/$2/log.jsonl" <<'PY'
import json, sys
a, b = ([json.loads(l) for l in open(p)] for p in sys.argv[1:3])
assert len(a) == len(b) > 0, (len(a), len(b))
for x, y in zip(a, b):
    print(x["step"], x["loss"], y["loss"], x["grad_norm"], y["grad_norm"])
    assert abs(x["loss"] - y["loss"]) < 1e-5 and abs(x["grad_norm"] - y["grad_norm"]) < 1e-5 * y["grad_norm"]
PY
}
for dtype in f32 bf16; do
  layouts fast-$dtype --dtype $dtype --fast-reduce
  must train fast-$dtype-again fast-$dtype --threads 3
  must train fast-$dtype-c-again fast-$dtype-c --placement eplb --placement-every 1 --placement-hysteresis 0
  expect "fast-reduce, $dtype: trained twice" same_run "$WORK/fast-$dtype" "$WORK/fast-$dtype-again"
  expect "fast-reduce, $dtype: trained twice with copies" same_weights fast-$dtype-c fast-$dtype-c-again
  expect "fast-reduce, $dtype: not the trees' bits" other_weights $dtype-64 fast-$dtype
  for layout in "" -r2 -m2 -c; do expect "fast-reduce$layout, $dtype: near the trees" near $dtype-64 fast-$dtype$layout; done
done
expect "fast-reduce, f32: not one rank's bits on two" other_weights fast-f32 fast-f32-r2
expect "the log says it" bash -c '[ "$(grep -c "\"fast_reduce\": true" "$0")" = 3 ]' "$WORK/fast-f32/log.jsonl"
expect "the manifest says it" grep -q '"fast_reduce": true' "$(newest "$WORK/fast-f32")/manifest.json"
expect "explain says it" bash -c '"$0" explain "$1" | grep -q "bits depend on ranks"' "$MOEC" "$WORK/fast-f32.plan"
expect "a run that turns fast says so" bash -c '"$0" run "$1/fast-f32.plan" --data "$1/text.txt" --out "$1/stopped" --steps 4 2>&1 | grep "was trained without --fast-reduce, this plan is with it"' \
  "$MOEC" "$WORK"

# The simulated GPU.
if [ ! -e "$SIM/libcuda.so.1" ]; then skip "no simulated GPU was built (ninja sim; it needs clang++)"; done_testing; exit 0; fi
export MOEC_CACHE=$SIM/cache MOE_SIM_DEVICES=80
run_moec() { LD_LIBRARY_PATH=$SIM timeout -s KILL 300 "$MOEC" "$@"; }
steps=1
size=(--batch 16 --seq 64 --virtual-shards 2 --target=cuda:sm_80)
for leaf in 64 512; do
  layouts gpu-$leaf --leaf-rows $leaf
  for other in r2 m2 c; do expect "GPU, leaves of $leaf: $other as one rank" same_weights gpu-$leaf gpu-$leaf-$other; done
done
expect "GPU: 64 and 512 are not the same bits" other_weights gpu-64 gpu-512
must compile gpu-plain
expect "GPU: 512 is the default" cmp "$WORK/gpu-plain.plan/kernels.cubin" "$WORK/gpu-512.plan/kernels.cubin"
must compile gpu-fast --fast-reduce
must train gpu-fast gpu-fast
must train gpu-fast-again gpu-fast
expect "GPU, fast-reduce: trained twice" same_run "$WORK/gpu-fast" "$WORK/gpu-fast-again"
expect "GPU, fast-reduce: near the trees" near gpu-512 gpu-fast
expect "GPU, fast-reduce: not the trees' bits" other_weights gpu-512 gpu-fast
done_testing
