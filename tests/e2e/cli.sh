#!/usr/bin/env bash
# The commands as a person or a program uses them: help, docs, settings and their order, reports that parse, compile's debugging options, sample, export.
. "$(dirname "$0")/lib.sh"
make_text "$WORK/text.txt" 30000
tiny_config "$WORK/config.json"
cd "$WORK"

# ---- help and docs ----
commands=$(sed -nE 's/^COMMAND\(([a-z]+),.*/\1/p' "$ROOT/cli/commands.def")
for c in $commands; do
  expect "help $c" bash -c '"$0" help "$1" | grep -q "^usage: moec $1"' "$MOEC" "$c"
  expect "$c --help is the same" cmp <("$MOEC" help "$c") <("$MOEC" "$c" --help)
done
expect "help names every command" bash -c 'h=$("$0" help); shift; for c; do grep -qE "^  $c " <<<"$h" || exit 1; done' "$MOEC" x $commands
refuses "help of no command, with the nearest" 2 'compile' "$MOEC" help compil
expect "--version" bash -c '"$0" --version | grep -qE "^moec [0-9]"' "$MOEC"
expect "docs/CLI.md is what help markdown prints" diff "$ROOT/docs/CLI.md" <("$MOEC" help markdown)
expect "bash completion is bash" bash -n <("$MOEC" help bash)
expect "bash completion offers options" bash -c 'source <("$0" help bash); COMP_WORDS=(moec run --st) COMP_CWORD=2; _moec; [[ " ${COMPREPLY[*]} " == *" --steps "* ]]' "$MOEC"

# ---- settings: default < --config < MOEC_* < flag ----
field() { python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))[sys.argv[2]])' "$1/plan.json" "$2"; }
compile() { "$MOEC" compile config.json -o "$1" -q "${@:2}"; }
echo '{"batch": 4, "seq": 16, "dtype": "bf16"}' >settings.json
must compile default.plan
expect "the default batch" test "$(field default.plan batch)" = 8
expect "the default sequence is the config's" test "$(field default.plan seq)" = 64
must compile file.plan --config settings.json
expect "--config over the default" test "$(field file.plan batch)/$(field file.plan seq)/$(field file.plan dtype)" = 4/16/bf16
MOEC_BATCH=2 must compile env.plan --config settings.json
expect "MOEC_BATCH over --config" test "$(field env.plan batch)/$(field env.plan seq)" = 2/16
MOEC_BATCH=2 must compile flag.plan --batch 6 --config settings.json
expect "a flag over MOEC_BATCH" test "$(field flag.plan batch)/$(field flag.plan seq)" = 6/16
must "$MOEC" compile config.json --output=equals.plan --batch=3 --no-verify-each --quiet
expect "--name=value and --no-name" test "$(field equals.plan batch)" = 3
MOEC_BATCH=many refuses "a bad variable is named" 2 'MOEC_BATCH' "$MOEC" compile config.json -o bad.plan
echo '{"bach": 4}' >bad.json
refuses "an unknown setting names the file and the nearest" 2 'bad.json.*batch' "$MOEC" compile config.json -o bad.plan --config bad.json
echo '{"batch": [4]}' >bad.json
refuses "a setting of a wrong type" '1 2' 'bad.json.*batch' "$MOEC" compile config.json -o bad.plan --config bad.json
echo '{"batch": ' >bad.json
refuses "settings that are not JSON" '1 2' 'bad.json' "$MOEC" compile config.json -o bad.plan --config bad.json

