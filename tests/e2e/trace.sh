#!/usr/bin/env bash
# moec trace: the timeline of a step that moec run --profile-step kept is whole, nests, says what the plan says; recording changes no bit; emulated links show
# their own clock; what is missing or damaged is said.
. "$(dirname "$0")/lib.sh"
make_text "$WORK/text.txt" 20000
tiny_config "$WORK/model.json" hidden_size=64 intermediate_size=96
must "$MOEC" compile "$WORK/model.json" -o "$WORK/one.plan" --batch 8 --seq 32 -q
must "$MOEC" compile "$WORK/model.json" -o "$WORK/four.plan" --batch 8 --seq 32 --ranks 4 --expert-parallel-degree 2 --hybrid-shard-degree 2 --micro-batches 2 -q
run() { "$MOEC" run "$WORK/$1.plan" --data "$WORK/text.txt" --out "$WORK/$2" --steps 4 --checkpoint-every 4 -q "${@:3}"; }
check() { # check TRACE PLAN RANKS: of the measured step every step of the plan, as often as it runs; rows without overlap; the prediction as long as the plan says
  python3 - "$@" <<'PY'
import collections, json, sys
events = json.load(open(sys.argv[1]))["traceEvents"]
plan = json.load(open(sys.argv[2])); ranks = int(sys.argv[3])
g = plan["programs"]["train"]
names = {(e["pid"], e["tid"]): e["args"]["name"] for e in events if e["name"] == "thread_name"}
processes = {e["pid"]: e["args"]["name"] for e in events if e["name"] == "process_name"}
assert len(processes) == ranks + 1 and processes[ranks].startswith("predicted"), processes
rows = collections.defaultdict(list)
for e in events:
    if e["ph"] == "X":
        assert e["dur"] >= 0 and e["ts"] >= -1e-3
        rows[e["pid"], e["tid"]].append(e)
for at, row in rows.items():
    assert at in names
    row.sort(key=lambda e: e["ts"])
    if names[at] != "compute" and at[0] == ranks or names[at] == "compute":
        for a, b in zip(row, row[1:]):
            assert a["ts"] + a["dur"] <= b["ts"] + 0.01, (names[at], a, b)
def times(s):
    m = plan["micro_batches"]
    return 1 if s["phase"] in ("reduce", "update") else m * (2 if s.get("count") and m > 1 else 1)
want = collections.Counter()
for s in g["steps"]:
    want[s["name"]] += times(s)
for r in range(ranks + 1):
    got = collections.Counter(e["name"] for at, row in rows.items() if at[0] == r for e in row)
    # Exchanges show once as such; their waits by their own names.
    missing = {n: (want[n], got[n]) for n in want if got[n] == 0}
    assert not missing, (processes[r], missing)
    kernels = {s["name"] for s in g["steps"] if s["kind"] not in ("comm", "wait", "store")}
    wrong = {n: (want[n], got[n]) for n in kernels if want[n] != got[n]}
    assert not wrong, (processes[r], wrong)
length = max(e["ts"] + e["dur"] for at, row in rows.items() if at[0] == ranks for e in row) * 1e-6
print("predicted", length, g["predicted"]["seconds"])
assert abs(length / g["predicted"]["seconds"] - 1) < 0.15
PY
}
same_numbers() { diff <(numbers "$1") <(numbers "$2") && cmp "$1/trace.csv" "$2/trace.csv"; }
for name in one four; do
  must run $name $name-run --profile-step 3
  must run $name $name-plain
  expect "$name: recording changes no bit" same_numbers "$WORK/$name-run" "$WORK/$name-plain"
  must "$MOEC" trace "$WORK/$name-run" -o "$WORK/$name.json" -q
done
expect "one rank's timeline" check "$WORK/one.json" "$WORK/one.plan/plan.json" 1
expect "four ranks' timelines" check "$WORK/four.json" "$WORK/four.plan/plan.json" 4
echo '{"format_version": 1, "nodes": 2, "ranks_per_node": 2, "intra": {"latency": 1e-5, "bandwidth": 1e9}, "inter": {"latency": 1e-4, "bandwidth": 1e7}, "flops": 1e9, "memory_bandwidth": 1e10}' >"$WORK/c.json"
must "$MOEC" compile "$WORK/model.json" -o "$WORK/slow.plan" --batch 8 --seq 32 --cluster "$WORK/c.json" --expert-parallel-degree 2 --hybrid-shard-degree 2 -q
must run slow slow-run --profile-step 2 --emulate "$WORK/c.json"
must "$MOEC" trace "$WORK/slow-run" -o "$WORK/slow.json" -q
emulated() { # the timeline is as long as the step that the log has
  python3 - "$WORK/slow.json" "$WORK/slow-run/log.jsonl" <<'PY'
import json, sys
events = json.load(open(sys.argv[1]))["traceEvents"]
step = [json.loads(l) for l in open(sys.argv[2])][1]
length = max(e["ts"] + e["dur"] for e in events if e["ph"] == "X" and e["pid"] < 4) * 1e-6
print(length, step["emulated_seconds"])
assert abs(length / step["emulated_seconds"] - 1) < 0.02
PY
}
expect "emulated links: as long as the log says" emulated

refuses "a run without a recorded step" 1 "profile-rank-0.jsonl: no step was recorded; train with --profile-step" "$MOEC" trace "$WORK/one-plain" -o "$WORK/x.json"
refuses "no file to write" 2 "moec trace needs -o FILE.json" "$MOEC" trace "$WORK/one-run"
refuses "a file that cannot be written" 1 "no/such" "$MOEC" trace "$WORK/one-run" -o "$WORK/no/such/x.json"
refuses "not a run" 1 "not a run directory" "$MOEC" trace "$WORK/one.plan" -o "$WORK/x.json"
sed -i '5s/"i": [0-9]*/"i": 999999/' "$WORK/four-run/profile-rank-2.jsonl"
refuses "a recording of another plan" 1 "profile-rank-2.jsonl:5: step 999999 of a program of" "$MOEC" trace "$WORK/four-run" -o "$WORK/x.json"
sed -i '5s/.*/{"i": /' "$WORK/four-run/profile-rank-2.jsonl"
refuses "a damaged recording" 1 "profile-rank-2.jsonl:5:.*bad JSON" "$MOEC" trace "$WORK/four-run" -o "$WORK/x.json"
rm "$WORK/four-run/profile-rank-3.jsonl" && must run four four-run2 --profile-step 3 && cp "$WORK/four-run2"/profile-rank-2.jsonl "$WORK/four-run/"
refuses "a rank whose recording is missing" 1 "profile-rank-3.jsonl: no step was recorded" "$MOEC" trace "$WORK/four-run" -o "$WORK/x.json"
done_testing
