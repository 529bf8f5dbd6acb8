#!/usr/bin/env bash
# A full disk, damaged plans and checkpoints, an output directory that is something else: a clear error, and nothing that existed is lost.
. "$(dirname "$0")/lib.sh"
make_text "$WORK/text.txt" 40000
tiny_config "$WORK/config.json"
compile() { "$MOEC" compile "$WORK/config.json" -o "$1" --batch 8 --seq 32 -q "${@:2}"; }
run() { "$MOEC" run "$WORK/tiny.plan" --data "$WORK/text.txt" --out "$1" --steps "$2" --checkpoint-every 4 --lr 0.003 --threads 2 -q "${@:3}"; }
must compile "$WORK/tiny.plan"
must run "$WORK/reference" 12
must run "$WORK/parts" 4 # the learning rate follows --steps: another run than the one of 12 steps at once
must run "$WORK/parts" 12
flip() { # flip FILE OFFSET: one bit (offset from the end when negative)
  python3 - "$1" "$2" <<'PY'
import os, sys
path, at = sys.argv[1], int(sys.argv[2])
with open(path, "r+b") as f:
    at = at if at >= 0 else os.path.getsize(path) + at
    f.seek(at)
    b = f.read(1)[0] ^ 4
    f.seek(at)
    f.write(bytes([b]))
PY
}
shorten() { truncate -s "$(($(stat -c %s "$1") - $2))" "$1"; }

# ---- a full disk ----
disk=$WORK/disk
mkdir "$disk"
if [ "$(id -u)" = 0 ] && mount -t tmpfs -o size=1300k tmpfs "$disk" 2>/dev/null; then
  undo+=("umount -l $disk")
  refuses "disk full while checkpointing: exit 1, said" 1 'No space left' run "$disk/run" 12
  expect "disk full: training went on to the end" test "$(lines_of "$disk/run/log.jsonl")" = 12
  first=$(newest "$disk/run")
  expect "disk full: the checkpoint before is intact" "$MOEC" export "$first" -o "$WORK/from-full" -q
  expect "disk full: no half checkpoint is left" bash -c '! ls -A "$0"/checkpoints | grep -qE "tmp|trash"' "$disk/run"
  mount -o remount,size=64m "$disk"
  must run "$disk/run" 12
  expect "disk with room again: continues to the same weights" same_run "$WORK/reference" "$disk/run"
  mount -o remount,size=64m "$disk"
  must compile "$disk/kept.plan"
  must cp -r "$disk/kept.plan" "$WORK/kept.plan"
  used=$(du -sk "$disk" | cut -f1)
  mount -o remount,size=$((used + 60))k "$disk"
  refuses "disk full while compiling over a plan: exit 1" 1 'No space left' compile "$disk/kept.plan" --recompute layer
  expect "disk full: the plan before is untouched" diff -r "$disk/kept.plan" "$WORK/kept.plan"
  refuses "disk full while exporting: exit 1" 1 'No space left' "$MOEC" export "$WORK/reference" -o "$disk/hf" -q
  expect "disk full: no half export" bash -c '! ls -A "$0" | grep -q hf' "$disk"
else
  skip "full disk on a small tmpfs (needs root and mount)"
fi
expect "output to a full device is no success" bash -c '! "$0" help markdown >/dev/full && ! "$0" explain "$1" -o json >/dev/full' "$MOEC" "$WORK/tiny.plan"
if have_strace; then
  # Not only full: the disk fails for good while checkpoints are written.
  for call in fsync rename; do
    calls=$call
    [ $call = rename ] && calls=rename,renameat,renameat2
    rm -rf "$WORK/eio"
    must run "$WORK/eio" 4
    before=$(cd "$WORK/eio/checkpoints/step-4" && cat model.safetensors manifest.json | cksum)
    refuses "$call fails: exit 1, said" 1 'Input/output error' strace -f -qq -o /dev/null -e trace=$calls -e inject=$calls:error=EIO \
      "$MOEC" run "$WORK/tiny.plan" --data "$WORK/text.txt" --out "$WORK/eio" --steps 12 --checkpoint-every 4 --lr 0.003 -q
    expect "$call fails: the checkpoint before is untouched" test "$before" = "$(cd "$WORK/eio/checkpoints/step-4" && cat model.safetensors manifest.json | cksum)"
    must run "$WORK/eio" 12
    expect "$call fails: weights of the run continued" cmp "$WORK/eio/checkpoints/step-12/optimizer.safetensors" "$WORK/parts/checkpoints/step-12/optimizer.safetensors"
  done
else
  skip "system calls that fail (strace cannot trace here)"
fi

