#!/usr/bin/env bash
# compile --strategy auto, --trace, --load, --first-placement: the planner's choice is a plan as any other, its table is in the plan and in explain,
# limits are kept, loads change predictions, the first placement is in the plan; what cannot be is said in one message.
. "$(dirname "$0")/lib.sh"
make_text "$WORK/text.txt" 40000
tiny_config "$WORK/model.json" hidden_size=64 intermediate_size=96 num_local_experts=8
cat >"$WORK/c.json" <<'JSON'
{"format_version": 1, "nodes": 2, "ranks_per_node": 2, "intra": {"latency": 2e-6, "bandwidth": 2e10}, "inter": {"latency": 2e-5, "bandwidth": 1e9}, "flops": 2e10}
JSON
C=(--cluster "$WORK/c.json" --batch 8 --seq 32)
compile() { rm -rf "$WORK/$1.plan"; "$MOEC" compile "$WORK/model.json" -o "$WORK/$1.plan" "${C[@]}" "${@:2}"; }
# checks NAME PLAN CODE: with p plan.json
checks() {
  expect "$1" python3 -c "
import json, os, sys
p = json.load(open(sys.argv[1] + '/plan.json'))
t = p['programs']['train']['predicted']
$3" "$WORK/$2.plan"
}

expect "auto" compile auto --strategy auto
cp "$WORK/.out" "$WORK/said"
expect "it says what it looked at, and why" bash -c 'grep -q "divisions considered" "$1" && grep -q "^| 1 | .* |$" "$1" && grep -q "^| 2 | " "$1" && grep -q "^chosen: pool 1: .*less time than the next" "$1"' - "$WORK/said"
checks "the table is in the plan, and it is the plan's" auto '
d = p["planner"]["divisions"]
assert len(d) >= 3 and [x["seconds"] for x in d] == sorted(x["seconds"] for x in d)
assert all(d[0][k] == p["mesh"][k] for k in ("dp", "shard", "ep", "tp", "dense_shard")), (d[0], p["mesh"])
assert d[0]["micro_batches"] == p["micro_batches"] and d[0]["recompute"] == p["recompute"]
assert abs(d[0]["seconds"] / t["seconds"] - 1) < 1e-9, (d[0], t)
assert len({(x["dp"], x["shard"], x["ep"], x["tp"], x["dense_shard"], x["micro_batches"], x["recompute"]) for x in d}) == len(d)'
expect "explain shows it" bash -c '"$1" explain "$2" | grep -q "^chosen: pool 1"' - "$MOEC" "$WORK/auto.plan"
must "$MOEC" run "$WORK/auto.plan" --data "$WORK/text.txt" --out "$WORK/auto" --steps 2 -q
expect "it trains" test -s "$WORK/auto/log.jsonl"
expect "again: the same plan" bash -c 'cp -r "$1.plan" "$1.first" && shift && "$@" -q' - "$WORK/auto" "$MOEC" compile "$WORK/model.json" -o "$WORK/auto.plan" "${C[@]}" --strategy auto
expect "the same steps" python3 -c '
import json, sys
a, b = (json.load(open(x + "/plan.json")) for x in sys.argv[1:])
assert a["programs"] == b["programs"] and a["mesh"] == b["mesh"]' "$WORK/auto.first" "$WORK/auto.plan"

