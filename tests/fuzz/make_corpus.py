#!/usr/bin/env python3
"""Writes seed inputs for the fuzz targets: make_corpus.py DIR makes DIR/safetensors/* and DIR/tokens/*."""
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


def main(root):
    seeds = {
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
