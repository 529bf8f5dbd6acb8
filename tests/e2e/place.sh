#!/usr/bin/env bash
# moec place: figures of static, lpt and EPLB as published scripts have them, those that policy moec is to reach; every figure worked out anew from the dump by
# another program; formats, pictures, synthetic load; decisions that do not look ahead; bad input.
. "$(dirname "$0")/lib.sh"
traces=$ROOT/tests/data/traces
mixtral=$traces/mixtral_e8k2.csv olmoe=$traces/olmoe_e32k4.csv
place() { "$MOEC" place "$@" -q; }
have_python() { command -v python3 >/dev/null; }

# figures POLICY OPTIONS: "imbalance arrivals" on stdout
figures() { place "${@:2}" --policy "$1" -o csv | awk -F, -v p="$1" 'NR > 1 && $2 == p && $3 == "" { print $6, $12 }'; }
# within NAME POLICY LOW HIGH MOST_ARRIVALS OPTIONS
within() {
  local got; got=$(figures "$2" "${@:6}")
  if awk -v lo="$3" -v hi="$4" -v most="$5" '{ ok = $1 >= lo && $1 <= hi && $2 <= most } END { exit !ok }' <<<"$got"; then ok "$1"
  else not_ok "$1"; echo "    imbalance and arrivals: $got, expected $3 to $4, at most $5"; fi
}

# ---- figures that others publish: placement_peers.py's, the mean to four digits ----
within "static, mixtral, 8 ranks" static 3.2518 3.2519 0 "$mixtral" --ranks 8
within "static, olmoe, 8 ranks" static 2.2815 2.2817 0 "$olmoe" --ranks 8
within "lpt, olmoe, 8 ranks" lpt 1.4502 1.4504 2806 "$olmoe" --ranks 8
within "lpt, mixtral, 4 ranks" lpt 1.7260 1.7262 323 "$mixtral" --ranks 4
within "eplb, even splitting, mixtral" eplb 1.312 1.314 872 "$mixtral" --ranks 8 --extra-slots 1 --split even
within "eplb, even splitting, olmoe" eplb 1.366 1.369 3690 "$olmoe" --ranks 8 --extra-slots 1 --split even
within "eplb's maps, divided by flow, mixtral" eplb 1.15 1.175 872 "$mixtral" --ranks 8 --extra-slots 1
within "eplb's maps, divided by flow, olmoe" eplb 1.17 1.185 3690 "$olmoe" --ranks 8 --extra-slots 1
# ---- what policy moec is to reach ----
within "moec, mixtral, one extra slot" moec 1 1.01 150 "$mixtral" --ranks 8 --extra-slots 1
within "moec, olmoe, one extra slot" moec 1 1.03 600 "$olmoe" --ranks 8 --extra-slots 1
within "moec, mixtral, two extra slots" moec 1 1.005 150 "$mixtral" --ranks 8 --extra-slots 2
within "moec, olmoe, two extra slots" moec 1 1.015 600 "$olmoe" --ranks 8 --extra-slots 2
within "moec, mixtral, 4 ranks, none extra" moec 1 1.744 64 "$mixtral" --ranks 4
within "moec, olmoe, 4 ranks, none extra" moec 1 1.217 522 "$olmoe" --ranks 4
within "moec, olmoe, 2 ranks, none extra" moec 1 1.1 1000 "$olmoe" --ranks 2

