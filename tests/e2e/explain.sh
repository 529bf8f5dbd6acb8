#!/usr/bin/env bash
# moec explain on plans of several ranks: what each rank holds adds up to the whole, the traffic to that of the steps, and the memory that it predicts is the one
# that the run reports: with untrained routers, with trained ones, and with all tokens to two experts.
. "$(dirname "$0")/lib.sh"
make_text "$WORK/text.txt" 40000
tiny_config "$WORK/model.json" hidden_size=96 intermediate_size=96 num_hidden_layers=3 num_local_experts=8 max_position_embeddings=128

plan() { must "$MOEC" compile "$WORK/model.json" -o "$WORK/$1.plan" --batch 8 --seq 32 -q "${@:2}"; }
# Python over the report: checks NAME PLAN CODE, with r the JSON and p plan.json.
checks() {
  "$MOEC" explain "$WORK/$2.plan" -o json >"$WORK/report.json" || { not_ok "$1"; return; }
  expect "$1" python3 -c "
import json, sys
r = json.load(open(sys.argv[1])); p = json.load(open(sys.argv[2]))
$3" "$WORK/report.json" "$WORK/$2.plan/plan.json"
}
# run NAME PLAN OPTIONS: of the plan on the text, or on what the options say.
run() { rm -rf "$WORK/$1" && "$MOEC" run "$WORK/$2.plan" --data "$WORK/text.txt" --out "$WORK/$1" -q "${@:3}"; }
# near WITHIN PLAN RUN [--against]: predicted is what the run reports of the rank with the most memory; with --against by the run's load, and of rank 0, too.
near() {
  local against=()
  [ -z "${4:-}" ] || against=(--against "$WORK/$3")
  "$MOEC" explain "$WORK/$2.plan" -o json ${against[@]+"${against[@]}"} >"$WORK/report.json" && python3 - "$1" "$WORK/report.json" "$WORK/$3/log.jsonl" <<'PY'
import json, sys
within = float(sys.argv[1])
r = json.load(open(sys.argv[2]))
last = [json.loads(l) for l in open(sys.argv[3])][-1]
first, most = last["memory_bytes"], last.get("memory_bytes_max", last["memory_bytes"])
m = r["memory"]
print("predicted: rank 0", r["holds"][0]["memory_bytes"], "most", m["total"], m["load"], "the run:", first, most)
assert abs(m["total"] - sum(m[k] for k in "parameters states gradients activations workspace other communication inputs scratch gaps uneven".split())) < 1
assert m["total"] == max(h["memory_bytes"] for h in r["holds"])
assert abs(most / m["total"] - 1) < within
if m["load"] == "run": # else what is predicted is the busiest rank
    assert abs(first / r["holds"][0]["memory_bytes"] - 1) < within
PY
}

plan one
plan ep2 --ranks 2 --expert-parallel-degree 2
plan ep4 --ranks 4 --expert-parallel-degree 4
plan shard4 --ranks 4 --hybrid-shard-degree 4 --dtype bf16 --micro-batches 2 --recompute layer
plan both4 --ranks 4 --expert-parallel-degree 2 --hybrid-shard-degree 2 --micro-batches 2
plan both --ranks 8 --expert-parallel-degree 2 --hybrid-shard-degree 2 --dense-shard-degree 4
for name in one ep2 ep4 shard4 both4; do
  expect "$name: a run of an untrained model" run new-$name $name --steps 2
  expect "$name: memory of an untrained model" near 0.05 $name new-$name
  [ $name = one ] || expect "$name: memory by the load of that run" near 0.02 $name new-$name --against
done
# With one rank nothing depends on routing: it is the run's to the byte, whatever the sizes.
tiny_config "$WORK/odd.json" hidden_size=40 intermediate_size=50 num_local_experts=5 num_experts_per_tok=3 vocab_size=259
must "$MOEC" compile "$WORK/odd.json" -o "$WORK/odd.plan" --batch 4 --seq 15 --micro-batches 2 -q
must run new-odd odd --steps 1
for name in one odd; do expect "$name: memory to the byte" near 1e-12 $name new-$name; done
# A model that is trained: its load is another.
must run trained one --steps 40 --eval-every 0
for name in ep2 ep4 both4; do
  must run on-$name $name --resume "$WORK/trained" --steps 42
  expect "$name: memory of a trained model" near 0.05 $name on-$name
  expect "$name: memory by the load of a trained model" near 0.02 $name on-$name --against
done
# Every token the same: all go to the same two experts, whose rank needs far more than any balance says.
head -c 40000 /dev/zero | tr '\0' a >"$WORK/same.txt"
for name in ep2 ep4 both4; do
  must run skew-$name $name --data "$WORK/same.txt" --steps 2
  expect "$name: memory by the load with all tokens to two experts" near 0.03 $name skew-$name --against
