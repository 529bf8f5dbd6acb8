#!/usr/bin/env bash
# Ranks as processes with a (simulated) GPU each: rows and sums go from GPU to GPU over a (simulated) NCCL, started as torchrun does and by mpirun,
# with the bits of one rank; without NCCL, or with ranks that share a GPU, through the host's memory, which is said; a rank that is lost ends the
# others with its number, whatever NCCL notices of it.
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/lib_ranks.sh"
SIM=$BUILD/tests/sim
if [ ! -e "$SIM/libnccl.so.2" ]; then skip "no simulated GPU was built (ninja sim; it needs clang++)"; done_testing; exit 0; fi
export MOEC_CACHE=$SIM/cache MOE_SIM_DEVICES=80,80,80,80 MOE_SIM_QUIET=1
export LD_LIBRARY_PATH=$SIM LIMIT=100
tiny_config "$WORK/config.json" num_hidden_layers=1
make_text "$WORK/text.txt" 20000
compile() { "$MOEC" compile "$WORK/config.json" -o "$WORK/$1.plan" --target=cuda:sm_80 --batch 4 --seq 16 -q "${@:2}"; }
flags=(--data "$WORK/text.txt" --steps 3 --lr 0.003 --checkpoint-every 3 --eval-batches 1)
train() { "$MOEC" run "$WORK/$2.plan" --out "$WORK/$1" "${flags[@]}" "${@:3}"; } # train NAME PLAN OPTIONS...
processes() { # processes HOW N NAME PLAN OPTIONS...: what is said is in $WORK/NAME.said
  ranks "$1" "$2" "$MOEC" run "$WORK/$4.plan" --out "$WORK/$3" "${flags[@]}" "${@:5}" >"$WORK/$3.said" 2>&1 || { cat "$WORK/$3.said"; return 1; }
}
says() { grep -qE -e "$2" "$WORK/$1.said" || { echo "not said: $2"; head -n 20 "$WORK/$1.said"; return 1; }; } # says NAME PATTERN
over_nccl() { processes "${@:2}" && says "$4" 'exchanges between GPUs go over NCCL [0-9.]+$' && same_end "$1" "$4"; } # over_nccl LIKE HOW N NAME PLAN OPTIONS...
over_host() { processes "${@:2}" && says "$4" "$why" && same_end "$1" "$4"; } # the same, with $why said

must compile one
must compile ep2 --ranks 2 --expert-parallel-degree 2 --extra-slots 1
must compile four --ranks 4 --expert-parallel-degree 2 --hybrid-shard-degree 2
must train one one
expect "2 processes, experts divided: the bits of one rank" over_nccl one tcp 2 ep2 ep2
expect "4 processes, experts divided and sliced" over_nccl one tcp 4 four four --exchange nccl
expect "experts that move and are copied while training" over_nccl one tcp 2 moved ep2 --placement eplb --placement-every 1 --placement-hysteresis 0
expect "they did move" grep -q . "$WORK/moved/placement.jsonl"
apart() { MOE_SIM_NO_PEER=1 train "$1" ep2 >"$WORK/$1.said" 2>&1 && same_end one "$1"; } # ranks that are threads
expect "threads whose GPUs do not reach each other" apart threads
expect "... over NCCL" says threads 'exchanges between GPUs go over NCCL'
reason=$(no_mpi)
if [ -n "$reason" ]; then skip "mpirun: $reason"
else expect "mpirun, 2 processes" over_nccl one mpi 2 mpi2 ep2; fi

# Where it cannot be: said once, the same bits.
lacking=$WORK/lacking # a libnccl without NCCL's functions
mkdir -p "$lacking" && cp -P "$SIM"/lib*.so* "$lacking/" && rm "$lacking"/libnccl* && cp -L "$SIM/libnvrtc.so.13" "$lacking/libnccl.so.2"
without() { LD_LIBRARY_PATH=$lacking "$@"; }
why="through the host's memory: rank 0: NCCL .* has no function nccl.*pip install" expect "without NCCL: through the host, and said" without over_host one tcp 2 none ep2
expect "... by one rank" test "$(grep -c "the host's memory" "$WORK/none.said")" = 1
shared() { MOE_SIM_DEVICES=80 "$@"; }
why="the host's memory: ranks 0 and 1 share GPU 0" expect "two ranks on a GPU: through the host, and said" shared over_host one tcp 2 shared ep2
why='.' expect "--exchange host" over_host one tcp 2 host ep2 --exchange host
expect "... without a word of NCCL" bash -c '! grep -q NCCL "$1"' - "$WORK/host.said"
refuses "--exchange nccl where ranks share a GPU" 1 '--exchange nccl: ranks 0 and 1 share GPU 0' shared ranks tcp 2 "$MOEC" run "$WORK/ep2.plan" --out "$WORK/no" "${flags[@]}" --exchange nccl
refuses "--exchange nccl without NCCL" 1 '--exchange nccl: rank 0: NCCL' without ranks tcp 2 "$MOEC" run "$WORK/ep2.plan" --out "$WORK/no" "${flags[@]}" --exchange nccl
old() { MOE_SIM_NCCL_VERSION=21500 "$@"; }
refuses "a version that is too old" 1 'NCCL 2.15.0 .* is older than 2.18' old ranks tcp 2 "$MOEC" run "$WORK/ep2.plan" --out "$WORK/no" "${flags[@]}" --exchange nccl
expect "doctor sees it" bash -c '"$0" doctor | grep -qE "^ok +NCCL +2.28.9: "' "$MOEC"

# Faults: nobody hangs, and the rank is named.
faulty() { MOE_SIM_NCCL_FAULT=$1 ranks tcp 2 "$MOEC" run "$WORK/ep2.plan" --out "$WORK/no" "${flags[@]}" --silence-limit 2; }
refuses "no id" 1 'rank 0 makes the id of a communicator: NCCL says: .*system error' faulty id
refuses "a rank that cannot join" 1 'GPU 1 .*"joining": NCCL says: internal error' faulty init:1
refuses "a rank that never joins" 1 'does not get on with "joining" in 16 s' faulty never:1
refuses "an error while training" 1 'NCCL says: internal error' faulty group:9
killed() { # killed FAULT: rank 1 is, in the middle of training; rank 0 ends within seconds, and says who it was
  local run=$WORK/killed job pids code began
  rm -rf "$run"
  MOE_SIM_NCCL_FAULT=$1 torch_like 2 "$MOEC" run "$WORK/ep2.plan" --out "$run" "${flags[@]}" --steps 100000 -q >"$run.said" 2>&1 & job=$!
  wait_lines "$run/log.jsonl" 2 $job || { cat "$run.said"; return 1; }
  pids=($(pgrep -f "^[^ ]*moec run $WORK/ep2.plan --out $run "))
  began=$(milliseconds)
  for p in "${pids[@]}"; do
    if tr '\0' '\n' <"/proc/$p/environ" | grep -qx RANK=1; then kill -9 "$p"; fi
  done
  wait $job; code=$?
  echo "exit $code, $(($(milliseconds) - began)) ms later"; cat "$run.said"
  [ $(($(milliseconds) - began)) -lt 15000 ] && grep -q 'error: .*rank 1' "$run.said" && none_running "${pids[@]}"
}
expect "a killed process: the other ends with its number" killed none
expect "... also where NCCL notices first" killed notice
done_testing
