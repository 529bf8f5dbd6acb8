#!/usr/bin/env bash
# Ranks as processes that die, stop, hang or give up: the others notice in time, say which and where, and nothing is left running.
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/lib_ranks.sh"
SUITE=$BUILD/tests/comm_process
why_not=$(no_mpi)

# disturb NAME HOW SIGNAL RANK MOST_MS PATTERN: four ranks that exchange for ever; one gets the signal. The job ends within MOST_MS
# milliseconds with a failure, says what matches the pattern, and leaves no process behind. PATTERN empty: MPI's launcher may be
# quicker than the ranks.
disturb() {
  local name=$1 how=$2 signal=$3 rank=$4 most=$5 pattern=$6 dir=$WORK/pids job code before took r
  rm -rf "$dir"; mkdir "$dir"
  ranks "$how" 4 "$SUITE" "$how" loop "$dir" >"$WORK/out" 2>&1 & job=$!
  if ! wait_files 30 "$dir"/{0,1,2,3} >>"$WORK/out"; then not_ok "$name: start" "$WORK/out"; kill $job; wait $job; return; fi
  local pids=(); for r in 0 1 2 3; do pids+=("$(<"$dir/$r")"); done
  sleep 0.3 # the ranks know each other's places
  before=$(milliseconds)
  kill -"$signal" "${pids[$rank]}"
  wait $job; code=$?
  took=$(($(milliseconds) - before))
  echo "exit $code after $took ms" >>"$WORK/out"
  if [ $code = 0 ] || [ $code = 124 ]; then not_ok "$name: status $code" "$WORK/out"
  elif [ $took -gt "$most" ]; then not_ok "$name: $took ms, at most $most" "$WORK/out"
  elif [ -n "$pattern" ] && ! grep -qE "$pattern" "$WORK/out"; then not_ok "$name: does not say $pattern" "$WORK/out"
  elif ! none_running "${pids[@]}" >>"$WORK/out"; then not_ok "$name: processes are left" "$WORK/out"
  else ok "$name"; fi
}
export MOEC_SILENCE_LIMIT=3
for how in mpi tcp; do
  if [ $how = mpi ] && [ -n "$why_not" ]; then skip "faults over mpi: $why_not"; continue; fi
  for rank in 0 2; do
    died=
    [ $how = mpi ] || died="rank $rank \(step [0-9]+, forward layers.3\).* died"
    disturb "rank $rank killed, over $how" $how KILL $rank 5000 "$died"
    disturb "rank $rank stopped, over $how" $how STOP $rank 9000 "rank $rank \(step [0-9]+, forward layers.3\).* gave no sign of life for [3-6]\.[0-9] s"
  done
  # One rank gives up: all say why.
  LIMIT=30 ranks $how 4 "$SUITE" $how fail >"$WORK/out" 2>&1; code=$?
  if [ $code = 1 ] && grep -q 'rank 0: rank 1 (step 7, update): cannot read the data' "$WORK/out"; then ok "a rank gives up, over $how"; else echo "exit $code" >>"$WORK/out"; not_ok "a rank gives up, over $how" "$WORK/out"; fi
done
unset MOEC_SILENCE_LIMIT

# A rank whose process lives but makes no call is found when no rank has got any further for long.
mkdir "$WORK/busy"
MOEC_SILENCE_LIMIT=0.25 LIMIT=60 ranks tcp 3 "$SUITE" tcp busy "$WORK/busy" >"$WORK/out" 2>&1; code=$?
if [ $code != 0 ] && grep -qE 'no rank got any further for 1[0-9] s: rank 1 \(step 50, forward layers.3\) hangs' "$WORK/out" && none_running $(cat "$WORK"/busy/*); then ok "a rank that hangs"; else echo "exit $code" >>"$WORK/out"; not_ok "a rank that hangs" "$WORK/out"; fi

# The limit is 15 s if nobody says otherwise; what counts is silence, not slowness.
mkdir "$WORK/slow"
LIMIT=60 torch_like 2 "$SUITE" tcp loop "$WORK/slow" >"$WORK/out" 2>&1 & job=$!
wait_files 30 "$WORK"/slow/{0,1} && { kill -STOP "$(<"$WORK/slow/1")"; sleep 2; kill -CONT "$(<"$WORK/slow/1")"; sleep 1; }
if running "$(<"$WORK/slow/0")" && running "$(<"$WORK/slow/1")" && [ ! -s "$WORK/out" ]; then ok "two seconds of silence are none"; else not_ok "two seconds of silence are none" "$WORK/out"; fi
kill -KILL $(cat "$WORK"/slow/*); wait $job 2>/dev/null
done_testing
