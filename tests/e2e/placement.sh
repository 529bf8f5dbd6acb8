#!/usr/bin/env bash
# Experts that move while training: under every policy, at every layout, over threads, TCP and MPI the losses, norms, traces and weights are those
# of one rank; a move that fails on a rank leaves the old map; a run stopped under one map goes on under any other; policies that answer nonsense,
# maps that are wrong, flags out of range.
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/lib_ranks.sh"
make_text "$WORK/text.txt" 40000
tiny_config "$WORK/config.json" num_local_experts=8
tiny_config "$WORK/five.json" num_local_experts=5
E=--expert-parallel-degree S=--hybrid-shard-degree T=--tensor-parallel-degree
plan() { must "$MOEC" compile "$WORK/${config:-config}.json" -o "$WORK/$1.plan" --batch 8 --seq 32 -q "${@:2}"; }
plan one
plan e8 --ranks 8 $E 8
plan e4s2 --ranks 8 $E 4 $S 2
plan micro --ranks 4 $E 2 --micro-batches 2
plan t2 --ranks 2 $T 2
plan e2t2d2 --ranks 8 $E 2 $T 2
printf '{"ranks": 8, "expert_parallel_degree": 8, "layers": [{"first": 1, "last": 1, "expert_parallel_degree": 2, "hybrid_shard_degree": 2}]}' >"$WORK/mixed.json"
plan mixed --strategy "$WORK/mixed.json"
tiny_config "$WORK/wide.json" num_local_experts=8 hidden_size=64 intermediate_size=256
config=wide plan wide --ranks 8 $E 8
config=five plan one5
config=five plan e4of5 --ranks 4 $E 4
plan x8 --ranks 8 $E 8 --extra-slots 1
# Where copies pay, however small the experts: ranks compute slowly.
printf '{"format_version": 1, "nodes": 1, "ranks_per_node": 8, "intra": {"latency": 1e-7, "bandwidth": 5e10}, "flops": 1e9}' >"$WORK/slow.json"
plan x4s2 --ranks 8 $E 4 $S 2 --extra-slots 2 --cluster "$WORK/slow.json"
plan x2micro --ranks 4 $E 2 --micro-batches 2 --extra-slots 1
plan x2t2d2 --ranks 8 $E 2 $T 2 --extra-slots 1
config=five plan x4of5 --ranks 4 $E 4 --extra-slots 1
common=(--data "$WORK/text.txt" --lr 0.003 --steps 10 --checkpoint-every 4 --threads 2 -q)
often=(--placement-every 2 --placement-hysteresis 0)
run() { "$MOEC" run "$WORK/$1.plan" --out "$WORK/$2" "${common[@]}" "${@:3}"; } # run PLAN RUN OPTIONS...
moves() { grep -c '"event": "move"' "$WORK/$1/placement.jsonl" 2>/dev/null; }
export_of() { rm -rf "$WORK/$1.hf" && "$MOEC" export "$WORK/$1" -o "$WORK/$1.hf" -q; }
# same A B: log numbers but for how the ranks were loaded, traces, exported weights; and what the census says of every moment.
same() {
  local strip='s/, "imbalance": \[[^]]*\]//' a b
  export_of "$2" || return 1
  [ -d "$WORK/$1.hf" ] || export_of "$1" || return 1
  diff <(numbers "$WORK/$1" | sed -E "$strip") <(numbers "$WORK/$2" | sed -E "$strip") >"$WORK/.diff" || { echo "the logs differ:"; head -n 4 "$WORK/.diff"; return 1; }
  cmp "$WORK/$1/trace.csv" "$WORK/$2/trace.csv" && cmp "$WORK/$1.hf/model.safetensors" "$WORK/$2.hf/model.safetensors" || return 1
  a=$(newest "$WORK/$1") b=$(newest "$WORK/$2")
  python3 - "$a" "$b" <<'PY'
import json, sys
a, b = (json.load(open(d + "/manifest.json"))["census"] for d in sys.argv[1:])
assert len(a) > 50 and a == b, "the census differs"
PY
}
must run one reference
must run t2 reference-t2
must run one5 reference5
must run e8 static

