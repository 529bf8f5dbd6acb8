#!/usr/bin/env bash
# Dense products by cuBLASLt (docs/GPU.md), on the simulated GPU with the simulated library: the same bits on one rank and two, in
# micro-batches, with steps captured or one by one, and over a resume where another algorithm would be the fastest; near moec's own kernels.
. "$(dirname "$0")/lib.sh"
SIM=$BUILD/tests/sim
if [ ! -e "$SIM/libcublasLt.so.13" ]; then skip "no simulated GPU was built (ninja sim; it needs clang++)"; done_testing; exit 0; fi
export MOE_SIM_DEVICES=80 MOE_SIM_LAUNCH_SECONDS=10 # what moec's kernels take, as events say
bad=split_k:1,by_rows:1,by_place:1,big:1,few:1,none:1
gpu() { LD_LIBRARY_PATH=$SIM timeout -s KILL 300 "$@"; }
tiny_config "$WORK/config.json" num_hidden_layers=1
make_text "$WORK/text.txt" 20000
compile() { MOEC_CACHE=$SIM/cache gpu "$MOEC" compile "$WORK/config.json" -o "$WORK/$1.plan" --batch 4 --seq 16 -q --target=cuda:sm_80 "${@:2}"; }
train() { # train NAME PLAN ALGORITHMS OPTIONS...; a cache for each
  MOEC_CACHE=$WORK/$1.cache MOE_SIM_CUBLASLT=$3 gpu "$MOEC" run "$WORK/$2.plan" --data "$WORK/text.txt" --out "$WORK/$1" --steps 4 --lr 0.003 --checkpoint-every 2 \
    --keep 9 --eval-batches 1 "${@:4}"
}
weights() { "$MOEC" export "$(newest "$WORK/$1")" -o "$WORK/$1.hf" -q && cat "$WORK/$1.hf/model.safetensors"; }
same_weights() { cmp <(weights "$1") <(weights "$2"); }
near() { # near A B BOUND: losses and gradient norms of each step, and weights that are not the same to the last bit
  python3 - "$WORK/$1/log.jsonl" "$WORK/$2/log.jsonl" "$3" <<'PY'
import json, sys
a, b = ([json.loads(l)[k] for l in open(p) for k in ("loss", "grad_norm")] for p in sys.argv[1:3])
print(a, b)
assert len(a) == len(b) == 8 and max(abs(x - y) for x, y in zip(a, b)) < float(sys.argv[3])
PY
  [ $? = 0 ] && ! same_weights "$1" "$2"
}
choices() { # choices NAME: what the newest checkpoint says of products
  python3 -c 'import json, sys
for c in json.load(open(sys.argv[1] + "/manifest.json"))["choices"]:
    if c["kind"] == "dense": print(c["key"], ":", c["value"])' "$(newest "$WORK/$1")"
}
one_algorithm() { choices "$1" | grep -q " id=$2 " && ! choices "$1" | grep -v " id=$2 "; } # every product by this one

for dtype in f32 bf16; do
  must compile one.$dtype --dtype $dtype
  must train own.$dtype one.$dtype good --dense emitted
  must train lib.$dtype one.$dtype $bad,good:2000000,fast:1000000
  cp "$WORK/.out" "$WORK/said"
  expect "$dtype: the fastest good algorithm, for all products" one_algorithm lib.$dtype 1
  expect "$dtype: near moec's own kernels" near own.$dtype lib.$dtype $([ $dtype = f32 ] && echo 1e-5 || echo 2e-2)
done
takes_more() { # takes_more A B: B's run reports the library's workspace of 32 MiB, and where its results wait
  python3 -c 'import json, sys
a, b = (json.loads(open(p + "/log.jsonl").readline())["memory_bytes"] for p in sys.argv[1:])
print(a, b)
assert 32 << 20 <= b - a < 33 << 20' "$WORK/$1" "$WORK/$2"
}
expect "the library's memory is in what the run reports" takes_more own.bf16 lib.bf16
expect "what runs where is said" grep -q "dense product n 32 k 32 bf16 to f32 transposed: cuBLASLt: .* TFLOP/s, moec's own kernel" "$WORK/said"
must compile two.bf16 --dtype bf16 --micro-batches 2
must compile ep2.bf16 --dtype bf16 --ranks 2 --expert-parallel-degree 2
must train two two.bf16 fast -q
must train ep2 ep2.bf16 fast -q
expect "2 micro-batches as 1" same_run "$WORK/lib.bf16" "$WORK/two"
expect "2 ranks as 1" same_weights lib.bf16 ep2
must train steps one.bf16 fast -q --profile-step 2
expect "steps launched one by one" same_weights lib.bf16 steps

# A resume keeps what was chosen, wherever another would be faster.
must train resumed one.bf16 $bad,good:2000000,fast:1000000 -q --stop-after-step 2
must train resumed one.bf16 good:1,fast:1000000 -q
expect "stopped and resumed" same_run "$WORK/lib.bf16" "$WORK/resumed"
cp -r "$WORK/lib.bf16" "$WORK/onward"
expect "the same or nothing" train onward one.bf16 fast -q --dense same --steps 5
refuses "the same, without the algorithm" 1 "algorithm does not run here.*--dense auto" train onward one.bf16 good -q --dense same --steps 6
refuses "the same, without the library" 1 "cannot be used here" train onward one.bf16 "" -q --dense same --steps 6
refuses "the library, without it" 1 "cublasLtCreate" train onward one.bf16 "" -q --dense cublaslt --steps 6
expect "another way, said" bash -c '"$@" 2>&1 | grep -q "bits may differ"' _ env MOEC_CACHE="$WORK/onward.cache" MOE_SIM_CUBLASLT=good LD_LIBRARY_PATH="$SIM" \
  "$MOEC" run "$WORK/one.bf16.plan" --data "$WORK/text.txt" --out "$WORK/onward" --steps 6 -q
refuses "a product that fails" 1 "GPU 0" env MOEC_CACHE= MOE_SIM_CUBLASLT=good MOE_SIM_FAIL_LAUNCH=cublaslt MOE_SIM_QUIET=1 LD_LIBRARY_PATH="$SIM" \
  "$MOEC" run "$WORK/one.bf16.plan" --data "$WORK/text.txt" --out "$WORK/failed" --steps 2 -q
expect "sampling by the same" env MOEC_CACHE= MOE_SIM_CUBLASLT=fast LD_LIBRARY_PATH="$SIM" "$MOEC" sample "$WORK/lib.bf16" --tokens 4 -q --dense same
expect "doctor sees the library" bash -c 'LD_LIBRARY_PATH=$1 "$0" doctor | grep -q "ok .*cuBLASLt .*13.1.0: moec run --dense"' "$MOEC" "$SIM"
done_testing