# ---- figures worked out anew ----
recompute() { # recompute DUMP JSON TRACE: every policy's figures from its maps, its divisions and the trace
  python3 - "$@" <<'PY'
import csv, json, sys
dump, report, trace = sys.argv[1:]
rows = list(csv.reader(open(trace)))
load = {}
for r in rows[1:]:
    at = load.setdefault((int(r[0]), int(r[1])), [0] * (len(r) - 3))
    for e, c in enumerate(r[3:]):
        at[e] += int(c)
root = json.load(open(report))["traces"][0]
steps, layers = sorted({s for s, _ in load}), sorted({l for _, l in load})
warm, ranks, groups = steps[0] + root["warmup"], root["ranks"], root["groups"]
maps, imbalance, arrivals, seen = {}, {}, {}, {}
for line in open(dump):
    d = json.loads(line)
    p, key = d["policy"], (d["policy"], d["layer"])
    if "slots" in d:
        assert len(d["slots"]) == ranks and all(len(x) == root["slots"] for x in d["slots"])
        held = [[e for e in x if e >= 0] for x in d["slots"]]
        assert all(len(set(x)) == len(x) for x in held), d
        assert set(sum(held, [])) == set(range(root["experts"])), d
        if key in maps:
            assert d["verdict"] in ("kept", "changed", "too dear", "refused")
            arrivals[key] = arrivals.get(key, 0) + sum(len(set(b) - set(a) - {-1}) for a, b in zip(maps[key], d["slots"]))
        maps[key] = d["slots"]
    else:
        assert len(d["tokens"]) == ranks * groups
        total = [0] * root["experts"]
        for i, x in enumerate(d["tokens"]):
            for e, n in zip(maps[key][i % ranks], x):
                assert n >= 0 and (e >= 0 or n == 0)
                if e >= 0:
                    total[e] += n
        assert total == load[d["step"], d["layer"]], (d, total)  # no row lost, none made up
        busy = [sum(x) for x in d["tokens"]]
        assert seen.setdefault(p, {}).setdefault((d["step"], d["layer"]), 0) == 0
        seen[p][d["step"], d["layer"]] = 1
        if d["step"] >= warm:
            imbalance.setdefault(p, []).append(max(busy) * len(busy) / sum(busy))
for x in root["policies"]:
    v = sorted(imbalance[x["policy"]])
    assert len(seen[x["policy"]]) == len(load)
    at = 0.95 * (len(v) - 1)
    i = int(at)
    want = dict(imbalance_mean=sum(v) / len(v), imbalance_max=v[-1], imbalance_p95=v[i] + (at - i) * (v[min(i + 1, len(v) - 1)] - v[i]))
    for k, w in want.items():
        assert abs(x[k] - w) < 1e-9, (x["policy"], k, x[k], w)
    assert x["arrivals"] == sum(n for (p, l), n in arrivals.items() if p == x["policy"]), x
    print(x["policy"], x["imbalance_mean"], x["arrivals"])
PY
}
if have_python; then
  for case in "$mixtral --ranks 8 --extra-slots 1" "$olmoe --ranks 8 --extra-slots 1 --grain 128" "$olmoe --ranks 4 --groups 2 --every 7" "$mixtral --ranks 8 --extra-slots 2 --split even"; do
    # shellcheck disable=SC2086
    must place $case --policy static,lpt,eplb,moec,random -o json --dump "$WORK/d.jsonl"
    cp "$WORK/.out" "$WORK/r.json"
    expect "recomputed: ${case#"$traces"/}" recompute "$WORK/d.jsonl" "$WORK/r.json" "${case%% *}"
  done
else
  skip "figures recomputed from the dump (no python3)"
fi

# ---- no peeking, nothing left to chance ----
steps_up_to() { awk -F, -v n="$1" 'NR == 1 || $1 <= n' "$2"; }
maps_up_to() { awk -v n="$1" -F'"step": ' '/"slots"/ { split($2, a, ","); if (a[1] + 0 <= n) print }' "$2" | sed 's/"trace": "[^"]*"//'; }
no_peeking() {
  steps_up_to 101 "$olmoe" >"$WORK/cut.csv"
  place "$olmoe" --ranks 8 --extra-slots 1 --policy "$1" --dump "$WORK/a.jsonl" >/dev/null && place "$WORK/cut.csv" --ranks 8 --extra-slots 1 --policy "$1" --dump "$WORK/b.jsonl" >/dev/null &&
    [ "$(maps_up_to 101 "$WORK/a.jsonl" | wc -l)" -ge 40 ] && cmp <(maps_up_to 101 "$WORK/a.jsonl") <(maps_up_to 101 "$WORK/b.jsonl")
}
for policy in eplb moec search; do expect "no peeking: $policy" no_peeking $policy; done
# Everything but how long it took.
untimed() { sed -E 's/"decide_seconds(_max)?": [^,}]*//' "$1"; }
repeatable() {
  place "$olmoe" --ranks 8 --extra-slots 1 --policy moec,random -o json --threads 1 --dump "$WORK/a.jsonl" >"$WORK/a" && place "$olmoe" --ranks 8 --extra-slots 1 --policy moec,random -o json --threads 3 --dump "$WORK/b.jsonl" >"$WORK/b" &&
    cmp "$WORK/a.jsonl" "$WORK/b.jsonl" && cmp <(untimed "$WORK/a") <(untimed "$WORK/b")
}
expect "the same twice, and with other threads" repeatable

