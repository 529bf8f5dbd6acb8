#!/usr/bin/env bash
# Checkpoints of many ranks: what one layout saved continues at any other - threads or processes - with the bits of a run that was never stopped,
# moments included; exports are the same bytes; damage to any rank's file is found by all ranks and the checkpoint before is taken; SIGKILL of the
# process, or of one rank of several, before any system call of the writing leaves the old or the new checkpoint whole.
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/lib_ranks.sh"
steps=6
make_text "$WORK/text.txt" 40000
# Tensors of one, two and four slices; five experts, so that EP ranks have different numbers of them, or none.
tiny_config "$WORK/config.json" hidden_size=64 intermediate_size=96 num_local_experts=5
E=--expert-parallel-degree S=--hybrid-shard-degree D=--dense-shard-degree
plan() { must "$MOEC" compile "$WORK/config.json" -o "$WORK/$1.plan" --batch 8 --seq 32 -q "${@:2}"; }
plan one
plan e2 --ranks 2 $E 2
plan s2 --ranks 2 $S 2
plan d2 --ranks 2 $S 1
plan e4 --ranks 4 $E 4
plan e2s2 --ranks 4 $E 2 $S 2
plan wide --ranks 8 $E 2 $S 2 $D 4
plan e8 --ranks 8 $E 8
printf '{"ranks": 8, "expert_parallel_degree": 4, "hybrid_shard_degree": 2, "layers": [{"first": 1, "last": 1, "expert_parallel_degree": 2, "hybrid_shard_degree": 2}]}' >"$WORK/mixed.json"
plan mixed --strategy "$WORK/mixed.json"
plan t2 --ranks 2 --tensor-parallel-degree 2
plan t2e2s2 --ranks 8 --tensor-parallel-degree 2 $E 2 $S 2

run() { # run PLAN RUN OPTIONS...: continues what is there
  "$MOEC" run "$WORK/$1.plan" --data "$WORK/text.txt" --out "$WORK/$2" --steps $steps --lr 0.003 --checkpoint-every 2 -q "${@:3}"
}
exports_as() { # exports_as RUN DIR: byte for byte
  local file
  rm -rf "$WORK/hf"
  "$MOEC" export "$WORK/$1" -o "$WORK/hf" -q || return 1
  diff -r "$WORK/hf" "$WORK/$2"
}
must run one reference
must "$MOEC" export "$WORK/reference" -o "$WORK/want" -q
[ "$(census "$(newest "$WORK/reference")" | wc -l)" -gt 100 ] || not_ok "the census lists every tensor"

