#!/usr/bin/env bash
# Ranks as processes: the conformance suite over MPI and over TCP, and what is said when ranks cannot be started or do not meet.
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/lib_ranks.sh"
SUITE=$BUILD/tests/comm_process
why_not=$(no_mpi)

# suite HOW N: all cases that leave the communicator usable.
suite() {
  local name="conformance over $1, $2 ranks" code
  ranks "$1" "$2" "$SUITE" "$1" >"$WORK/suite" 2>&1; code=$?
  echo "exit $code" >>"$WORK/suite"
  if [ $code = 0 ] && [ "$(grep -c '^ok ' "$WORK/suite")" -ge 11 ] && ! grep -q '^not ok' "$WORK/suite"; then ok "$name"; else not_ok "$name" "$WORK/suite"; fi
}
# ends HOW CASE LEAST: a case after which nothing goes on; at least LEAST of four ranks live to say that all was well (mpirun kills those that
# are left when one has ended).
ends() {
  local name="$2 over $1"
  MOEC_SILENCE_LIMIT=3 LIMIT=60 ranks "$1" 4 "$SUITE" "$1" "$2" >"$WORK/suite" 2>&1
  if [ "$(grep -c "^ok $2 on rank" "$WORK/suite")" -ge "$3" ] && ! grep -q '^not ok' "$WORK/suite"; then ok "$name"; else not_ok "$name" "$WORK/suite"; fi
}
for how in mpi tcp; do
  if [ $how = mpi ] && [ -n "$why_not" ]; then skip "conformance over mpi: $why_not"; continue; fi
  for n in 1 2 3 4 8; do suite $how $n; done
  for k in mismatch abort after_failure killed stopped; do
    if [ $how = mpi ]; then ends mpi $k 1; else ends tcp $k 3; fi
  done
done

# Starts that cannot work.
empty=$WORK/empty; mkdir "$empty"
export OMPI_COMM_WORLD_SIZE=2 OMPI_COMM_WORLD_RANK=0 # as mpirun sets them
refuses "no plugin: says what to install" 1 'libmoe_mpi.so.*install Open MPI' env MOEC_PLUGIN_DIR="$empty" "$SUITE" auto
echo "no library" >"$empty/libmoe_mpi.so"
refuses "a broken plugin: says what is wrong with it" 1 'libmoe_mpi.so cannot be opened' env MOEC_PLUGIN_DIR="$empty" "$SUITE" auto
refuses "threads under mpirun" 2 'mpirun started 2 \(OMPI_COMM_WORLD_SIZE\)' "$SUITE" threads
if [ -z "$why_not" ]; then
  refuses "MPI that sees other processes than the launcher started" 1 'mpirun started 2 processes .*MPI sees 1' "$SUITE" mpi
fi
unset OMPI_COMM_WORLD_SIZE OMPI_COMM_WORLD_RANK

# Ranks that meet at a port, and those that do not.
alone() { # alone RANK SIZE VARIABLES...
  local rank=$1 size=$2; shift 2
  env WORLD_SIZE="$size" RANK="$rank" LOCAL_RANK="$rank" MASTER_ADDR=127.0.0.1 MASTER_PORT="$(free_port)" MOEC_SILENCE_LIMIT=1 "$@" "$SUITE" tcp empty
}
refuses "a rank that does not come is named" 1 '1 of 2 ranks did not come to 127.0.0.1:[0-9]+ within 10 s \(missing: 1\)' alone 0 2
refuses "no rank 0" 1 'rank 1 found no rank 0 at 127.0.0.1:[0-9]+ within 10 s' alone 1 2
refuses "MASTER_PORT that is none" 1 'MASTER_PORT is "x", expected 1 to 65535' alone 0 2 MASTER_PORT=x
refuses "MASTER_ADDR that is none" 1 'MASTER_ADDR is "no.such.host.invalid", which is no known host' alone 0 2 MASTER_ADDR=no.such.host.invalid
twice() {
  local port; port=$(free_port)
  local vars=(WORLD_SIZE=3 MASTER_ADDR=127.0.0.1 MASTER_PORT="$port" MOEC_SILENCE_LIMIT=1)
  env "${vars[@]}" RANK=1 "$SUITE" tcp empty 2>/dev/null & env "${vars[@]}" RANK=1 "$SUITE" tcp empty 2>/dev/null &
  env "${vars[@]}" RANK=0 "$SUITE" tcp empty
  local code=$?; wait; return $code
}
refuses "two processes with one rank" 1 'two processes say that they are rank 1' twice
# torchrun's agent may hold the port itself, whether or not it says so; something else may, too.
busy_port() { # busy_port NAME VARIABLE=VALUE...
  local name=$1 port pid code; shift
  port=$(free_port)
  python3 -c 'import socket, sys, time
s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1); s.bind(("127.0.0.1", int(sys.argv[1]))); s.listen(); open(sys.argv[2], "w").close(); time.sleep(60)' "$port" "$WORK/listening" & pid=$!
  wait_files 10 "$WORK/listening"
  PORT=$port torch_like 3 env "$@" "$SUITE" tcp uneven >"$WORK/suite" 2>&1; code=$?
  kill $pid; wait $pid 2>/dev/null; rm "$WORK/listening"
  if [ $code = 0 ] && grep -q '^ok uneven' "$WORK/suite"; then ok "$name"; else not_ok "$name" "$WORK/suite"; fi
}
busy_port "the port is torchrun's: ranks meet at the next" TORCHELASTIC_USE_AGENT_STORE=True TORCHELASTIC_RUN_ID=a
busy_port "the port is somebody's: ranks meet at the next" TORCHELASTIC_RUN_ID=b
done_testing
