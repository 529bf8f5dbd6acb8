#!/usr/bin/env bash
# Training with ranks as processes, over MPI and over TCP: the bits of one rank; a rank killed or stopped ends the job with its name and phase and an
# intact checkpoint, from which any number of ranks goes on; signals to the launcher; starts that do not fit the plan.
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/lib_ranks.sh"
why_not=$(no_mpi)
make_text "$WORK/text.txt" 60000
tiny_config "$WORK/config.json" num_hidden_layers=3 num_local_experts=8
plan() { must "$MOEC" compile "$WORK/config.json" -o "$WORK/$1.plan" --batch 8 --seq 32 -q "${@:2}"; }
plan one
plan two --ranks 2 --hybrid-shard-degree 2
plan four --ranks 4 --expert-parallel-degree 2 --hybrid-shard-degree 2
printf '{"ranks": 4, "expert_parallel_degree": 4, "layers": [{"first": 1, "last": 1, "expert_parallel_degree": 2, "hybrid_shard_degree": 2}, {"first": 2, "last": 2, "hybrid_shard_degree": 4}]}' >"$WORK/mixed.json"
plan mixed --strategy "$WORK/mixed.json"

# train PLAN RUN STEPS OPTIONS...: the command; ranks start it.
train=("$MOEC" run) common=(--data "$WORK/text.txt" --lr 0.003 --eval-batches 2 --checkpoint-every 5 --keep 3 -q)
arguments() { echo "$WORK/$1.plan" --out "$WORK/$2" --steps "$3" "${common[@]}"; }
export_of() { rm -rf "$WORK/$1.hf" && "$MOEC" export "$WORK/$1" -o "$WORK/$1.hf" -q; }
same_training() { # same_training RUN RUN: weights, log and trace, whatever the layouts
  export_of "$1" && export_of "$2" || return 1
  local strip='s/, "imbalance": \[[^]]*\]//'
  diff <(numbers "$WORK/$1" | sed -E "$strip") <(numbers "$WORK/$2" | sed -E "$strip") >"$WORK/.diff" || { echo "the logs differ:"; head -n 4 "$WORK/.diff"; return 1; }
  cmp "$WORK/$1/trace.csv" "$WORK/$2/trace.csv" && cmp "$WORK/$1.hf/model.safetensors" "$WORK/$2.hf/model.safetensors"
}
# Pids of the ranks of a run, by their command line, launcher and wrappers aside.
pids_of() { pgrep -f "^[^ ]*moec run $WORK/[a-z]*.plan --out $WORK/$1 "; }
start() { # start HOW N PLAN RUN STEPS: in the background; $job
  ranks "$1" "$2" "${train[@]}" $(arguments "$3" "$4" "$5") >"$WORK/job" 2>&1 & job=$!
}
intact() { # intact RUN: the newest checkpoint can be exported
  [ -n "$(newest "$WORK/$1")" ] && export_of "$1"
}

same_peak() { # same_peak RUN RUN: MFU counts the same cores
  python3 - "$WORK/$1/log.jsonl" "$WORK/$2/log.jsonl" <<'PY'
import json, sys
a, b = ([r["mfu"] / r["tokens_per_second"] for r in map(json.loads, open(f))] for f in sys.argv[1:])
assert a and b and max(a + b) <= min(a + b) * (1 + 1e-9), (a, b)
PY
}

