#!/usr/bin/env bash
# Ranks as threads: on any layout the logs carry the losses and gradient norms of one rank to the last digit, the load trace is the same and the exported
# weights are byte for byte the same; a run goes on at another layout; sampling, signals and errors with several ranks. (tests/same-bits has the whole matrix.)
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/lib_ranks.sh"
steps=6
make_text "$WORK/text.txt" 40000
# Four layers, tensors of several slices; the fixture's model with two sequences, so that some ranks have none; a dense model.
tiny_config "$WORK/four.json" hidden_size=96 intermediate_size=96 num_hidden_layers=4 num_local_experts=8 max_position_embeddings=128
tiny_config "$WORK/three.json" num_local_experts=3 num_hidden_layers=1
tiny_config "$WORK/dense.json" architectures='["LlamaForCausalLM"]' model_type='"llama"' num_local_experts=absent num_experts_per_tok=absent \
  output_router_logits=absent router_aux_loss_coef=absent
fixture=$ROOT/tests/data/mixtral
# Its vocabulary is too small for text.
python3 -c 'import sys; import struct; open(sys.argv[1], "wb").write(b"".join(struct.pack("<H", (i * i * 7 + i // 3 % 13) % 160) for i in range(6000)))' "$WORK/tokens.u16"

compile() { # compile NAME MODEL OPTIONS...
  local name=$1 model=$2 config batch=8 seq=32; shift 2
  if [ "$model" = fixture ]; then config=$fixture/config.json batch=2; else config=$WORK/$model.json; fi
  "$MOEC" compile "$config" -o "$WORK/$name.plan" --batch $batch --seq $seq -q "$@"
}
train() { # train RUN PLAN OPTIONS...; then its weights are in RUN.hf
  local run=$1 plan=$2; shift 2
  "$MOEC" run "$WORK/$plan.plan" --data "${data:-$WORK/text.txt}" --out "$WORK/$run" --steps $steps --lr 0.003 --eval-every 2 --eval-batches 2 -q "$@" &&
    rm -rf "$WORK/$run.hf" && "$MOEC" export "$WORK/$run" -o "$WORK/$run.hf" -q
}
# What all layouts have in common; which rank was busy is a layout's own.
common() { numbers "$1" | sed -E 's/, "imbalance": \[[^]]*\]//'; }
same_result() { # same_result RUN RUN
  local file
  diff <(common "$WORK/$1") <(common "$WORK/$2") >"$WORK/.diff" || { echo "the logs differ:"; head -n 4 "$WORK/.diff"; return 1; }
  [ ! -f "$WORK/$1/trace.csv" ] || cmp "$WORK/$1/trace.csv" "$WORK/$2/trace.csv" || return 1
  for file in "$WORK/$1.hf"/*.safetensors; do cmp "$file" "$WORK/$2.hf/${file##*/}" || return 1; done
}
layout() { # layout MODEL REFERENCE NAME COMPILE-OPTIONS... [-- RUN-OPTIONS...]
  local model=$1 reference=$2 name=$3 options=(); shift 3
  while [ $# -gt 0 ] && [ "$1" != -- ]; do options+=("$1"); shift; done
  [ $# = 0 ] || shift
  rm -rf "$WORK/run" "$WORK/layout.plan"
  if compile layout "$model" "${options[@]}" >"$WORK/.log" 2>&1 && train run layout "$@" >>"$WORK/.log" 2>&1; then
    expect "$name" same_result "$reference" run
  else
    not_ok "$name (did not run)" "$WORK/.log"
  fi
}
E=--expert-parallel-degree S=--hybrid-shard-degree

must compile four four
must train four four
layout four four "four layers: 2 ranks, data parallel" --ranks 2 $S 1
layout four four "four layers: 2 ranks, experts divided" --ranks 2 $E 2
layout four four "four layers: 2 ranks, sharded, 2 threads each" --ranks 2 $S 2 -- --threads 4
layout four four "four layers: 4 ranks, as --ranks alone chooses" --ranks 4
layout four four "four layers: 4 ranks, experts divided and sharded" --ranks 4 $E 2 $S 2
layout four four "four layers: 8 ranks, experts over 4, copies" --ranks 8 $E 4
layout four four "four layers: 8 ranks, experts over 2, sharded over 2, all else over 4" --ranks 8 $E 2 $S 2 --dense-shard-degree 4
# Each layer's experts divided in a way of its own.
strategy() { printf '{"ranks": %s, "expert_parallel_degree": %s, "layers": [%s]}' "$2" "$3" "$4" >"$WORK/$1.json"; }
strategy mixed4 4 4 '{"first": 1, "last": 2, "expert_parallel_degree": 2, "hybrid_shard_degree": 2}'
strategy mixed8 8 2 '{"first": 3, "last": 3, "expert_parallel_degree": 8}, {"first": 0, "last": 1, "hybrid_shard_degree": 8}'
layout four four "four layers: 4 ranks, experts over 4 and over 2" --strategy "$WORK/mixed4.json"
layout four four "four layers: 8 ranks, experts over 2, over 8 and sharded" --strategy "$WORK/mixed8.json"
layout four four "four layers: 4 ranks, experts over 4 and over 2, 2 micro-batches, 4 threads" --strategy "$WORK/mixed4.json" --micro-batches 2 -- --threads 4
strategy behind 4 4 '{"first": 2, "last": 4, "expert_parallel_degree": 2}'
refuses "layers that the model has not" 2 'layers 2 to 4 of the strategy: .* is 3' compile none four --strategy "$WORK/behind.json"
layout four four "four layers: 4 ranks, 2 micro-batches, recomputed" --ranks 4 $E 2 $S 2 --micro-batches 2 --recompute layer
must compile bf16 four --dtype bf16
must train bf16 bf16
layout four bf16 "four layers, bf16: 8 ranks, experts divided by layer" --strategy "$WORK/mixed8.json" --dtype bf16
layout four bf16 "four layers, bf16: 4 ranks" --ranks 4 $E 2 $S 2 --dtype bf16

data=$WORK/tokens.u16
must compile fixture fixture
must train fixture fixture --init-from "$fixture"
layout fixture fixture "two sequences on 2 ranks" --ranks 2 $E 2 -- --init-from "$fixture"
layout fixture fixture "two sequences on 8 ranks: six have none" --ranks 8 $E 2 $S 4 -- --init-from "$fixture"
data=
must compile three three
must train three three
layout three three "three experts on 2 ranks" --ranks 2 $E 2
layout three three "three experts on 8 ranks: five have none" --ranks 8 $E 8
must compile dense dense
must train dense dense
layout dense dense "a dense model on 4 ranks" --ranks 4 $S 2

# ---- routing at its worst: a router of zeros sends every token to experts 0 and 1 ----
cp -r "$WORK/four.hf" "$WORK/zero"
zero_routers "$WORK/zero"
must train skew four --init-from "$WORK/zero" --steps 2
if head -n 5 "$WORK/skew/trace.csv" | tail -n 4 | grep -qv ',0,0,0,0,0,0$'; then not_ok "the first step's tokens all go to two experts" "$WORK/skew/trace.csv"; fi
layout four skew "all tokens to two experts: 4 ranks" --ranks 4 $E 4 -- --init-from "$WORK/zero" --steps 2
layout four skew "all tokens to two experts: 8 ranks" --ranks 8 $E 4 $S 2 -- --init-from "$WORK/zero" --steps 2
must compile ep4 four --ranks 4 $E 4
grown() { # more memory than planned is said, with the layer and the rank, and stands in the log
  local out=$WORK/skew4 first last
  rm -rf "$out"
  "$MOEC" run "$WORK/ep4.plan" --data "$WORK/text.txt" --out "$out" --steps 1 --init-from "$WORK/zero" 2>&1 | tee "$WORK/.said" | grep -qE 'step 1: layer [0-3] of rank 0 got more rows .* planned' || { cat "$WORK/.said"; return 1; }
  python3 - "$out/log.jsonl" <<'PY'
import json, sys
r = json.loads(open(sys.argv[1]).readline())
assert r["imbalance"] == [4, 4, 4, 4], r["imbalance"]
assert r["memory_bytes_max"] >= r["memory_bytes"] > 0, r
PY
}
expect "growth beyond the plan is reported" grown

# ---- from layout to layout ----
must compile a four --ranks 4 $E 4
must compile b four --ranks 8 $E 2 $S 2
go_on() {
  train moved a --stop-after-step 2 && [ "$(lines_of "$WORK/moved/log.jsonl")" = 2 ] && [ -d "$WORK/moved/checkpoints/step-2" ] &&
    train moved b --stop-after-step 4 && train moved four && same_result four moved
}
expect "4 ranks, then 8, then 1: as if never stopped" go_on
back() { train back four --stop-after-step 3 && train back b && same_result four back; }
expect "1 rank, then 8" back

sample() { "$MOEC" sample "$WORK/$1" --tokens 30 --seed 5 --prompt "And he said" -q; }
expect "samples of a run on 8 ranks" cmp <(sample four) <(sample back)
explained() { "$MOEC" explain "$WORK/b.plan" --against "$WORK/back" | grep -qE '^\| .*gather.* \| forward \| comm \|'; }
expect "explain --against runs all ranks" explained

# ---- what is not finite ----
cp -r "$WORK/four.hf" "$WORK/bad"
python3 - "$WORK/bad/model.safetensors" <<'PY'
import json, struct, sys
with open(sys.argv[1], "r+b") as f:
    n = struct.unpack("<Q", f.read(8))[0]
    t = json.loads(f.read(n))["model.layers.2.self_attn.v_proj.weight"]
    f.seek(8 + n + t["data_offsets"][0])
    f.write(struct.pack("<f", float("nan")))
PY
refuses "ten steps that are not finite end all ranks, with one error" 1 '10 steps in a row were not finite' \
  "$MOEC" run "$WORK/a.plan" --data "$WORK/text.txt" --out "$WORK/nan" --steps 20 --init-from "$WORK/bad" -q
if [ "$(grep -c error: "$WORK/.out") $(lines_of "$WORK/nan/log.jsonl")" = "1 10" ]; then ok "and all are in the log"; else not_ok "and all are in the log" "$WORK/.out"; fi

# ---- signals, errors ----
signalled() { # by SIGUSR1 in the middle; continued on one rank
  "$MOEC" run "$WORK/b.plan" --data "$WORK/text.txt" --out "$WORK/stopped" --steps 400 --lr 0.003 -q >"$WORK/.stopped" 2>&1 &
  local pid=$!
  wait_lines "$WORK/stopped/log.jsonl" 3 $pid || return 1
  kill -USR1 $pid
  wait $pid || { echo "exit $?"; cat "$WORK/.stopped"; return 1; }
  grep -q 'stopped by a signal' "$WORK/.stopped" || return 1
  local n; n=$(lines_of "$WORK/stopped/log.jsonl")
  [ "$n" -lt 400 ] && [ -d "$WORK/stopped/checkpoints/step-$n" ]
}
expect "SIGUSR1: every rank ends well, with a checkpoint" signalled
refuses "--ranks that are not the plan's" 2 '\-\-ranks 2: the plan is for 8' "$MOEC" run "$WORK/b.plan" --data "$WORK/text.txt" --out "$WORK/none" --ranks 2
printf '{"format_version": 1, "nodes": 2, "ranks_per_node": 2, "intra": {"latency": 2e-6, "bandwidth": 5e10}, "inter": {"latency": 2e-5, "bandwidth": 1e8}, "flops": 1e11}' >"$WORK/cluster.json"
layout four four "emulated links" --ranks 4 $E 2 $S 2 -- --emulate "$WORK/cluster.json"
expect "their seconds stand in the log" bash -c '[ "$(grep -c "\"emulated_seconds\": [0-9]" "$0/log.jsonl")" = 6 ]' "$WORK/run"
refuses "a cluster of another size" 2 'the cluster has 4 ranks .*the plan has 8' "$MOEC" run "$WORK/b.plan" --data "$WORK/text.txt" --out "$WORK/none" --emulate "$WORK/cluster.json"
refuses "--comm mpi without mpirun" 2 '8' "$MOEC" run "$WORK/b.plan" --data "$WORK/text.txt" --out "$WORK/none" --comm mpi
refuses "data that is not there: said once" 1 'cannot open .*nothing.txt' "$MOEC" run "$WORK/b.plan" --data "$WORK/nothing.txt" --out "$WORK/none"
[ "$(wc -l <"$WORK/.out")" = 1 ] && ok "one line says it" || not_ok "one line says it" "$WORK/.out"
mkdir "$WORK/other" && touch "$WORK/other/file"
refuses "a directory that is no run" 1 'not a run directory' "$MOEC" run "$WORK/b.plan" --data "$WORK/text.txt" --out "$WORK/other"
expect "--max-seconds ends all ranks" bash -c '"$0" run "$1" --data "$2" --out "$3" --steps 100000 --max-seconds 1 -q | grep -q "stopped by --max-seconds"' \
  "$MOEC" "$WORK/b.plan" "$WORK/text.txt" "$WORK/timed"
done_testing
