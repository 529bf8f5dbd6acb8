# Starting ranks as processes; sourced after lib.sh.

# MPI's launcher, as root and on few cores too. LIMIT: seconds after which it is killed (status 124).
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
mpi() { timeout -k 5 "${LIMIT:-120}" mpirun --oversubscribe "$@"; } # mpi -n N COMMAND...
# Why ranks cannot be started with mpirun; empty if they can.
no_mpi() {
  if ! command -v mpirun >/dev/null; then echo "mpirun is not installed"
  elif [ ! -f "$BUILD/libmoe_mpi.so" ]; then echo "built without MPI"; fi
}

free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }
# torch_like N COMMAND...: one process a rank, with the variables that torchrun sets. Fails if one of them does.
torch_like() {
  local n=$1 r code=0 pids=() port; shift
  port=${PORT:-$(free_port)}
  for ((r = 0; r < n; r++)); do
    WORLD_SIZE=$n RANK=$r LOCAL_RANK=$r MASTER_ADDR=127.0.0.1 MASTER_PORT=$port timeout -k 5 "${LIMIT:-120}" "$@" & pids+=($!)
  done
  for r in "${pids[@]}"; do wait "$r" || code=$?; done
  return $code
}
# One of the two by name: ranks mpi|tcp N COMMAND...
ranks() {
  local how=$1 n=$2; shift 2
  if [ "$how" = mpi ]; then mpi -n "$n" "$@"; else torch_like "$n" "$@"; fi
}

# running PID: it is there, and no zombie that only waits for its parent.
running() { local s; s=$(ps -o stat= -p "$1" 2>/dev/null) && [ -n "$s" ] && [ "${s:0:1}" != Z ]; }
# none_running PID...: within two seconds.
none_running() {
  local i p left
  for ((i = 0; i < 40; i++)); do
    left=
    for p in "$@"; do if running "$p"; then left+=" $p"; fi; done
    [ -n "$left" ] || return 0
    sleep 0.05
  done
  echo "still running:$left"
  return 1
}
# wait_files SECONDS FILE...: until all are there.
wait_files() {
  local until=$((SECONDS + $1)) f; shift
  for f in "$@"; do
    until [ -f "$f" ]; do
      [ $SECONDS -lt $until ] || { echo "$f did not come"; return 1; }
      sleep 0.02
    done
  done
}
milliseconds() { date +%s%3N; }

# What a log says whatever the layout: which rank was busy is a layout's own.
common() { numbers "$1" | sed -E 's/, "imbalance": \[[^]]*\]//'; }
census() { sed -n '/^ "census": \[/,/^ \]/p' "$1/manifest.json"; }
# same_end RUN RUN, in $WORK: logs, traces, and every weight and moment (the census has a sum of each, at any layout).
same_end() {
  local a b
  a=$(newest "$WORK/$1"); b=$(newest "$WORK/$2")
  if [ -z "$a" ] || [ "${a##*/}" != "${b##*/}" ]; then echo "newest checkpoints: '$a' '$b'"; return 1; fi
  diff <(common "$WORK/$1") <(common "$WORK/$2") >"$WORK/.diff" || { echo "the logs differ:"; head -n 4 "$WORK/.diff"; return 1; }
  cmp "$WORK/$1/trace.csv" "$WORK/$2/trace.csv" && cmp <(census "$a") <(census "$b")
}
# zero_routers DIR: of an exported model; all scores are equal then, and every token goes to the first experts.
zero_routers() {
  python3 - "$1/model.safetensors" <<'PY'
import json, struct, sys
with open(sys.argv[1], "r+b") as f:
    n = struct.unpack("<Q", f.read(8))[0]
    for name, t in json.loads(f.read(n)).items():
        if name.endswith("block_sparse_moe.gate.weight"):
            a, b = t["data_offsets"]
            f.seek(8 + n + a)
            f.write(bytes(b - a))
PY
}
