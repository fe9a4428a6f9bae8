#!/usr/bin/env python3
"""What share of the matrix product's peak `lplb train` reaches, on one core.

    python3 bench/train_speed.py BUILD_FOLDER [--rounds 3]

The peak is what OpenBLAS's sgemm does with the shapes of the training itself (bench_train_gemm),
each weighted with its part of a step; the training's flop/s count 6 for every matrix weight that a
token meets (2 forward, 4 backward) and the attention's products, without what is computed again.
Both are taken in turns and by processor time, so that other users of the machine take from both.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
from pathlib import Path
import tempfile

SHAPES = {
    "dense, 6 x 384, context 64": dict(layers=6, width=384, heads=6, context=64, batch=4, ffn=1024),
    "dense, 6 x 384, context 512": dict(layers=6, width=384, heads=6, context=512, batch=2,
                                        ffn=1024),
    "8 experts, top-2 of 512": dict(layers=6, width=384, heads=6, context=64, batch=4, ffn=512,
                                    experts=8, topk=2),
}
STEPS, FEW = 24, 4


def cpu_seconds(words):
    """Processor time of a command and all it starts."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL,
                   env=dict(os.environ, OPENBLAS_NUM_THREADS="1"))
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def train(lplb, text, shape):
    """Processor seconds of a step: two runs, so that starting up cancels."""
    experts = shape.get("experts", 1)
    options = {"text": text, "layers": shape["layers"], "width": shape["width"],
               "heads": shape["heads"], "kv-heads": shape["heads"], "context": shape["context"],
               "experts": experts, "topk": shape.get("topk", 1), "expert-width": shape["ffn"],
               "dense-layers": 0 if experts > 1 else shape["layers"] - 1,
               "dense-width": shape["ffn"], "aux": "none", "global-batch": shape["batch"],
               "micro-batch": shape["batch"], "held-out": 0, "warmup-steps": 2}
    words = [lplb, "train", "--json"]
    for name, value in options.items():
        words += [f"--{name}", str(value)]
    long, short = (cpu_seconds(words + ["--steps", str(n)]) for n in (STEPS + FEW, FEW))
    return (long - short) / STEPS


def step_products(shape):
    """(M, N, K) and how often a step has it in each of the three directions."""
    D, F, N = shape["width"], shape["ffn"], shape["batch"] * shape["context"]
    experts, topk, L = shape.get("experts", 1), shape.get("topk", 1), shape["layers"]
    rows = N * topk // experts
    return {(N, D, D): 4 * L, (rows, F, D): 2 * L * experts, (rows, D, F): L * experts,
            (N, 256, D): 1}


def attention_flops(shape):
    """Scores and mixing, causal half, forward and twice that backward."""
    tokens = shape["batch"] * shape["context"]
    return 6 * tokens * (shape["context"] + 1) * shape["width"] * shape["layers"]


def peak(gemm, products):
    """flop/s of the products, each in its three directions, weighted by their flops."""
    words = [gemm, "--json"] + [f"{m}x{n}x{k}" for m, n, k in products]
    out = subprocess.run(words, check=True, capture_output=True, text=True,
                         env=dict(os.environ, OPENBLAS_NUM_THREADS="1")).stdout
    seconds = {tuple(line["shape"]): line["seconds"] for line in json.loads(out)["products"]}
    flops = sum(6 * m * n * k * count for (m, n, k), count in products.items())
    return flops / sum(seconds[shape] * count for shape, count in products.items())


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("build")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    build = Path(arguments.build).resolve()
    print(f"{'one core, by processor time':32} {'tokens/s':>9} {'Gflop/s':>8} {'sgemm':>7} "
          f"{'share':>6}")
    with tempfile.TemporaryDirectory() as name:
        text = Path(name) / "text.txt"
        text.write_text("".join(f"line {i} of some text, {i * i % 97}.\n" for i in range(20000)))
        for what, shape in SHAPES.items():
            products = step_products(shape)
            flops = sum(6 * m * n * k * count for (m, n, k), count in products.items())
            flops += attention_flops(shape)
            speeds, peaks = [], []
            for _ in range(arguments.rounds):
                speeds.append(flops / train(str(build / "lplb"), str(text), shape))
                peaks.append(peak(str(build / "bench/bench_train_gemm"), products))
            share = statistics.median(s / p for s, p in zip(speeds, peaks))
            speed, most = statistics.median(speeds), statistics.median(peaks)
            tokens = shape["batch"] * shape["context"]
            print(f"{what:32} {tokens * speed / flops:9.0f} {speed * 1e-9:8.1f} "
                  f"{most * 1e-9:7.1f} {share:6.2f}", flush=True)


if __name__ == "__main__":
    main()
