#!/usr/bin/env bash
# What `moec export` writes loads in Hugging Face transformers and computes the same there. Runs where transformers is installed ($MOEC_PYTHON
# names the Python that has it), else says skip.
python=${MOEC_PYTHON:-python3}
. "$(dirname "$0")/lib.sh"
if ! "$python" -c 'import torch, transformers, safetensors' 2>/dev/null; then
  skip "exports load in transformers ($python has no transformers)"
  done_testing
  exit
fi
export TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=error
check() { "$python" "$ROOT/tests/transformers/check_export.py" "$@"; }
make_text "$WORK/text.txt" 12000

# Weights in from the fixture, out again after a step that changes nothing.
for name in mixtral mixtral_tied mixtral_head_dim mixtral_old_spelling llama llama_tied llama_old_spelling; do
  fixture=tests/data/$name
  vocab=$(sed -nE 's/.*"vocab_size": ([0-9]+).*/\1/p' "$fixture/config.json")
  python3 -c 'import array, sys; v = int(sys.argv[1]); array.array("H", [(i * 7 + i // 5) % v for i in range(2000)]).tofile(open(sys.argv[2], "wb"))' \
    "$vocab" "$WORK/tokens.u16"
  must "$MOEC" compile "$fixture" -o "$WORK/$name.plan" --batch 2 --seq 16 --dtype f32 -q
  must "$MOEC" run "$WORK/$name.plan" --data "$WORK/tokens.u16" --out "$WORK/$name" --steps 1 --lr 0 --weight-decay 0 --init-from "$fixture" -q
  must "$MOEC" export "$WORK/$name" -o "$WORK/$name-hf" -q
  expect "$name: from_pretrained, the same logits" check fixture "$WORK/$name-hf" "$fixture"
done

# A trained run: the loss of another text, all 125 sequences of which are one batch of a step that changes nothing.
tiny_config "$WORK/config.json"
must "$MOEC" compile "$WORK/config.json" -o "$WORK/tiny.plan" --batch 8 --seq 32 -q
must "$MOEC" run "$WORK/tiny.plan" --data "$WORK/text.txt" --out "$WORK/run" --steps 60 --lr 0.005 -q
must "$MOEC" export "$WORK/run" -o "$WORK/run-hf" -q
make_text "$WORK/other.txt" 4001 5
must "$MOEC" compile "$WORK/config.json" -o "$WORK/all.plan" --batch 125 --seq 32 -q
must "$MOEC" run "$WORK/all.plan" --data "$WORK/other.txt" --out "$WORK/eval" --steps 1 --lr 0 --weight-decay 0 --init-from "$WORK/run-hf" --eval-fraction 0 -q
loss=$(sed -nE 's/.*"ce_loss": ([0-9.]+).*/\1/p' "$WORK/eval/log.jsonl")
expect "a trained run: its loss ($loss) on another text is what transformers computes" check run "$WORK/run-hf" "$loss" "$WORK/other.txt" 32
must "$MOEC" export "$WORK/run" -o "$WORK/run-bf16" --dtype bf16 -q
expect "a bf16 export loads as bf16" "$python" -c 'import sys, torch, transformers
m = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1])
assert m.dtype == torch.bfloat16, m.dtype' "$WORK/run-bf16"
done_testing