# ---- damaged checkpoints: the one before is taken, with a warning, and training comes to the same end ----
damage() { # damage NAME FILE COMMAND...: COMMAND spoils FILE of step-12; the run to 16 goes on from step-8
  local dir=$WORK/damaged newest file=$2
  rm -rf "$dir"
  must cp -r "$WORK/reference" "$dir"
  "${@:3}" "$dir/checkpoints/step-12/$file"
  run "$dir" 12 >"$WORK/.log" 2>&1
  local code=$?
  if [ $code != 0 ] || ! grep -q "step-12.*$file" "$WORK/.log"; then echo "exit $code" >>"$WORK/.log"; not_ok "$1: a warning names the checkpoint and $file" "$WORK/.log"; return; fi
  expect "$1: falls back, trains to the same end" same_run "$WORK/reference" "$dir"
}
flip_at() { flip "$2" "$1"; }
shorten_by() { shorten "$2" "$1"; }
empty() { : >"$1"; }
damage "a flipped bit in the weights" model.safetensors flip_at -100
damage "a flipped bit in the header" model.safetensors flip_at 30
damage "a flipped bit in the moments" optimizer.safetensors flip_at -5000
damage "truncated moments" optimizer.safetensors shorten_by 1000
damage "empty weights" model.safetensors empty
damage "missing moments" optimizer.safetensors rm
damage "a flipped bit in the manifest" manifest.json flip_at 200
damage "a truncated manifest" manifest.json shorten_by 20
damage "a missing manifest" manifest.json rm
rm -rf "$WORK/damaged"
cp -r "$WORK/reference" "$WORK/damaged"
for c in "$WORK"/damaged/checkpoints/step-*; do flip "$c/model.safetensors" -100; done
refuses "every checkpoint damaged: refused, not started anew" 1 'intact|damaged' run "$WORK/damaged" 16
refuses "sample of damaged checkpoints" 1 'intact|damaged' "$MOEC" sample "$WORK/damaged" --tokens 4
refuses "export of damaged checkpoints" 1 'intact|damaged' "$MOEC" export "$WORK/damaged" -o "$WORK/none"
expect "export of damaged checkpoints: nothing written" test ! -e "$WORK/none"

# ---- damaged plans ----
plan_damage() { # plan_damage NAME PATTERN FILE COMMAND...
  rm -rf "$WORK/bad.plan"
  cp -r "$WORK/tiny.plan" "$WORK/bad.plan"
  "${@:4}" "$WORK/bad.plan/$3"
  refuses "$1: run" 1 "$2" "$MOEC" run "$WORK/bad.plan" --data "$WORK/text.txt" --out "$WORK/bad-run" --steps 2 -q
  refuses "$1: explain" 1 "$2" "$MOEC" explain "$WORK/bad.plan" --against "$WORK/reference"
  expect "$1: no run was made" test ! -e "$WORK/bad-run/checkpoints"
  rm -rf "$WORK/bad-run"
}
plan_damage "plan.json truncated" 'plan.json' plan.json shorten_by 100
plan_damage "plan.json empty" 'plan.json' plan.json empty
plan_damage "plan.json missing" 'plan.json|no plan here' plan.json rm
plan_damage "kernels.o with a flipped bit" 'kernels.o' kernels.o flip_at 5000
plan_damage "kernels.o truncated" 'kernels.o' kernels.o shorten_by 64
plan_damage "kernels.o missing" 'kernels.o' kernels.o rm
edit_plan() { python3 -c 'import json, sys; p = json.load(open(sys.argv[2])); exec(sys.argv[1]); json.dump(p, open(sys.argv[2], "w"))' "$1" "$2"; }
plan_damage "a plan of a newer version" 'another moec.*format' plan.json edit_plan 'p["format_version"] = 99'
plan_damage "a step with a value out of range" 'damaged|plan.json' plan.json edit_plan 'p["programs"]["train"]["steps"][3]["bufs"][0][0] = 10**6'
plan_damage "a buffer outside the slab" 'damaged|plan.json' plan.json edit_plan 'p["programs"]["train"]["slab_bytes"] = 64'
plan_damage "a parameter without its buffer" 'damaged|plan.json' plan.json edit_plan 'p["params"][0]["buffer"] = -1'
plan_damage "no programs" 'programs|damaged' plan.json edit_plan 'del p["programs"]'

# ---- output directories that are something else ----
mkdir "$WORK/mine"
echo precious >"$WORK/mine/file"
refuses "compile over a directory of somebody's" 1 "mine" compile "$WORK/mine"
refuses "run into a directory of somebody's" 1 "mine" run "$WORK/mine" 2
refuses "export over a directory of somebody's" 1 "mine" "$MOEC" export "$WORK/reference" -o "$WORK/mine"
refuses "compile over a file" 1 "text.txt" compile "$WORK/text.txt"
refuses "run into a file" 1 "text.txt" run "$WORK/text.txt" 2
refuses "export over a file" 1 "text.txt" "$MOEC" export "$WORK/reference" -o "$WORK/text.txt"
refuses "compile over a run" 1 "reference" compile "$WORK/reference"
refuses "export over a plan" 1 "tiny.plan" "$MOEC" export "$WORK/reference" -o "$WORK/tiny.plan"
expect "nothing was lost" bash -c '[ "$(ls -A "$0")" = file ] && [ "$(cat "$0/file")" = precious ]' "$WORK/mine"
expect "the plan still is the plan" compile "$WORK/tiny.plan"
tiny_config "$WORK/other.json" hidden_size=64
must "$MOEC" compile "$WORK/other.json" -o "$WORK/other.plan" --batch 8 --seq 32 -q
refuses "a run of another model is not continued" 1 'hidden_size.*(--out|anew)' "$MOEC" run "$WORK/other.plan" --data "$WORK/text.txt" --out "$WORK/reference" --steps 20 -q
must compile "$WORK/shards.plan" --virtual-shards 4
refuses "a run with other virtual shards is not continued" 1 'virtual_shards.*(--out|anew)' "$MOEC" run "$WORK/shards.plan" --data "$WORK/text.txt" --out "$WORK/reference" --steps 20 -q
refuses "--resume never refuses a run that has a checkpoint" '1 2' 'resume|checkpoint' run "$WORK/reference" 20 --resume never
expect "the run is untouched" test "$(newest "$WORK/reference")" = "$WORK/reference/checkpoints/step-12"
if [ "$(id -u)" != 0 ]; then
  mkdir -m 500 "$WORK/closed"
  refuses "a directory that cannot be written" 1 'ermission' compile "$WORK/closed/a.plan"
fi
refuses "a parent that is a file" 1 'text.txt' compile "$WORK/text.txt/a.plan"
done_testing
