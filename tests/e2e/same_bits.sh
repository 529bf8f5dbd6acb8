#!/usr/bin/env bash
# The same bits - losses, gradient norms, weights, moments, expert counts - for any number of threads, any division into micro-batches (with the
# batch-wide balancing loss), any recompute level, and for plans compiled twice.
. "$(dirname "$0")/lib.sh"
make_text "$WORK/text.txt" 40000
tiny_config "$WORK/config.json"
steps=8

train() { # train NAME PLAN OPTIONS...
  "$MOEC" run "$WORK/$2.plan" --data "$WORK/text.txt" --out "$WORK/$1" --steps $steps --lr 0.003 --eval-every 4 --eval-batches 2 -q "${@:3}"
}
compile() { "$MOEC" compile "$WORK/config.json" -o "$WORK/$1.plan" --batch 8 --seq 32 -q "${@:2}"; }

for dtype in f32 bf16; do
  must compile base-$dtype --dtype $dtype
  must train base-$dtype base-$dtype --threads 1
  for threads in 2 4; do
    must train $dtype-t$threads base-$dtype --threads $threads
    expect "$dtype: $threads threads as 1" same_run "$WORK/base-$dtype" "$WORK/$dtype-t$threads"
  done
  for m in 2 4 8; do
    must compile $dtype-m$m --dtype $dtype --micro-batches $m
    must train $dtype-m$m $dtype-m$m --threads 2
    expect "$dtype: $m micro-batches as 1" same_run "$WORK/base-$dtype" "$WORK/$dtype-m$m"
  done
  for level in none cheap layer; do
    must compile $dtype-$level --dtype $dtype --recompute $level
    must train $dtype-$level $dtype-$level
    expect "$dtype: recompute $level" same_run "$WORK/base-$dtype" "$WORK/$dtype-$level"
  done
  must compile $dtype-both --dtype $dtype --recompute layer --micro-batches 4
  must train $dtype-both $dtype-both --threads 3
  expect "$dtype: recompute layer, 4 micro-batches, 3 threads" same_run "$WORK/base-$dtype" "$WORK/$dtype-both"
  # A batch that the virtual shards do not divide, and a dense model.
  must compile $dtype-odd1 --dtype $dtype --batch 5
  must compile $dtype-odd4 --dtype $dtype --batch 5 --micro-batches 4
  must train $dtype-odd1 $dtype-odd1 --threads 1
  must train $dtype-odd4 $dtype-odd4 --threads 2
  expect "$dtype: 5 sequences in 4 micro-batches" same_run "$WORK/$dtype-odd1" "$WORK/$dtype-odd4"
done
expect "f32 and bf16 are not the same" bash -c '! cmp -s "$0" "$1"' "$(newest "$WORK/base-f32")/model.safetensors" \
  "$(newest "$WORK/base-bf16")/model.safetensors"
must train other-seed base-f32 --seed 2
expect "another seed is not the same" bash -c '! cmp -s "$0" "$1"' "$(newest "$WORK/base-f32")/model.safetensors" \
  "$(newest "$WORK/other-seed")/model.safetensors"

# Plans: two compilations are byte for byte the same but for the line that says how.
must compile again-f32 --dtype f32
expect "compiled twice: kernels.o" cmp "$WORK/base-f32.plan/kernels.o" "$WORK/again-f32.plan/kernels.o"
expect "compiled twice: step.moe" cmp "$WORK/base-f32.plan/step.moe" "$WORK/again-f32.plan/step.moe"
plan_without_line() { python3 -c 'import json, sys; p = json.load(open(sys.argv[1])); del p["compile"]; print(json.dumps(p, indent=0))' "$1"; }
expect "compiled twice: plan.json" cmp <(plan_without_line "$WORK/base-f32.plan/plan.json") <(plan_without_line "$WORK/again-f32.plan/plan.json")
must train again base-f32
must train again2 again-f32
expect "trained twice" same_run "$WORK/again" "$WORK/again2"
done_testing