# ---- policies and layouts ----
moved() { # moved REFERENCE PLAN POLICY OPTIONS...: trained with moves, the same bits
  local name=$2-$3
  rm -rf "$WORK/$name"
  run "$2" "$name" --placement "$3" "${often[@]}" "${@:4}" >"$WORK/.log" 2>&1 || { cat "$WORK/.log"; return 1; }
  [ "$(moves "$name")" -ge "${least:-1}" ] || { echo "$(moves "$name") moves"; return 1; }
  same "$1" "$name"
}
least=4
for plan in e8 e4s2 micro mixed; do expect "$plan: random moves, the bits of one rank" moved reference $plan random; done
expect "tensor parallel: random moves" moved reference-t2 e2t2d2 random
expect "5 experts on 4 ranks: random moves" moved reference5 e4of5 random
least=1
policies=$("$MOEC" run "$WORK/e8.plan" --data x --placement none 2>&1 | sed -n 's/.*there are //p' | tr -d ',')
for policy in $policies; do
  case $policy in
    static | program) ;;
    lpt | smartmoe | optimal) expect "$policy" moved reference micro $policy ;;
    round-robin) expect "$policy" moved reference e4s2 $policy ;;
    *) expect "$policy, with copies" moved reference x4s2 $policy ;;
  esac
done
unset least
for plan in x8 x2micro; do expect "$plan: copies, the bits of one rank" moved reference $plan eplb; done
expect "tensor parallel: copies" moved reference-t2 x2t2d2 eplb
expect "5 experts on 4 ranks: copies" moved reference5 x4of5 eplb
small() { # experts of 576 KiB with their moments: both layers' at a time are more than a MiB
  run wide reference-wide >"$WORK/.log" 2>&1 && moved reference-wide wide random --placement-staging 1 && grep -q '"batches": 2' "$WORK/wide-random/placement.jsonl"
}
expect "with little memory for what is on its way, in two batches" small
expect "asked at every step that drifts" moved reference e4s2 lpt --placement-every 1000 --placement-drift 0.0001

# ---- over processes ----
hows=(tcp)
why_not=$(no_mpi)
if [ -z "$why_not" ]; then hows+=(mpi); else skip "ranks over MPI: $why_not"; fi
over() {
  rm -rf "$WORK/over"
  ranks "$1" 8 "$MOEC" run "$WORK/x4s2.plan" --out "$WORK/over" "${common[@]}" --threads 1 --placement eplb "${often[@]}" || return 1
  [ "$(moves over)" -ge 4 ] && same reference over
}
for how in "${hows[@]}"; do expect "moves over $how" over "$how"; done
# MOE_EVERY_POLICY=1: every policy at every layout of 8 ranks, over threads, TCP and MPI (minutes).
anyhow() { # anyhow HOW PLAN POLICY OPTIONS...: moves or not, the bits of one rank
  local options=(--out "$WORK/any" "${common[@]}" --threads 1 --placement "$3" "${often[@]}" "${@:4}")
  rm -rf "$WORK/any" "$WORK/any.hf"
  if [ "$1" = threads ]; then "$MOEC" run "$WORK/$2.plan" "${options[@]}"; else ranks "$1" 8 "$MOEC" run "$WORK/$2.plan" "${options[@]}"; fi >"$WORK/.log" 2>&1 || { cat "$WORK/.log"; return 1; }
  same reference any
}
if [ -n "${MOE_EVERY_POLICY:-}" ]; then
  for policy in $policies; do
    for plan in e8 e4s2 x8 x4s2; do
      for how in threads "${hows[@]}"; do
        options=()
        [ $policy != program ] || options=(--placement-program "python3 $ROOT/tests/data/policy_hottest.py")
        if [ $policy = optimal ] && "$MOEC" run "$WORK/$plan.plan" --out "$WORK/any" "${common[@]}" --steps 1 --placement optimal 2>&1 | grep -q 'too many maps'; then
          skip "$policy, $plan: too large for it"
          break
        fi
        expect "$policy, $plan, $how" anyhow $how $plan $policy ${options[@]+"${options[@]}"}
      done
    done
  done
fi

