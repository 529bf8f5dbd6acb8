#!/usr/bin/env bash
# Exchanges between ranks that are threads of one process by kernels that read each other's memory (docs/GPU.md), on the simulated GPU: the
# bits of one rank, with rows that outgrow memory on some ranks too; nothing goes through the host; what happens where it cannot be, and
# when a rank fails while others wait for it.
. "$(dirname "$0")/lib.sh"
SIM=$BUILD/tests/sim
if [ ! -e "$SIM/libcuda.so.1" ]; then skip "no simulated GPU was built (ninja sim; it needs clang++)"; done_testing; exit 0; fi
export MOEC_CACHE=$SIM/cache MOE_SIM_DEVICES=80 MOE_SIM_GRANULARITY=4096
gpu() { LD_LIBRARY_PATH=$SIM timeout -s KILL 300 "$@"; }
tiny_config "$WORK/config.json" num_hidden_layers=1
make_text "$WORK/text.txt" 20000
head -c 20000 /dev/zero | tr '\0' a > "$WORK/flat.txt" # every token goes to the same experts
compile() { gpu "$MOEC" compile "$WORK/config.json" -o "$WORK/$1.plan" --target=cuda:sm_80 --batch 8 --seq 64 -q "${@:2}"; }
train() { # train NAME PLAN TEXT STEPS OPTIONS...
  gpu "$MOEC" run "$WORK/$2.plan" --data "$WORK/$3.txt" --out "$WORK/$1" --steps "$4" --lr 0.003 --checkpoint-every 99 --eval-every 0 "${@:5}" \
    > "$WORK/$1.out" 2> "$WORK/$1.err"
}
weights() { "$MOEC" export "$(newest "$WORK/$1")" -o "$WORK/$1.hf" -q && cat "$WORK/$1.hf/model.safetensors"; }
same_weights() { cmp <(weights "$1") <(weights "$2"); }
from_memory() { grep -q "go from memory to memory" "$WORK/$1.err"; }
grew() { grep -q "got more rows" "$WORK/$1.out" "$WORK/$1.err"; }

must compile one
must compile four --ranks 4 --expert-parallel-degree 2 --hybrid-shard-degree 2
must compile copies --ranks 2 --expert-parallel-degree 2 --extra-slots 1 --micro-batches 2
must compile tp --ranks 2 --tensor-parallel-degree 2
must train one one text 3
must train flat_one one flat 3
must train four four text 3
must train devices four text 3 --profile-step 2
must train flat_four four flat 3
must train copies copies text 3 --placement eplb --placement-every 1 --placement-hysteresis 0
must train flat_copies copies flat 3
must train tp tp text 3
must train tp_host tp text 3 --exchange host
expect "4 ranks as 1" same_weights one four
expect "from memory to memory" from_memory four
expect "a step that is timed" same_weights one devices
expect "rows that outgrow memory: 4 ranks as 1" same_weights flat_one flat_four
expect "they did" grew flat_four
expect "copies of experts, 2 micro-batches" same_weights one copies
expect "there were some" grep -q . "$WORK/copies/placement.jsonl"
expect "copies, and rows that outgrow memory" same_weights flat_one flat_copies
expect "tensor parallel as over the host" same_weights tp tp_host
export MOE_SIM_DEVICES=80,80,80,80
must train apart four flat 3
expect "a device for each rank" same_weights flat_one apart
expect "from memory to memory, too" from_memory apart

# What goes through the host in a step: losses and counts, and with exchanges over the host all of it.
per_step() { # per_step WAY: bytes that come out, in each of two more steps
  MOE_SIM_TRAFFIC=$WORK/$1.two train "$1.2" four text 2 --exchange "$1" && MOE_SIM_TRAFFIC=$WORK/$1.four train "$1.4" four text 4 --exchange "$1" &&
    echo $((($(sed -n 's/bytes_out //p' "$WORK/$1.four") - $(sed -n 's/bytes_out //p' "$WORK/$1.two")) / 2))
}
peer=$(per_step peer) host=$(per_step host)
echo "# bytes out in a step of 4 ranks: $peer, over the host $host"
expect "no staging in the host's memory" test "$peer" -lt $((host / 50))
expect "whole phases as graphs" test "$(sed -n 's/graphs //p' "$WORK/peer.four")" -ge 32

# Where it cannot be.
no_peer() { MOE_SIM_NO_PEER=1 "$@"; }
no_values() { MOE_SIM_NO_STREAM_VALUES=1 "$@"; }
fails() { ! "$@"; }
must no_peer train refused four text 3
expect "devices that do not reach each other say so" grep -q "do not reach each other" "$WORK/refused.err"
expect "and go over the host" same_weights one refused
must no_values train old four text 3
expect "a driver without such waits" same_weights one old
expect "asked for in vain" no_peer fails train vain four text 1 --exchange peer
expect "what is said of it" grep -q "exchange peer.*do not reach" "$WORK/vain.err"

# Ends with an error, and soon.
timeout_train() {
  local from=$SECONDS
  ! train "$@" && test $((SECONDS - from)) -lt 100
}
# A rank that fails ends all, whatever their devices wait for.
export MOE_SIM_DEVICES=80,80,80,80 MOE_SIM_QUIET=1
for n in 400 1100; do
  broken() { MOE_SIM_FAIL_LAUNCH=$n timeout_train "lost$n" four text 3; }
  expect "a launch that fails ends all ranks ($n)" broken
  expect "the kernel is named ($n)" grep -q "CUDA_ERROR_LAUNCH_FAILED" "$WORK/lost$n.err"
done
done_testing
