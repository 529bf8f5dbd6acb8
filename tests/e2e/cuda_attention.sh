#!/usr/bin/env bash
# Attention by cuDNN on the simulated GPU (docs/GPU.md, "Attention"): a bf16 model trained with it, near moec's own kernels; the same bits for any
# micro-batches and ranks, from the cache, stopped and resumed; what is chosen, said and kept where it does not do, and where it is not there.
. "$(dirname "$0")/lib.sh"
SIM=$BUILD/tests/sim
if [ ! -e "$SIM/libcudnn.so.9" ]; then skip "no simulated GPU was built (ninja sim; it needs clang++)"; done_testing; exit 0; fi
export MOE_SIM_DEVICES=80
kernels=$SIM/cache choices=$WORK/choices
gpu() { LD_LIBRARY_PATH=$SIM timeout -s KILL 300 "$@"; }
tiny_config "$WORK/config.json"
make_text "$WORK/text.txt" 20000
compile() { MOEC_CACHE=$kernels gpu "$MOEC" compile "$WORK/config.json" -o "$WORK/$1.plan" --dtype bf16 --target=cuda:sm_80 --batch 4 --seq 16 -q "${@:2}"; }
# train FAULTS NAME PLAN OPTIONS...: what is said goes to NAME.said
train() {
  MOEC_CACHE=$choices MOE_SIM_CUDNN=$1 gpu "$MOEC" run "$WORK/$3.plan" --data "$WORK/text.txt" --out "$WORK/$2" --steps 3 --lr 0.003 \
    --checkpoint-every 1 --keep 9 --eval-batches 1 --dense emitted "${@:4}" >"$WORK/$2.said" 2>&1 || { cat "$WORK/$2.said"; return 1; }
}
weights() { "$MOEC" export "$(newest "$WORK/$1")" -o "$WORK/$1.hf" -q && cat "$WORK/$1.hf/model.safetensors"; }
same_weights() { cmp <(weights "$1") <(weights "$2"); }
other_weights() { ! same_weights "$1" "$2"; }
said() { grep -qE -e "$2" "$WORK/$1.said" || { cat "$WORK/$1.said"; return 1; }; }
silent() { ! grep -qE -e "$2" "$WORK/$1.said" || { cat "$WORK/$1.said"; return 1; }; }
near() {
  python3 - "$WORK/$1/log.jsonl" "$WORK/$2/log.jsonl" <<'PY'
import json, sys
a, b = ([json.loads(l) for l in open(p)] for p in sys.argv[1:3])
assert len(a) == len(b) == 3, (len(a), len(b))
for x, y in zip(a, b):
    print(x["step"], x["loss"], y["loss"], x["grad_norm"], y["grad_norm"])
    assert x["step"] == y["step"] and abs(x["loss"] - y["loss"]) < 2e-3 and abs(x["grad_norm"] - y["grad_norm"]) < 2e-2 * y["grad_norm"]
PY
}
near_first() { # after one step the losses are those of the same weights
  python3 - "$WORK/$1/log.jsonl" "$WORK/$2/log.jsonl" <<'PY'
import json, sys
x, y = (json.loads(open(p).readline()) for p in sys.argv[1:3])
assert abs(x["loss"] - y["loss"]) < 2e-3 and abs(x["grad_norm"] - y["grad_norm"]) < 2e-2 * y["grad_norm"], (x, y)
PY
}
chosen() { # chosen NAME WORD N: as many choices of attention in the newest checkpoint begin with the word
  python3 - "$(newest "$WORK/$1")" "$2" "$3" <<'PY'
import json, sys
found = [c["value"] for c in json.load(open(sys.argv[1] + "/manifest.json"))["choices"] if c["kind"] == "attention"]
assert sum(v.split()[0] == sys.argv[2] for v in found) == int(sys.argv[3]), found
PY
}