expect "degrees that are given stay" compile given --strategy auto --expert-parallel-degree 2 --micro-batches 2 --recompute layer -q
checks "they do" given 'assert p["mesh"]["ep"] == 2 and p["micro_batches"] == 2 and p["recompute"] == "layer"'
# A limit between what the fastest takes and what the least needs.
limit=$(python3 -c '
import json, sys
d = json.load(open(sys.argv[1] + "/plan.json"))["planner"]["divisions"]
print(int((min(x["memory"] for x in d) + d[0]["memory"]) / 2) if min(x["memory"] for x in d) < d[0]["memory"] else int(d[0]["memory"] * 0.8))' "$WORK/auto.plan")
expect "a memory limit" compile limit --strategy auto --memory-limit "$limit" -q
checks "all divisions shown keep it" limit "assert all(x['memory'] <= $limit for x in p['planner']['divisions']) and p['planner']['divisions']"
refuses "a limit that nothing keeps" 1 "none of [0-9]+ divisions over 4 ranks fits --memory-limit .*; the least needs about" compile none --strategy auto --memory-limit 4K
refuses "no cluster" 2 "--cluster FILE, or --ranks N" "$MOEC" compile "$WORK/model.json" -o "$WORK/x.plan" --strategy auto
refuses "degrees that cannot be" 2 "no division over 4 ranks is possible" compile none --strategy auto --expert-parallel-degree 3
expect "ranks of one host" "$MOEC" compile "$WORK/model.json" -o "$WORK/host.plan" --ranks 2 --strategy auto --batch 8 --seq 32 -q

# Loads.
E=(--expert-parallel-degree 4 -q)
must compile even "${E[@]}"
must compile zipf "${E[@]}" --load zipf:1.5
must compile gate "${E[@]}" --load gate:1
must compile hot "${E[@]}" --load gate
expect "by load: even = gate:1 < zipf < no capacity" python3 -c '
import json, sys
even, gate, zipf, hot = (json.load(open(f"{sys.argv[1]}/{n}.plan/plan.json"))["programs"]["train"]["predicted"]["seconds"] for n in ("even", "gate", "zipf", "hot"))
print(even, gate, zipf, hot)
assert abs(gate / even - 1) < 0.02 and even * 1.05 < zipf < hot' "$WORK"
expect "a gate that knows the network sends less between nodes" compile topology "${E[@]}" --load topology
must "$MOEC" run "$WORK/even.plan" --data "$WORK/text.txt" --out "$WORK/traced" --steps 3 -q
expect "by a run's trace, experts placed" compile placed "${E[@]}" --trace "$WORK/traced"
must compile usual "${E[@]}" --trace "$WORK/traced" --first-placement static
checks "placement.json: each expert once, in slots of its own" placed '
m = json.load(open(sys.argv[1] + "/placement.json"))
assert m["format_version"] == 1 and m["layers"]
for l in m["layers"]:
    held = [e for r in l["slots"] for e in r]
    assert sorted(held) == list(range(8)) and all(held[g] == e for e, g in enumerate(l["primary"])), l'
expect "that takes less time" python3 -c '
import json, sys
a, b = (json.load(open(x + "/plan.json"))["programs"]["train"]["predicted"]["seconds"] for x in sys.argv[1:])
assert a < b, (a, b)' "$WORK/placed.plan" "$WORK/usual.plan"
expect "without a policy there is none" test ! -e "$WORK/usual.plan/placement.json"
expect "a run with it" "$MOEC" run "$WORK/placed.plan" --data "$WORK/text.txt" --out "$WORK/placed" --steps 3 -q
expect "the same bits" diff <(numbers "$WORK/traced" | sed -E 's/, "imbalance": \[[^]]*\]//') <(numbers "$WORK/placed" | sed -E 's/, "imbalance": \[[^]]*\]//')
checks "what maps cost is in the plan" even '
for layer, c in enumerate(p["placement"]):
    assert c["layer"] == layer and c["exchanges"] >= 4 and 0 <= c["hidden"] <= 1
    assert all(c[k] > 0 for k in ("row_seconds", "token_bytes", "row_bytes", "copy_bytes", "root_bytes", "move_bytes", "fixed_seconds")), c
    assert c["move_bytes"] == 3 * 4 * 3 * 64 * 96 and c["cluster"]["nodes"] == 2, c'

printf 'step,layer,rank,e0,e1\n0,0,0,1,1\n0,1,0,1,1\n0,2,0,1,1\n' >"$WORK/other.csv"
refuses "a trace of other layers" 1 "other.csv: 3 layers, the model has 2" compile none "${E[@]}" --trace "$WORK/other.csv"
refuses "both" 2 "--trace and --load" compile none "${E[@]}" --trace "$WORK/traced" --load uniform
refuses "no such load" 2 "pareto" compile none "${E[@]}" --load pareto
refuses "a capacity that drops rows" 2 "capacity factor of 0.5" compile none "${E[@]}" --load gate:0.5
refuses "no such policy" 2 "there is no placement policy 'lucky'" compile none "${E[@]}" --trace "$WORK/traced" --first-placement lucky
refuses "a policy without a load" 2 "it goes by a load" compile none "${E[@]}" --first-placement lpt
done_testing
