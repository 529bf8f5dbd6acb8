#!/usr/bin/env bash
# moec probe writes a cluster file that compile reads: rates of kernels by size and type, links between its ranks, as threads and as
# processes. What it measures is not judged here (bench/model --real does); that it is there, positive and used is.
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/lib_ranks.sh"
LIMIT=300
tiny_config "$WORK/model.json"

checks() { # checks NAME FILE CODE: with c the cluster file
  expect "$1" python3 -c "
import json, sys
c = json.load(open(sys.argv[1]))
$3" "$2"
}

expect "two ranks as threads" "$MOEC" probe -o "$WORK/two.json" --ranks 2
cp "$WORK/.out" "$WORK/said"
checks "the file: nodes, links, rates" "$WORK/two.json" '
assert c["format_version"] == 1 and c["nodes"] == 1 and c["ranks_per_node"] == 2 and "inter" not in c
assert 0 < c["intra"]["latency"] < 1 and 1e6 < c["intra"]["bandwidth"] < 1e13
assert c["intra"]["by_cores"] is True, c["intra"]   # threads: who receives copies
r = c["rates"]
assert r["threads"] >= 1
for kind in ("gemm", "gemm_bf16", "wgrad", "wgrad_bf16", "attn", "attn_grad", "xent", "pack", "copy", "update", "reduce", "row"):
    sizes = [p[0] for p in r[kind]]
    assert sizes == sorted(sizes) and all(0 < rate < 1e15 for _, rate in r[kind]), kind
assert len(r["gemm"]) >= 3, r["gemm"]'
expect "it says what it measures" bash -c 'grep -q "gemm .*GFLOP/s" "$1" && grep -q "update .*GB/s" "$1" && grep -q "links inside a host: latency" "$1"' - "$WORK/said"
expect "compile predicts by the rates" "$MOEC" compile "$WORK/model.json" -o "$WORK/a.plan" --cluster "$WORK/two.json" --batch 8 --seq 32 -q
python3 - "$WORK/two.json" "$WORK/slow.json" <<'PY'
import json, sys
c = json.load(open(sys.argv[1]))
for kind, points in c["rates"].items():
    if kind != "threads":
        c["rates"][kind] = [[size, rate / 10] for size, rate in points]
json.dump(c, open(sys.argv[2], "w"))
PY
must "$MOEC" compile "$WORK/model.json" -o "$WORK/b.plan" --cluster "$WORK/slow.json" --batch 8 --seq 32 -q
expect "a tenth of the rates, ten times the compute" python3 -c '
import json, sys
a, b = (json.load(open(p + "/plan.json"))["programs"]["train"]["predicted"]["compute"] for p in sys.argv[1:])
assert abs(b / a - 10) < 1e-6, (a, b)' "$WORK/a.plan" "$WORK/b.plan"

# Slow links, so that what carries them matters: by cores, nothing hides it, with balanced routing and with a load.
for by in true false; do
  python3 - "$WORK/two.json" "$WORK/$by.json" $by <<'PY'
import json, sys
c = json.load(open(sys.argv[1]))
c["intra"] = {"latency": 1e-6, "bandwidth": 1e8, "by_cores": sys.argv[3] == "true"}
json.dump(c, open(sys.argv[2], "w"))
PY
  for load in "" "--load zipf:1.2"; do
    must "$MOEC" compile "$WORK/model.json" -o "$WORK/$by${load:+-load}.plan" --ranks 2 --expert-parallel-degree 1 --cluster "$WORK/$by.json" --batch 8 --seq 32 -q $load
  done
done
for load in "" -load; do
  expect "links that are by cores take the ranks' time${load:+, with a load}" python3 -c '
import json, sys
cores, links = (json.load(open(p + "/plan.json"))["programs"]["train"]["predicted"] for p in sys.argv[1:])
exposed = lambda p: p["a2a_exposed"] + p["other_exposed"]
assert cores["seconds"] > links["seconds"] and exposed(cores) > exposed(links), (cores, links)
assert abs(cores["compute"] - links["compute"]) < 1e-9 * links["compute"], (cores, links)
assert exposed(cores) > 0.95 * (cores["a2a"] + cores["other"]), cores' "$WORK/true$load.plan" "$WORK/false$load.plan"
done

for how in mpi tcp; do
  if [ $how = mpi ] && [ -n "$(no_mpi)" ]; then skip "two processes over mpi: $(no_mpi)"; continue; fi
  expect "two processes over $how" ranks $how 2 "$MOEC" probe -o "$WORK/$how.json" --threads 1
  cp "$WORK/.out" "$WORK/said"
  checks "over $how: hosts, links, rates" "$WORK/$how.json" '
assert c["nodes"] == 1 and c["ranks_per_node"] == 2 and "inter" not in c
assert 0 < c["intra"]["latency"] < 1 and 1e6 < c["intra"]["bandwidth"] < 1e13
assert c["rates"]["threads"] == 1 and len(c["rates"]["gemm"]) >= 3 and c["rates"]["row"]'
  expect "over $how: one of them says it" bash -c '[ "$(grep -c "^2 ranks on 1 host$" "$1")" = 1 ] && [ "$(grep -c "links inside a host" "$1")" = 1 ]' - "$WORK/said"
  refuses "over $how: a place that cannot be written" 1 "no/such" ranks $how 2 "$MOEC" probe -o "$WORK/no/such/x.json"
  refuses "over $how: other ranks than processes" 2 "started 2 processes; leave --ranks out" ranks $how 2 "$MOEC" probe -o "$WORK/x.json" --ranks 3
done
expect "compile takes a file of processes" "$MOEC" compile "$WORK/model.json" -o "$WORK/c.plan" --ranks 2 --expert-parallel-degree 2 --cluster "$WORK/tcp.json" --batch 8 --seq 32 -q

refuses "no file named" 2 "-o cluster.json" "$MOEC" probe
refuses "impossible ranks" 2 "--ranks 0 to" "$MOEC" probe -o "$WORK/x.json" --ranks -1
refuses "a place that cannot be written" 1 "no/such" "$MOEC" probe -o "$WORK/no/such/x.json" --ranks 1
done_testing
