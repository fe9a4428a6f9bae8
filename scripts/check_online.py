#!/usr/bin/env python3
"""Holds `lplb replay --online` to what docs/runtime.md says of the manager with its defaults: under
the same split a lower mean imbalance than EPLB every 500 and every 1,000 steps, with at most a
tenth of the slots moved.

    scripts/check_online.py BUILD [--layers N] [DATA]

DATA: a folder with gpt_oss_20b/token_topk.npz (the whole trace: 5,069 steps of 32 tokens) and
deepseek_v3/*.json, from which the drift is drawn. Without it the bundled subset of gpt-oss (2,089
steps) is replayed; there EPLB every 1,000 steps comes to act twice only, and the manager may move
an eighth of the slots at first, so its moves are compared with EPLB every 500 steps alone.
--layers: of the drift, spread over the model (default all). What is compared is a function of the
input; the time that steps would have waited is shown beside it.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

SPLITS = ("even", "exact")
POLICIES = ("eplb:every=500", "eplb:every=1000", "manager")


def replay(lplb, *arguments):
    options = [x for p in POLICIES for s in SPLITS for x in ("--policy", f"{p}+{s}")]
    done = subprocess.run([lplb, "replay", "--online", "--json", *options, *map(str, arguments)],
                          stdout=subprocess.PIPE, check=True)
    return {p["policy"]: p for p in json.loads(done.stdout)["policies"]}


def thinned(path, layers, out):
    """The loads of some layers that have any, evenly spaced."""
    load = json.loads(pathlib.Path(path).read_text())["logical_count"]
    load = [row for row in load if any(row)]
    if layers:
        load = [load[(2 * i + 1) * len(load) // (2 * layers)] for i in range(layers)]
    out.write_text(json.dumps({"logical_count": load}))
    return out


def drift(lplb, data, layers, seed, folder):
    ends = [thinned(data / "deepseek_v3" / name, layers, folder / name)
            for name in ("decode_in2000out100.json", "prefill_in512.json")]
    trace = folder / f"drift{seed}.npz"
    subprocess.run([lplb, "gen", "--counts", "--multinomial", "--load", ends[0], "--drift-to",
                    ends[1], "--topk", "8", "--tokens", "20480000", "--seed", str(seed), trace],
                   stdout=subprocess.DEVNULL, check=True)
    return trace


def check(name, found, few_moves_than=POLICIES[:2]):
    bad = 0
    for split in SPLITS:
        ours = found[f"manager+{split}"]
        for rival in POLICIES[:2]:
            theirs = found[f"{rival}+{split}"]
            means = ours["imbalance"]["mean"], theirs["imbalance"]["mean"]
            moves = ours["moved_slots"], theirs["moved_slots"]
            few = rival not in few_moves_than or 10 * moves[0] <= moves[1]
            ok = means[0] < means[1] and few
            bad += not ok
            print(f"{'ok  ' if ok else 'FAIL'} {name}, {split}: {means[0]:.4f} with {moves[0]:,} "
                  f"moves, {rival} {means[1]:.4f} with {moves[1]:,} "
                  f"({100 * moves[0] / moves[1]:.1f} %), waited {ours['wait_seconds']:.3f} s")
    return bad


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("build", type=pathlib.Path)
    parser.add_argument("data", type=pathlib.Path, nargs="?")
    parser.add_argument("--layers", type=int, default=0)
    a = parser.parse_args()
    lplb = a.build / "lplb"
    gpt = ("--ranks", 8, "--redundant", 2, "--batch-tokens", 32)
    if not a.data:
        bundled = pathlib.Path(__file__).parent.parent / "data/gpt-oss-20b/token_topk.npz"
        return check("gpt-oss, bundled", replay(lplb, *gpt, bundled), POLICIES[:1])
    bad = check("gpt-oss", replay(lplb, *gpt, a.data / "gpt_oss_20b" / "token_topk.npz"))
    with tempfile.TemporaryDirectory() as folder:
        trace = drift(lplb, a.data, a.layers, 1, pathlib.Path(folder))
        bad += check("drift", replay(lplb, "--ranks", 32, "--redundant", 1, trace))
    return bad


if __name__ == "__main__":
    sys.exit(1 if main() else 0)
