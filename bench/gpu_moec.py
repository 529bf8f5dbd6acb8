"""moec's side of bench/gpu: plans, runs that end when what is wanted has been measured, and the seconds of each step of a plan."""
import array
import json
import os
import random
import re
import shutil
import signal
import string
import subprocess
import time

import gpu_device

HERE = os.path.dirname(os.path.abspath(__file__))
# The model of a training step: 0.9 B parameters.
STEP = dict(architectures=["MixtralForCausalLM"], model_type="mixtral", vocab_size=32000, hidden_size=1024, intermediate_size=512, num_hidden_layers=16,
            num_attention_heads=16, num_key_value_heads=4, head_dim=64, num_local_experts=32, num_experts_per_tok=4, max_position_embeddings=2048,
            output_router_logits=True, router_aux_loss_coef=0.001, rope_theta=10000.0, rms_norm_eps=1e-5, sliding_window=None, hidden_act="silu",
            initializer_range=0.02, tie_word_embeddings=False, torch_dtype="bfloat16", use_cache=False)


MOST_SECONDS = 600  # of one process of moec: more is an error, not a measurement


class Failed(Exception):
    pass


class Run:
    """steps: the train program's, as plan.json has them; seconds: of each, by device events, of one step of training;
    counts: rows of each expert of layer 0 in that step; log: lines of log.jsonl; least_free, clocks: of the device meanwhile; notes: what moec chose by
    measurement."""

    def groups(self):
        """{(phase, kind, name without layer): times, bytes, seconds}: launches of one name are one group; their bytes stand at the first."""
        found, seen = {}, set()
        for step, seconds in zip(self.steps, self.seconds):
            key = (step["phase"], step["kind"], re.sub(r"layers\.\d+\.", "layers.*.", step["name"]))
            g = found.setdefault(key, {"n": 0, "bytes": 0.0, "seconds": 0.0})
            g["n"] += step["bytes"] > 0
            g["bytes"] += step["bytes"]
            g["seconds"] += seconds
        return found


class Moec:
    def __init__(self, program, work, target):
        self.program, self.work, self.target = program, work, target

    def run(self, args, env=None):
        try:
            done = subprocess.run([self.program, *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env, timeout=MOST_SECONDS)
        except subprocess.TimeoutExpired:
            raise Failed(f"moec {args[0]}: not done after {MOST_SECONDS} s") from None
        if done.returncode:
            raise Failed(f"moec {args[0]}: {(done.stderr.strip() or 'status %d' % done.returncode)[-400:]}")
        return done.stdout

    def layer(self, shape, vocab):
        """The graph of one MoE layer between an embedding and a loss."""
        T, d, n, E, K = shape
        with open(os.path.join(HERE, "gpu_layer.moe.in")) as f:
            text = string.Template(f.read()).substitute(T=T, TK=T * K, d=d, n=n, E=E, K=K, V=vocab)
        path = os.path.join(self.work, "layer.moe")
        with open(path, "w") as f:
            f.write(text)
        return path

    def compile(self, source, name, batch, seq, cache=None, flags=()):
        """The plan and the seconds it took."""
        plan = os.path.join(self.work, name + ".plan")
        shutil.rmtree(plan, ignore_errors=True)
        began = time.perf_counter()
        self.run(["compile", source, "-o", plan, "--batch", str(batch), "--seq", str(seq), "--dtype", "bf16", "--target", self.target, "-q", *flags],
                 dict(os.environ, MOEC_CACHE=cache) if cache else None)
        return plan, time.perf_counter() - began

    def plan(self, plan):
        with open(os.path.join(plan, "plan.json")) as f:
            return json.load(f)

    def explain(self, plan):
        return json.loads(self.run(["explain", plan, "-o", "json"]))

    def tokens(self, vocab, n, zipf):
        """n tokens, even or by Zipf's law."""
        path, rng = os.path.join(self.work, "tokens.u16"), random.Random(1)
        if zipf:
            names = list(range(vocab))
            rng.shuffle(names)
            drawn = rng.choices(names, weights=[1 / (i + 1) ** zipf for i in range(vocab)], k=n)
        else:
            drawn = rng.choices(range(vocab), k=n)
        with open(path, "wb") as f:
            array.array("H", drawn).tofile(f)
        return path

    def train(self, plan, data, out, before, profiled, lr="0", device=None):
        """Trains `before` steps and then one whose kernels are timed, and ends the process: a checkpoint would be gigabytes that nobody wants."""
        shutil.rmtree(out, ignore_errors=True)
        total, log, profile = before + profiled, os.path.join(out, "log.jsonl"), os.path.join(out, "profile-rank-0.jsonl")
        run, lines = Run(), []
        run.least_free, run.clocks = device.free() if device else 0, None
        with open(os.path.join(self.work, "moec.err"), "w+") as err:
            process = subprocess.Popen([self.program, "run", plan, "--data", data, "--format", "u16", "--out", out, "--steps", str(total + 100000), "--lr", lr,
                                        "--min-lr", lr, "--warmup", "0", "--eval-fraction", "0", "--profile-step", str(total)], stdout=err, stderr=err)
            began = time.monotonic()
            try:
                while process.poll() is None and not (len(lines) >= total and os.path.exists(profile)):
                    if time.monotonic() - began > MOST_SECONDS:
                        raise Failed(f"moec run: {len(lines)} of {total} steps after {MOST_SECONDS} s")
                    time.sleep(0.02)
                    if os.path.exists(log):
                        with open(log) as f:
                            lines = f.read().split("\n")[:-1]
                    if device:
                        run.least_free = min(run.least_free, device.free())
                        if run.clocks is None and lines:
                            run.clocks = gpu_device.clocks() or ""
                if process.poll() is not None:
                    err.seek(0)
                    raise Failed(f"moec run ended early with {process.returncode}: {err.read().strip()[-400:]}")
            finally:
                if process.poll() is None:
                    process.send_signal(signal.SIGKILL)
                process.wait()
            err.seek(0)
            run.notes = re.findall(r"note: ((?:dense product|attention) .*)", err.read())
        run.log = [json.loads(line) for line in lines[:total]]
        run.steps = self.plan(plan)["programs"]["train"]["steps"]
        run.seconds = [0.0] * len(run.steps)
        with open(profile) as f:
            for span in map(json.loads, f.read().splitlines()[1:]):
                run.seconds[span["i"]] += span["end"] - span["begin"]
        run.counts = read_counts(os.path.join(out, "trace.csv"), total)
        shutil.rmtree(out, ignore_errors=True)
        return run


def read_counts(path, step):
    """Rows of layer 0's experts in that step, added up over virtual shards."""
    with open(path) as f:
        rows = [line.split(",") for line in f.read().splitlines()[1:]]
    mine = [[int(x) for x in r[3:]] for r in rows if r[0] == str(step) and r[1] == "0"]
    if not mine:
        raise Failed(f"{path}: nothing of step {step}")
    return [sum(column) for column in zip(*mine)]