# ---- compile ----
must compile tiny.plan --batch 8 --seq 32
expect "the plan's files" bash -c 'cd "$0" && for f in plan.json kernels.o model.moe step.moe; do [ -s $f ] || exit 1; done' tiny.plan
expect "plan.json is JSON" python3 -m json.tool tiny.plan/plan.json /dev/null
must compile llvm.plan --batch 8 --seq 32 --emit llvm
expect "--emit llvm keeps the kernels' text" grep -q '^define' llvm.plan/kernels.ll
"$MOEC" compile config.json -o printed.plan --batch 8 --seq 32 -q --print-after all >printed.txt 2>&1
expect "--print-after all prints every pass" bash -c 'for p in grad decompose recompute fuse memplan; do grep -q "$p" printed.txt || exit 1; done'
expect "--print-after=grad prints IR" bash -c '"$0" compile config.json -o p.plan --batch 8 --seq 32 -q --print-after=grad 2>&1 | grep -q "graph @train"' "$MOEC"
must "$MOEC" compile config.json --stop-after grad --batch 8 --seq 32
expect "--time-passes names the passes" bash -c '"$0" compile config.json -o p.plan --batch 8 --seq 32 -q --time-passes 2>&1 | grep -q fuse' "$MOEC"
tiny_config smaller.json hidden_size=16 intermediate_size=12 num_hidden_layers=1 vocab_size=40 num_attention_heads=2 num_key_value_heads=1
expect "--eval-each --verify-each" "$MOEC" compile smaller.json -o p.plan --batch 2 --seq 6 --virtual-shards 2 -q --eval-each --verify-each
expect "a plan's model.moe compiles again to the same kernels" bash -c '"$0" compile tiny.plan/model.moe -o again.plan --dtype f32 -q && cmp tiny.plan/kernels.o again.plan/kernels.o' "$MOEC"
expect "opt parses and prints a plan's IR" bash -c '"$0" opt tiny.plan/model.moe >printed.moe && cmp printed.moe tiny.plan/model.moe' "$MOEC"
expect "opt runs passes by hand" bash -c '"$0" opt tiny.plan/model.moe --passes=grad,decompose | grep -q "graph @train"' "$MOEC"
refuses "opt names an unknown pass and the nearest" '1 2' 'grad' "$MOEC" opt tiny.plan/model.moe --passes=gard
must compile small-memory.plan --batch 8 --seq 32 --recompute layer
must compile large-memory.plan --batch 8 --seq 32 --recompute none
slab() { python3 -c 'import json, sys; print(json.load(open(sys.argv[1] + "/plan.json"))["programs"]["train"]["slab_bytes"])' "$1"; }
expect "recompute saves memory ($(slab small-memory.plan) < $(slab large-memory.plan))" test "$(slab small-memory.plan)" -lt "$(slab large-memory.plan)"
limit=$(python3 -c 'import json, sys
p = json.load(open("large-memory.plan/plan.json")); print(sum(b["bytes"] for b in p["buffers"]) + (int(sys.argv[1]) + int(sys.argv[2])) // 2)' "$(slab small-memory.plan)" "$(slab large-memory.plan)")
must compile limited.plan --batch 8 --seq 32 --memory-limit "$limit"
expect "--memory-limit makes auto recompute" test "$(slab limited.plan)" -lt "$(slab large-memory.plan)"
expect "the slab is at most 1.05 of its lower bound" python3 - <<'PY'
import json
for name in ("small-memory", "large-memory", "limited"):
    for program, p in json.load(open(name + ".plan/plan.json"))["programs"].items():
        assert p["slab_bytes"] <= 1.05 * p["slab_lower_bound"] + 64, (name, program, p["slab_bytes"], p["slab_lower_bound"])
PY
if [ "$(uname -m)" = x86_64 ]; then
  must compile old.plan --batch 8 --seq 32 --target cpu:x86-64
  expect "a plan for a plainer CPU runs" "$MOEC" run old.plan --data text.txt --out old --steps 2 -q
  sed 's/"target": "cpu:[^"]*"/"target": "cpu:knl"/' tiny.plan/plan.json >other.json
  cp -r tiny.plan other.plan && mv other.json other.plan/plan.json
  if "$MOEC" run other.plan --data text.txt --out other --steps 2 >said.txt 2>&1; then
    expect "a plan for another CPU is compiled again, with a note" grep -q 'compiling it again' said.txt
  else
    not_ok "a plan for another CPU is compiled again" said.txt
  fi
  must "$MOEC" run tiny.plan --data text.txt --out same --steps 2 -q
  expect "and trains the same" same_run other same
fi

# ---- run, explain ----
must "$MOEC" run tiny.plan --data text.txt --out run --steps 12 --eval-every 5 --checkpoint-every 5 -q
expect "run: one line a step, each JSON with the promised keys" python3 - <<'PY'
import json
log = [json.loads(line) for line in open("run/log.jsonl")]
assert [r["step"] for r in log] == list(range(1, 13))
for r in log:
    for key in "loss ce_loss aux_loss grad_norm lr tokens seconds tokens_per_second mfu memory_bytes imbalance".split():
        assert key in r, (key, r)
    assert abs(r["loss"] - (r["ce_loss"] + 0.02 * r["aux_loss"])) < 1e-5, r
assert log[-1]["loss"] < log[0]["loss"]
assert [r["step"] for r in log if "eval_loss" in r] == [5, 10, 12]
PY
expect "run: the load trace adds up" python3 - <<'PY'
import csv
rows = list(csv.reader(open("run/trace.csv")))
assert rows[0] == ["step", "layer", "rank", "e0", "e1", "e2", "e3"], rows[0]
total = {}
for r in rows[1:]:
    total[r[0], r[1]] = total.get((r[0], r[1]), 0) + sum(map(int, r[3:]))
assert len(total) == 12 * 2 and set(total.values()) == {8 * 32 * 2}, total
assert len(rows) == 1 + 12 * 2 * 8
PY
expect "run: the settings are kept" python3 -c 'import json; s = json.load(open("run/config.json"))["settings"]; assert s["steps"] == 12 and s["eval-every"] == 5, s'
expect "run: checkpoints" bash -c '[ "$(ls run/checkpoints | sort -t- -k2n | tr "\n" " ")" = "step-5 step-10 step-12 " ]'
expect "run again: nothing left to do, says so" bash -c '"$0" run tiny.plan --data text.txt --out run --steps 12 2>&1 | grep -q "already"' "$MOEC"
expect "run: the default --out is runs/NAME" bash -c '"$0" run tiny.plan --data text.txt --steps 1 -q && [ -d runs/tiny/checkpoints/step-1 ]' "$MOEC"
expect "run: --keep 1" bash -c '"$0" run tiny.plan --data text.txt --out keep --steps 6 --checkpoint-every 2 --keep 1 -q && [ "$(ls keep/checkpoints)" = step-6 ]' "$MOEC"
expect "run: --resume DIR goes back to that checkpoint" bash -c 'cp -r run back && "$0" run tiny.plan --data text.txt --out back --steps 12 --eval-every 5 --checkpoint-every 5 --resume back/checkpoints/step-5 -q && cmp back/checkpoints/step-12/model.safetensors run/checkpoints/step-12/model.safetensors' "$MOEC"
expect "run: --max-seconds ends cleanly" bash -c '"$0" run tiny.plan --data text.txt --out timed --steps 100000000 --max-seconds 0.5 >said.txt 2>&1 && grep -q "max-seconds" said.txt && [ -n "$(ls timed/checkpoints)" ]' "$MOEC"
expect "explain: md" bash -c '"$0" explain tiny.plan | grep -q "^| op "' "$MOEC"
expect "explain: json parses" bash -c '"$0" explain tiny.plan -o json | python3 -m json.tool >/dev/null' "$MOEC"
expect "explain: csv has as many fields in each row" bash -c '"$0" explain tiny.plan -o csv | python3 -c "import csv, sys; r = list(csv.reader(sys.stdin)); assert len(r) > 10 and len({len(x) for x in r}) == 1"' "$MOEC"
for program in train eval logits; do expect "explain: --program $program" "$MOEC" explain tiny.plan --program $program; done
refuses "explain: an unknown program" '1 2' 'train' "$MOEC" explain tiny.plan --program trian
for form in md csv json; do expect "explain --against a run: $form" "$MOEC" explain tiny.plan --against run -o $form; done
expect "explain --against: measured times are there" bash -c '"$0" explain tiny.plan --against run -o json | python3 -c "import json, sys; r = json.load(sys.stdin); assert all(o[\"measured_seconds\"] > 0 for o in r[\"ops\"])"' "$MOEC"
expect "explain: the time of the ops adds up" bash -c '"$0" explain tiny.plan -o json | python3 -c "import json, sys; r = json.load(sys.stdin); s = sum(o[\"predicted_seconds\"] for o in r[\"ops\"]); assert abs(s - r[\"predicted_seconds\"]) < 1e-9 + 1e-6 * s"' "$MOEC"

# ---- sample, export ----
expect "sample: that many bytes" bash -c '[ "$("$0" sample run --prompt "And " --tokens 20 --seed 3 | wc -c)" = 25 ]' "$MOEC"
expect "sample: the same seed, the same text" cmp <("$MOEC" sample run --tokens 60 --seed 3) <("$MOEC" sample run --tokens 60 --seed 3)
expect "sample: the same with one thread" cmp <("$MOEC" sample run --tokens 60 --seed 3 --threads 1) <("$MOEC" sample run --tokens 60 --seed 3 --threads 2)
expect "sample: another seed, another text" bash -c '! cmp -s <("$0" sample run --tokens 60 --seed 3) <("$0" sample run --tokens 60 --seed 4)' "$MOEC"
expect "sample: temperature 0 needs no seed" cmp <("$MOEC" sample run --tokens 40 --temperature 0 --seed 1) <("$MOEC" sample run --tokens 40 --temperature 0 --seed 2)
expect "sample: top-k 1 is temperature 0" cmp <("$MOEC" sample run --tokens 40 --top-k 1) <("$MOEC" sample run --tokens 40 --temperature 0)
must "$MOEC" export run -o hf -q
expect "export: config.json keeps every key" python3 -c 'import json; a, b = json.load(open("config.json")), json.load(open("hf/config.json")); assert all(b[k] == v for k, v in a.items() if k != "torch_dtype"), b'
expect "export and back: the same weights" bash -c '"$0" run tiny.plan --data text.txt --out from --steps 1 --lr 0 --weight-decay 0 --init-from hf -q && "$0" export from -o hf2 -q && cmp hf/model.safetensors hf2/model.safetensors' "$MOEC"
expect "export again replaces an export" "$MOEC" export run -o hf -q
must "$MOEC" export run -o hf16 --dtype bf16 -q
expect "export: bf16 is half as large" python3 -c 'import os; a, b = (os.path.getsize(d + "/model.safetensors") for d in ("hf", "hf16")); assert 0.45 < b / a < 0.56, (a, b)'
expect "export: a checkpoint by name" "$MOEC" export run/checkpoints/step-5 -o hf5 -q
expect "export: and it is another" bash -c '! cmp -s hf5/model.safetensors hf/model.safetensors'
done_testing
