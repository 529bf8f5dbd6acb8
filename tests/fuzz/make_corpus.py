#!/usr/bin/env python3
"""Writes seed inputs for the fuzz targets: make_corpus.py DIR makes DIR/safetensors/*, DIR/tokens/*, DIR/manifest/* and DIR/plan/*."""
import json
import os
import struct
import sys

TENSOR = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}


def safetensors(header, data, pad=True):
    text = json.dumps(header, separators=(",", ":")).encode()
    if pad:
        text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data


def llmc(magic, version, count, data):
    return struct.pack("<256i", magic, version, count, *([0] * 253)) + data


def manifest(version, census, files, also=None):
    """census: {name: (group, dims)}; files: {file: (group, {tensor: (dims, first byte)})}, as fuzz_manifest.c takes them."""
    groups = ["model", "optimizer"]
    header = {
        f: {t: {"dtype": "F32", "shape": dims, "data_offsets": [at, at + 4 * count(dims)]} for t, (dims, at) in tensors.items()}
        for f, (_, tensors) in files.items()
    }
    m = {
        "format_version": version, "kind": "moec checkpoint", "step": 4,
        "state": {"step": 4, "updates": 4, "skipped": 0, "skipped_in_row": 0, "tokens": 1024, "train_seconds": 0.5, "seed": "1",
                  "data": {"epoch": 0, "index": 32, "fingerprint": "0123456789abcdef"}, "checkpoint_failures": 0},
        "block_bytes": 64,
        "files": [{"name": f, "group": groups[g], "bytes": "*", "blocks": "*"} for f, (g, _) in files.items()],
        "census": [{"name": n, "file": g, "dims": dims, "sum": "0" * 16} for n, (g, dims) in census.items()],
        "tensors": header,
    }
    return json.dumps({**m, **(also or {})}, indent=0).encode()


def count(dims):
    n = 1
    for d in dims:
        n *= d
    return n


def plan(mesh=None, ranks=1, slots=3, buffers=(), params=(), comm=()):
    """Three experts of one layer; comm: exchanges of a program that has nothing else."""
    values = [{"buffer": 0}, {"slab": 0, "bytes": 51200}, {"slab": 51200, "bytes": 51200}, {"slab": 102400, "bytes": 64},
              {"slab": 102464, "bytes": 64}, {"input": "segs", "bytes": 100}]
    steps = [{"name": "c", "kind": "comm", "phase": "reduce", "count": False, "layer": -1, "comm": list(comm)}] if comm else []
    p = {
        "format_version": 1, "abi": 1, "target": "cpu:generic", "model": {}, "tokenizer": "byte", "vocab_size": 256, "batch": 4,
        "seq": 2, "virtual_shards": 4, "micro_batches": 1, "dtype": "f32", "moe_layers": [0, 1], "experts": 3,
        "experts_per_token": 2, "buffers": [{"name": n, "dtype": "f32", "dims": d, "bytes": 4 * count(d)} for n, d in buffers],
        "params": list(params),
        "programs": {"train": {"slab_bytes": 131072, "slab_lower_bound": 1, "scratch_bytes": 0, "values": values, "inputs": [],
                               "outputs": [], "steps": steps}},
    }
    if mesh:
        p.update(ranks=ranks, slots=slots, mesh=mesh)
    return json.dumps(p, indent=0).encode()


def param(name, dims, buffer, expert=False, tp_dim=-1, **more):
    return {"name": name, "dims": dims, "stacked": expert, "expert": expert, "tp_dim": tp_dim, "init": "ones", "decay": True,
            "buffer": buffer, "states": [], **more}


