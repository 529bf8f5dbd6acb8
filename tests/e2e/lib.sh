# What the end-to-end scripts share; sourced, never run. They print "ok NAME", "not ok NAME" or "skip NAME", one a line, and exit 1 if
# anything was not ok. Started from the repository's root: $MOEC is the binary, $BUILD its build directory.
set -u
MOEC=$(realpath "${MOEC:-build/moec}")
BUILD=$(realpath "${BUILD:-build}")
ROOT=$PWD
WORK=$(mktemp -d "${TMPDIR:-/tmp}/moec-e2e.XXXXXX")
export LC_ALL=C
unset ${!MOEC_@} # settings of the environment would change what is tested
failures=0
finished= # set by done_testing, the last line of each script: one that breaks off on the way is a failure
undo=() # commands run at the end, last first

finish() {
  local code=$? i
  for ((i = ${#undo[@]} - 1; i >= 0; i--)); do ${undo[i]}; done
  rm -rf "$WORK"
  if [ -z "$finished" ] && [ "$failures" = 0 ]; then echo "not ok $(basename "$0") ended early (status $code)"; failures=1; fi
  [ "$failures" = 0 ] || exit 1
  exit 0
}
trap finish EXIT

done_testing() { finished=1; }
ok() { echo "ok $1"; }
skip() { echo "skip $1"; }
not_ok() { # not_ok NAME [FILE]: the file is shown
  echo "not ok $1"
  failures=$((failures + 1))
  if [ -n "${2:-}" ] && [ -f "$2" ]; then sed 's/^/    /' "$2" | tail -n 15; fi
}
# expect NAME COMMAND...: it succeeds.
expect() {
  local name=$1; shift
  if "$@" >"$WORK/.out" 2>&1; then ok "$name"; else echo "exit $?" >>"$WORK/.out"; not_ok "$name" "$WORK/.out"; fi
}
# refuses NAME CODES PATTERN COMMAND...: ends with one of the codes ("1", "2", "1 2") and a message on stderr that matches the regular
# expression. A crash or an assertion (128 and above) never passes.
refuses() {
  local name=$1 codes=$2 pattern=$3 code; shift 3
  local limit=(timeout 60)
  [ "$(type -t "$1")" != function ] || limit=()
  ${limit[@]+"${limit[@]}"} "$@" >"$WORK/.stdout" 2>"$WORK/.out"; code=$?
  if [[ " $codes " != *" $code "* ]]; then
    echo "exit $code, expected $codes: $*" >>"$WORK/.out"; not_ok "$name" "$WORK/.out"
  elif ! grep -qE -e "$pattern" "$WORK/.out"; then
    echo "(exit $code) the message does not match: $pattern" >>"$WORK/.out"; not_ok "$name" "$WORK/.out"
  else
    ok "$name"
  fi
}
# must COMMAND...: preparation that everything after it needs.
must() {
  if ! "$@" >"$WORK/.out" 2>&1; then not_ok "preparation: $*" "$WORK/.out"; exit 1; fi
}

# A Mixtral of some 60 thousand parameters: tiny_config FILE [KEY=JSON ...]
tiny_config() {
  local file=$1; shift
  python3 - "$file" "$@" <<'PY'
import json, sys
c = dict(architectures=["MixtralForCausalLM"], model_type="mixtral", vocab_size=256, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
         num_attention_heads=4, num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2, max_position_embeddings=64,
         output_router_logits=True, router_aux_loss_coef=0.02, rope_theta=10000.0, rms_norm_eps=1e-5, torch_dtype="float32")
for arg in sys.argv[2:]:
    key, value = arg.split("=", 1)
    if value == "absent":
        c.pop(key, None)
    else:
        c[key] = json.loads(value)
json.dump(c, open(sys.argv[1], "w"), indent=1)
PY
}
# Lines of made-up sentences, the same on every machine: make_text FILE BYTES [SEED]
make_text() {
  python3 - "$@" <<'PY'
import sys
words = "the and of that he shall unto for I his lord they be is him not them it with all thou thy was god which my me said but ye their".split()
n, x, line, out = int(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else 1, [], []
size = 0
while size < n:
    x = (x * 6364136223846793005 + 1442695040888963407) % 2**64
    line.append(words[(x >> 33) % len(words) if (x >> 60) else 0])
    if (x >> 40) % 9 == 0:
        out.append(" ".join(line).capitalize() + ".\n")
        size += len(out[-1])
        line = []
open(sys.argv[1], "w").write("".join(out)[:n])
PY
}
# What a log says of the training, without what depends on the clock or the memory plan.
numbers() { sed -E 's/, "(seconds|tokens_per_second|mfu|memory_bytes|memory_bytes_max|emulated_[a-z0-9_]+|compute_imbalance)": [^,}]*//g' "$1/log.jsonl"; }
newest() { # the newest checkpoint of a run
  local n
  n=$(ls "$1/checkpoints" 2>/dev/null | sed -nE 's/^step-([0-9]+)$/\1/p' | sort -n | tail -n 1)
  [ -n "$n" ] && echo "$1/checkpoints/step-$n"
}
# same_run A B: equal log numbers, traces and newest checkpoints, bit for bit. Says what differs.
same_run() {
  local a b file
  a=$(newest "$1"); b=$(newest "$2")
  if [ -z "$a" ] || [ -z "$b" ]; then echo "a checkpoint is missing: '$a' '$b'"; return 1; fi
  if [ "${a##*/}" != "${b##*/}" ]; then echo "newest checkpoints: $a $b"; return 1; fi
  for file in model.safetensors optimizer.safetensors; do
    cmp "$a/$file" "$b/$file" || return 1
  done
  diff <(numbers "$1") <(numbers "$2") >"$WORK/.diff" || { echo "the logs differ:"; head -n 4 "$WORK/.diff"; return 1; }
  cmp "$1/trace.csv" "$2/trace.csv"
}
# still_there RUN, in $WORK, where checkpoints are made every second step: once the third is logged, one is there for good. (That it is whole shows when
# the run goes on: it refuses to where all are damaged.)
still_there() {
  [ "$(lines_of "$WORK/$1/log.jsonl")" -lt 3 ] || [ -n "$(newest "$WORK/$1")" ] || { echo "no checkpoint is left after step $(lines_of "$WORK/$1/log.jsonl")"; return 1; }
}
have_strace() { command -v strace >/dev/null && strace -f -o /dev/null true 2>/dev/null; }
lines_of() { if [ -f "$1" ]; then wc -l <"$1"; else echo 0; fi; }
# wait_lines FILE N PID: until the file has N lines; fails if the process ends or 30 s pass before.
wait_lines() {
  local i
  for ((i = 0; i < 3000; i++)); do
    if [ "$(lines_of "$1")" -ge "$2" ]; then return 0; fi
    kill -0 "$3" 2>/dev/null || return 1
    sleep 0.01
  done
  return 1
}