done
# Experts that move while training, and a plan that begins with another map.
must run moved-ep4 ep4 --steps 8 --placement lpt --placement-every 2 --placement-hysteresis 0
expect "experts have moved" grep -q '"event": "move"' "$WORK/moved-ep4/placement.jsonl"
expect "ep4: memory by the load, wherever the experts were" near 0.01 ep4 moved-ep4 --against
plan first4 --ranks 4 --expert-parallel-degree 4 --trace "$WORK/skew-ep4/trace.csv" --first-placement lpt
expect "a plan with a map of its own" test -f "$WORK/first4.plan/placement.json"
must run first-4 first4 --data "$WORK/same.txt" --steps 1
expect "first4: memory by the load under the plan's map" near 0.03 first4 first-4 --against
# The step's time by the run's own load and maps, against emulated links: two runs of one load, one with the two busiest experts of each
# layer on one rank; experts that move while it runs; copies.
printf '{"format_version": 1, "nodes": 2, "ranks_per_node": 2, "intra": {"latency": 2e-6, "bandwidth": 5e9}, "inter": {"latency": 5e-6, "bandwidth": 5e8}, "flops": 2e9}' >"$WORK/cluster.json"
ep=(--ranks 4 --expert-parallel-degree 4 --seq 128 --cluster "$WORK/cluster.json")
emulated() { run "$@" --data "$WORK/same.txt" --emulate "$WORK/cluster.json"; }
timed() { # timed WITHIN PLAN RUN: "predicted emulated", which are within that of each other; memory, too
  near 0.03 "$2" "$3" --against && python3 - "$1" "$WORK/report.json" <<'PY'
import json, sys
r = json.load(open(sys.argv[2]))
p, e = r["predicted_for_run_seconds"], r["run_emulated_seconds"]
print(p, e)
assert abs(p / e - 1) < float(sys.argv[1]), (p, e)
PY
}
plan t4 "${ep[@]}"
plan x4 "${ep[@]}" --extra-slots 1
must emulated usual-t4 t4 --steps 2
python3 - "$WORK/usual-t4/trace.csv" >"$WORK/worst.json" <<'PY'
import csv, json, sys
load = {}
for r in csv.DictReader(open(sys.argv[1])):
    now = load.setdefault(int(r["layer"]), [0] * 8)
    for e in range(8):
        now[e] += int(r[f"e{e}"]) * (1 if r["step"] == "1" else 8)
layers = []
for layer, n in sorted(load.items()):
    by = sorted(range(8), key=lambda e: -n[e])
    layers.append({"layer": layer, "slots": [by[2 * r : 2 * r + 2] for r in range(4)]})
json.dump({"format_version": 1, "layers": layers}, sys.stdout)
PY
must emulated worst-t4 t4 --steps 2 --placement-from "$WORK/worst.json"
expect "time by the load, usual maps" timed 0.06 t4 usual-t4
usual=$(tail -n 1 "$WORK/.out")
expect "time by the load, --placement-from" timed 0.06 t4 worst-t4
slower() { python3 -c 'import sys; u, w = (list(map(float, a.split())) for a in sys.argv[1:]); print(u, w); assert w[0] > 1.15 * u[0] and w[1] > 1.15 * u[1]' "$@"; }
expect "... which is slower, and predicted so" slower "$usual" "$(tail -n 1 "$WORK/.out")"
for name in t4 x4; do
  policy=lpt; [ $name = t4 ] || policy=eplb
  must emulated moved-$name $name --steps 10 --placement $policy --placement-every 2 --placement-hysteresis 0
  expect "$name: experts have moved" grep -q '"event": "move"' "$WORK/moved-$name/placement.jsonl"
  expect "$name: time and memory by the load, wherever the experts were" timed 0.06 $name moved-$name
done
plan other --ranks 2 --expert-parallel-degree 2 --virtual-shards 16
refuses "a run of another plan" 1 'the trace has 3 layers of 8 experts from 8 sources.* 16 virtual' "$MOEC" explain "$WORK/other.plan" --against "$WORK/new-ep2"

