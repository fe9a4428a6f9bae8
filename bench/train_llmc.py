#!/usr/bin/env python3
"""Training speed of `lplb train` against llm.c's CPU trainer, on one core, in turns.

    python3 bench/train_llmc.py LLMC_FOLDER BUILD_FOLDER [--rounds 3]

LLMC_FOLDER is a clone of github.com/karpathy/llm.c; its train_gpt2.c is compiled as its Makefile
does (-Ofast -march=native) and reads a random model that is written here: 6 layers, width 384, 256
symbols, 10.8 million parameters, 4 sequences of 64. Ours has layers of the same number of weights
(SwiGLU of width 1024 against GELU of 1536): once dense, and once with 8 experts of which a token
takes 2 of width 512, the same work a token; both also with bf16 where that is to be had. Times are
of steps; the shortest of all is what the machine can do, the median what its other users left.
"""

import argparse
import array
import json
import os
import random
import re
import statistics
import struct
import subprocess
import tempfile
from pathlib import Path

LAYERS, WIDTH, HEADS, VOCAB, CONTEXT, BATCH, STEPS = 6, 384, 6, 256, 64, 4, 16


def write_llmc_files(folder):
    random.seed(1)
    C, L = WIDTH, LAYERS
    sizes = [VOCAB * C, 128 * C, L * C, L * C, L * 3 * C * C, L * 3 * C, L * C * C, L * C, L * C,
             L * C, L * 4 * C * C, L * 4 * C, L * C * 4 * C, L * C, C, C]
    noise = [random.gauss(0, 0.02) for _ in range(4096)]
    with open(folder / "gpt2_124M.bin", "wb") as out:
        header = [20240326, 3, 128, VOCAB, L, HEADS, C, VOCAB]
        out.write(struct.pack("256i", *header, *[0] * (256 - len(header))))
        for i, size in enumerate(sizes):
            if i in (2, 8, 14):  # gains of the norms
                values = array.array("f", [1.0]) * size
            else:
                values = (array.array("f", noise) * (size // 4096 + 1))[:size]
            values.tofile(out)
    data = folder / "dev/data/tinyshakespeare"
    data.mkdir(parents=True)
    tokens = array.array("H", [random.randrange(32, 127) for _ in range(40000)])
    for name in ("train", "val"):
        with open(data / f"tiny_shakespeare_{name}.bin", "wb") as out:
            out.write(struct.pack("256i", 20240520, 1, len(tokens), *[0] * 253))
            tokens.tofile(out)
    (folder / "text.txt").write_bytes(bytes(tokens))


def llmc_steps(folder):
    """Seconds of each step; the program stops at step 20, where it wants its tokenizer."""
    run = subprocess.run(["stdbuf", "-oL", "./train_gpt2"], cwd=folder, text=True,
                         stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                         env=dict(os.environ, OMP_NUM_THREADS="1"))
    return [float(ms) / 1000 for ms in re.findall(r"took ([0-9.]+) ms", run.stdout)][:STEPS]


def lplb_steps(folder, lplb, changes):
    options = {"text": "text.txt", "layers": LAYERS, "width": WIDTH, "heads": HEADS,
               "kv-heads": HEADS, "context": CONTEXT, "experts": 1, "topk": 1,
               "expert-width": 1024, "dense-layers": LAYERS - 1, "dense-width": 1024, "aux": "none",
               "global-batch": BATCH, "micro-batch": BATCH, "steps": STEPS, "held-out": 0,
               "warmup-steps": 2, "log": "log"}
    options.update(changes)
    words = [lplb, "train", "--json"]
    for name, value in options.items():
        words += [f"--{name}", str(value)]
    subprocess.run(words, cwd=folder, check=True, stdout=subprocess.DEVNULL,
                   env=dict(os.environ, OPENBLAS_NUM_THREADS="1", OMP_NUM_THREADS="1"))
    return [json.loads(line)["seconds"] for line in (folder / "log").read_text().splitlines()]


def has_bf16(folder, lplb):
    words = [lplb, "train", "--text", "text.txt", "--dtype", "bf16", "--plan-memory"]
    return subprocess.run(words, cwd=folder, stdout=subprocess.DEVNULL,
                          stderr=subprocess.DEVNULL).returncode == 0


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("llmc")
    parser.add_argument("build")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    lplb = str(Path(arguments.build).resolve() / "lplb")
    moe = {"experts": 8, "topk": 2, "expert-width": 512, "dense-layers": 0}
    kinds = {"lplb train, dense": {}, "lplb train, 8 experts, top-2": moe}
    times = {"llm.c": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_llmc_files(folder)
        subprocess.run(["cc", "-Ofast", "-march=native", "-fopenmp", "-DOMP", "-w",
                        str(Path(arguments.llmc).resolve() / "train_gpt2.c"), "-o",
                        str(folder / "train_gpt2"), "-lm"], check=True)
        if has_bf16(folder, lplb):
            kinds.update({f"{kind}, bf16": dict(changes, dtype="bf16")
                          for kind, changes in list(kinds.items())})
        for _ in range(arguments.rounds):
            times["llm.c"] += llmc_steps(folder)
            for kind, changes in kinds.items():
                times.setdefault(kind, []).extend(lplb_steps(folder, lplb, changes))
    tokens = BATCH * CONTEXT
    base = {kind: fold(times["llm.c"]) for kind, fold in
            (("best", min), ("median", statistics.median))}
    print(f"{'one core, tokens/s':36} {'best':>8} {'ratio':>6} {'median':>8} {'ratio':>6}")
    for who, seconds in times.items():
        best, middle = min(seconds), statistics.median(seconds)
        print(f"{who:36} {tokens / best:8.0f} {base['best'] / best:6.2f} "
              f"{tokens / middle:8.0f} {base['median'] / middle:6.2f}")


if __name__ == "__main__":
    main()
