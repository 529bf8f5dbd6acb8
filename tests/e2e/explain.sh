#!/usr/bin/env bash
# moec explain on plans of several ranks: what each rank holds adds up to the whole, the traffic to that of the steps, and the memory that it predicts is the one
# that the run reports.
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
near_the_run() { # near_the_run PLAN OPTIONS: of the memory that the run reports, within 5 %
  rm -rf "$WORK/run"
  "$MOEC" run "$WORK/$1.plan" --data "$WORK/text.txt" --out "$WORK/run" --steps 2 -q &&
    "$MOEC" explain "$WORK/$1.plan" -o json >"$WORK/report.json" && python3 - "$WORK/report.json" "$WORK/run/log.jsonl" <<'PY'
import json, sys
total = json.load(open(sys.argv[1]))["memory"]["total"]
real = [json.loads(l)["memory_bytes"] for l in open(sys.argv[2])][-1]
print("predicted", total, "the run", real)
assert abs(real / total - 1) < 0.05
PY
}

plan one
plan ep2 --ranks 2 --expert-parallel-degree 2
plan shard4 --ranks 4 --hybrid-shard-degree 4 --dtype bf16 --micro-batches 2 --recompute layer
plan both --ranks 8 --expert-parallel-degree 2 --hybrid-shard-degree 2 --dense-shard-degree 4
for name in one ep2 shard4; do expect "$name: memory as the run reports it" near_the_run "$name"; done

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
for program in eval logits; do expect "--program $program" "$MOEC" explain "$WORK/both.plan" --program $program; done
done_testing