# ---- from each layout to another ----
moved() { # moved FIRST THEN: stopped after step 3 of FIRST
  rm -rf "$WORK/moved"
  run "$1" moved --stop-after-step 3 >"$WORK/.log" 2>&1 && run "$2" moved >>"$WORK/.log" 2>&1 || { cat "$WORK/.log"; return 1; }
  same_end reference moved && exports_as moved want
}
for pair in one:e4 one:wide e4:one wide:one e2:s2 s2:e2 d2:e2s2 e2s2:d2 e4:e8 e8:e4 wide:e8 e8:wide s2:wide one:mixed mixed:one wide:mixed mixed:e8; do
  expect "${pair%:*} to ${pair#*:}" moved ${pair%:*} ${pair#*:}
done
# Tensor parallelism: the same bits at one degree; from one degree to another the same weights (a step of learning rate 0 changes none).
must run t2 tensor
rm -rf "$WORK/want2"; must "$MOEC" export "$WORK/tensor" -o "$WORK/want2" -q
moved_tensor() { rm -rf "$WORK/moved"; run "$1" moved --stop-after-step 3 && run "$2" moved && same_end tensor moved && exports_as moved want2; }
expect "t2 to t2e2s2" moved_tensor t2 t2e2s2
expect "t2e2s2 to t2" moved_tensor t2e2s2 t2
to_degree() { # to_degree FROM-RUN PLAN: the weights of FROM-RUN's end, through PLAN
  rm -rf "$WORK/moved" "$WORK/end" "$WORK/end.hf"
  must cp -r "$WORK/$1" "$WORK/moved"
  run "$2" end --resume "$WORK/moved" --steps $((steps + 1)) --lr 0 --min-lr 0 >"$WORK/.log" 2>&1 || { cat "$WORK/.log"; return 1; }
  "$MOEC" export "$WORK/moved" -o "$WORK/end.hf" -q && exports_as end end.hf
}
expect "tensor parallel 2 to none" to_degree tensor wide
expect "none to tensor parallel 2" to_degree reference t2e2s2
must run e2s2 whole
expect "one rank's own files have the old names" bash -c 'cd "$0" && [ "$(echo *)" = "manifest.json model.safetensors optimizer.safetensors" ]' "$(newest "$WORK/reference")"
expect "each rank of four wrote its own" bash -c 'cd "$0" && [ "$(echo model*)" = "model-rank-0.safetensors model-rank-1.safetensors model-rank-2.safetensors model-rank-3.safetensors" ]' "$(newest "$WORK/whole")"
shared() { # ranks that hold the same share the writing, block by block
  rm -rf "$WORK/copy"
  run d2 copy --stop-after-step 1 >/dev/null && python3 - "$(newest "$WORK/copy")" <<'PY'
import json, struct, sys
def shapes(rank):
    with open(f"{sys.argv[1]}/model-rank-{rank}.safetensors", "rb") as f:
        return {k: v["shape"] for k, v in json.loads(f.read(struct.unpack("<Q", f.read(8))[0])).items() if k != "__metadata__"}
a, b = shapes(0), shapes(1)
embed = "model.embed_tokens.weight"
assert a[embed + "@0"] == b[embed + "@8192"] == [8192] and not a.keys() & b.keys(), (a, b)
assert b["model.norm.weight"] == [64], b # smaller than a block: whole
PY
}
expect "copies share the writing" shared

# ---- processes ----
job() { # job mpi|tcp N PLAN RUN OPTIONS...
  ranks "$1" "$2" "$MOEC" run "$WORK/$3.plan" --comm "$1" --data "$WORK/text.txt" --out "$WORK/$4" --steps $steps --lr 0.003 --checkpoint-every 2 --threads 1 -q "${@:5}"
}
by_processes() { # by_processes mpi|tcp: four processes, then threads, then two processes
  rm -rf "$WORK/moved"
  { job "$1" 4 e2s2 moved --stop-after-step 2 && run e8 moved --stop-after-step 3 && job "$1" 2 s2 moved; } >"$WORK/.log" 2>&1 || { cat "$WORK/.log"; return 1; }
  same_end reference moved && exports_as moved want
}
expect "processes over tcp to threads and back" by_processes tcp
why_not=$(no_mpi)
if [ -n "$why_not" ]; then skip "processes over mpi: $why_not"; else expect "processes over mpi to threads and back" by_processes mpi; fi

# ---- damage: all ranks take the checkpoint before, one of them says why, and training comes to the same end ----
must run e2s2 saved --stop-after-step 4
flip() { python3 -c 'import sys; p, at = sys.argv[1], int(sys.argv[2]); b = bytearray(open(p, "rb").read()); b[at] ^= 4; open(p, "wb").write(b)' "$1" "$2"; }
damage() { # damage NAME PATTERN PLAN COMMAND...: COMMAND spoils the directory of step 4
  local dir=$WORK/damaged code
  rm -rf "$dir"
  must cp -r "$WORK/saved" "$dir"
  (cd "$dir/checkpoints/step-4" && "${@:4}")
  run "$3" damaged >"$WORK/.log" 2>&1
  code=$?
  if [ $code != 0 ] || [ "$(grep -c 'CHECKPOINT DAMAGED' "$WORK/.log")" != 1 ] || ! grep -qE "DAMAGED.*step-4.*$2" "$WORK/.log"; then
    echo "exit $code" >>"$WORK/.log"
    not_ok "$1: one warning names the checkpoint and $2" "$WORK/.log"
    return
  fi
  expect "$1: falls back, trains to the same end" same_end reference damaged
}
swap() { mv "$1" x && mv "$2" "$1" && mv x "$2"; }
damage "a rank's weights are missing" model-rank-2.safetensors e4 rm model-rank-2.safetensors
damage "a rank's moments are missing" optimizer-rank-3.safetensors e2s2 rm optimizer-rank-3.safetensors
damage "two ranks' files are swapped" 'model-rank-[12].safetensors' s2 swap model-rank-1.safetensors model-rank-2.safetensors
damage "a rank's file is another step's" optimizer-rank-1.safetensors wide cp ../step-2/optimizer-rank-1.safetensors .
damage "a flipped bit in a rank's weights" model-rank-3.safetensors e2s2 flip model-rank-3.safetensors -9000
damage "a flipped bit in a rank's moments" optimizer-rank-0.safetensors one flip optimizer-rank-0.safetensors -5000
damage "a flipped bit in a header" model-rank-1.safetensors e8 flip model-rank-1.safetensors 60
damage "a truncated rank file" optimizer-rank-2.safetensors e2s2 truncate -s 3000 optimizer-rank-2.safetensors
damage "a flipped bit in the manifest" manifest.json e2s2 flip manifest.json 300
rm -rf "$WORK/damaged"
cp -r "$WORK/saved" "$WORK/damaged"
for c in "$WORK"/damaged/checkpoints/step-*; do flip "$c/model-rank-1.safetensors" -100; done
refuses "no checkpoint intact: every rank ends" 1 'none of its 2 checkpoints is intact' run e4 damaged
refuses "no checkpoint intact: nothing is exported" 1 'intact' "$MOEC" export "$WORK/damaged" -o "$WORK/none"

# ---- a disk that fails for one rank: all go on, what was there stays ----
same_checkpoint() { diff -r "$WORK/saved/checkpoints/step-4" "$1/checkpoints/step-4"; }
if have_strace; then
  for file in model optimizer; do
    rm -rf "$WORK/failing"; must cp -r "$WORK/saved" "$WORK/failing"
    nth=1; [ $file = model ] || nth=2 # fsync of this process
    port=$(free_port) code=0
    for r in 0 1 2 3; do
      tracer=(); [ $r != 2 ] || tracer=(strace -f -qq -o /dev/null -e trace=fsync -e inject=fsync:error=EIO:when=$nth)
      WORLD_SIZE=4 RANK=$r LOCAL_RANK=$r MASTER_ADDR=127.0.0.1 MASTER_PORT=$port timeout -k 5 60 "${tracer[@]}" \
        "$MOEC" run "$WORK/e2s2.plan" --comm tcp --data "$WORK/text.txt" --out "$WORK/failing" --steps $steps --lr 0.003 --checkpoint-every 0 --threads 1 -q >"$WORK/.out$r" 2>&1 & pids[r]=$!
    done
    for r in 0 1 2 3; do wait ${pids[r]} || code=$?; done
    cat "$WORK"/.out? >"$WORK/.log"
    if [ $code = 1 ] && grep -q 'checkpoint of step 6: rank 2: .*'"$file"'-rank-2.safetensors.*Input/output error; training goes on' "$WORK/.out0"; then ok "rank 2's disk fails ($file): said by rank 0, exit 1"
    else echo "exit $code" >>"$WORK/.log"; not_ok "rank 2's disk fails ($file): said by rank 0, exit 1" "$WORK/.log"; fi
    expect "rank 2's disk fails ($file): the checkpoint before is untouched" same_checkpoint "$WORK/failing"
    expect "rank 2's disk fails ($file): nothing half written stays" bash -c '! ls -A "$0"/checkpoints | grep -qE "tmp|trash"' "$WORK/failing"
    must run s2 failing
    expect "rank 2's disk fails ($file): the next run ends well" same_end reference failing
  done

  # ---- killed before a system call of the writing ----
  # Threads: the call of any rank ends all of them.
  for calls in mkdir,mkdirat openat rename,renameat,renameat2 fsync unlink,unlinkat,rmdir write; do
    hits=0 bad= first=1 stride=2
    case $calls in openat) first=30 stride=7 ;; write) stride=7 ;; esac # the first 30 open libraries, the plan, the data
    for ((n = first; n < first + 60; n += stride)); do
      rm -rf "$WORK/cut"
      { (exec strace -f -qq -o /dev/null -e trace=$calls -e inject=$calls:signal=SIGKILL:when=$n \
        "$MOEC" run "$WORK/e2s2.plan" --data "$WORK/text.txt" --out "$WORK/cut" --steps $steps --lr 0.003 --checkpoint-every 2 --keep 1 --threads 1 -q) >/dev/null 2>&1; [ $? -ge 128 ]; } 2>/dev/null || break
      hits=$((hits + 1))
      if ! still_there cut >"$WORK/.out" 2>&1 || ! run e4 cut >"$WORK/.out" 2>&1 || ! same_end reference cut >>"$WORK/.out" 2>&1; then bad=$n; break; fi
    done
    if [ -n "$bad" ]; then not_ok "four ranks killed before call $bad of $calls" "$WORK/.out"
    elif [ $hits -gt 0 ]; then ok "four ranks killed before each of $hits calls of $calls"
    else not_ok "no call of $calls was hit"; fi
  done
  # Processes: one of two ranks is killed alone, or both at the same call; the job ends, the next one goes on. Rank 0 alone renames.
  killed_pair() { # killed_pair mpi|tcp VICTIMS CALLS NTH
    local how=$1 victims=$2 r port ended=0 code
    local kill=(strace -f -qq -o /dev/null -e trace="$3" -e inject="$3:signal=SIGKILL:when=$4")
    local train=("$MOEC" run "$WORK/e2.plan" --comm "$how" --data "$WORK/text.txt" --out "$WORK/cut" --steps $steps --lr 0.003 --checkpoint-every 2 --threads 1 -q)
    local zero=("${train[@]}") one=("${train[@]}")
    [[ $victims != *0* ]] || zero=("${kill[@]}" "${train[@]}")
    [[ $victims != *1* ]] || one=("${kill[@]}" "${train[@]}")
    rm -rf "$WORK/cut"
    if [ $how = mpi ]; then
      LIMIT=60 mpi -n 1 "${zero[@]}" : -n 1 "${one[@]}" >"$WORK/.out" 2>&1; code=$?
      [ $code != 0 ] && [ $code != 124 ] || { echo "exit $code"; return 1; }
    else
      port=$(free_port)
      WORLD_SIZE=2 RANK=0 LOCAL_RANK=0 MASTER_ADDR=127.0.0.1 MASTER_PORT=$port timeout -k 5 60 "${zero[@]}" >"$WORK/.out" 2>&1 & r=$!
      WORLD_SIZE=2 RANK=1 LOCAL_RANK=1 MASTER_ADDR=127.0.0.1 MASTER_PORT=$port timeout -k 5 60 "${one[@]}" >"$WORK/.out1" 2>&1; code=$?
      [ $code = 0 ] || [ $code = 124 ] || ended=$((ended + 1))
      wait $r 2>/dev/null; code=$?
      [ $code = 0 ] || [ $code = 124 ] || ended=$((ended + 1))
      [ $ended = 2 ] || { echo "a rank did not end, or well"; cat "$WORK/.out" "$WORK/.out1"; return 1; }
    fi
    still_there cut && run s2 cut && same_end reference cut
  }
  for how in tcp mpi; do
    if [ $how = mpi ] && [ -n "$why_not" ]; then skip "ranks killed, over mpi: $why_not"; continue; fi
    hits=0 bad=
    for try in 0:fsync:1 0:fsync:2 0:fsync:3 0:rename,renameat2:1 0:rename,renameat2:3 1:fsync:1 1:fsync:2 1:fsync:4 01:fsync:1 01:fsync:2 01:fsync:3 01:fsync:5; do
      IFS=: read -r victims calls n <<<"$try"
      killed_pair $how $victims $calls $n >"$WORK/.log" 2>&1 || { bad=$try; break; }
      hits=$((hits + 1))
    done
    if [ -n "$bad" ]; then not_ok "ranks of two killed over $how: $bad" "$WORK/.log"; else ok "one or both of two ranks killed over $how, $hits times"; fi
  done
  expect "nothing of the killed writers is left" bash -c '! ls -A "$0"/checkpoints | grep -qE "tmp|trash"' "$WORK/cut"
else
  skip "system calls that fail, or kill (strace cannot trace here)"
fi
done_testing