# ---- stopped and resumed ----
stop() { # stop PLAN RUN: after five steps
  local policy=random
  if [ "${1:0:1}" = x ]; then policy=eplb; fi
  rm -rf "$WORK/$2" && run "$1" "$2" --stop-after-step 5 --placement $policy "${often[@]}" >"$WORK/.log" 2>&1
}
goes_on() { # goes_on PLAN THEN OPTIONS...
  stop "$1" moving && run "$2" moving "${@:3}" >"$WORK/.log" 2>&1 || { cat "$WORK/.log"; return 1; }
  same reference moving
}
expect "resumed where nothing moves" goes_on e8 e8
expect "resumed with another policy" goes_on e8 e8 --placement lpt "${often[@]}"
expect "resumed on one rank" goes_on e8 one
expect "resumed with slots for copies" goes_on e8 x4s2 --placement eplb "${often[@]}"
expect "copies resumed without" goes_on x8 e4s2
expect "resumed with 4 EP ranks, moving on" goes_on e8 e4s2 --placement random "${often[@]}"
keeps_map() { # the map of the checkpoint is where training goes on
  stop e8 keeps && python3 - "$(newest "$WORK/keeps")" <<'PY' || return 1
import json, sys
maps = json.load(open(sys.argv[1] + "/manifest.json"))["maps"]
assert len(maps) == 2 and any(m["primary"] != list(range(8)) for m in maps), maps
for m in maps:
    assert sorted(e for rank in m["slots"] for e in rank) == list(range(8)), m
json.dump({"format_version": 1, "layers": maps}, open(sys.argv[1] + "/../../map.json", "w"))
PY
  run e8 keeps --placement-from "$WORK/nowhere.json" --no-quiet >"$WORK/.log" 2>&1 && grep -q 'nowhere.json is left out' "$WORK/.log" || { cat "$WORK/.log"; return 1; }
  same reference keeps && cmp <(python3 -c 'import json, sys; print(json.load(open(sys.argv[1] + "/manifest.json"))["maps"])' "$(newest "$WORK/keeps")") \
    <(python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))["layers"])' "$WORK/keeps/map.json")
}
expect "the map is in the checkpoint, and stays without a policy" keeps_map
keeps_copies() { # a checkpoint's map with copies is where training goes on
  stop x8 copies && python3 - "$(newest "$WORK/copies")" <<'PY' || return 1
import json, sys
held = [e for m in json.load(open(sys.argv[1] + "/manifest.json"))["maps"] for rank in m["slots"] for e in rank if e >= 0]
assert len(held) > 16, held
PY
  run x8 copies >"$WORK/.log" 2>&1 && same reference copies && cmp <(maps_of "$(newest "$WORK/copies")") <(maps_of "$WORK/copies/checkpoints/step-5")
}
maps_of() { python3 -c 'import json, sys; print(json.load(open(sys.argv[1] + "/manifest.json"))["maps"])' "$1"; }
expect "copies are in the checkpoint's map, and stay without a policy" keeps_copies
branch() { # a checkpoint of one map taken up by a new run with another
  printf '{"format_version": 1, "layers": [{"layer": 1, "slots": [[7], [6], [5], [4], [3], [2], [1], [0]]}]}' >"$WORK/back.json"
  stop e8 trunk && rm -rf "$WORK/branch" && run e8 branch --resume "$WORK/trunk" --placement-from "$WORK/back.json" >"$WORK/.log" 2>&1 || { cat "$WORK/.log"; return 1; }
  export_of branch && cmp "$WORK/reference.hf/model.safetensors" "$WORK/branch.hf/model.safetensors" || return 1
  python3 -c 'import json, sys; m = json.load(open(sys.argv[1] + "/manifest.json"))["maps"]; assert m[1]["primary"] == list(range(7, -1, -1)), m' "$(newest "$WORK/branch")"
}
expect "resumed in a new run with a map of its own" branch
first() { rm -rf "$WORK/first" && run e8 first --placement-from "$WORK/back.json" && same reference first && ! [ -e "$WORK/first/placement.jsonl" ]; }
expect "--placement-from for a new run" first
placed() { # the plan's own first maps, by the load of an earlier run
  plan placed --ranks 8 $E 4 $S 2 --trace "$WORK/reference" --first-placement lpt
  [ -f "$WORK/placed.plan/placement.json" ] && rm -rf "$WORK/placed" && run placed placed && same reference placed || return 1
  python3 - "$WORK/placed.plan/placement.json" "$(newest "$WORK/placed")/manifest.json" <<'PY'
import json, sys
first, kept = json.load(open(sys.argv[1]))["layers"], {m["layer"]: m for m in json.load(open(sys.argv[2]))["maps"]}
assert first and all(kept[m["layer"]] == m for m in first), (first, kept)
PY
}
expect "the plan's own placement is where a run starts" placed
decisions() { python3 -c '
import json, sys
for line in open(sys.argv[1] + "/placement.jsonl"):
    e = json.loads(line)
    if e["event"] == "decision":
        print(e["step"], e["layer"], e["verdict"], e.get("slots"))' "$WORK/$1"; }
alike() { # what the loads of past steps say is in the run's trace: a resumed run decides as one that was never stopped
  rm -rf "$WORK/whole" "$WORK/parts"
  run e4s2 whole --placement eplb "${often[@]}" --placement-window 3 && run e4s2 parts --placement eplb "${often[@]}" --placement-window 3 --stop-after-step 5 &&
    run e4s2 parts --placement eplb "${often[@]}" --placement-window 3 || return 1
  [ "$(decisions whole | grep -c changed)" -ge 2 ] && diff <(decisions whole) <(decisions parts)
}
expect "a resumed run decides as one that was not stopped" alike

# ---- a rank that fails in the middle of a move ----
fails() { # fails POINT RANK: the move is given up, everything else goes on
  rm -rf "$WORK/fails"
  MOEC_MOVE_FAULT="$3 $1 $2 2" run e4s2 fails --placement random "${often[@]}" >"$WORK/.log" 2>&1 || { cat "$WORK/.log"; return 1; }
  grep -q "experts stay where they are: .*$4" "$WORK/.log" && [ "$(grep -c '"event": "failure"' "$WORK/fails/placement.jsonl")" = 1 ] || { cat "$WORK/.log" "$WORK/fails/placement.jsonl"; return 1; }
  same reference fails
}
for point in listed staged started arrived hashed confirmed; do expect "a failure at \"$point\" on rank 3" fails $point 3 fail MOEC_MOVE_FAULT; done
expect "a bit that changed on its way" fails arrived 5 flip damaged

# ---- policies that are programs ----
program() { # program NAME BODY: says that it is ready, then does BODY
  printf '#!/bin/sh\nread hello\necho "{\\"ready\\": true}"\n%s\n' "$2" >"$WORK/$1.sh" && chmod +x "$WORK/$1.sh"
}
program nonsense 'while read x; do echo nonsense; done'
program twice 'while read x; do echo "{\"slots\": [[0], [0], [0], [0], [0], [0], [0], [0]]}"; done'
program ends 'read x'
program hangs 'sleep 60'
bad_program() { # bad_program COMMAND: said once, training goes on with the old map
  rm -rf "$WORK/bad"
  run e8 bad --placement program --placement-program "$WORK/$1.sh" --placement-program-seconds 0.2 "${often[@]}" >"$WORK/.log" 2>&1 || { cat "$WORK/.log"; return 1; }
  [ "$(grep -c 'warning' "$WORK/.log")" = 1 ] && [ "$(grep -c '"verdict": "refused"' "$WORK/bad/placement.jsonl")" -ge 4 ] && [ "$(moves bad)" = 0 ] || { cat "$WORK/.log" "$WORK/bad/placement.jsonl"; return 1; }
  same reference bad
}
expect "a program that answers nonsense" bad_program nonsense
expect "a program whose maps lose experts" bad_program twice
expect "a program that ends" bad_program ends
expect "a program that hangs" bad_program hangs
refuses "a program that does not start" 1 'nowhere.sh' run e8 no --placement program --placement-program "$WORK/nowhere.sh"
good_program() { moved reference x8 program --placement-program "python3 $ROOT/tests/data/policy_hottest.py"; }
expect "a program that decides" good_program

# ---- misuse ----
refuses "an unknown policy" 2 'eplb' run e8 no --placement clever
refuses "every 0" 2 'placement-every' run e8 no --placement lpt --placement-every 0
refuses "a negative window" 2 'placement-window' run e8 no --placement lpt --placement-window -1
refuses "hysteresis that is no number" 2 'hysteresis' run e8 no --placement lpt --placement-hysteresis x
refuses "a negative drift" 2 'placement-drift' run e8 no --placement lpt --placement-drift -1
refuses "a program without a command" 2 'placement-program' run e8 no --placement program
refuses "no memory for moves" 2 'placement-staging' run e8 no --placement lpt --placement-staging 0
refuses "maps that are not there" 1 'nowhere.json' run e8 no --placement-from "$WORK/nowhere.json"
printf '{"format_version": 1, "layers": [{"layer": 0, "slots": [[0, 1], [2, 3]]}]}' >"$WORK/two.json"
refuses "maps of other ranks" 1 '8 EP ranks of 1 slot' run e8 no --placement-from "$WORK/two.json"
printf '{"format_version": 1, "layers": [{"layer": 0, "slots": [[0], [1], [2], [3], [4], [5], [6], [6]]}]}' >"$WORK/twice.json"
refuses "an expert that is nowhere" 1 'layer 0' run e8 no --placement-from "$WORK/twice.json"
noted() { rm -rf "$WORK/noted" && run one noted --placement lpt --no-quiet >"$WORK/.log" 2>&1 && grep -q 'placement lpt is left out' "$WORK/.log" && same reference noted; }
expect "on one rank there is nothing to place: said" noted
done_testing
