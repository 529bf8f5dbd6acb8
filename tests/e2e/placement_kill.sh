#!/usr/bin/env bash
# Killed while experts move: SIGKILL at each named point of a move (runtime/place_fault.h), of the process that has all ranks and of one rank among
# several processes, and at random moments ($KILLS of them, 12; the full number is 500). Whatever the moment: the newest checkpoint is whole,
# with every expert in it exactly once, and the run goes on from there to the very weights and moments of one that was never stopped.
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/lib_ranks.sh"
make_text "$WORK/text.txt" 40000
tiny_config "$WORK/config.json" num_local_experts=8
must "$MOEC" compile "$WORK/config.json" -o "$WORK/one.plan" --batch 8 --seq 32 -q
must "$MOEC" compile "$WORK/config.json" -o "$WORK/ranks.plan" --batch 8 --seq 32 -q --ranks 8 --expert-parallel-degree 4 --hybrid-shard-degree 2 --extra-slots 1
common=(--data "$WORK/text.txt" --lr 0.003 -q)
moving=("$MOEC" run "$WORK/ranks.plan" "${common[@]}" --threads 2 --placement random --placement-every 2 --placement-hysteresis 0 --checkpoint-every 3 --keep 2)
census() { python3 -c 'import json, sys; json.dump(json.load(open(sys.argv[1] + "/manifest.json"))["census"], sys.stdout, indent=0)' "$1"; }
same() { # same REFERENCE RUN: logs, traces, every weight and moment, exported bytes
  local strip='s/, "imbalance": \[[^]]*\]//' a b
  a=$(newest "$WORK/$1") b=$(newest "$WORK/$2")
  if [ -z "$a" ] || [ "${a##*/}" != "${b##*/}" ]; then echo "newest checkpoints: '$a' '$b'"; return 1; fi
  cmp <(census "$a") <(census "$b") && cmp "$WORK/$1/trace.csv" "$WORK/$2/trace.csv" || return 1
  diff <(numbers "$WORK/$1" | sed -E "$strip") <(numbers "$WORK/$2" | sed -E "$strip") >"$WORK/.diff" || { echo "the logs differ:"; head -n 4 "$WORK/.diff"; return 1; }
  rm -rf "$WORK/hf" && "$MOEC" export "$WORK/$2" -o "$WORK/hf" -q && cmp "$WORK/$1.hf/model.safetensors" "$WORK/hf/model.safetensors"
}
reference() { # reference NAME STEPS
  must "$MOEC" run "$WORK/one.plan" "${common[@]}" --threads 2 --out "$WORK/$1" --steps "$2" --checkpoint-every 3
  must "$MOEC" export "$WORK/$1" -o "$WORK/$1.hf" -q
}
maps_are_whole() { # each layer of the newest checkpoint's map has every expert, once as the primary, and no rank one twice
  local dir; dir=$(newest "$1"); [ -n "$dir" ] || return 0
  python3 - "$dir" <<'PY'
import json, sys
for m in json.load(open(sys.argv[1] + "/manifest.json"))["maps"]:
    flat = [e for rank in m["slots"] for e in rank]
    assert len(flat) == 12 and len(set(m["primary"])) == 8 and all(flat[g] == e for e, g in enumerate(m["primary"])), m
    assert all(len({e for e in rank if e >= 0}) == sum(e >= 0 for e in rank) for rank in m["slots"]), m
PY
}

# ---- at each point, each time another rank and another move ----
reference reference 9
points=(decided told listed staged started arrived hashed confirmed agreed copying copied zeroed mapped logged)
at_point() { # at_point POINT RANK N
  rm -rf "$WORK/killed"
  { MOEC_MOVE_FAULT="kill $1 $2 $3" "${moving[@]}" --out "$WORK/killed" --steps 9 >"$WORK/.log" 2>&1; } 2>/dev/null
  [ $? = 137 ] || { echo "the run was not killed there"; cat "$WORK/.log"; return 1; }
  maps_are_whole "$WORK/killed" && "${moving[@]}" --out "$WORK/killed" --steps 9 >"$WORK/.log" 2>&1 || { cat "$WORK/.log"; return 1; }
  same reference killed
}
i=0
for point in "${points[@]}"; do
  rank=$((i * 3 % 8))
  if [ $point = decided ]; then rank=0; fi
  expect "killed at \"$point\"" at_point $point $rank $((i % 3 + 2))
  i=$((i + 1))
done

# ---- one rank of several processes ----
one_rank() { # one_rank HOW POINT RANK: the others end by themselves, and the job starts again
  rm -rf "$WORK/killed"
  local start; start=$(milliseconds)
  MOEC_MOVE_FAULT="kill $2 $3 3" ranks "$1" 8 "${moving[@]}" --out "$WORK/killed" --steps 9 --threads 1 >"$WORK/.log" 2>&1 && { echo "nothing was killed"; return 1; }
  [ $(($(milliseconds) - start)) -lt 40000 ] || { echo "it took $(($(milliseconds) - start)) ms"; return 1; }
  maps_are_whole "$WORK/killed" && ranks "$1" 8 "${moving[@]}" --out "$WORK/killed" --steps 9 --threads 1 >"$WORK/.log" 2>&1 || { cat "$WORK/.log"; return 1; }
  same reference killed
}
i=0
for point in told confirmed copying; do
  expect "one rank of eight processes killed at \"$point\"" one_rank tcp $point $((i * 3 % 8))
  i=$((i + 1))
done
why_not=$(no_mpi)
if [ -z "$why_not" ]; then expect "one rank over MPI killed at \"agreed\"" one_rank mpi agreed 5; else skip "a rank over MPI killed: $why_not"; fi

# ---- at random moments ----
KILLS=${KILLS:-12}
reference long 240
RANDOM=11
kills=0 ends=0 bad=
to_the_end() { # whatever is left of it; then it is what a run is that was never stopped
  "${moving[@]}" --placement eplb --placement-every 1 --out "$WORK/killed" --steps 240 >"$WORK/.log" 2>&1 && same long killed >>"$WORK/.log" 2>&1 || { cat "$WORK/.log"; return 1; }
  rm -rf "$WORK/killed"
  ends=$((ends + 1))
}
rm -rf "$WORK/killed"
while [ $kills -lt "$KILLS" ] && [ -z "$bad" ]; do
  saved=$(newest "$WORK/killed") saved=${saved##*step-} saved=${saved:-0}
  if [ -f "$WORK/killed/log.jsonl" ]; then sed -i "$((saved + 1)),\$d" "$WORK/killed/log.jsonl"; fi # as the start does, so that its lines say how far it is
  "${moving[@]}" --placement eplb --placement-every 1 --out "$WORK/killed" --steps 240 >"$WORK/.log" 2>&1 & pid=$!
  wait_lines "$WORK/killed/log.jsonl" $((saved + 1 + RANDOM % 6)) $pid # the start is no move
  sleep "0.0$((RANDOM % 9))$((RANDOM % 10))"
  kill -KILL $pid 2>/dev/null
  wait $pid 2>/dev/null
  if [ $? = 137 ]; then kills=$((kills + 1)); else to_the_end >"$WORK/.bad" 2>&1 || bad="after $kills kills"; fi
  maps_are_whole "$WORK/killed" || bad="after kill $kills the map of a checkpoint is not whole"
done
to_the_end >"$WORK/.bad" 2>&1 || bad="after $kills kills"
if [ -n "$bad" ]; then echo "$bad" >>"$WORK/.bad"; not_ok "killed at random moments" "$WORK/.bad"
else ok "killed $kills times at random moments of $ends runs"; fi
done_testing
