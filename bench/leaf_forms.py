"""Weight gradients by the leaf of their trees (docs/NUMBERS.md, 4) and without trees: the part that bench/leaves and bench/gpu share."""
import os
import shutil
import statistics

FORMS = [("128", ["--leaf-rows", "128"]), ("512", ["--leaf-rows", "512"]), ("1024", ["--leaf-rows", "1024"]), ("fast-reduce", ["--fast-reduce"])]


def measure(moec, shape, vocab, batch, rounds):
    """Of one MoE layer (T, d, n, E, K), T tokens in `batch` sequences: form -> the seconds of its weight gradients' kernels and of all kernels of a step, in each
    round. Forms take turns, each run a process of its own, after 2 steps of warm-up."""
    seq = shape[0] // batch
    source, data = moec.layer(shape, vocab), moec.tokens(vocab, shape[0] * 5 + 1, 0)
    plans = {form: moec.compile(source, "leaf-" + form, batch, seq, flags=flags)[0] for form, flags in FORMS}
    seconds = {form: [] for form in plans}
    for _ in range(rounds):
        for form, plan in plans.items():
            run = moec.train(plan, data, os.path.join(moec.work, "leaf.run"), 2, 1)
            grads = sum(s for step, s in zip(run.steps, run.seconds) if step["kind"] == "wgrad")
            seconds[form].append((grads, sum(run.seconds)))
    for plan in plans.values():
        shutil.rmtree(plan)
    return seconds


def rows(shape, seconds):
    """The table's: times and, for each form, what part of the first form's best that is."""
    T, d, n, E, K = shape
    flops, first, out = 6.0 * T * d * n * K, min(g for g, _ in seconds[FORMS[0][0]]), []
    for form, _ in FORMS:
        grads, step = [g for g, _ in seconds[form]], [s for _, s in seconds[form]]
        out.append([f"{shape}", form, f"{1e3 * min(grads):.3f}", f"{1e3 * statistics.median(grads):.3f}", f"{flops / min(grads) / 1e12:.3g}",
                    f"{min(grads) / first:.3f}", f"{min(step) / min(s for _, s in seconds[FORMS[0][0]]):.3f}"])
    return out


COLUMNS = ["shape", "leaf", "weight gradients ms, best", "median", "experts' TFLOP/s", "of leaf 128's time", "the step's, of leaf 128's"]
