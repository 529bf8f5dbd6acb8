#!/usr/bin/env bash
# The order of steps changes no bit: overlap on and off, experts' rows whole and in 2 and 4 chunks, on several layouts, all give one rank's losses, gradient
# norms and weights. On emulated links with a compute rate, times repeat, overlap saves time, and the plan's prediction is near what is emulated.
. "$(dirname "$0")/lib.sh"
make_text "$WORK/text.txt" 40000
tiny_config "$WORK/model.json" hidden_size=64 intermediate_size=64 num_hidden_layers=3 num_local_experts=8
cat >"$WORK/pair.json" <<'JSON'
{"format_version": 1, "nodes": 2, "ranks_per_node": 1, "inter": {"latency": 2e-5, "bandwidth": 2e8}, "flops": 2e10}
JSON
E=--expert-parallel-degree S=--hybrid-shard-degree

train() { # train NAME COMPILE-OPTIONS... [-- RUN-OPTIONS...]
  local name=$1 options=(); shift
  while [ $# -gt 0 ] && [ "$1" != -- ]; do options+=("$1"); shift; done
  [ $# = 0 ] || shift
  rm -rf "$WORK/$name" "$WORK/$name.plan"
  "$MOEC" compile "$WORK/model.json" -o "$WORK/$name.plan" --batch 8 --seq 32 -q ${options[@]+"${options[@]}"} &&
    "$MOEC" run "$WORK/$name.plan" --data "$WORK/text.txt" --out "$WORK/$name" --steps 4 --lr 0.003 --eval-every 2 --eval-batches 2 -q "$@"
}
common() { numbers "$1" | sed -E 's/, "imbalance": \[[^]]*\]//'; }
same_result() { # same_result RUN: as one rank's
  local file=model.safetensors a b
  diff <(common "$WORK/one") <(common "$WORK/$1") >"$WORK/.diff" || { echo "the logs differ:"; head -n 4 "$WORK/.diff"; return 1; }
  for a in one "$1"; do rm -rf "$WORK/$a.hf"; "$MOEC" export "$WORK/$a" -o "$WORK/$a.hf" -q || return 1; done
  for file in "$WORK/one.hf"/*.safetensors; do b=$WORK/$1.hf/${file##*/}; cmp "$file" "$b" || return 1; done
}
steps() { # steps NAME EXPRESSION: of the training program's steps `s`
  python3 -c 'import json, sys; s = json.load(open(sys.argv[1] + "/plan.json"))["programs"]["train"]["steps"]; sys.exit(0 if eval(sys.argv[2]) else 1)' "$WORK/$1.plan" "$2"
}
same() { # same NAME CHECK-OF-STEPS COMPILE-OPTIONS... [-- RUN-OPTIONS...]
  local name=$1 check=$2; shift 2
  if train run "$@" >"$WORK/.log" 2>&1; then
    expect "$name" same_result run
    expect "$name: the steps" steps run "$check"
  else
    not_ok "$name (did not run)" "$WORK/.log"
  fi
}
waits='any(x["kind"] == "wait" for x in s)'
chunks() { echo "max(c.get('chunk', -1) for x in s for c in x.get('comm', [])) == $(($1 - 1)) and sum('slots' in x for x in s) > 0 and $waits"; }

must train one
same "off" "not $waits" --ranks 2 $E 2 --overlap off
same "on" "$waits" --ranks 2 $E 2 --overlap-chunks 1
same "two chunks" "$(chunks 2)" --ranks 2 $E 2 --overlap-chunks 2
same "four chunks, 2 threads each" "$(chunks 4)" --ranks 2 $E 2 --overlap-chunks 4 -- --threads 4
same "four ranks, two chunks" "$(chunks 2)" --ranks 4 $E 4 --dense-shard-degree 4 --overlap-chunks 2
same "experts divided and sharded, four chunks, recomputed, 2 micro-batches" "$(chunks 4)" --ranks 4 $E 2 $S 2 --overlap-chunks 4 --recompute layer --micro-batches 2
same "sharded only" "$waits" --ranks 4 $S 4 --recompute layer
same "tensor parallel on a rank's own: nothing to divide in chunks" "$waits" --ranks 2 $S 2 --overlap-chunks 2

# On emulated links.
same "emulated: off" "not $waits" --cluster "$WORK/pair.json" $E 2 --overlap off -- --emulate "$WORK/pair.json"
mv "$WORK/run" "$WORK/off"
same "emulated: on" "$waits" --cluster "$WORK/pair.json" $E 2 -- --emulate "$WORK/pair.json"
cp -r "$WORK/run.plan" "$WORK/on.plan"; mv "$WORK/run" "$WORK/on"
must train again --cluster "$WORK/pair.json" $E 2 -- --emulate "$WORK/pair.json"
times() { sed -E 's/.*"emulated_seconds": ([^,]*), "emulated_exposed": ([^,]*), "emulated_a2a_exposed": ([^,]*),.*/\1 \2 \3/;t;d' "$WORK/$1/log.jsonl"; }
expect "emulated times repeat" bash -c '[ -n "$1" ] && [ "$1" = "$2" ]' - "$(times on)" "$(times again)"
compare() { # with overlap each step is faster, rows are waited for less, and the prediction for the run's load is not far off
  "$MOEC" explain "$WORK/on.plan" --against "$WORK/on" -o json >"$WORK/on.json" || return 1
  python3 - "$WORK" <<'PY'
import json, sys
work = sys.argv[1]
explained = json.load(open(f"{work}/on.json"))
steps = {n: [r for r in map(json.loads, open(f"{work}/{n}/log.jsonl")) if "emulated_seconds" in r] for n in ("off", "on")}
predicted = json.load(open(f"{work}/on.plan/plan.json"))["programs"]["train"]["predicted"]
for a, b in zip(steps["off"], steps["on"]):
    print(a["emulated_seconds"], b["emulated_seconds"], a["emulated_a2a_exposed"], b["emulated_a2a_exposed"], predicted)
    assert b["emulated_seconds"] < 0.97 * a["emulated_seconds"]
    assert b["emulated_a2a_exposed"] < 0.6 * a["emulated_a2a_exposed"]
    assert b["emulated_exposed"] >= b["emulated_a2a_exposed"]
assert len(steps["on"]) == 4
mean = sum(r["emulated_seconds"] for r in steps["on"]) / 4
print(mean, explained["predicted_for_run_seconds"], explained["predicted_seconds"])
assert abs(mean / explained["predicted_for_run_seconds"] - 1) < 0.1
assert abs(explained["predicted_seconds"] / predicted["seconds"] - 1) < 0.01
assert abs(predicted["compute"] + predicted["a2a_exposed"] + predicted["other_exposed"] - predicted["seconds"]) < 1e-9
PY
}
expect "overlap saves emulated time, about as predicted" compare

# What is wrong is said.
refuses "a cluster of another size" 2 'cluster has 2 ranks.*the plan has 4' "$MOEC" compile "$WORK/model.json" -o "$WORK/x.plan" --cluster "$WORK/pair.json" --ranks 4
refuses "a cluster file that is not there" 1 'nowhere.json' "$MOEC" compile "$WORK/model.json" -o "$WORK/x.plan" --cluster "$WORK/nowhere.json"
refuses "--overlap maybe" 2 'overlap.*on' "$MOEC" compile "$WORK/model.json" -o "$WORK/x.plan" --overlap maybe
refuses "--overlap-chunks -1" 2 'overlap-chunks -1.*expected' "$MOEC" compile "$WORK/model.json" -o "$WORK/x.plan" --overlap-chunks=-1
done_testing