whole='
whole = sum(__import__("math").prod(q["dims"]) for q in p["params"])
dp = r["mesh"]["dp"]
V, M = p["virtual_shards"], p["micro_batches"]
assert len(r["holds"]) == r["ranks"] == p["ranks"]
'
checks "virtual shards: each has one rank" both "$whole
seen = sorted(s for h in r['holds'] for s in range(h['first_virtual_shard'], h['first_virtual_shard'] + h['virtual_shards']))
assert seen == list(range(V // M)), seen"
checks "experts: each on one rank of an expert parallel group" both "$whole
for h in r['holds']: assert h['first_expert'] == h['ep'] * r['slots'] and h['experts'] == 4"
for name in one ep2 shard4; do
  checks "$name: the ranks' slices add up to the parameters" $name "$whole
experts = sum(__import__('math').prod(q['dims']) for q in p['params'] if q['expert'])
dense = whole - experts
copies = r['ranks'] // r['mesh']['dense_shard']
total = sum(h['parameter_elements'] for h in r['holds'])
assert total == experts * dp + dense * copies, (total, experts, dense)"
done
checks "traffic: collectives add up to what the steps send" both "
assert abs(sum(t['bytes'] for t in r['traffic']) - r['sent_bytes']) < 1
assert abs(r['sent_bytes'] - sum(s['bytes'] for s in p['programs']['train']['steps'] if s['kind'] == 'comm')) < 1
assert {t['collective'] for t in r['traffic']} >= {'all_gather', 'reduce_scatter', 'a2a_dispatch', 'a2a_combine', 'all_reduce'}
assert r['sent_bytes'] > 0 and r['exchanges'] > 0"
checks "traffic: forward and backward run once a micro-batch, counted steps twice" shard4 "
steps = p['programs']['train']['steps']
times = lambda s: 1 if s['phase'] in ('reduce', 'update') else 2 * (1 + s['count'])
assert any(s['count'] for s in steps if s['kind'] == 'comm')
assert abs(r['sent_bytes'] - sum(s['bytes'] * times(s) for s in steps if s['kind'] == 'comm')) < 1"
checks "one rank sends nothing" one "assert r['ranks'] == 1 and r['sent_bytes'] == 0 and not r['traffic']"
expect "md has the mesh, the ranks and the traffic" bash -c '"$0" explain "$1" >"$2" && grep -q "^8 ranks: dp 2 x shard 2 x ep 2 x tp 1" "$2" && grep -qE "^\| 7 \| 1 \| 1 \| 1 \| 0 \|" "$2" && grep -qE "^\| a2a_dispatch \| ep \| 2 \|" "$2" &&
  grep -q "^| communication buffers |" "$2"' "$MOEC" "$WORK/both.plan" "$WORK/report.md"
# A model that no single rank could hold: compiled and explained all the same.
must "$MOEC" compile "$ROOT/tests/data/configs/mixtral-8x7b.json" -o "$WORK/large.plan" --ranks 64 --expert-parallel-degree 8 --hybrid-shard-degree 8 --virtual-shards 64 \
  --batch 64 --seq 2048 --recompute layer -q
checks "64 ranks: the slices add up to the parameters" large "$whole
total = sum(h['parameter_elements'] for h in r['holds'])
experts = sum(__import__('math').prod(q['dims']) for q in p['params'] if q['expert'])
assert whole > 46e9 and total == experts + 8 * (whole - experts)
assert r['memory']['parameters'] < 1.01 * 4 * total / 64"
checks "64 ranks: every layer gathers its experts once a phase" large "
gathered = [s for s in p['programs']['train']['steps'] if s['kind'] == 'comm' and s['layer'] == 5 for c in s['comm'] if c['op'] == 'all_gather' and c['group'] == 'expert_shard' and s['phase'] != 'reduce']
assert len(gathered) == 6, len(gathered)"
# Experts divided by layer: the table has each rank's place and experts in every division.
printf '{"ranks": 4, "expert_parallel_degree": 4, "layers": [{"first": 1, "last": 1, "expert_parallel_degree": 2, "hybrid_shard_degree": 2}, {"first": 2, "last": 2, "hybrid_shard_degree": 4}]}' >"$WORK/mixed.json"
plan mixed --strategy "$WORK/mixed.json"
expect "mixed layers: a run of an untrained model" run new-mixed mixed --steps 2
expect "mixed layers: memory of an untrained model" near 0.05 mixed new-mixed
expect "mixed layers: memory by the load of that run" near 0.02 mixed new-mixed --against
checks "mixed layers: where each rank is in each division" mixed "$whole
for h in r['holds']:
    a, b = h['divisions']
    assert (a['first'], a['last'], b['first'], b['last']) == (1, 1, 2, 2)
    assert (a['shard'], a['ep'], b['shard'], b['ep']) == (h['rank'] // 2, h['rank'] % 2, h['rank'], 0)
    assert (h['first_expert'], a['first_expert'], b['first_expert']) == (2 * h['rank'], 4 * (h['rank'] % 2), 0)
    assert (h['experts'], a['experts'], b['experts']) == (2, 4, 8)"
expect "md has the divisions by layer" bash -c '"$0" explain "$1" >"$2" && grep -q "experts of other layers | of layers 1-1 (dp, shard, ep) | of layers 2-2" "$2" && grep -qF "| 6-7 | 4-7 (0, 1, 1) | 0-7 (0, 3, 0) |" "$2"' \
  "$MOEC" "$WORK/mixed.plan" "$WORK/report.md"
for program in eval logits; do expect "--program $program" "$MOEC" explain "$WORK/both.plan" --program $program; done
done_testing
