#!/usr/bin/env bash
# Loss or gradients that are not finite: the step is skipped, logged and counted, the parameters stay; after 10 in a row the run stops with exit 1
# and the last good checkpoint is there to go on from.
. "$(dirname "$0")/lib.sh"
tiny_config "$WORK/config.json"
must "$MOEC" compile "$WORK/config.json" -o "$WORK/tiny.plan" --batch 8 --seq 32 -q
make_text "$WORK/text.txt" 8000
# The same text with one letter that occurs nowhere else, early in the training part.
python3 - "$WORK/text.txt" "$WORK/marked.txt" <<'PY'
import sys
t = bytearray(open(sys.argv[1], "rb").read())
t[1003] = ord("~")
open(sys.argv[2], "wb").write(t)
PY
run() { "$MOEC" run "$WORK/tiny.plan" --out "$WORK/$1" --threads 2 -q "${@:2}"; }
must run start --data "$WORK/text.txt" --steps 1
must "$MOEC" export "$WORK/start" -o "$WORK/hf" -q
poison() { # poison DIR ROW: a NaN in one row of the embedding
  rm -rf "$1"
  cp -r "$WORK/hf" "$1"
  python3 - "$1/model.safetensors" "$2" <<'PY'
import json, struct, sys
with open(sys.argv[1], "r+b") as f:
    n = struct.unpack("<Q", f.read(8))[0]
    t = json.loads(f.read(n))["model.embed_tokens.weight"]
    f.seek(8 + n + t["data_offsets"][0] + 4 * t["shape"][1] * int(sys.argv[2]))
    f.write(struct.pack("<f", float("nan")))
PY
}

# One bad sequence in the whole text: only the steps that meet it are left out.
poison "$WORK/hf-one" 126
must run one --init-from "$WORK/hf-one" --data "$WORK/marked.txt" --steps 60
python3 - "$WORK/one/log.jsonl" >"$WORK/.out" 2>&1 <<'PY'
import json, math, sys
log = [json.loads(line) for line in open(sys.argv[1])]
skipped = [r["step"] for r in log if r.get("skipped")]
assert len(log) == 60, len(log)
assert 1 <= len(skipped) <= 4, skipped        # once an epoch of some 29 steps
for r in log:
    if r.get("skipped"):
        assert r["loss"] is None or r["grad_norm"] is None, r
    else:
        assert math.isfinite(r["loss"]) and math.isfinite(r["grad_norm"]), r
print("skipped", skipped)
PY
if [ $? = 0 ]; then ok "a bad sequence: only its steps are skipped, and logged"; else not_ok "a bad sequence: only its steps are skipped, and logged" "$WORK/.out"; fi
n=$(grep -c '"skipped": true' "$WORK/one/log.jsonl")
expect "a bad sequence: counted in the checkpoint" python3 -c 'import json, sys; s = json.load(open(sys.argv[1]))["state"]; assert s["skipped"] == int(sys.argv[2]) and s["updates"] == 60 - s["skipped"], s' \
  "$(newest "$WORK/one")/manifest.json" "$n"
run said --init-from "$WORK/hf-one" --data "$WORK/marked.txt" --steps 60 >"$WORK/.report" 2>"$WORK/.warnings"
expect "a bad sequence: warned of" grep -qE 'step [0-9]+ is skipped' "$WORK/.warnings"
expect "a bad sequence: counted in the report" grep -q "$n steps\? .*skipped" "$WORK/.report"
must "$MOEC" export "$WORK/one" -o "$WORK/one-out" -q
expect "a bad sequence: no other weight became NaN" python3 - "$WORK/one-out/model.safetensors" <<'PY'
import array, json, struct, sys
f = open(sys.argv[1], "rb")
n = struct.unpack("<Q", f.read(8))[0]
head = json.loads(f.read(n))
data = f.read()
bad = {}
for name, t in head.items():
    if name != "__metadata__":
        a = array.array("f", data[t["data_offsets"][0]:t["data_offsets"][1]])
        k = sum(x != x for x in a)
        if k:
            bad[name] = k
assert list(bad) == ["model.embed_tokens.weight"], bad
PY
# The skipped steps are part of the run: killed and resumed, it is the same.
must run parts --init-from "$WORK/hf-one" --data "$WORK/marked.txt" --steps 60 --checkpoint-every 7 --keep 99
s=$(grep '"skipped": true' "$WORK/parts/log.jsonl" | head -n 1 | sed -E 's/.*"step": ([0-9]+).*/\1/')
from=$(((s / 7) * 7))
for c in "$WORK"/parts/checkpoints/step-*; do [ "${c##*-}" -le "$from" ] || rm -rf "$c"; done
if [ "$from" -ge 7 ]; then
  must run parts --init-from "$WORK/hf-one" --data "$WORK/marked.txt" --steps 60 --checkpoint-every 7
  expect "a bad sequence: resumed before it, the same weights" cmp "$(newest "$WORK/parts")/model.safetensors" "$(newest "$WORK/one")/model.safetensors"
else
  ok "a bad sequence: met in the first 7 steps (nothing to resume before it)"
fi

# Nothing but bad steps: ten, then the end.
poison "$WORK/hf-all" 101
refuses "ten bad steps in a row end the run" 1 '10 steps in a row.*not finite' run all --init-from "$WORK/hf-all" --data "$WORK/text.txt" --steps 60
expect "ten bad steps are logged" test "$(grep -c '"skipped": true' "$WORK/all/log.jsonl")/$(lines_of "$WORK/all/log.jsonl")" = 10/10

# A learning rate that blows the model up after a good start: the good checkpoint stays and can be continued.
must run good --data "$WORK/text.txt" --steps 4
before=$(cd "$(newest "$WORK/good")" && cat *.safetensors manifest.json | cksum)
refuses "a learning rate far too high ends the run" 1 'not finite.*step-4' run good --data "$WORK/text.txt" --steps 60 --lr 1000 --clip-grad-norm 0
expect "the last good checkpoint is untouched" test "$before" = "$(cd "$WORK/good/checkpoints/step-4" && cat *.safetensors manifest.json | cksum)"
must run good --data "$WORK/text.txt" --steps 8
expect "and the run goes on from it" test "$(newest "$WORK/good")/$(lines_of "$WORK/good/log.jsonl")" = "$WORK/good/checkpoints/step-8/8"
done_testing
