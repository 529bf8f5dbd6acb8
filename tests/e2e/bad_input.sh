#!/usr/bin/env bash
# Bad input of every kind: exit 1 (input) or 2 (misuse) and one message that names the file, key or tensor, says what was expected, and never a crash.
. "$(dirname "$0")/lib.sh"
cd "$WORK"
make_text text.txt 20000
tiny_config good.json
must "$MOEC" compile good.json -o tiny.plan --batch 8 --seq 32 -q
compiles() { "$MOEC" compile "$1" -o made.plan --batch 8 --seq 32 -q "${@:2}"; }

# ---- configs ----
bad_config() { # bad_config NAME PATTERN KEY=JSON...
  tiny_config bad.json "${@:3}"
  refuses "config: $1" 1 "bad.json.*" compiles bad.json
  if grep -qE -e "$2" .out; then ok "config: $1: says what"; else not_ok "config: $1: the message should match $2" .out; fi # .out: what refuses kept
}
bad_config "unknown model type, with the nearest" 'mixtrall.*mixtral' 'model_type="mixtrall"'
bad_config "model type of another family" 'model_type.*gpt2' 'model_type="gpt2"'
bad_config "no model type" 'model_type' model_type=absent
bad_config "missing key" 'hidden_size' hidden_size=absent
bad_config "missing keys are all named" 'hidden_size|vocab_size' hidden_size=absent vocab_size=absent
bad_config "a string for a number" 'hidden_size' 'hidden_size="32"'
bad_config "a fraction for a count" 'num_hidden_layers' num_hidden_layers=1.5
bad_config "a number for a boolean" 'tie_word_embeddings' tie_word_embeddings=1
bad_config "a list for a number" 'rms_norm_eps' 'rms_norm_eps=[1]'
bad_config "heads that do not divide" 'num_attention_heads.*5|5.*hidden_size' num_attention_heads=5
bad_config "key-value heads that do not divide" 'num_key_value_heads' num_key_value_heads=3
bad_config "top-k above the expert count" 'num_experts_per_tok' num_experts_per_tok=5
bad_config "top-k of nothing" 'num_experts_per_tok' num_experts_per_tok=0
bad_config "no experts" 'num_local_experts' num_local_experts=0
bad_config "a negative size" 'intermediate_size' intermediate_size=-48
bad_config "zero layers" 'num_hidden_layers' num_hidden_layers=0
bad_config "an absurd size" 'hidden_size' hidden_size=99999999999
bad_config "an absurd product" 'absurd|too (large|big|many)|at most' hidden_size=16777216 intermediate_size=16777216 num_local_experts=65536
bad_config "absurdly many layers" 'num_hidden_layers' num_hidden_layers=2000000000
bad_config "an integer beyond 64 bits" 'bad.json' vocab_size=99999999999999999999999
bad_config "an odd head width" 'head_dim' head_dim=7
bad_config "an activation that is not there" 'hidden_act.*gelu' 'hidden_act="gelu"'
bad_config "dropout" 'attention_dropout' attention_dropout=0.1
bad_config "a rope type that is not there" 'rope' 'rope_parameters={"rope_type":"yarn","rope_theta":10000.0,"factor":4.0}' rope_theta=absent
bad_config "an unknown dtype" 'dtype' 'torch_dtype="int8"'
bad_config "a misspelt key, with the nearest" 'num_local_expert.*num_local_experts|hiden_size.*hidden_size' hidden_size=absent hiden_size=32
bad_config "epsilon below zero" 'rms_norm_eps' rms_norm_eps=-1

