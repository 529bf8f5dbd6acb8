#!/usr/bin/env bash
# Plans for NVIDIA GPUs, from compiling to export, on the simulated GPU (docs/GPU.md): near the CPU's numbers, the same bits for any micro-batches,
# ranks and placement, checkpoints that go from CPU to GPU and back, and what is said where driver, device or memory are missing.
. "$(dirname "$0")/lib.sh"
SIM=$BUILD/tests/sim
if [ ! -e "$SIM/libcuda.so.1" ]; then skip "no simulated GPU was built (ninja sim; it needs clang++)"; done_testing; exit 0; fi
export MOEC_CACHE=$SIM/cache MOE_SIM_DEVICES=80
gpu() { LD_LIBRARY_PATH=$SIM timeout -s KILL 300 "$@"; } # moec takes SIGTERM as a wish to end well
tiny_config "$WORK/config.json"
make_text "$WORK/text.txt" 20000
compile() { gpu "$MOEC" compile "$WORK/config.json" -o "$WORK/$1.plan" --batch 4 --seq 16 -q "${@:2}"; }
train() { # train NAME PLAN OPTIONS...
  gpu "$MOEC" run "$WORK/$2.plan" --data "$WORK/text.txt" --out "$WORK/$1" --steps 4 --lr 0.003 --checkpoint-every 2 --keep 9 --eval-batches 1 -q "${@:3}"
}
weights() { "$MOEC" export "$(newest "$WORK/$1")" -o "$WORK/$1.hf" -q && cat "$WORK/$1.hf/model.safetensors"; }
same_weights() { cmp <(weights "$1") <(weights "$2"); }
# Losses and gradient norms of the last step within parity's bounds.
near() {
  python3 - "$WORK/$1/log.jsonl" "$WORK/$2/log.jsonl" <<'PY'
import json, sys
a, b = ([json.loads(l) for l in open(p)] for p in sys.argv[1:3])
assert len(a) == len(b) == 4, (len(a), len(b))
for x, y in zip(a, b):
    print(x["step"], x["loss"], y["loss"], x["grad_norm"], y["grad_norm"])
    assert x["step"] == y["step"] and abs(x["loss"] - y["loss"]) < 1e-5
    assert abs(x["grad_norm"] - y["grad_norm"]) < 1e-4 * y["grad_norm"]
PY
}

must compile cpu
must compile one --target=cuda:sm_80
must compile two --target=cuda:sm_80 --micro-batches 2
must compile ep2 --target=cuda:sm_80 --ranks 2 --expert-parallel-degree 2 --extra-slots 1
must train cpu cpu
must train one one
must train again one
must train two two
must train ep2 ep2
must train moved ep2 --placement eplb --placement-every 1 --placement-hysteresis 0
expect "the CPU's losses and norms" near cpu one
expect "trained twice: the same bits" same_run "$WORK/one" "$WORK/again"
expect "2 micro-batches as 1" same_run "$WORK/one" "$WORK/two"
expect "2 ranks as 1" same_weights one ep2
expect "experts that move while training" same_weights one moved
expect "they did move" grep -q . "$WORK/moved/placement.jsonl"

# Checkpoints.
must train stopped one --stop-after-step 2
must train stopped one
expect "stopped and resumed" same_run "$WORK/one" "$WORK/stopped"
must train mixed cpu --stop-after-step 1
must train mixed one --stop-after-step 3
must train mixed cpu
expect "CPU, GPU, CPU: losses and norms" near cpu mixed
cp -r "$WORK/one" "$WORK/loaded"
cp -r "$WORK/ep2" "$WORK/other"
expect "a GPU's checkpoint on the CPU" bash -c '"$0" run "$1/cpu.plan" --data "$1/text.txt" --out "$1/loaded" --steps 4 -q' "$MOEC" "$WORK"
expect "2 ranks' checkpoint on 1" gpu "$MOEC" run "$WORK/one.plan" --data "$WORK/text.txt" --out "$WORK/other" --steps 4 -q
expect "sampling" gpu "$MOEC" sample "$WORK/one" --tokens 4 -q
expect "explain needs no GPU" "$MOEC" explain "$WORK/one.plan"
as_planned() { # to the byte
  "$MOEC" explain "$WORK/$1.plan" -o json | python3 -c 'import json, sys
planned, taken = json.load(sys.stdin)["memory"]["total"], {json.loads(l)["memory_bytes"] for l in open(sys.argv[1])}
print(planned, taken)
assert taken == {planned}' "$WORK/$1/log.jsonl"
}
for name in one two; do expect "$name: memory as planned" as_planned $name; done
expect "doctor sees the GPU" bash -c 'LD_LIBRARY_PATH=$1 "$0" doctor | grep -q "GPU 0 .*capability 8.0"' "$MOEC" "$SIM"
must train profiled one --profile-step 2
expect "a profile of every step" python3 -c 'import json, sys
lines = [json.loads(l) for l in open(sys.argv[1])][1:]
assert len(lines) == len(json.load(open(sys.argv[2]))["programs"]["train"]["steps"]) and all(l["end"] >= l["begin"] for l in lines)' \
  "$WORK/profiled/profile-rank-0.jsonl" "$WORK/one.plan/plan.json"
expect "profiled: the same bits" same_weights one profiled

# What is missing. Each is said, and nothing hangs.
train_with() { env LD_LIBRARY_PATH="$1" "${@:3}" timeout -s KILL 60 "$MOEC" run "$WORK/$2.plan" --data "$WORK/text.txt" --out "$WORK/none" --steps 40 -q; }
refuses "no driver" 1 "libcuda.*compile for cpu" train_with "" one MOE_SIM_QUIET=1
refuses "an old driver" 1 "driver" train_with "$SIM/old" one MOE_SIM_QUIET=1
refuses "no GPU" 1 "no NVIDIA GPU" train_with "$SIM" one MOE_SIM_DEVICES=none
refuses "another GPU" 1 "cuda:sm_80.*capability 9.0.*--target=cuda:native" train_with "$SIM" one MOE_SIM_DEVICES=90
refuses "a GPU that is not there" 2 "no GPU 3" gpu "$MOEC" run "$WORK/one.plan" --data "$WORK/text.txt" --out "$WORK/none" --device 3 -q
refuses "no memory" 1 "GPU 0.*parameters and optimiser states.*--memory-limit" train_with "$SIM" one MOE_SIM_MEMORY=100000
refuses "a lost GPU" 1 "GPU 0.*program train" train_with "$SIM" one MOE_SIM_LOST_AFTER=60 MOE_SIM_QUIET=1
refuses "a lost GPU ends both ranks" 1 "GPU 0" train_with "$SIM" ep2 MOE_SIM_LOST_AFTER=500 MOE_SIM_QUIET=1
refuses "a kernel that fails" 1 "GPU 0" train_with "$SIM" one MOE_SIM_FAIL_LAUNCH=gemm MOE_SIM_QUIET=1
cp -r "$WORK/one.plan" "$WORK/damaged.plan"
truncate -s 4000 "$WORK/damaged.plan/kernels.cubin"
refuses "damaged code" 1 "kernels.cubin.*compile" train_with "$SIM" damaged MOE_SIM_QUIET=1

expect "parity with transformers" gpu "$BUILD/tests/parity" --target cuda:sm_80 tests/data/mixtral_one_layer
done_testing
