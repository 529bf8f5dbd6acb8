#!/usr/bin/env python3
"""The PyTorch side of bench/vs_torch: the same Mixtral, batch and optimiser, trained by transformers on this CPU.

    peer_torch.py --list                        the variants, one a line: NAME DTYPE [quick]
    peer_torch.py NAME CONFIG.json TOKENS.u16 [--batch B --seq S --steps N --warmup N --threads N]

One variant a process, so that the peak memory is its own. Prints one JSON object: tokens_per_second (the best step and the
median of the steps after the warm-up), peak_rss_bytes, and the losses, which should fall as those of the other side do.
A step is what a trainer does: forward, backward, clip the gradient norm at 1, AdamW (fused), zero the gradients.
TOKENS.u16 holds raw 16-bit token ids; step i takes the sequences i*B .. i*B+B-1 of it.
"""
import argparse
import array
import json
import resource
import statistics
import sys
import time

# name -> (reported dtype, experts implementation, how bf16 is used, torch.compile, tried with --quick too)
VARIANTS = {
    "f32-eager": ("f32", "eager", "none", False, False),
    "f32-grouped": ("f32", "grouped_mm", "none", False, True),
    "f32-batched": ("f32", "batched_mm", "none", False, False),
    "f32-grouped-compiled": ("f32", "grouped_mm", "none", True, True),
    "bf16-autocast-eager": ("bf16", "eager", "autocast", False, False),
    "bf16-autocast-grouped": ("bf16", "grouped_mm", "autocast", False, True),
    "bf16-autocast-grouped-compiled": ("bf16", "grouped_mm", "autocast", True, False),
    "bf16-pure-eager": ("bf16", "eager", "pure", False, False),
    "bf16-pure-grouped": ("bf16", "grouped_mm", "pure", False, True),
    "bf16-pure-grouped-compiled": ("bf16", "grouped_mm", "pure", True, True),
}


def batches(path, batch, seq, steps):
    import torch
    ids = array.array("H")
    with open(path, "rb") as f:
        ids.frombytes(f.read(2 * batch * seq * steps))
    if len(ids) < batch * seq * steps:
        sys.exit(f"peer_torch.py: {path}: {len(ids)} tokens, {batch * seq * steps} needed")
    return torch.tensor(ids.tolist(), dtype=torch.long).view(steps, batch, seq)


def measure(name, a):
    import torch
    import transformers
    dtype, experts, bf16, compiled, _ = VARIANTS[name]
    torch.set_num_threads(a.threads)
    torch.manual_seed(0)
    config = transformers.AutoConfig.from_pretrained(a.config)
    config._attn_implementation = "sdpa"
    config._experts_implementation = experts
    config.use_cache = False
    model = transformers.AutoModelForCausalLM.from_config(config)
    model = model.to(torch.bfloat16 if bf16 == "pure" else torch.float32).train()
    n_params = sum(p.numel() for p in model.parameters())
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    data = batches(a.tokens, a.batch, a.seq, a.warmup + a.steps)
    forward = torch.compile(model) if compiled else model
    seconds, losses = [], []
    for ids in data:
        start = time.perf_counter()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16 == "autocast"):
            out = forward(input_ids=ids, labels=ids)
        out.loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        losses.append(float(out.loss))
        seconds.append(time.perf_counter() - start)
    timed = seconds[a.warmup:]
    tokens = a.batch * a.seq
    return {
        "variant": name, "dtype": dtype, "tokens_per_second": tokens / min(timed),
        "median_tokens_per_second": tokens / statistics.median(timed),
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "parameters": n_params, "threads": a.threads, "seconds": seconds, "losses": losses,
        "torch": torch.__version__, "transformers": transformers.__version__,
    }


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("variant", nargs="?", choices=list(VARIANTS))
    ap.add_argument("config", nargs="?")
    ap.add_argument("tokens", nargs="?")
    ap.add_argument("--list", action="store_true")
    ap.add_argument("--batch", type=int, default=8)
    ap.add_argument("--seq", type=int, default=512)
    ap.add_argument("--steps", type=int, default=4)
    ap.add_argument("--warmup", type=int, default=2)
    ap.add_argument("--threads", type=int, default=2)
    a = ap.parse_args()
    if a.list:
        for name, v in VARIANTS.items():
            print(name, v[0], "quick" if v[4] else "")
        return
    if not a.tokens:
        ap.error("a variant, CONFIG.json and TOKENS.u16 are needed (or --list)")
    print(json.dumps(measure(a.variant, a)))


main()
