#!/usr/bin/env bash
# Hosts that share nothing but a network (and the file system): network namespaces, each with an address and a name of its own, joined by a bridge. MPI over
# TCP between them, and TCP alone: the conformance suite, training with the bits of one rank, a host that is cut off.
# MOEC_TEST_HOSTS: how many (8), a power of two.
hosts=${MOEC_TEST_HOSTS:-8}
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/lib_ranks.sh"
SUITE=$BUILD/tests/comm_process
tag=moec$$

remove_hosts() {
  local h
  for h in net $(seq "$hosts"); do
    ip netns pids "$tag-$h" 2>/dev/null | xargs -r kill -KILL 2>/dev/null
    ip netns del "$tag-$h" 2>/dev/null
  done
}
make_hosts() {
  local h
  ip netns add "$tag-net" && ip -n "$tag-net" link add bridge type bridge && ip -n "$tag-net" link set bridge up || return 1
  for h in $(seq "$hosts"); do
    ip netns add "$tag-$h" &&
      ip -n "$tag-$h" link add eth0 type veth peer name "port$h" netns "$tag-net" &&
      ip -n "$tag-net" link set "port$h" master bridge up &&
      ip -n "$tag-$h" addr add "10.77.0.$h/24" dev eth0 && ip -n "$tag-$h" link set eth0 up && ip -n "$tag-$h" link set lo up || return 1
  done
}
undo+=(remove_hosts)
if ! command -v ip >/dev/null || ! command -v unshare >/dev/null; then skip "hosts: no ip or unshare"; done_testing; exit; fi
if ! make_hosts >"$WORK/made" 2>&1; then skip "hosts: network namespaces are not permitted ($(head -n 1 "$WORK/made"))"; done_testing; exit; fi