# ---- formats, pictures ----
report() { must place "$@"; cp "$WORK/.out" "$WORK/report"; }
report "$mixtral" "$olmoe" --ranks 8 --policy static,lpt --per-layer -o csv
expect "csv: a line for each policy and layer of each trace" test "$(grep -c . "$WORK/report")" = 21
report "$mixtral" "$olmoe" --ranks 8 --policy static,lpt --per-layer
expect "md: a block for each trace" test "$(grep -c '^# ' "$WORK/report")" = 2
expect "md: a line for each layer" test "$(grep -cE '^\| lpt \| [0-3] \|' "$WORK/report")" = 8
must place "$mixtral" --synthetic drift --ranks 8 --extra-slots 1 --policy static,eplb,moec --plot "$WORK/p.svg"
if have_python; then
  expect "the picture is XML, with a chart, a map of load and maps of slots for each trace" python3 - "$WORK/p.svg" <<'PY'
import sys, xml.etree.ElementTree as x
root = x.parse(sys.argv[1]).getroot()
text = "\n".join(t.text or "" for t in root.iter("{http://www.w3.org/2000/svg}text"))
for want in ("Imbalance over time", "Load of layer", "policy eplb", "policy moec", "synthetic drift", "step", "busiest rank's rows / mean"):
    assert text.count(want) >= (1 if want == "synthetic drift" else 2), want
assert not list(root.iter("{http://www.w3.org/2000/svg}script"))
PY
fi
refuses "a picture that cannot be written" 1 "no/such" place "$mixtral" --ranks 8 --policy static --plot "$WORK/no/such/p.svg"
refuses "a dump that cannot be written" 1 "no/such" place "$mixtral" --ranks 8 --policy static --dump "$WORK/no/such/d"

# ---- synthetic load, other formats ----
must place --synthetic zipf:1.2 --experts 16 --layers 2 --steps 40 --tokens 4096 --save-trace "$WORK/z.csv"
report "$WORK/z.csv" --ranks 4 --policy static,eplb,moec --extra-slots 1 -o csv
cut -d, -f2-18 "$WORK/report" >"$WORK/a"
report --synthetic zipf:1.2 --experts 16 --layers 2 --steps 40 --tokens 4096 --ranks 4 --policy static,eplb,moec --extra-slots 1 -o csv
expect "a saved trace replays as the load that it is of" cmp "$WORK/a" <(cut -d, -f2-18 "$WORK/report")
expect "every kind of synthetic load" place --synthetic uniform,zipf,drift,bursts,switch,hot --experts 16 --layers 2 --steps 40 --ranks 4 --policy static,lpt
printf '[[ 90, 132,  40,  61, 104, 165,  39,   4,  73,  56, 183,  86],\n [ 20, 107, 104,  64,  19, 197, 187, 157, 172,  86,  16,  27]]\n' >"$WORK/eplb.txt"
within "a matrix as EPLB takes it" lpt 1 1.2 100 "$WORK/eplb.txt" --ranks 4
mkdir "$WORK/megatron"
for rank in 0 1; do
  for step in 0 1 2; do
    echo "{\"step\": $step, \"stage\": \"pre_dispatch\", \"block\": \"decoder\", \"layer\": 1, \"rank\": $rank, \"num_tokens\": 3, \"topk\": 2, \"top_indices\": [[0, 1], [0, 2], [0, $((2 + rank))]]}"
  done >"$WORK/megatron/router_trace_rank$rank.jsonl"