must compile one
must compile two --micro-batches 2
must compile ranks --ranks 2 --expert-parallel-degree 2
# What a plan says of attention, and what it must not say.
damage() { # damage PLAN KEY VALUE: of every step that begins an attention
  rm -rf "$WORK/bad.plan"; cp -r "$WORK/one.plan" "$WORK/bad.plan"
  python3 - "$WORK/bad.plan/plan.json" "$@" <<'PY'
import json, sys
path, key, value = sys.argv[1:]
plan = json.load(open(path))
noted = [s["attention"] for p in plan["programs"].values() for s in p["steps"] if "attention" in s]
assert noted and {n["steps"] for n in noted if n["grad"]} == {3} and {n["steps"] for n in noted if not n["grad"]} == {1}
for n in noted:
    (n["values"] if key in n["values"] else n)[key] = json.loads(value)
json.dump(plan, open(path, "w"))
PY
}
refused() { damage "$1" "$2" && ! "$MOEC" explain "$WORK/bad.plan" >"$WORK/.bad" 2>&1 && { grep -q "damaged plan.*attention.*$3" "$WORK/.bad" || { cat "$WORK/.bad"; return 1; }; }; }
expect "a plan with heads that do not divide" refused kv_heads 3 heads
expect "a plan with more rows than its values hold" refused rows 1600 'too few'
expect "a plan with a value that is not there" refused lse 99999 'is not a value'
expect "a plan whose attention goes on past its steps" refused steps 16 steps

must train on own one --attention emitted
must train on cudnn one --attention cudnn
expect "cuDNN runs forward and gradient" chosen cudnn cudnn 2
expect "it is said once a kind" [ "$(grep -c 'attention .*: cuDNN' "$WORK/cudnn.said")" = 2 ]
expect "losses and norms near moec's own kernels'" near own cudnn
expect "but other bits" other_weights own cudnn
must train on again one --attention cudnn
expect "trained twice: the same bits" same_run "$WORK/cudnn" "$WORK/again"
expect "from the cache" silent again measuring
must train on two two --attention cudnn
expect "2 micro-batches as 1" same_run "$WORK/cudnn" "$WORK/two"
must train on ranks ranks --attention cudnn
expect "2 ranks as 1" same_weights cudnn ranks

must train on stopped one --attention cudnn --stop-after-step 1
must train on stopped one --attention auto
expect "stopped and resumed" same_run "$WORK/cudnn" "$WORK/stopped"
must train on turned one --attention cudnn --stop-after-step 1
must train on turned one --attention emitted
expect "resumed by moec's own kernels: said" said turned "with other bits"
expect "and written down" chosen turned emitted 2

# What cuDNN must not do to be chosen; where it is chosen or not by its speed; where it is not there.
fault() { # fault NAME FAULTS: moec's own kernels all the same, bit for bit
  MOE_SIM_QUIET=1 train "$2" "fault-$2" one --attention cudnn --steps 1 && chosen "fault-$2" emitted "$1" && { [ "$1" = 1 ] || same_weights plain "fault-$2"; }
}
choices=$WORK/none
must train on plain one --attention emitted --steps 1
for f in batch place random wrong fail; do rm -rf "$choices"; expect "cuDNN with fault $f is not taken" fault 2 $f; done
rm -rf "$choices"
expect "no gradient: forward alone" fault 1 nograd
expect "forward by cuDNN, the gradient by moec's own kernels" chosen fault-nograd cudnn 1
expect "losses and norms near all the same" near_first plain fault-nograd
rm -rf "$choices"; must train on,slow slow one --steps 1
expect "auto: cuDNN that is slower is not taken" chosen slow emitted 2
rm -rf "$choices"; must train on fast one --steps 1
expect "auto: cuDNN that is faster is" chosen fast cudnn 2
absent() {
  unset MOE_SIM_CUDNN
  LD_LIBRARY_PATH=$SIM MOEC_CACHE=$choices "$MOEC" run "$WORK/one.plan" --data "$WORK/text.txt" --out "$WORK/absent" --steps 3 --lr 0.003 --checkpoint-every 1 \
    --keep 9 --eval-batches 1 --stop-after-step 1 --dense emitted -q "$@"
}
expect "auto: no cuDNN" absent
expect "then moec's own kernels" chosen absent emitted 2
must train on absent one
expect "also where the run goes on with one" same_run "$WORK/own" "$WORK/absent"
must train on absent one --attention cudnn --steps 4
expect "unless it is asked for: said" said absent "changes its bits"
rm -rf "$WORK/absent"
refuses "--attention cudnn without it" 1 'cudnnCreate.*MOE_SIM_CUDNN' absent --attention cudnn
refuses "a cuDNN that is too old" 1 '9\.5\.1.*9\.11' env MOE_SIM_CUDNN_VERSION=90501 LD_LIBRARY_PATH="$SIM" "$MOEC" run "$WORK/one.plan" --data "$WORK/text.txt" --out "$WORK/old" --steps 1 --attention cudnn
done_testing