# on HOST COMMAND...: there, with a host name of its own.
on() { local h=$1; shift; ip netns exec "$tag-$h" unshare --uts sh -c "hostname host$h; exec \"\$@\"" _ "$@"; }
# What mpirun uses in place of ssh: AGENT ADDRESS COMMAND...
cat >"$WORK/agent" <<EOF2
#!/bin/sh
host=\${1##*.}; shift
exec ip netns exec $tag-\$host unshare --uts sh -c "hostname host\$host; \$*"
EOF2
chmod +x "$WORK/agent"
mpi_hosts() { # mpi_hosts N COMMAND...: on hosts 1..N, a rank on each
  local n=$1 list; shift
  list=$(seq -s, -f '10.77.0.%g:1' "$n")
  on 1 timeout -k 5 "${LIMIT:-180}" mpirun -n "$n" --host "$list" --mca plm_rsh_agent "$WORK/agent" --mca oob_tcp_if_include eth0 \
    --mca pml ob1 --mca btl tcp,self --mca btl_tcp_if_include eth0 ${exported[@]+"${exported[@]}"} "$@"
}
exported=()
tcp_hosts() {
  local n=$1 r code=0 pids=(); shift
  for ((r = 0; r < n; r++)); do
    WORLD_SIZE=$n RANK=$r LOCAL_RANK=0 MASTER_ADDR=10.77.0.1 MASTER_PORT=29500 on $((r + 1)) timeout -k 5 "${LIMIT:-180}" "$@" & pids+=($!)
  done
  for r in "${pids[@]}"; do wait "$r" || code=$?; done
  return $code
}
how_to() { if [ "$1" = mpi ]; then echo mpi_hosts; else echo tcp_hosts; fi; }

make_text "$WORK/text.txt" 60000
tiny_config "$WORK/config.json" num_hidden_layers=3 num_local_experts=8
plan() { must "$MOEC" compile "$WORK/config.json" -o "$WORK/$1.plan" --batch 8 --seq 32 -q "${@:2}"; }
if [ "$hosts" -ge 8 ]; then most=8 layout=(--ranks 8 --expert-parallel-degree 4 --hybrid-shard-degree 2); else most=$hosts layout=(--ranks "$hosts" --expert-parallel-degree "$hosts"); fi
plan one
plan many "${layout[@]}"
arguments() { echo "$WORK/$1.plan" --data "$WORK/text.txt" --out "$WORK/$2" --steps "$3" --lr 0.003 --eval-batches 2 --checkpoint-every 5 -q; }
export_of() { rm -rf "$WORK/$1.hf" && "$MOEC" export "$WORK/$1" -o "$WORK/$1.hf" -q; }
same_training() {
  export_of "$1" && export_of "$2" || return 1
  local strip='s/, "imbalance": \[[^]]*\]//'
  diff <(numbers "$WORK/$1" | sed -E "$strip") <(numbers "$WORK/$2" | sed -E "$strip") || return 1
  cmp "$WORK/$1/trace.csv" "$WORK/$2/trace.csv" && cmp "$WORK/$1.hf/model.safetensors" "$WORK/$2.hf/model.safetensors"
}
must "$MOEC" run $(arguments one reference 12)
pids_on_hosts() { local h; for h in $(seq "$hosts"); do ip netns pids "$tag-$h" 2>/dev/null; done; }
pids_of() { pgrep -f "^[^ ]*moec run $WORK/[a-z]*.plan .*--out $WORK/$1 "; }
# cut HOW RUN [launcher]: a run in full swing, $job, whose second host is cut off; all its ranks end within 12 seconds, and say why unless the
# launcher may be the quicker. $there: what ran on that host.
cut() {
  local how=$1 run=$2 quick=${3:-} before took
  MOEC_SILENCE_LIMIT=3 LIMIT=90 $(how_to "$how") $most "$MOEC" run $(arguments many "$run" 100000) >"$WORK/job" 2>&1 & job=$!
  if ! wait_lines "$WORK/$run/log.jsonl" 12 $job; then not_ok "$run: the run does not start" "$WORK/job"; kill $job; return; fi
  there=($(ip netns pids "$tag-2"))
  local pids=($(pids_of "$run"))
  before=$(milliseconds)
  ip -n "$tag-net" link set port2 down
  until none_running "${pids[@]}" >"$WORK/.left" || [ $(($(milliseconds) - before)) -gt 12000 ]; do :; done
  took=$(($(milliseconds) - before))
  ip -n "$tag-net" link set port2 up
  echo "ranks ended after $took ms: ${pids[*]}; on the host: ${there[*]}" >>"$WORK/job"
  if [ ${#pids[@]} = "$most" ] && [ $took -le 12000 ]; then ok "$run: all ranks end in time"; else cat "$WORK/.left" >>"$WORK/job"; not_ok "$run: all ranks end in time" "$WORK/job"; fi
  [ -n "$quick" ] || if grep -qE 'rank 1 \(step [0-9]+, .*gave no sign of life for [3-6]\.[0-9] s' "$WORK/job"; then ok "$run: names the rank that is cut off"; else not_ok "$run: names the rank that is cut off" "$WORK/job"; fi
  expect "$run: the last checkpoint is intact" export_of "$run"
}

for how in mpi tcp; do
  if [ $how = mpi ] && [ -n "$(no_mpi)" ]; then skip "hosts over mpi: $(no_mpi)"; continue; fi
  start=$(how_to $how)
  for n in 2 $most; do
    $start $n "$SUITE" $how >"$WORK/suite" 2>&1; code=$?
    echo "exit $code" >>"$WORK/suite"
    if [ $code = 0 ] && [ "$(grep -c '^ok ' "$WORK/suite")" -ge 11 ] && ! grep -q '^not ok' "$WORK/suite"; then ok "conformance over $how on $n hosts"; else not_ok "conformance over $how on $n hosts" "$WORK/suite"; fi
  done
  expect "training over $how on $most hosts" $start $most "$MOEC" run $(arguments many many-$how 12)
  expect "training over $how on $most hosts: the bits of one rank" same_training reference many-$how

  # The cable of one host is pulled: nobody hears of its death, only silence. All ranks end, those on that host too. MPI's launcher waits for its daemon
  # there until TCP gives up, minutes later, if its keepalive is not set; with it, it ends the job itself.
  exported=(-x MOEC_SILENCE_LIMIT=3)
  cut $how cut-$how
  if [ $how = tcp ]; then
    wait $job 2>/dev/null; code=$?
    if [ $code = 1 ] || [ $code = 137 ]; then ok "a host that is cut off, over tcp: status"; else echo "exit $code" >>"$WORK/job"; not_ok "a host that is cut off, over tcp: status" "$WORK/job"; fi
  else
    kill -KILL $(pids_on_hosts) 2>/dev/null # the launcher and its daemons
    wait $job 2>/dev/null
    exported=(--mca oob_tcp_keepalive_time 1 --mca oob_tcp_keepalive_intvl 1 --mca oob_tcp_keepalive_probes 1)
    cut mpi keep-mpi launcher
    wait $job; code=$?
    if [ $code != 0 ] && [ $code != 124 ]; then ok "a host that is cut off, mpirun with keepalive: status"; else echo "exit $code" >>"$WORK/job"; not_ok "a host that is cut off, mpirun with keepalive: status" "$WORK/job"; fi
    if none_running "${there[@]}" >>"$WORK/job"; then ok "a host that is cut off, mpirun with keepalive: nothing is left on it"; else not_ok "a host that is cut off, mpirun with keepalive: left" "$WORK/job"; fi
  fi
  exported=()
done
done_testing