malformed() { # malformed NAME TEXT
  printf '%s' "$2" >bad.json
  refuses "config: $1" 1 'bad.json' compiles bad.json
}
malformed "empty file" ''
malformed "not JSON" 'model_type: mixtral'
malformed "truncated JSON" '{"model_type": "mixtral", "hidden'
malformed "a list" '[1, 2]'
malformed "a number" '3'
malformed "a key twice" '{"model_type": "mixtral", "model_type": "llama"}'
malformed "nested very deep" "$(python3 -c 'print("[" * 100000)')"
printf '{"model_type": "mix\xff\xfe"}' >bad.json
refuses "config: bytes that are not UTF-8" 1 'bad.json' compiles bad.json
printf '{"model_type": "mixtral\\u0000"}' >bad.json
refuses "config: a zero byte in a string" 1 'bad.json' compiles bad.json
refuses "config: no such file" 1 'nowhere.json' compiles nowhere.json
mkdir empty_dir
refuses "config: a directory without one" 1 'empty_dir' compiles empty_dir
printf 'graph @train() {\n  %%0 = nonsense\n}\n' >bad.moe
refuses ".moe: file, line and column" 1 'bad.moe:[0-9]+:[0-9]+' compiles bad.moe
expect "no refused model left a plan" test ! -e made.plan

# ---- weights ----
# Model directories, good ones and ones with each kind of damage.
cat >hf.py <<'PY'
import json, os, struct, sys
H, I, V, L, E, KV = 32, 48, 256, 2, 4, 16
def names():
    out = {"model.embed_tokens.weight": [V, H], "model.norm.weight": [H], "lm_head.weight": [V, H]}
    for l in range(L):
        p = f"model.layers.{l}."
        out.update({p + "input_layernorm.weight": [H], p + "post_attention_layernorm.weight": [H],
                    p + "self_attn.q_proj.weight": [H, H], p + "self_attn.k_proj.weight": [KV, H],
                    p + "self_attn.v_proj.weight": [KV, H], p + "self_attn.o_proj.weight": [H, H],
                    p + "block_sparse_moe.gate.weight": [E, H]})
        for e in range(E):
            q = p + f"block_sparse_moe.experts.{e}."
            out.update({q + "w1.weight": [I, H], q + "w2.weight": [H, I], q + "w3.weight": [I, H]})
    return out
def count(shape):
    n = 1
    for d in shape: n *= d
    return n
def write(path, shapes, dtype="F32", change=None, raw=None):
    size = {"F32": 4, "BF16": 2, "F16": 2, "I64": 8, "I32": 4, "F64": 8}[dtype]
    head, at = {}, 0
    for name, shape in shapes.items():
        n = count(shape) * size
        head[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + n]}
        at += n
    if change: change(head)
    text = json.dumps(head).encode() if raw is None else raw
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text + bytes(at))
PY
init() { "$MOEC" run tiny.plan --data text.txt --out made-run --steps 1 --init-from "$1" -q; }
hf() { # hf NAME PYTHON: a directory made by the lines; `d` is its path
  rm -rf "$1"; mkdir "$1"
  python3 -c "
from hf import *
d = '$1'; s = names()
$2" || not_ok "preparation: $1"
}
weights() { # weights NAME PATTERN PYTHON
  hf bad-hf "$3"
  refuses "weights: $1" 1 "$2" init bad-hf
}
hf good-hf "write(d + '/model.safetensors', s)"
expect "weights: the good ones load" init good-hf
rm -rf made-run
hf good-bf16 "write(d + '/model.safetensors', s, 'BF16')"
expect "weights: bf16 loads" init good-bf16
rm -rf made-run
hf good-f16 "write(d + '/model.safetensors', s, 'F16')"
expect "weights: f16 loads" init good-f16
rm -rf made-run
hf shards "
a = dict(list(s.items())[:9]); b = dict(list(s.items())[9:])
write(d + '/model-00001-of-00002.safetensors', a); write(d + '/model-00002-of-00002.safetensors', b)
m = {k: 'model-00001-of-00002.safetensors' for k in a}; m.update({k: 'model-00002-of-00002.safetensors' for k in b})
json.dump({'metadata': {'total_size': 0}, 'weight_map': m}, open(d + '/model.safetensors.index.json', 'w'))"
expect "weights: shards with an index load" init shards
rm -rf made-run

