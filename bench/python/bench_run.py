"""What one eager `run` costs the CPU, call by call, and where a GPU is, on the device too.

    PYTHONPATH=python python3 bench/python/bench_run.py [--json]

Medians over blocks of calls, in time of this thread, which others on the machine do not share. On a
GPU the CPU's share is the time to enqueue: the device works behind. Ids: 8 ranks of cube 8x2, 64
experts, top-8.
"""

import argparse
import json
import statistics
import time

import numpy as np

import lplb

CUBE = np.array([[3, 0, 1, 2, 7, 4, 5, 6], [6, 7, 4, 5, 0, 1, 2, 3]]).T


def microseconds(call, finish=lambda: None, blocks=31, calls=200):
    """Median of this thread's time for a call."""
    for _ in range(20):
        call()
    finish()
    times = []
    for _ in range(blocks):
        begin = time.thread_time()
        for _ in range(calls):
            call()
        times.append((time.thread_time() - begin) / calls * 1e6)
        finish()
    return statistics.median(times)


def measure(kind, tokens):
    ids = np.random.default_rng(0).integers(0, 64, (tokens, 8))
    r2o, counter, finish = CUBE, np.zeros(1, np.int32), lambda: None
    if kind != "numpy":
        import torch

        device = "cuda" if kind == "cuda" else "cpu"
        r2o, ids = torch.from_numpy(CUBE.copy()).to(device), torch.from_numpy(ids).to(device)
        counter = torch.zeros(1, dtype=torch.int32, device=device)
        if kind == "cuda":
            finish = torch.cuda.synchronize
        empty = microseconds(lambda: torch.empty_like(ids), finish)
    else:
        empty = microseconds(lambda: np.empty_like(ids))
    planner = lplb.Planner(r2o, 64 + 16, 64, 8, max_ids=1 << 17 if kind == "cuda" else 0)
    out = planner.run(ids)
    return {
        "arrays": kind, "ids": tokens * 8,
        "run_out_us": round(microseconds(lambda: planner.run(ids, out=out), finish), 2),
        "run_us": round(microseconds(lambda: planner.run(ids), finish), 2),
        "run_counter_us": round(microseconds(lambda: planner.run(ids, counter, 100), finish), 2),
        "empty_like_us": round(empty, 2),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", action="store_true", help="one JSON document")
    options = parser.parse_args()
    kinds = ["numpy"]
    try:
        import torch

        kinds.append("torch")
        if torch.cuda.is_available():
            kinds.append("cuda")
    except ImportError:
        pass
    rows = [measure(kind, tokens) for kind in kinds for tokens in (1, 512)]
    if options.json:
        print(json.dumps({"schema": "lplb.bench_python/1", "rows": rows}))
        return
    print(f"{'arrays':8}{'ids':>8}{'run(out=)':>12}{'run':>12}{'run+counter':>14}"
          f"{'empty_like':>12}   us a call")
    for r in rows:
        print(f"{r['arrays']:8}{r['ids']:8}{r['run_out_us']:12.2f}{r['run_us']:12.2f}"
              f"{r['run_counter_us']:14.2f}{r['empty_like_us']:12.2f}")


if __name__ == "__main__":
    main()
