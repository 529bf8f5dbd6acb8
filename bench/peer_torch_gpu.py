#!/usr/bin/env python3
"""PyTorch's side of bench/gpu, one variant a process: the same MoE layer with the same rows for every expert, the same training step.

    peer_torch_gpu.py --list layer|step                  the variants
    peer_torch_gpu.py layer NAME COUNTS.json             {"shape": [T, d, n, E, K], "counts": rows of each expert}
    peer_torch_gpu.py step NAME CONFIG.json TOKENS.u16 BATCH SEQ WARMUP STEPS
    peer_torch_gpu.py check                              the layer's variants against each other, tiny, in f32 where no GPU is (exit status)

Prints one JSON object: {"variant", "best", "median", ...} in seconds, or {"absent": why}. A layer has bf16 weights, indices that are ready, and the gradients of
its input, weights and the weights of the sum. Gathers and sums over a token's experts go backwards by the inverse indices (no atomics), the weights of the sum
are applied before the second product, as the other side does. Forward, and forward with backward, are CUDA graphs that are replayed between two events; where
a variant cannot be captured it is launched ("eager"); backward is the difference. A step is what a trainer does: forward, backward, clip the norm at 1, AdamW.
"""
import array
import json
import statistics
import sys
import time

LAYER = {  # name: (products, elementwise parts by torch.compile)
    "grouped_mm": ("grouped_mm", False),
    "grouped_mm-compiled": ("grouped_mm", True),
    "cublas-loop": ("loop", False),
    "cublas-loop-compiled": ("loop", True),
    "grouped_gemm-compiled": ("grouped_gemm", True),
    "sonicmoe": ("sonicmoe", False),
}
STEP = {  # name: (experts implementation, how bf16 is used, torch.compile)
    "bf16-pure-grouped-compiled": ("grouped_mm", "pure", True),
    "bf16-pure-grouped": ("grouped_mm", "pure", False),
    "bf16-autocast-grouped-compiled": ("grouped_mm", "autocast", True),
    "bf16-pure-sonicmoe": ("sonicmoe", "pure", False),
}


class Absent(Exception):
    pass


# ---- the layer ----

class Layer:
    """Rows of the experts, in order of expert and then token. token: [TK] of each row, slot: which of its token's, inv: [T, K] row of each token's slots."""

    def __init__(self, shape, counts, device, dtype):
        import torch
        T, d, n, E, K = shape
        if sum(counts) != T * K or max(counts) > T:
            raise Absent(f"{sum(counts)} rows, at most {max(counts)} of an expert, are no routing of {T} tokens to {K} experts")
        g = torch.Generator().manual_seed(1)
        row = torch.arange(T * K)
        # an expert's rows are neighbours and at most T, so its tokens differ
        token, slot = torch.randperm(T, generator=g)[row % T], row // T
        expert = torch.repeat_interleave(torch.arange(E), torch.tensor(counts))
        order = torch.argsort(expert * T + token)
        token, slot = token[order], slot[order]
        inv = torch.empty(T, K, dtype=torch.long)
        inv[token, slot] = row
        self.shape, self.counts, self.device = shape, counts, device
        self.token, self.inv, self.expert = token.to(device), inv.to(device), expert.to(device)
        self.offsets = torch.tensor(counts).cumsum(0).to(torch.int32).to(device)
        self.sizes = torch.tensor(counts, dtype=torch.int64)  # grouped_gemm wants them on the host

        def normal(*size, std=1.0):
            return (torch.randn(*size, generator=g) * std).to(dtype).to(device) if device == "cpu" else (torch.randn(*size, device=device) * std).to(dtype)
        self.x = normal(T, d).requires_grad_()
        self.w13 = normal(E, 2 * n, d, std=0.02).requires_grad_()
        self.w2 = normal(E, d, n, std=0.02).requires_grad_()
        self.s = torch.rand(T * K, 1, generator=g).to(device).requires_grad_()  # f32, by row
        self.dy = normal(T, d)
        self.leaves = (self.x, self.w13, self.w2, self.s)


