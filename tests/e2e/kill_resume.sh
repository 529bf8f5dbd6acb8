#!/usr/bin/env bash
# A run killed with SIGKILL at any moment - in the middle of steps, before any single system call that writes a checkpoint - and resumed ends with
# the very weights, moments, log and trace of the run that was left alone. SIGTERM: the step is finished, a checkpoint written, exit 0.
. "$(dirname "$0")/lib.sh"
make_text "$WORK/text.txt" 60000
tiny_config "$WORK/config.json"
must "$MOEC" compile "$WORK/config.json" -o "$WORK/tiny.plan" --batch 8 --seq 32 -q

common=("$WORK/tiny.plan" --data "$WORK/text.txt" --lr 0.003 --threads 2 --keep 2 -q)
# run NAME STEPS OPTIONS...: continues what is there. start: the same in the background; $pid is the trainer itself.
run() { "$MOEC" run "${common[@]}" --out "$WORK/$1" --steps "$2" --checkpoint-every 2 "${@:3}"; }
start() {
  "$MOEC" run "${common[@]}" --out "$WORK/$1" --steps "$2" --checkpoint-every 2 "${@:3}" >"$WORK/.out" 2>&1 &
  pid=$!
}
# cut NAME CALLS N: a run of 6 steps that SIGKILL ends as it enters its N-th such system call; fails if there are fewer.
cut() {
  { (exec strace -f -qq -o /dev/null -e trace="$2" -e inject="$2:signal=SIGKILL:when=$3" \
    "$MOEC" run "${common[@]}" --out "$WORK/$1" --steps 6 --checkpoint-every 2) >/dev/null 2>&1
    [ $? -ge 128 ]; } 2>/dev/null # the shell's own "Killed"
}

# ---- at random moments ----
must run reference 600
attempts=0 kills=0
RANDOM=7
while [ $attempts -lt 12 ]; do
  attempts=$((attempts + 1))
  start killed 600
  lines=$(lines_of "$WORK/killed/log.jsonl")
  wait_lines "$WORK/killed/log.jsonl" $((lines + 2)) $pid
  sleep 0.0$((RANDOM % 70 + 10))
  kill -KILL $pid 2>/dev/null
  wait $pid 2>/dev/null
  [ $? = 137 ] && kills=$((kills + 1))
done
must run killed 600
if [ $kills -ge 3 ]; then expect "killed $kills times at random moments" same_run "$WORK/reference" "$WORK/killed"; else not_ok "only $kills kills hit the run"; fi

# ---- before each kind of system call that makes a checkpoint ----
if have_strace; then
  must run short 6
  for calls in mkdir,mkdirat rename,renameat,renameat2 fsync,fdatasync unlink,unlinkat,rmdir; do
    hits=0 bad=
    for n in 1 2 3 4 5 6 7 8 9 10 11 12 14 16 18 21 24; do
      rm -rf "$WORK/cut"
      cut cut $calls $n || break # the run makes fewer such calls
      hits=$((hits + 1))
      if ! still_there cut >"$WORK/.out" 2>&1 || ! run cut 6 >"$WORK/.out" 2>&1 || ! same_run "$WORK/short" "$WORK/cut" >>"$WORK/.out" 2>&1; then bad=$n; break; fi
    done
    if [ -n "$bad" ]; then not_ok "killed before call $bad of $calls" "$WORK/.out"
    elif [ $hits -gt 0 ]; then ok "killed before each of $hits calls of $calls"
    else not_ok "no call of $calls was hit"; fi
  done
  # Writes: the log's, the tensors', the manifest's.
  hits=0 bad=
  for n in 2 5 9 12 15 18 22 27 33 40 48 60; do
    rm -rf "$WORK/cut"
    cut cut write,pwrite64,writev $n || break
    hits=$((hits + 1))
    if ! still_there cut >"$WORK/.out" 2>&1 || ! run cut 6 >"$WORK/.out" 2>&1 || ! same_run "$WORK/short" "$WORK/cut" >>"$WORK/.out" 2>&1; then bad=$n; break; fi
  done
  if [ -n "$bad" ]; then not_ok "killed before write $bad" "$WORK/.out"
  elif [ $hits -gt 0 ]; then ok "killed before $hits writes"
  else not_ok "no write was hit"; fi
  expect "nothing of the killed writers is left" bash -c '! ls -A "$0"/checkpoints | grep -qE "tmp|trash"' "$WORK/cut"
  # A kill never leaves a half plan or export either.
  for n in 1 3 5; do
    rm -rf "$WORK/half"
    strace -f -qq -o /dev/null -e trace=write -e inject=write:signal=SIGKILL:when=$n "$MOEC" export "$WORK/short" -o "$WORK/half" -q >/dev/null 2>&1
    if [ -e "$WORK/half" ] && ! [ -s "$WORK/half/config.json" ]; then not_ok "export killed at write $n leaves half a directory"; continue; fi
    expect "export again after a kill at write $n" "$MOEC" export "$WORK/short" -o "$WORK/half" -q
  done
else
  skip "killed before each system call (strace cannot trace here)"
fi

# ---- signals that ask ----
for signal in TERM INT USR1; do
  rm -rf "$WORK/asked"
  start asked 600 --checkpoint-every 0
  if ! wait_lines "$WORK/asked/log.jsonl" 3 $pid; then not_ok "SIG$signal: the run did not start" "$WORK/.out"; wait $pid; continue; fi
  kill -$signal $pid
  wait $pid
  code=$?
  steps=$(wc -l <"$WORK/asked/log.jsonl")
  if [ $code != 0 ]; then not_ok "SIG$signal ends with exit 0, not $code" "$WORK/.out"
  elif [ "$steps" -ge 600 ]; then not_ok "SIG$signal came too late to test anything"
  elif [ "$(newest "$WORK/asked")" != "$WORK/asked/checkpoints/step-$steps" ]; then not_ok "SIG$signal: a checkpoint of the last step ($steps)" "$WORK/.out"
  else ok "SIG$signal: step $steps finished, checkpoint written, exit 0"; fi
  must run asked 600 --checkpoint-every 0
  numbers "$WORK/reference" >"$WORK/.want"
  expect "SIG$signal: continued to the same log" cmp <(numbers "$WORK/asked") "$WORK/.want"
  expect "SIG$signal: continued to the same weights" cmp "$(newest "$WORK/asked")/model.safetensors" "$(newest "$WORK/reference")/model.safetensors"
done

# ---- two at once ----
rm -rf "$WORK/both"
start both 600
if wait_lines "$WORK/both/log.jsonl" 2 $pid; then
  refuses "a second trainer in the same run is refused" 1 'both' "$MOEC" run "$WORK/tiny.plan" --data "$WORK/text.txt" --out "$WORK/both" --steps 600 -q
else
  not_ok "a second trainer in the same run: the first did not start"
fi
kill -KILL $pid 2>/dev/null
wait $pid 2>/dev/null
done_testing
