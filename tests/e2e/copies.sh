#!/usr/bin/env bash
# Experts with copies on other ranks, at maps that stand: rows divided at leaves of the weight gradients' trees (shards of several leaves),
# replicas of hot experts, empty slots, primaries anywhere. The losses, norms and weights are those of one rank at every layout, and
# evaluation goes by the copies, too.
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/lib_ranks.sh"
make_text "$WORK/text.txt" 60000
tiny_config "$WORK/config.json" num_local_experts=8 max_position_embeddings=512
E=--expert-parallel-degree S=--hybrid-shard-degree T=--tensor-parallel-degree X=--extra-slots
plan() { must "$MOEC" compile "$WORK/config.json" -o "$WORK/$1.plan" --batch 8 --seq 512 -q "${@:2}"; }
# map NAME RANKS SLOTS SEED [hot]: layers 0 and 1; hot: all free slots have one of two experts.
map() {
  python3 - "$@" >"$WORK/$1.json" <<'PY'
import json, random, sys
ranks, slots, seed = map(int, sys.argv[2:5])
hot, rnd, layers = len(sys.argv) > 5, random.Random(int(sys.argv[4])), []
for layer in range(2):
    held = [[-1] * slots for _ in range(ranks)]
    places = [(r, s) for r in range(ranks) for s in range(slots)]
    rnd.shuffle(places)
    for e, (r, s) in zip(range(8), places):
        held[r][s] = e
    for row in held:
        for s in range(slots):
            free = [e for e in ((0, 5) if hot else range(8)) if e not in row]
            if row[s] < 0 and free and (hot or rnd.random() < 0.8):
                row[s] = rnd.choice(free)
    primary = [rnd.choice([r * slots + s for r in range(ranks) for s in range(slots) if held[r][s] == e]) for e in range(8)]
    layers.append({"layer": layer, "slots": held, "primary": primary})
json.dump({"format_version": 1, "layers": layers}, sys.stdout)
PY
}
from=() # where weights come from, else from the seed
run() { "$MOEC" run "$WORK/$1.plan" --data "$WORK/text.txt" --out "$WORK/$2" --lr 0.003 --steps 3 --threads 2 -q ${from[@]+"${from[@]}"} "${@:3}"; } # run PLAN RUN OPTIONS...
# same REFERENCE PLAN MAP [COMMAND...]: a run of the plan with that map, started so, has the reference's numbers, held-out loss and weights.
same() {
  local strip='s/, "imbalance": \[[^]]*\]//' name=$2-$3
  rm -rf "$WORK/$name"
  "${@:4}" "$MOEC" run "$WORK/$2.plan" --data "$WORK/text.txt" --out "$WORK/$name" --lr 0.003 --steps 3 -q --placement-from "$WORK/$3.json" ${from[@]+"${from[@]}"} \
    </dev/null >"$WORK/.log" 2>&1 || { cat "$WORK/.log"; return 1; }
  for r in "$1" "$name"; do [ -d "$WORK/$r.hf" ] || "$MOEC" export "$WORK/$r" -o "$WORK/$r.hf" -q || return 1; done
  diff <(numbers "$WORK/$1" | sed -E "$strip") <(numbers "$WORK/$name" | sed -E "$strip") >"$WORK/.diff" || { echo "the logs differ:"; head -n 4 "$WORK/.diff"; return 1; }
  cmp "$WORK/$1.hf/model.safetensors" "$WORK/$name.hf/model.safetensors"
}
map x4 4 4 1
map hot4 4 4 2 hot
map y4 4 3 3
map y2 2 5 4

plan one
must run one one
plan x4 --ranks 4 $E 4 $X 2
expect "two extra slots, half of them free at first" same one x4 x4
expect "all free slots have copies of two experts" same one x4 hot4
plan e4s2 --ranks 8 $E 4 $S 2 $X 1 --recompute layer --overlap off
expect "expert parallel 4, shard 2, recompute, no overlap" same one e4s2 y4
plan micro --ranks 4 $E 4 $X 1 --micro-batches 2
expect "micro-batches" same one micro y4

plan v4 --virtual-shards 4
must run v4 v4
plan v4e2 --virtual-shards 4 --ranks 2 $E 2 $X 1
expect "shards of many leaves" same v4 v4e2 y2

