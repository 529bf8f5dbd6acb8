#!/usr/bin/env bash
# What goes wrong on one rank only, and what comes from outside at any moment: ranks as threads and as processes all do the same. NaN in one rank's data, data that
# another rank does not see or that is cut short, signals at random moments and during a checkpoint, a second signal.
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/lib_ranks.sh"
make_text "$WORK/text.txt" 30000
tiny_config "$WORK/config.json" num_local_experts=8
E=--expert-parallel-degree S=--hybrid-shard-degree
plan() { must "$MOEC" compile "$WORK/config.json" -o "$WORK/$1.plan" --batch 8 --seq 32 -q "${@:2}"; }
plan one
plan four --ranks 4 $E 2 $S 2
arguments() { echo "$WORK/$1.plan" --out "$WORK/$2" --data "${data:-$WORK/text.txt}" --lr 0.003 --threads 1 -q; }
train() { # train HOW PLAN RUN OPTIONS...: HOW: threads (or one rank), tcp, mpi
  local how=$1 command=("$MOEC" run $(arguments "$2" "$3") "${@:4}")
  if [ "$how" = threads ]; then "${command[@]}"; else ranks "$how" 4 "${command[@]}"; fi
}
same_numbers() { # of runs and their exported weights, whatever the layouts
  local strip='s/, "imbalance": \[[^]]*\]//' run
  for run in "$@"; do rm -rf "$WORK/$run.hf" && "$MOEC" export "$WORK/$run" -o "$WORK/$run.hf" -q || return 1; done
  diff <(numbers "$WORK/$1" | sed -E "$strip") <(numbers "$WORK/$2" | sed -E "$strip") >"$WORK/.diff" || { echo "the logs differ:"; head -n 4 "$WORK/.diff"; return 1; }
  cmp "$WORK/$1/trace.csv" "$WORK/$2/trace.csv" && cmp "$WORK/$1.hf/model.safetensors" "$WORK/$2.hf/model.safetensors"
}
hows=(threads tcp)
why_not=$(no_mpi)
if [ -z "$why_not" ]; then hows+=(mpi); else skip "ranks over MPI: $why_not"; fi

# ---- a letter that occurs once has a NaN in its row: only the rank that meets it has NaN in its data ----
must train threads one start --steps 1
must "$MOEC" export "$WORK/start" -o "$WORK/bad" -q
python3 - "$WORK/bad/model.safetensors" "$WORK/text.txt" "$WORK/marked.txt" <<'PY'
import json, struct, sys
with open(sys.argv[1], "r+b") as f:
    n = struct.unpack("<Q", f.read(8))[0]
    t = json.loads(f.read(n))["model.embed_tokens.weight"]
    f.seek(8 + n + t["data_offsets"][0] + 4 * t["shape"][1] * ord("~"))
    f.write(struct.pack("<f", float("nan")))
text = bytearray(open(sys.argv[2], "rb").read())
for at in range(1003, len(text), 5000):
    text[at] = ord("~")
open(sys.argv[3], "wb").write(text)
PY
data=$WORK/marked.txt
must train threads one nan --steps 40 --init-from "$WORK/bad"
python3 - "$WORK/nan/log.jsonl" >"$WORK/.out" 2>&1 <<'PY' && ok "some steps meet it, most do not" || not_ok "some steps meet it, most do not" "$WORK/.out"
import json, sys
skipped = [r["step"] for r in map(json.loads, open(sys.argv[1])) if r.get("skipped")]
assert 2 <= len(skipped) <= 20, skipped
PY
for how in "${hows[@]}"; do
  skips() { train $how four nan-$how --steps 40 --init-from "$WORK/bad" && same_numbers nan nan-$how; }
  expect "NaN on one rank: all skip the same steps, with one rank's bits, over $how" skips
done
data=

# ---- a rank that sees other data, or none ----
split() { # split RUN FILE: rank 1 gets FILE
  cat >"$WORK/split.sh" <<SH
#!/bin/sh
data=$WORK/text.txt
[ \${OMPI_COMM_WORLD_RANK:-\$RANK} != 1 ] || data=$2
exec "$MOEC" run $WORK/four.plan --out $WORK/$1 --data \$data --steps 4 --threads 1 -q
SH
  chmod +x "$WORK/split.sh"
}
make_text "$WORK/other.txt" 30000 7
said_once() { # said_once PATTERN: of what was said last, one line is an error, and it matches
  [ "$(grep -c 'moec: error:' "$WORK/.before")" = 1 ] && grep -qE "moec: error: $1" "$WORK/.before"
}
for how in "${hows[@]:1}"; do
  split other-$how "$WORK/other.txt"
  refuses "a rank with other data, over $how: exit 1" 1 'rank 1: .*other.txt: other data here than where rank 0 is' ranks $how 4 "$WORK/split.sh"
  cp "$WORK/.out" "$WORK/.before"
  expect "... said once, over $how" said_once 'rank 1: .*other.txt'
  split missing-$how "$WORK/nothing.txt"
  refuses "a rank without data, over $how: exit 1" 1 'cannot open .*nothing.txt' ranks $how 4 "$WORK/split.sh"
  cp "$WORK/.out" "$WORK/.before"
  expect "... said once, over $how" said_once 'rank 1: cannot open'
  expect "... and no run was begun, over $how" test ! -e "$WORK/missing-$how/log.jsonl"
  data=$WORK/nothing.txt
  refuses "no rank has data, over $how: exit 1" 1 'cannot open .*nothing.txt' train $how four none-$how --steps 4
  cp "$WORK/.out" "$WORK/.before"
  expect "... said once, over $how" said_once 'cannot open'
  data=
