#!/usr/bin/env python3
"""What balancing does for the trainer's own routing: mixed text, no balance loss.

    python3 bench/train_balance.py BUILD_FOLDER [--steps 100] [--text mixed] [--wall-time]

Eight ranks with 16 and with 64 experts, top-4, 2 redundant slots a rank where there are copies:
without balancing; as inference engines do with EPLB (its placement, tokens split evenly over the
copies); and with lplb's exact plan of every batch over placements by EPLB and by its topology.
Figures are means over the second half of the steps, when placements have been made: the fullest
rank's tokens over the mean, and the processor time in experts of a step, on the rank that has the
most and on average. More ranks than processors say nothing of wall time; for that there are 2 ranks
with 8 experts in wide layers, modes in turns, medians over all rounds.
"""

import argparse
import json
import os
import statistics
import subprocess
import tempfile
from pathlib import Path

MODES = {
    "no copies": {},
    "EPLB, even split": {"mode": "eplb", "solver": "even"},
    "EPLB, exact plan": {"mode": "eplb", "solver": "exact"},
    "topology, exact plan": {"mode": "lplb", "solver": "exact"},
}


def run(lplb, ranks, text, options):
    """The log's lines of the second half of a run."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        words = [lplb, "train", "--json", "--ranks", str(ranks), "--text", text, "--log", str(log),
                 "--held-out", "0"]
        for name, value in options.items():
            words += [f"--{name}", str(value)]
        subprocess.run(words, check=True, stdout=subprocess.DEVNULL,
                       env=dict(os.environ, OPENBLAS_NUM_THREADS="1"))
        lines = [json.loads(line) for line in log.read_text().splitlines()]
    return lines[len(lines) // 2:]


def mean(lines, key):
    return statistics.fmean(line[key] for line in lines)


def eight_ranks(lplb, text, steps, experts):
    options = {"layers": 3, "width": 128, "heads": 4, "context": 256, "experts": experts, "topk": 4,
               "expert-width": 1024 // experts * 2, "dense-layers": 1, "dense-width": 256,
               "aux": "none", "global-batch": 16, "micro-batch": 2, "steps": steps,
               "warmup-steps": 10, "rebalance-every": 25}
    print(f"\n8 ranks, {experts} experts, top-4, {steps} steps of 4096 tokens")
    print(f"{'':24} {'fullest rank / mean':>20} {'experts CPU ms, most':>21} {'mean':>7} "
          f"{'most / mean':>12}")
    for mode, changes in MODES.items():
        if changes:
            changes = dict(changes, redundant=2)
        lines = run(lplb, 8, text, dict(options, **changes))
        most, average = mean(lines, "expert_cpu_max"), mean(lines, "expert_cpu_mean")
        print(f"{mode:24} {mean(lines, 'imbalance_after'):20.3f} {1000 * most:21.1f} "
              f"{1000 * average:7.1f} {most / average:12.3f}", flush=True)


def two_ranks(lplb, text, steps, rounds):
    options = {"layers": 3, "width": 128, "heads": 4, "context": 256, "experts": 8, "topk": 1,
               "expert-width": 1024, "aux": "none", "global-batch": 8, "micro-batch": 4,
               "steps": steps, "warmup-steps": 10, "rebalance-every": 10}
    lines = {mode: [] for mode in list(MODES)[:3]}
    for _ in range(rounds):
        for mode, kept in lines.items():
            changes = dict(MODES[mode], redundant=2) if MODES[mode] else {}
            kept += run(lplb, 2, text, dict(options, **changes))
    print(f"\n2 ranks, 8 experts, top-1, {rounds} rounds of {steps} steps of 2048 tokens in turns")
    print(f"{'':24} {'fullest rank / mean':>20} {'step ms, median':>16} {'shortest':>9}")
    for mode, kept in lines.items():
        seconds = [line["seconds"] for line in kept]
        print(f"{mode:24} {mean(kept, 'imbalance_after'):20.3f} "
              f"{1000 * statistics.median(seconds):16.1f} {1000 * min(seconds):9.1f}")


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("build")
    parser.add_argument("--text", default="mixed")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--wall-time", action="store_true", help="only the 2 ranks")
    arguments = parser.parse_args()
    lplb = str(Path(arguments.build).resolve() / "lplb")
    for experts in () if arguments.wall_time else (16, 64):
        eight_ranks(lplb, arguments.text, arguments.steps, experts)
    two_ranks(lplb, arguments.text, max(20, arguments.steps // 4), arguments.rounds)


if __name__ == "__main__":
    main()