plan bf16 --dtype bf16
must run bf16 bf16
plan bf16e4s2 --dtype bf16 --ranks 8 $E 4 $S 2 $X 1 --offload-activations
expect "bf16, offload" same bf16 bf16e4s2 y4

plan t2 --ranks 2 $T 2
must run t2 t2
plan t2e4 --ranks 8 $E 4 $T 2 $X 1
expect "tensor parallel" same t2 t2e4 y4

# One layer in four parts, the other in two with the rest sharded; maps of layers 0 and 1 differ in ranks and slots.
printf '{"ranks": 4, "expert_parallel_degree": 4, "extra_slots": 1, "layers": [{"first": 1, "last": 1, "expert_parallel_degree": 2, "hybrid_shard_degree": 2}]}' >"$WORK/mixed.strategy"
python3 - "$WORK" <<'PY'
import json, sys
w = sys.argv[1]
a, b = (json.load(open(f"{w}/{n}.json"))["layers"] for n in ("y4", "y2"))
json.dump({"format_version": 1, "layers": [a[0], b[1]]}, open(f"{w}/mixed.json", "w"))
PY
plan mixed --strategy "$WORK/mixed.strategy"
expect "divisions by layer" same one mixed mixed
if [ -n "$(no_mpi)" ]; then skip "copies over MPI: $(no_mpi)"; else
  expect "copies over MPI" same v4 v4e2 y2 mpi -n 2
fi

# Routing at its worst: routers of zeros send every token to expert 0, which has 4096 rows in 8 virtual shards of 4 leaves each, and copies
# on three of four ranks. Divided at leaves the busiest rank has 11 of 32 leaves, 11/8 of the mean; at ends of shards it would have 12.
tiny_config "$WORK/config.json" num_local_experts=8 num_experts_per_tok=1 max_position_embeddings=512
plan top1
must run top1 top1 --steps 1
must "$MOEC" export "$WORK/top1" -o "$WORK/zero" -q
zero_routers "$WORK/zero"
from=(--init-from "$WORK/zero")
must run top1 zero1
plan top4 --ranks 4 $E 4 $X 1
plan top4s2 --ranks 8 $E 4 $S 2 $X 1
layer() { printf '{"layer": %d, "slots": [[0, 1, -1], [2, 3, 0], [4, 0, 5], [6, 7, -1]]}' "$1"; }
printf '{"format_version": 1, "layers": [%s, %s]}' "$(layer 0)" "$(layer 1)" >"$WORK/three.json"
all_to_one() { awk -F, '$1 == 1 && !($4 > 0 && $5 + $6 + $7 + $8 + $9 + $10 + $11 == 0) { bad = 1 } END { exit bad || NR < 17 }' "$WORK/zero1/trace.csv"; }
expect "the first step's tokens all go to one expert" all_to_one
first_imbalance() { python3 - "$WORK/$1/log.jsonl" "$2" <<'PY'
import json, sys
r = json.loads(open(sys.argv[1]).readline())
assert r["imbalance"] == [float(sys.argv[2])] * 2, r["imbalance"]
PY
}
expect "all tokens to one expert with three copies" same zero1 top4 three
expect "... whose rows are cut inside a virtual shard" first_imbalance top4-three 1.375
expect "all tokens to one expert, two groups" same zero1 top4s2 three
expect "... whose rows are cut inside a virtual shard" first_imbalance top4s2-three 1.5
from=()

refuses "extra slots without expert parallelism" 2 'extra-slots 2.*expert parallel degree of 2' "$MOEC" compile "$WORK/config.json" -o "$WORK/no.plan" --ranks 2 $S 2 $X 2 -q
refuses "more slots than experts" 2 'slots a rank for the 8 experts of layer 0' "$MOEC" compile "$WORK/config.json" -o "$WORK/no.plan" --ranks 2 $E 2 $X 5 -q
refuses "too many extra slots" 2 'extra' "$MOEC" compile "$WORK/config.json" -o "$WORK/no.plan" --ranks 2 $E 2 $X 5000 -q
refuses "a map with copies where there are no slots" "1 2" 'extra-slots|slots' run one no --placement-from "$WORK/x4.json"
done_testing
