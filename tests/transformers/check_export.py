#!/usr/bin/env python3
"""Does Hugging Face transformers load what moec exports, and compute the same with it?

    check_export.py fixture EXPORT_DIR FIXTURE_DIR     an export of the fixture's own weights: every tensor equal bit for bit, and logits and
                                                       loss of the fixture's batch within its bounds
    check_export.py run EXPORT_DIR LOSS TEXT SEQ       an export of a trained run: the mean cross entropy of all sequences of TEXT is the LOSS
                                                       that moec reported for them, within 1e-5

Needs torch, transformers and safetensors. Exit 0 if all hold.
"""
import json
import sys

import torch
import transformers
from safetensors.torch import load_file


def load(path, dtype=torch.float32):
    """The model as anyone would load it; nothing may be missing, unexpected or newly initialised."""
    model, info = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=dtype, output_loading_info=True)
    for key in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info.get(key):
            sys.exit(f"{path}: {key}: {sorted(info[key])[:5]}")
    return model.eval()


def check(what, error, bound):
    print(f"{what}: error {error:.3e}, bound {bound:.0e}")
    if not error <= bound:
        sys.exit(f"{what}: FAILED")


def fixture(export, source):
    got, want = load_file(f"{export}/model.safetensors"), load_file(f"{source}/model.safetensors")
    if set(got) - {"lm_head.weight"} != set(want) - {"lm_head.weight"}:
        sys.exit(f"names differ: {sorted(set(got) ^ set(want))[:5]}")
    for name, tensor in want.items():
        if name in got and not torch.equal(got[name], tensor):
            sys.exit(f"{name}: not the weights that went in")
    expected = load_file(f"{source}/expected.safetensors")
    ids = expected["input_ids"]
    with torch.no_grad():
        out = load(export)(input_ids=ids, labels=ids, use_cache=False)
    check("logits", (out.logits - expected["logits"]).abs().max().item(), 2e-5)
    info = json.load(open(f"{source}/expected.json"))["float32"]
    check("loss", abs(out.loss.item() - info["loss"]), 2e-6)


def run(export, loss, text, seq):
    data = open(text, "rb").read()
    n = (len(data) - 1) // seq
    ids = torch.tensor(list(data[: n * seq]), dtype=torch.long).view(n, seq)
    labels = torch.tensor(list(data[1 : n * seq + 1]), dtype=torch.long).view(n, seq)
    model = load(export)
    total = 0.0
    with torch.no_grad():
        for i in range(0, n, 64):
            logits = model(input_ids=ids[i : i + 64], use_cache=False).logits
            total += torch.nn.functional.cross_entropy(logits.flatten(0, 1).double(), labels[i : i + 64].flatten(), reduction="sum").item()
    check("loss", abs(total / (n * seq) - loss), 1e-5)


if len(sys.argv) == 4 and sys.argv[1] == "fixture":
    fixture(sys.argv[2], sys.argv[3])
elif len(sys.argv) == 6 and sys.argv[1] == "run":
    run(sys.argv[2], float(sys.argv[3]), sys.argv[4], int(sys.argv[5]))
else:
    sys.exit(__doc__)
