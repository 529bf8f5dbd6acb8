#!/usr/bin/env bash
# bf16 plans for sm_90a (wgmma, tensor maps) on the simulated GPU, over a model of awkward sizes (5 experts, 3 of them chosen, odd lengths, a sliding
# window, tied embeddings): one rank's bits on two that move and copy experts, send rows in chunks, run on emulated links, end by a signal; checkpoints
# between CPU and GPU at other numbers of ranks; export and import; what `moec explain --against` and `moec trace` say of runs on a GPU; no experts at all.
. "$(dirname "$0")/lib.sh"
SIM=$BUILD/tests/sim
if [ ! -e "$SIM/libcuda.so.1" ]; then skip "no simulated GPU was built (ninja sim; it needs clang++)"; done_testing; exit 0; fi
export MOEC_CACHE=$SIM/cache MOE_SIM_DEVICES=90
gpu() { LD_LIBRARY_PATH=$SIM timeout -s KILL 300 "$@"; } # moec takes SIGTERM as a wish to end well
tiny_config "$WORK/config.json" num_hidden_layers=1 num_local_experts=5 num_experts_per_tok=3 sliding_window=7 tie_word_embeddings=true
make_text "$WORK/text.txt" 20000
plan() { # plan NAME OPTIONS...
  must gpu "$MOEC" compile "$WORK/config.json" -o "$WORK/$1.plan" --batch 4 --seq 15 --dtype bf16 -q "${@:2}"
}
train() { # train NAME PLAN OPTIONS...
  gpu "$MOEC" run "$WORK/$2.plan" --data "$WORK/text.txt" --out "$WORK/$1" --steps 4 --lr 0.003 --keep 9 --eval-batches 1 -q "${@:3}"
}
weights() { "$MOEC" export "$WORK/$1" -o "$WORK/$1.hf" -q && cat "$WORK/$1.hf/model.safetensors"; }
same_weights() { cmp <(weights "$1") <(weights "$2"); }
near() { # losses of two runs, bf16 apart
  python3 - "$WORK/$1/log.jsonl" "$WORK/$2/log.jsonl" <<'PY'
import json, sys
a, b = ([json.loads(l) for l in open(p)] for p in sys.argv[1:3])
print([(x["loss"], y["loss"]) for x, y in zip(a, b)])
assert len(a) == len(b) == 4 and all(x["step"] == y["step"] and abs(x["loss"] - y["loss"]) < 1e-3 for x, y in zip(a, b))
PY
}

plan cpu
plan cpu2 --ranks 2 --expert-parallel-degree 2
plan one --target=cuda:sm_90a
plan ep2 --target=cuda:sm_90a --ranks 2 --expert-parallel-degree 2 --extra-slots 1
must train cpu cpu
must train one one
expect "the CPU's losses" near cpu one

# Two ranks.
must train moved ep2 --placement eplb --placement-every 1 --placement-hysteresis 0 --profile-step 2
expect "2 ranks, experts that move and are copied: one rank's weights" same_weights one moved
expect "they did move" grep -q '"event": "move"' "$WORK/moved/placement.jsonl"
plan chunks --target=cuda:sm_90a --ranks 2 --expert-parallel-degree 2 --overlap-chunks 3
expect "rows travel in chunks" python3 -c 'import json, sys
assert sum("segs" in s and "slots" in s for s in json.load(open(sys.argv[1]))["programs"]["train"]["steps"]) > 5' "$WORK/chunks.plan/plan.json"
printf '{"format_version": 1, "nodes": 2, "ranks_per_node": 1, "intra": {"latency": 2e-6, "bandwidth": 5e9}, "inter": {"latency": 5e-6, "bandwidth": 5e8}, "flops": 2e9}' >"$WORK/cluster.json"
must train chunks chunks --emulate "$WORK/cluster.json"
expect "rows in chunks over emulated links: one rank's weights" same_weights one chunks
expect "the links' clock" grep -q '"emulated_seconds": 0\.0*[1-9]' "$WORK/chunks/log.jsonl"

# Ended by a signal, gone on with at another number of ranks, on a CPU and back.
LD_LIBRARY_PATH=$SIM "$MOEC" run "$WORK/ep2.plan" --data "$WORK/text.txt" --out "$WORK/ended" --steps 4 --lr 0.003 --eval-batches 1 -q >"$WORK/.log" 2>&1 &
pid=$!
if wait_lines "$WORK/ended/log.jsonl" 1 $pid && kill -TERM $pid && wait $pid && [ "$(lines_of "$WORK/ended/log.jsonl")" -lt 4 ]; then ok "2 ranks end by SIGTERM"; else not_ok "2 ranks end by SIGTERM" "$WORK/.log"; fi
must train ended one
expect "... and 1 goes on: its weights" same_weights one ended
must train mixed cpu2 --stop-after-step 1
must train mixed ep2 --stop-after-step 2
must train mixed cpu --stop-after-step 3
must train mixed one
expect "2 ranks on a CPU, 2 on a GPU, 1 on a CPU, 1 on a GPU" near cpu mixed
must gpu "$MOEC" run "$WORK/one.plan" --data "$WORK/text.txt" --out "$WORK/imported" --init-from "$WORK/one.hf" --steps 1 --lr 0 --min-lr 0 --eval-batches 1 -q
expect "exported and imported" same_weights one imported

# What is said of a run.
against() { # against PLAN RUN: every step was timed, and memory is as planned (by the load), without what exchanges over the host would take
  gpu "$MOEC" explain "$WORK/$1.plan" --against "$WORK/$2" -o json >"$WORK/report.json" && python3 - "$WORK/report.json" "$WORK/$2/log.jsonl" <<'PY'
import json, sys
r = json.load(open(sys.argv[1]))
ops, taken = r["ops"], [json.loads(l) for l in open(sys.argv[2])][-1]["memory_bytes"]
print(len(ops), r["memory"]["total"], taken)
assert len(ops) > 40 and all(o["measured_seconds"] > 0 for o in ops if o["kind"] != "wait")
assert abs(taken / (r["holds"][0]["memory_bytes"] - r["memory"]["communication"]) - 1) < 0.03
PY
}
expect "explain --against a run of 1 rank" against one one
expect "explain --against a run of 2 ranks" against ep2 moved
expect "a timeline of 2 ranks" bash -c '"$0" trace "$1/moved" -o "$1/trace.json" && python3 -c "import json, sys; t = json.load(open(sys.argv[1])); assert len({e.get(\"pid\") for e in t[\"traceEvents\"]}) >= 2" "$1/trace.json"' "$MOEC" "$WORK"
expect "sampling from 2 ranks' checkpoint" gpu "$MOEC" sample "$WORK/moved" --tokens 4 -q
refuses "a memory limit that cannot be met" 1 "memory limit of 100.0 KiB.*needs at least .* KiB.*parameters .*optimiser" gpu "$MOEC" compile "$WORK/config.json" -o "$WORK/no.plan" --target=cuda:sm_90a --batch 4 --seq 15 --memory-limit 100K -q

# No experts.
printf '{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 256, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": true}' >"$WORK/config.json"
plan dense-cpu
plan dense --target=cuda:sm_90a --offload-activations
must train dense-cpu dense-cpu
must train dense dense
expect "no experts, activations offloaded: the CPU's losses" near dense-cpu dense
done_testing