def plan_seeds():
    mesh = {"dp": 1, "shard": 2, "ep": 2, "tp": 1, "dense_shard": 4}
    divided = {**mesh, "layers": [{"first": 1, "last": 1, "dp": 1, "shard": 1, "ep": 4}]}
    whole, part, slots = ("w", [128, 100]), ("w", [4096]), ("e", [2, 4096])
    dense, expert = param("w", [128, 100], 0), param("e.*", [3, 80, 60], 1, True, 1)
    gather = {"op": "all_gather", "in": [0], "out": 1, "dtype": "f32", "group": "dense_shard", "unit": 4096, "outer": 1, "elements": 12800}
    rows = {"op": "all_gather_rows", "in": [3], "out": 4, "group": "ep", "row_bytes": 8, "rows": 4}
    add = {"op": "all_reduce", "in": [3], "out": 4, "dtype": "i32", "group": "data", "elements": 16}
    return {
        "one": plan(buffers=[whole, ("e", [3, 80, 60])], params=[dense, expert]),
        "mesh": plan(mesh, 4, 2, [part, slots], [dense, expert], [gather, rows]),
        "divided": plan(divided, 4, 2, [part, slots, ("f", [1, 80, 60])],
                        [dense, expert, param("f.*", [3, 80, 60], 2, True, 1, mesh=1)], [add, {**rows, "out": 2, "group": "ep.1", "rows": 2}]),
        "tensor": plan({"dp": 1, "shard": 1, "ep": 1, "tp": 4, "dense_shard": 1}, 4, 3, [("w", [32, 100]), ("e", [3, 20, 60])],
                       [param("w", [128, 100], 0, tp_dim=0), expert], [{**add, "group": "tp"}]),
    }


def manifest_seeds():
    w, e, m = ("w", (0, [2, 3])), ("e", (0, [2, 4])), ("w.exp_avg", (1, [2, 3]))
    return {
        "one": manifest(2, dict([w, e, m]), {
            "model.safetensors": (0, {"w": ([2, 3], 0), "e": ([2, 4], 24)}), "optimizer.safetensors": (1, {"w.exp_avg": ([2, 3], 0)}),
        }),
        "pieces": manifest(2, dict([w, e, m]), {
            "model-rank-0.safetensors": (0, {"w": ([2, 3], 0), "e@0:0:2:4": ([4], 24)}), "model-rank-1.safetensors": (0, {"e@0:2:2:4": ([4], 0)}),
            "optimizer-rank-0.safetensors": (1, {"w.exp_avg@0": ([5], 0)}), "optimizer-rank-1.safetensors": (1, {"w.exp_avg@5": ([1], 0)}),
        }),
        "empty": manifest(2, dict([("n", (0, [0, 7]))]), {"model.safetensors": (0, {"n": ([0, 7], 0)})}),
        "twice": manifest(2, dict([w]), {"model.safetensors": (0, {"w@0": ([4], 0), "w@3": ([3], 16)})}),
        "missing": manifest(2, dict([w, e]), {"model.safetensors": (0, {"w": ([2, 3], 0)})}),
        "old": manifest(1, dict([w]), {"model.safetensors": (0, {"w": ([2, 3], 0)})},
                        {"census": [{"name": "w", "file": 0}], "files": [{"name": "model.safetensors", "bytes": "*", "xxh3": "*"}]}),
        "newer": manifest(99, dict([w]), {}),
    }


def main(root):
    seeds = {
        "manifest": manifest_seeds(),
        "plan": plan_seeds(),
        "safetensors": {
            "empty": safetensors({}, b""),
            "one": safetensors({"__metadata__": {"format": "pt"}, "w": TENSOR}, bytes(16)),
            "many": safetensors(
                {
                    "a": {"dtype": "BF16", "shape": [3], "data_offsets": [0, 6]},
                    "b": {"dtype": "I64", "shape": [], "data_offsets": [6, 14]},
                    "c": {"dtype": "F4", "shape": [4], "data_offsets": [14, 16]},
                    "d": {"dtype": "U64", "shape": [0, 7], "data_offsets": [16, 16]},
                },
                bytes(range(16)), pad=False,
            ),
            "overlap": safetensors({"a": TENSOR, "b": TENSOR}, bytes(16)),
        },
        "tokens": {  # the first byte: format + 6 * vocabulary (see fuzz_tokens.c)
            "text": b"\x00Hello,\n\xe2\x82\xac world\n",
            "jsonl": b'\x01{"text": "one \\u00e9"}\n\n{"id": 1, "text": "two"}\n',
            "u16": b"\x08" + struct.pack("<4H", 1, 2, 65535, 3),
            "u32": b"\x09" + struct.pack("<4I", 1, 2, 65535, 3),
            "llmc16": b"\x0a" + llmc(20240520, 1, 3, struct.pack("<3H", 5, 6, 7)),
            "llmc32": b"\x0a" + llmc(20240801, 7, 3, struct.pack("<3I", 5, 6, 7)),
        },
    }
    for target, files in seeds.items():
        os.makedirs(os.path.join(root, target), exist_ok=True)
        for name, data in files.items():
            with open(os.path.join(root, target, name), "wb") as f:
                f.write(data)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
