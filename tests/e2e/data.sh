#!/usr/bin/env bash
# The same tokens train the same, whatever file they come in: text, JSONL, raw u16 and u32, llm.c's .bin (both versions).
. "$(dirname "$0")/lib.sh"
cd "$WORK"
tiny_config config.json
must "$MOEC" compile config.json -o tiny.plan --batch 8 --seq 32 -q
make_text text.txt 20000
python3 - <<'PY'
import array, json
data = open("text.txt", "rb").read()
if not data.endswith(b"\n"):
    data += b"\n"
open("text.txt", "wb").write(data)
# JSONL: each line a document; the byte tokenizer ends each with a newline, so this is the text again.
with open("text.jsonl", "w") as f:
    for line in data.decode().splitlines():
        f.write(json.dumps({"id": 7, "text": line, "more": {"text": "no"}}) + "\n")
# The same with letters that JSON escapes, blank lines between, other spacing and no newline at the end.
accents = "Thérèse said: \"na\\ïve\", \U0001f600\t.\n" * 400
open("accents.txt", "w", newline="").write(accents)
docs = accents.splitlines()
open("ascii.jsonl", "w").write("\n".join(json.dumps({"text": d}) for d in docs))
open("raw.jsonl", "w").write("\r\n\n".join(json.dumps({"text": d}, ensure_ascii=False, separators=(",", ":")) for d in docs) + "\n")
array.array("H", list(data)).tofile(open("text.u16", "wb"))
array.array("I", list(data)).tofile(open("text.u32", "wb"))
def llmc(name, magic, version, kind):
    with open(name, "wb") as f:
        array.array("i", [magic, version, len(data)] + [0] * 253).tofile(f)
        array.array(kind, list(data)).tofile(f)
llmc("text16.bin", 20240520, 1, "H")
llmc("text32.bin", 20240801, 7, "I")
PY
run() { "$MOEC" run tiny.plan --data "$1" --out "$2" --steps 6 --eval-every 3 --threads 2 -q "${@:3}"; }
must run text.txt text
alike() { # alike NAME A B: the same log and weights; bits per byte are known for text only
  local strip='s/, "eval_bits_per_byte": [^,}]*//'
  if ! cmp "$(newest "$2")/model.safetensors" "$(newest "$3")/model.safetensors" >.out 2>&1; then not_ok "$1" .out
  else expect "$1" cmp <(numbers "$2" | sed -E "$strip") <(numbers "$3" | sed -E "$strip"); fi
}
for file in text.jsonl text.u16 text.u32 text16.bin text32.bin; do
  must run $file "run-$file"
  alike "$file trains as the text" text "run-$file"
done
expect "JSONL says the bits per byte of the text" cmp <(numbers text) <(numbers run-text.jsonl)
cp text.u16 tokens.dat; cp text.txt other.bin; cp text.jsonl lines.txt
must run tokens.dat named16 --format u16
alike "--format u16 whatever the name" text named16
must run other.bin namedtext --format text
alike "--format text whatever the name" text namedtext
must run lines.txt namedjsonl --format jsonl
alike "--format jsonl whatever the name" text namedjsonl
must run accents.txt accents
for file in ascii.jsonl raw.jsonl; do
  must run $file "run-$file"
  alike "$file: escapes and UTF-8 are the same text" accents "run-$file"
done
head -c 20000 /dev/urandom >random.txt
expect "text may hold any bytes" run random.txt random
must run text.u32 wrong --format u16
expect "u32 read as u16 is not the same" bash -c '! cmp -s "$0" "$1"' "$(newest text)/model.safetensors" "$(newest wrong)/model.safetensors"

# Order: seeded; so much is held out.
must run text.txt again --seed 1
alike "the same seed, the same order" text again
must run text.txt seed1 --seed 1 --init-from "$(newest text)"
must run text.txt seed2 --seed 2 --init-from "$(newest text)"
expect "another seed, another order" bash -c '! cmp -s <(cut -d, -f2 "$0") <(cut -d, -f2 "$1")' seed1/log.jsonl seed2/log.jsonl
held_out() { sed -nE 's/.*"eval_tokens": ([0-9]+).*/\1/p' "$1/log.jsonl" | tail -n 1; }
must run text.txt half --eval-fraction 0.5
expect "--eval-fraction 0.5 holds half of the text out ($(held_out half) tokens)" test "$(held_out half)" -ge 9800 -a "$(held_out half)" -le 10200
# Other data in a run that goes on: said, since the position means something else then.
must run text.txt moved
if run accents.txt moved --steps 8 > said.txt 2>&1; then expect "data changed under a run: said" grep -qi 'data' said.txt; else ok "data changed under a run: refused"; fi
done_testing