def functions(layer, compiled):
    """gather(x) -> rows, total(rows) -> tokens, act(h, s) -> rows of n: with backward passes by the inverse indices."""
    import torch
    T, d, _, _, K = layer.shape
    token, inv = layer.token, layer.inv.reshape(-1)

    def rows_of(x):
        return x[token]

    def sum_of(y):
        return y[inv].view(T, K, d).float().sum(1).to(y.dtype)

    def act(h, s):
        gate, up = h.chunk(2, dim=-1)
        return (torch.nn.functional.silu(gate.float()) * up.float() * s).to(h.dtype)
    if compiled:
        rows_of, sum_of, act = (torch.compile(f, dynamic=False) for f in (rows_of, sum_of, act))

    class Gather(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return rows_of(x)

        @staticmethod
        def backward(ctx, g):
            return sum_of(g)

    class Sum(torch.autograd.Function):
        @staticmethod
        def forward(ctx, y):
            return sum_of(y)

        @staticmethod
        def backward(ctx, g):
            return rows_of(g)
    return Gather.apply, Sum.apply, act


def loop_product(counts):
    """x [rows, k], w [E, n, k] -> [rows, n], one cuBLAS product an expert, forward and backward."""
    import torch
    ends, at = [], 0
    for c in counts:
        ends.append((at, at + c))
        at += c

    class Loop(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, w):
            ctx.save_for_backward(x, w)
            out = x.new_empty(x.shape[0], w.shape[1])
            for e, (a, b) in enumerate(ends):
                if b > a:
                    torch.mm(x[a:b], w[e].t(), out=out[a:b])
            return out

        @staticmethod
        def backward(ctx, g):
            x, w = ctx.saved_tensors
            dx, dw = torch.empty_like(x), torch.empty_like(w)
            for e, (a, b) in enumerate(ends):
                if b > a:
                    torch.mm(g[a:b], w[e], out=dx[a:b])
                    torch.mm(g[a:b].t(), x[a:b], out=dw[e])
                else:
                    dw[e].zero_()
            return dx, dw
    return Loop.apply


def product_of(layer, products):
    import torch
    if products == "grouped_mm":
        mm = getattr(torch.nn.functional, "grouped_mm", None) or getattr(torch, "_grouped_mm", None)
        if mm is None:
            raise Absent(f"torch {torch.__version__} has no grouped_mm")
        return lambda x, w: mm(x, w.transpose(-2, -1), offs=layer.offsets)
    if products == "grouped_gemm":
        try:
            from grouped_gemm.ops import gmm
        except ImportError as e:
            raise Absent(str(e))
        return lambda x, w: gmm(x, w, layer.sizes, trans_b=True)
    return loop_product(layer.counts)


def forward_of(layer, name):
    """The layer's forward pass by that variant: () -> [T, d]."""
    products, compiled = LAYER[name]
    if products == "sonicmoe":
        return sonicmoe(layer)
    gather, total, act = functions(layer, compiled)
    product = product_of(layer, products)
    return lambda: total(product(act(product(gather(layer.x), layer.w13), layer.s), layer.w2))


def sonicmoe(layer):
    """The kernel package as transformers loads it; it makes its table of rows anew in every call."""
    import torch
    try:
        from transformers.integrations.sonicmoe import load_sonicmoe_kernel
        kernel = load_sonicmoe_kernel()
    except Exception as e:  # not there, not for this GPU, not to be downloaded: all the same here
        raise Absent(f"{type(e).__name__}: {e}")
    T, _, _, E, K = layer.shape
    token = torch.arange(T, device=layer.device).unsqueeze(1).expand(-1, K).reshape(-1).int()
    expert = layer.expert[layer.inv.reshape(-1)].int()
    swiglu = kernel.activation_type_enum.SWIGLU
    inv = layer.inv.reshape(-1)

    def forward():
        scores = layer.s[inv, 0].to(layer.x.dtype)
        return kernel.moe_general_routing_inputs(layer.x, scores, token, expert, layer.w13.permute(1, 2, 0), None, layer.w2.permute(1, 2, 0), None, E=E,
                                                 activation_type=swiglu, is_inference_mode_enabled=False, concat_layout=True, stream_id=None)[0]
    return forward


def captured(f):
    """A CUDA graph of f, or f itself."""
    import torch
    try:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                f()
        torch.cuda.current_stream().wait_stream(side)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            f()
        graph.replay()
        torch.cuda.synchronize()
        return graph.replay, "graph"
    except torch.OutOfMemoryError:
        raise
    except RuntimeError:  # a copy to the host, an allocation of its own: not to be captured
        torch.cuda.synchronize()
        return f, "eager"


def timed(f, times=20, warm=5):
    """Seconds of each of `times` calls, by events."""
    import torch
    for _ in range(warm):
        f()
    events = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(times)]
    for begin, end in events:
        begin.record()
        f()
        end.record()
    torch.cuda.synchronize()
    return [begin.elapsed_time(end) / 1e3 for begin, end in events]