weights "a missing tensor is named" 'model.norm.weight' "del s['model.norm.weight']; write(d + '/model.safetensors', s)"
weights "every missing tensor is named (1)" 'lm_head.weight' "del s['lm_head.weight'], s['model.layers.1.block_sparse_moe.experts.3.w2.weight']; write(d + '/model.safetensors', s)"
weights "every missing tensor is named (2)" 'layers.1.block_sparse_moe.experts.3.w2.weight' "del s['lm_head.weight'], s['model.layers.1.block_sparse_moe.experts.3.w2.weight']; write(d + '/model.safetensors', s)"
weights "a wrong shape" 'k_proj.weight.*(\[32, 32\]|\[16, 32\])' "s['model.layers.0.self_attn.k_proj.weight'] = [32, 32]; write(d + '/model.safetensors', s)"
weights "transposed" 'w2.weight' "s['model.layers.0.block_sparse_moe.experts.0.w2.weight'] = [48, 32]; write(d + '/model.safetensors', s)"
weights "a wrong dtype" 'I64|integer|dtype' "write(d + '/model.safetensors', s, 'I64')"
weights "an unexpected tensor" 'q_proj.bias' "s['model.layers.0.self_attn.q_proj.bias'] = [32]; write(d + '/model.safetensors', s)"
weights "overlapping tensors" 'model.safetensors.*overlap|overlap|data_offsets' "write(d + '/model.safetensors', s, change=lambda h: h['lm_head.weight'].update(data_offsets=[x - 64 for x in h['lm_head.weight']['data_offsets']]))"
weights "offsets beyond the file" 'model.safetensors' "write(d + '/model.safetensors', s, change=lambda h: h['lm_head.weight'].update(data_offsets=[x + 10**12 for x in h['lm_head.weight']['data_offsets']]))"
weights "offsets that lie about the size" 'model.norm.weight|model.safetensors' "write(d + '/model.safetensors', s, change=lambda h: h['model.norm.weight'].update(shape=[64]))"
weights "negative offsets" 'model.safetensors' "write(d + '/model.safetensors', s, change=lambda h: h['model.norm.weight'].update(data_offsets=[-128, 0]))"
weights "a shape whose product overflows" 'model.safetensors' "write(d + '/model.safetensors', s, change=lambda h: h['model.norm.weight'].update(shape=[2**62, 2**62, 4]))"
weights "a dtype that is not there" 'model.norm.weight|F99' "write(d + '/model.safetensors', s, change=lambda h: h['model.norm.weight'].update(dtype='F99'))"
weights "a header longer than the file" 'model.safetensors' "open(d + '/model.safetensors', 'wb').write(struct.pack('<Q', 2**62) + b'{}')"
weights "a header that is not JSON" 'model.safetensors' "write(d + '/model.safetensors', s, raw=b'{nonsense')"
weights "a file of 5 bytes" 'model.safetensors' "open(d + '/model.safetensors', 'wb').write(b'abcde')"
weights "an empty file" 'model.safetensors' "open(d + '/model.safetensors', 'wb')"
weights "a truncated file" 'model.safetensors' "write(d + '/model.safetensors', s); os.truncate(d + '/model.safetensors', 100000)"
weights "an empty directory" 'bad-hf' "pass"
weights "an index that names a missing shard" 'model-00009|shard' "json.dump({'weight_map': {k: 'model-00009.safetensors' for k in s}}, open(d + '/model.safetensors.index.json', 'w'))"
weights "an index that points outside the directory" 'index|outside|/etc' "json.dump({'weight_map': {k: '../../etc/passwd' for k in s}}, open(d + '/model.safetensors.index.json', 'w'))"
weights "an index without a map" 'index.json' "json.dump({}, open(d + '/model.safetensors.index.json', 'w'))"
expect "refused weights leave no checkpoint" test ! -e made-run/checkpoints
rm -rf made-run

# ---- data ----
data() { # data NAME PATTERN FILE OPTIONS...
  refuses "data: $1" 1 "$2" "$MOEC" run tiny.plan --data "$3" --out made-run --steps 1 -q "${@:4}"
}
: >empty.txt
data "empty" 'empty.txt' empty.txt
printf 'too short' >short.txt
data "too short" 'short.txt.*9 tokens|short.txt' short.txt
data "no such file" 'nowhere.txt' nowhere.txt
data "a directory" 'empty_dir' empty_dir
python3 - <<'PY'
import array, json, struct
ok = [65 + i % 20 for i in range(4000)]
array.array("H", ok[:100] + [256] + ok).tofile(open("beyond.u16", "wb"))
array.array("I", ok[:100] + [4000000000] + ok).tofile(open("beyond.u32", "wb"))
open("odd.u16", "wb").write(b"abc" * 1001)
open("odd.u32", "wb").write(b"abcde" * 1001)
open("noheader.bin", "wb").write(b"\1\2\3\4" * 1000)
head = [20240520, 1, 10**9] + [0] * 253
f = open("lying.bin", "wb"); array.array("i", head).tofile(f); array.array("H", ok).tofile(f)
f = open("version.bin", "wb"); array.array("i", [20240520, 9, 4000] + [0] * 253).tofile(f); array.array("H", ok).tofile(f)
text = "and it came to pass " * 20
lines = [json.dumps({"text": text})] * 10
def jsonl(name, line): open(name, "wb").write("\n".join(lines[:4]).encode() + b"\n" + line + b"\n" + "\n".join(lines).encode() + b"\n")
jsonl("utf8.jsonl", b'{"text": "caf\xe9 and more"}')
jsonl("nokey.jsonl", b'{"body": "text"}')
jsonl("type.jsonl", b'{"text": 7}')
jsonl("broken.jsonl", b'{"text": "no end')
jsonl("list.jsonl", b'["text"]')
PY
data "u16 id beyond the vocabulary: position and id" 'beyond.u16.*256' beyond.u16
data "u32 id beyond the vocabulary" 'beyond.u32.*4000000000|beyond.u32' beyond.u32
data "a u16 file of odd length" 'odd.u16' odd.u16
data "a u32 file of odd length" 'odd.u32' odd.u32
data "a .bin without llm.c's header" 'noheader.bin' noheader.bin
data "an llm.c header that lies" 'lying.bin' lying.bin
data "an llm.c file of another version" 'version.bin' version.bin
data "JSONL that is not UTF-8: the line" 'utf8.jsonl.*(line )?5' utf8.jsonl
data "JSONL without \"text\": the line" 'nokey.jsonl.*5' nokey.jsonl
data "JSONL with a number for text" 'type.jsonl.*5' type.jsonl
data "broken JSONL" 'broken.jsonl.*5' broken.jsonl
data "a list in JSONL" 'list.jsonl.*5' list.jsonl
tiny_config small-vocab.json vocab_size=100
must "$MOEC" compile small-vocab.json -o small.plan --batch 8 --seq 32 -q
refuses "data: text with a vocabulary below 256" 1 'vocab' "$MOEC" run small.plan --data text.txt --out made-run --steps 1 -q
expect "refused data leaves no checkpoint" test ! -e made-run/checkpoints