done

# ---- data cut short in the middle of training ----
for how in "${hows[@]}"; do
  cut_short() {
    local run=cut-$how job code
    cp "$WORK/text.txt" "$WORK/$run.txt"
    data=$WORK/$run.txt LIMIT=60 train $how four $run --steps 100000 --checkpoint-every 5 >"$WORK/.said" 2>&1 & job=$!
    wait_lines "$WORK/$run/log.jsonl" 12 $job || { cat "$WORK/.said"; return 1; }
    : >"$WORK/$run.txt"
    wait $job; code=$?
    if [ $code = 0 ] || [ $code -ge 124 ] || ! grep -q 'error: a file was cut short' "$WORK/.said"; then cat "$WORK/.said"; echo "exit $code"; return 1; fi
    "$MOEC" export "$WORK/$run" -o "$WORK/$run.hf" -q # a checkpoint is there and intact
  }
  expect "data cut short: said, status not 0, the checkpoint intact, over $how" cut_short
done

# ---- signals at random moments: saved after the step it was in, and gone on from there as if nothing had been ----
RANDOM=20241121
started() { # started HOW PLAN RUN: in the background: $job, and in $pids its ranks' processes
  train "$1" "$2" "$3" --steps 100000 >"$WORK/.said" 2>&1 & job=$!
  wait_lines "$WORK/$3/log.jsonl" 1 $job || { cat "$WORK/.said"; return 1; }
  pids=($(pgrep -f "^[^ ]*moec run $WORK/$2.plan --out $WORK/$3 "))
}
saved() { # saved RUN CODE: after the last step in the log, and said by one rank
  local n; n=$(lines_of "$WORK/$1/log.jsonl")
  if [ "$2" != 0 ] || [ "$(newest "$WORK/$1")" != "$WORK/$1/checkpoints/step-$n" ] || [ "$(grep -c 'stopped by a signal after step' "$WORK/.said")" != 1 ]; then
    echo "exit $2; $n steps in the log, newest $(newest "$WORK/$1")"; cat "$WORK/.said"; return 1
  fi
}
for how in "${hows[@]:0:2}"; do
  for signal in TERM INT USR1 TERM USR1; do
    asked() {
      local run=asked-$how code n
      rm -rf "$WORK/$run"
      started $how four $run || return 1
      sleep "0.$((RANDOM % 6))$((RANDOM % 10))"
      kill -$signal "${pids[RANDOM % ${#pids[@]}]}" # any of the processes
      wait $job; code=$?
      saved $run $code && none_running "${pids[@]}" || return 1
      n=$(lines_of "$WORK/$run/log.jsonl") # its first steps are those of a schedule of 100000 steps
      rm -rf "$WORK/$run-ref"
      "$MOEC" run $(arguments one $run-ref) --steps 100000 --stop-after-step $n && same_numbers $run-ref $run
    }
    expect "SIG$signal to a rank, over $how: every rank ends well, the bits are those of a run that stops there" asked
  done
done
twice() { # both signals are there at once: the first asks, the second does not wait for the step
  local code
  rm -rf "$WORK/twice"
  started threads four twice || return 1
  kill -STOP ${pids[0]} && kill -TERM ${pids[0]} && kill -INT ${pids[0]} && kill -CONT ${pids[0]}
  wait $job; code=$?
  [ $code -gt 128 ] || { echo "exit $code"; return 1; }
  train threads four twice --steps 100000 --stop-after-step $(($(lines_of "$WORK/twice/log.jsonl") + 2)) # the run can go on
}
expect "a second signal ends all ranks at once" twice
while_saving() { # SIGTERM while a checkpoint is written: that one is finished
  local code
  rm -rf "$WORK/saving"
  "$MOEC" run $(arguments four saving) --steps 100000 --checkpoint-every 1 >"$WORK/.said" 2>&1 & job=$!
  until ls "$WORK/saving/checkpoints" 2>/dev/null | grep -q tmp; do kill -0 $job 2>/dev/null || { cat "$WORK/.said"; return 1; }; done
  kill -TERM $job
  wait $job; code=$?
  saved saving $code && ! ls -A "$WORK/saving/checkpoints" | grep -qE 'tmp|trash'
}
expect "SIGTERM while a checkpoint is written" while_saving
done_testing