def measure_layer(name, path):
    import torch
    if not torch.cuda.is_available():
        raise Absent("torch sees no GPU")
    with open(path) as f:
        given = json.load(f)
    layer = Layer(given["shape"], given["counts"], "cuda", torch.bfloat16)
    forward = forward_of(layer, name)

    def both():
        return torch.autograd.grad(forward(), layer.leaves, layer.dy)
    one, how_one = captured(forward)
    first = timed(one)
    del one
    torch.cuda.empty_cache()
    two, how_two = captured(both)
    second = timed(two)
    result = {"variant": name, "how": how_one if how_one == how_two else f"{how_one}, {how_two}"}
    for key, pick in (("best", min), ("median", statistics.median)):
        result[key] = {"forward": pick(first), "backward": pick(second) - pick(first)}
    return result


# ---- a training step ----

def batches(path, batch, seq, steps):
    import torch
    ids = array.array("H")
    with open(path, "rb") as f:
        ids.frombytes(f.read(2 * batch * seq * steps))
    return torch.tensor(ids.tolist(), dtype=torch.long).view(steps, batch, seq)


def measure_step(name, config_path, tokens, batch, seq, warmup, steps, device="cuda"):
    import torch
    try:
        import transformers
    except ImportError as e:
        raise Absent(str(e))
    if device == "cuda" and not torch.cuda.is_available():
        raise Absent("torch sees no GPU")
    experts, bf16, compiled = STEP[name]
    torch.manual_seed(0)
    config = transformers.AutoConfig.from_pretrained(config_path)
    config._attn_implementation, config._experts_implementation, config.use_cache = "sdpa", experts, False
    try:
        with torch.device(device):
            model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16 if bf16 == "pure" else torch.float32).train()
    except (ValueError, KeyError, ImportError) as e:
        raise Absent(f"{type(e).__name__}: {e}")
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    forward, seconds, losses = torch.compile(model) if compiled else model, [], []
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    for ids in batches(tokens, batch, seq, warmup + steps).to(device):
        wait()
        start = time.perf_counter()
        with torch.autocast(device, dtype=torch.bfloat16, enabled=bf16 == "autocast"):
            out = forward(input_ids=ids, labels=ids)
        out.loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        wait()
        seconds.append(time.perf_counter() - start)
        losses.append(float(out.loss.detach()))
    return {"variant": name, "best": min(seconds[warmup:]), "median": statistics.median(seconds[warmup:]), "losses": losses,
            "memory_bytes": torch.cuda.max_memory_allocated() if device == "cuda" else 0}


# ---- do the variants compute the same? ----

def check():
    """Each variant that is here against the definition in f64, forward and backward, on routing that leaves an expert without rows."""
    import torch
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype, bound = (torch.bfloat16, 2e-2) if device == "cuda" else (torch.float32, 1e-5)
    shape, counts, bad = [64, 64, 32, 5, 2], [64, 0, 33, 21, 10], 0
    layer = Layer(shape, counts, device, dtype)
    x, w13, w2, s = (t.detach().double().requires_grad_() for t in layer.leaves)
    gate, up = torch.einsum("rd,rnd->rn", x[layer.token], w13[layer.expert]).chunk(2, -1)
    rows = torch.einsum("rn,rdn->rd", torch.nn.functional.silu(gate) * up * s, w2[layer.expert])
    want = torch.zeros_like(x).index_add(0, layer.token, rows)
    want = (want.detach(), *torch.autograd.grad(want, (x, w13, w2, s), layer.dy.double()))
    for name, (_, compiled) in LAYER.items():
        if compiled and device == "cpu":
            continue
        try:
            y = forward_of(layer, name)()
        except Absent as e:
            print(f"{name}: absent: {e}")
            continue
        have = (y.detach(), *torch.autograd.grad(y, layer.leaves, layer.dy))
        worst = max(float((h.double() - w).norm() / w.norm()) for h, w in zip(have, want))
        print(f"{name}: {worst:.1e} of {bound:.0e}")
        bad += not worst <= bound
    return bad


def main(args):
    if len(args) == 2 and args[0] == "--list":
        print("\n".join({"layer": LAYER, "step": STEP}[args[1]]))
        return 0
    try:
        import torch
        if args == ["check"]:
            return 1 if check() else 0
        if args[:1] == ["layer"] and len(args) == 3:
            result = measure_layer(*args[1:])
        elif args[:1] == ["step"] and len(args) == 8:
            result = measure_step(*args[1:4], *map(int, args[4:]))
        else:
            print(__doc__, file=sys.stderr)
            return 2
        result["versions"] = f"torch {torch.__version__}, CUDA {torch.version.cuda}"
        if args[0] == "step":
            import transformers
            result["versions"] += f", transformers {transformers.__version__}"
    except ImportError as e:
        result = {"absent": str(e)}
    except Absent as e:
        result = {"absent": " ".join(str(e).split())[:160]}
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