# ---- options ----
misuse() { refuses "options: $1" 2 "$2" "$MOEC" "${@:3}"; }
misuse "unknown command, with the nearest" 'compile' compil good.json
misuse "unknown option, with the nearest" '"--batch"' compile good.json -o made.plan --bacth 4
misuse "an option of another command" 'lr' compile good.json -o made.plan --lr 3
misuse "no model" 'MODEL' compile
misuse "two models" 'MODEL' compile good.json good.json -o made.plan
misuse "no -o" '-o' compile good.json
misuse "no --data" 'data' run tiny.plan
misuse "a value is missing" 'batch' compile good.json -o made.plan --batch
misuse "not an integer" 'batch.*(integer|number)' compile good.json -o made.plan --batch many
misuse "an integer that overflows" 'batch' compile good.json -o made.plan --batch 99999999999999999999
misuse "batch 0" 'batch' compile good.json -o made.plan --batch 0
misuse "a choice that is none" 'f32' compile good.json -o made.plan --dtype f64
misuse "virtual shards that are no power of two" 'virtual-shards' compile good.json -o made.plan --virtual-shards 6
misuse "more micro-batches than shards" 'micro-batches' compile good.json -o made.plan --micro-batches 16
misuse "a size that is none" 'memory-limit' compile good.json -o made.plan --memory-limit lots
misuse "an unknown pass" 'fuse' compile good.json --stop-after fuze
misuse "an unknown tokenizer" 'byte' compile good.json -o made.plan --tokenizer bpe
misuse "negative steps" 'steps' run tiny.plan --data text.txt --steps -3
misuse "a learning rate that is no number" 'lr' run tiny.plan --data text.txt --lr nan
misuse "beta above 1" 'beta1' run tiny.plan --data text.txt --beta1 1.5
misuse "an eval fraction above 1" 'eval-fraction' run tiny.plan --data text.txt --eval-fraction 2
misuse "keep nothing" 'keep' run tiny.plan --data text.txt --keep 0
refuses "options: an unknown target" "1 2" 'gpu' "$MOEC" compile good.json -o made.plan --target gpu
refuses "options: a sequence longer than the model's positions" "1 2" '64' "$MOEC" compile good.json -o made.plan --seq 65
refuses "options: a memory limit that cannot be met" "1 2" 'memory' "$MOEC" compile good.json -o made.plan --memory-limit 10K
refuses "options: absurd batch" "1 2" 'batch' "$MOEC" compile good.json -o made.plan --batch 16777216 --seq 64
refuses "sample: no such run" 1 'nowhere' "$MOEC" sample nowhere
refuses "sample: not a run" 1 'empty_dir' "$MOEC" sample empty_dir
refuses "export: no such run" 1 'nowhere' "$MOEC" export nowhere -o made-hf
refuses "export: not a run" 1 'empty_dir' "$MOEC" export empty_dir -o made-hf
refuses "explain: no such plan" 1 'nowhere' "$MOEC" explain nowhere
refuses "run: no such plan" 1 'nowhere' "$MOEC" run nowhere --data text.txt
refuses "opt: no such file" 1 'nowhere' "$MOEC" opt nowhere.moe
misuse "no command at all" 'COMMAND'
expect "nothing was made" bash -c '[ ! -e made.plan ] && [ ! -e made-hf ] && [ ! -e made-run/checkpoints ]'
done_testing