done
within "router traces of two ranks" static 1.333 1.334 0 "$WORK/megatron" --ranks 2 --warmup 0
report "$WORK/megatron" --ranks 2 --warmup 0 --policy static -o csv --per-layer
expect "the layer has its number" grep -q ",static,1," "$WORK/report"
report "$mixtral" --ranks 16 --policy static
expect "sources that are divided are said" grep -q "8 sources (divided by largest remainder); 16 ranks" "$WORK/report"

# ---- a run's trace ----
make_text "$WORK/text.txt" 20000
tiny_config "$WORK/model.json"
must "$MOEC" compile "$WORK/model.json" -o "$WORK/one.plan" --batch 8 --seq 32 -q
must "$MOEC" run "$WORK/one.plan" --data "$WORK/text.txt" --out "$WORK/run" --steps 12 -q
expect "a run of one rank is a trace for four" place "$WORK/run" --ranks 4 --warmup 4 --every 4 --policy static,lpt,moec
printf '13,0,0,1' >>"$WORK/run/trace.csv"
expect "a run whose last step is being written" place "$WORK/run" --ranks 4 --warmup 4 --policy static

# ---- bad input ----
bad() { # bad NAME PATTERN TEXT
  printf "$3" >"$WORK/bad.csv"
  refuses "$1" 1 "bad.csv.*$2" place "$WORK/bad.csv" --ranks 2
}
head='step,layer,rank,e0,e1\n'
bad "empty" "empty" ""
bad "not a trace" ":1: not a load trace" "hello\n"
bad "a missing step" ":3: step 1, layer 0, rank 0 is missing" "${head}0,0,0,1,2\n2,0,0,1,2\n"
bad "a ragged row" ":3: 3 counts, expected 2" "${head}0,0,0,1,2\n1,0,0,1,2,3\n"
bad "a negative count" ":2: e1 is -2; it cannot be negative" "${head}0,0,0,1,-2\n"
bad "a huge count" ":2: e1 is 4294967296; at most 2147483647" "${head}0,0,0,1,4294967296\n"
bad "a layer with fewer ranks" ":4: layer 1 has rows of 1 ranks, layer 0 of 2" "${head}0,0,0,1,2\n0,0,1,1,2\n0,1,0,1,2\n"
bad "a row twice" ":3: .* a second time" "${head}0,0,0,1,2\n0,0,0,1,2\n"
refuses "no file" 1 "none.csv" place "$WORK/none.csv" --ranks 2
refuses "no trace" 2 "usage: moec place" place --ranks 2
refuses "no ranks" 2 "--ranks 0: expected 1" place "$mixtral"
refuses "too many ranks" 2 "--ranks 5000: expected 1 to 4096" place "$mixtral" --ranks 5000
refuses "more slots than experts" 2 "8 extra slots make 9 slots a rank for 8 experts" place "$mixtral" --ranks 8 --extra-slots 8
refuses "a policy that does not exist" 2 "there is no placement policy 'best'; there are static" place "$mixtral" --ranks 8 --policy best
refuses "a kind of load that does not exist" 2 "unknown synthetic load \"zip\"; there are uniform" place --synthetic zip --ranks 8
refuses "a warm-up of all steps" 2 "300 steps: none is left after a warm-up of 300" place "$mixtral" --ranks 8 --warmup 300
refuses "fewer experts than the trace has" 1 "the trace has 8 experts, more than the 4" place "$mixtral" --ranks 8 --experts 4
echo '{"format_version": 1, "nodes": 2, "ranks_per_node": 2, "intra": {"latency": 1e-6, "bandwidth": 1e9}, "inter": {"latency": 1e-5, "bandwidth": 1e8}}' >"$WORK/c.json"
refuses "a cluster of other ranks" 2 "c.json: 4 ranks .*--ranks says 8" place "$mixtral" --ranks 8 --cluster "$WORK/c.json"
expect "a cluster" place "$mixtral" --ranks 4 --cluster "$WORK/c.json" --policy static,lpt
echo '{"format_version": 1, "nodes": 2, "ranks_per_node": 2, "warp": 1}' >"$WORK/c.json"
refuses "a cluster with an unknown link" 1 "c.json: unknown key \"warp\"" place "$mixtral" --ranks 4 --cluster "$WORK/c.json"
done_testing