must "${train[@]}" $(arguments one reference 40)
must "${train[@]}" $(arguments four cores 3) --threads 4
for how in mpi tcp; do
  if [ $how = mpi ] && [ -n "$why_not" ]; then skip "training over mpi: $why_not"; continue; fi
  two() { ranks $how 2 "${train[@]}" $(arguments two two-$how 40); }
  four() { ranks $how 4 "${train[@]}" $(arguments four four-$how 40); }
  expect "2 ranks over $how train" two
  expect "2 ranks over $how: the bits of one rank" same_training reference two-$how
  expect "4 ranks over $how train" four
  expect "4 ranks over $how: the bits of one rank" same_training reference four-$how

  mixed() { ranks $how 4 "${train[@]}" $(arguments mixed mixed-$how 40); }
  expect "4 ranks over $how, experts divided by layer, train" mixed
  expect "4 ranks over $how, experts divided by layer: the bits of one rank" same_training reference mixed-$how
  cores() { ranks $how 4 "${train[@]}" $(arguments four cores-$how 3) --threads 1 && same_peak cores cores-$how; }
  expect "4 ranks over $how on one host: MFU counts its cores once" cores

  # A rank is killed, another time stopped, in the middle of things.
  for signal in KILL STOP; do
    run=$signal-$how
    MOEC_SILENCE_LIMIT=3 start $how 4 four $run 100000
    if ! wait_lines "$WORK/$run/log.jsonl" 12 $job; then not_ok "$run: the run does not start" "$WORK/job"; kill $job; continue; fi
    pids=($(pids_of $run))
    before=$(milliseconds)
    kill -$signal "${pids[2]}"
    wait $job 2>/dev/null; code=$?
    took=$(($(milliseconds) - before))
    echo "exit $code after $took ms; ranks: ${pids[*]}" >>"$WORK/job"
    most=5000; [ $signal = KILL ] || most=9000
    if [ ${#pids[@]} = 4 ] && [ $code != 0 ] && [ $code != 124 ] && [ $took -le $most ] && none_running "${pids[@]}" >>"$WORK/job"; then ok "a rank gets SIG$signal over $how: the job ends, in time, with nothing left"; else not_ok "a rank gets SIG$signal over $how" "$WORK/job"; fi
    if [ $signal = STOP ]; then
      if grep -qE 'rank [0-3] \(step [0-9]+, [a-z]+.*\).* gave no sign of life for [3-6]\.[0-9] s' "$WORK/job"; then ok "the stopped rank is named, with its phase, over $how"; else not_ok "the stopped rank is named, with its phase, over $how" "$WORK/job"; fi
    fi
    expect "... over $how, SIG$signal: the last checkpoint is intact" intact $run
  done
  # What was killed goes on, with another number of ranks, as if nothing had been.
  last=$(newest "$WORK/KILL-$how"); last=${last##*-}; until=$((last + 3))
  whole() { "${train[@]}" $(arguments one whole 100000) --stop-after-step $until; }
  stop() { "${train[@]}" $(arguments one KILL-$how 100000) --stop-after-step $until; }
  expect "one rank goes on from there, over $how" stop
  rm -rf "$WORK/whole"
  must whole
  expect "... with the bits of a run never interrupted, over $how" same_training whole KILL-$how
done

# Signals to MPI's launcher.
if [ -n "$why_not" ]; then
  skip "signals to mpirun: $why_not"
else
  launcher_of() { pgrep -f "^mpirun .*--out $WORK/$1 "; }
  asked() { # asked SIGNAL RUN: a run in full swing, whose launcher gets it
    start mpi 4 four "$2" 100000
    wait_lines "$WORK/$2/log.jsonl" 12 $job || { kill $job; return 1; }
    pids=($(pids_of "$2"))
    kill -"$1" "$(launcher_of "$2")"
    wait $job
  }
  asked USR1 usr1; code=$?
  echo "exit $code; ranks: ${pids[*]}" >>"$WORK/job"
  lines=$(lines_of "$WORK/usr1/log.jsonl") at=$(newest "$WORK/usr1"); at=${at##*-}
  if [ $code = 0 ] && [ "$at" = "$lines" ] && none_running "${pids[@]}" >>"$WORK/job"; then ok "SIGUSR1 to mpirun: saved after the step it was in, status 0"; else echo "log: $lines steps, checkpoint at $at" >>"$WORK/job"; not_ok "SIGUSR1 to mpirun" "$WORK/job"; fi
  asked TERM term; code=$?
  echo "exit $code; ranks: ${pids[*]}" >>"$WORK/job"
  if [ $code != 124 ] && none_running "${pids[@]}" >>"$WORK/job"; then ok "SIGTERM to mpirun: nothing is left"; else not_ok "SIGTERM to mpirun" "$WORK/job"; fi
  expect "SIGTERM to mpirun: the last checkpoint is intact" intact term
fi

# Starts that do not fit.
if [ -z "$why_not" ]; then
  refuses "fewer processes than ranks" 2 'the plan is for 4 ranks, but mpirun started 2 processes' mpi -n 2 "${train[@]}" $(arguments four x 5)
  refuses "more processes than ranks" 2 'the plan is for 1 ranks?, but mpirun started 2 processes' mpi -n 2 "${train[@]}" $(arguments one x 5)
  mkdir "$WORK/empty"
  refuses "no plugin" 1 'libmoe_mpi.so.*install Open MPI' mpi -n 2 -x MOEC_PLUGIN_DIR="$WORK/empty" "${train[@]}" $(arguments two x 5)
fi
refuses "MPI without its launcher" 2 'needs a process a rank: start 2 with "mpirun -n 2' "${train[@]}" $(arguments two x 5) --comm mpi
refuses "fewer processes than ranks, over tcp" 2 'the plan is for 4 ranks, but torchrun started 2 processes' torch_like 2 "${train[@]}" $(arguments four x 5)
refuses "threads in each of two processes" 2 'puts all ranks into one process, but torchrun started 2' torch_like 2 "${train[@]}" $(arguments two x 5) --comm threads
done_testing
