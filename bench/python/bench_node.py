"""One node, every rank a process: are plans equal and dispatch exact, how long is a step, what does
a skewed layer gain, what happens when a rank dies. One command, below ten minutes:

    make bench-node RANKS=8
    python3 bench/python/bench_node.py --ranks 8 [--cpu] [--quick] [--only PART ...] [--out FOLDER]

Without GPUs (or with --cpu) the ranks share counts of CPU ids over shared memory and gloo. With
fewer GPUs than ranks, processes share GPUs: everything is checked, but such times say nothing and
are left out. On GPUs the forms with 8 processes on the GPUs that are there, and with 8 on CPUs,
follow. Prints a table; FOLDER (build/bench-node) gets node.json and node.md. Exits 1 if anything
failed.
"""

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LIMIT = 570  # seconds for everything


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def gpus_here():
    """(number, name) of GPUs, in a process of its own: it must not hold one."""
    code = ("import torch; n = torch.cuda.device_count(); "
            "print(n, torch.cuda.get_device_name(0) if n else '', torch.__version__, sep='\\t')")
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if run.returncode:
        sys.exit(f"bench_node needs torch: {run.stderr.strip().splitlines()[-1:]}")
    number, name, version = run.stdout.strip("\n").split("\t")
    return int(number), name, version


class Runner:
    """Starts ranks, collects what they print as JSON, ends what does not end."""

    def __init__(self, out):
        self.out, self.records, self.failed = out, [], []
        self.begin = time.monotonic()

    def left(self):
        return LIMIT - (time.monotonic() - self.begin)

    def run(self, form, ranks, sections, limit, **options):
        limit = min(limit, self.left())
        if limit < 20:
            self.failed.append(f"{form}: no time left for {' '.join(sections)}")
            return
        print(f"-- {form}: {ranks} ranks, {' '.join(sections)}", file=sys.stderr, flush=True)
        port, processes = free_port(), []
        for rank in range(ranks):
            env = {**os.environ, "RANK": str(rank), "LOCAL_RANK": str(rank),
                   "WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
                   "LPLB_BENCH_NODE": json.dumps(options)}
            for name, value in (("NCCL_SOCKET_IFNAME", "lo"), ("GLOO_SOCKET_IFNAME", "lo"),
                                ("NCCL_IB_DISABLE", "1"), ("NCCL_NVLS_ENABLE", "0")):
                env.setdefault(name, value)
            log = self.out / f"{form.replace(' ', '_')}-{sections[0]}-{rank}"
            processes.append((log, subprocess.Popen(
                [sys.executable, str(ROOT / "bench" / "python" / "node_ranks.py"), *sections],
                env=env, stdout=open(f"{log}.out", "w"), stderr=open(f"{log}.err", "w"))))
        end = time.monotonic() + limit
        dies = ranks - 1 if "killed" in sections else None
        for rank, (log, process) in enumerate(processes):
            try:
                code = process.wait(max(0.1, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                code = "not ended in time"
            expected = -signal.SIGKILL if rank == dies else 0
            if code != expected:
                self.failed.append(f"{form}, {sections[0]}, rank {rank}: {code}")
            self.read(form, ranks, log)

    def read(self, form, ranks, log):
        for line in Path(f"{log}.out").read_text().splitlines():
            if line.startswith("{"):
                self.records.append({"form": form, "ranks": ranks, **json.loads(line)})
        errors = Path(f"{log}.err").read_text().strip().splitlines()
        if any("Error" in line for line in errors[-3:]):
            print(f"   {log.name}: {errors[-1][:300]}", file=sys.stderr)


def measure(runner, ranks, gpus, options):
    """All forms."""
    cpu = options.cpu or gpus == 0
    alone = not cpu and ranks <= gpus
    steps = options.steps or (1000 if cpu else 10000 if alone else 300)
    small = options.quick
    form = "CPUs" if cpu else "GPUs" if alone else f"{ranks} processes on {gpus} GPUs"
    sections = ["equal", "step"] + (["layer", "hot"] if cpu or alone else [])
    sections += ["late"] if ranks > 1 else []
    if options.only:
        sections = [section for section in sections if section in options.only]
    runner.run(form, ranks, sections, 400, cpu=cpu, steps=steps, small=small)
    if options.only:
        return
    if ranks > 1:
        transports = ["p2p", "nvshmem", "nccl", "torch"] if alone else ["p2p"]
        for transport in ["shm"] if cpu else transports:
            runner.run(form + " " + transport, ranks, ["killed"], 60, cpu=cpu, transport=transport)
    if cpu or options.one_form:
        return
    if ranks != 8 or alone and gpus > 1:
        form = f"8 processes on {min(gpus, 2)} GPUs"
        runner.run(form, 8, ["equal", "step"], 120, steps=100, gpus=min(gpus, 2))
        runner.run(form, 8, ["killed"], 60, transport="p2p", gpus=min(gpus, 2))
    if gpus > 1:
        runner.run(f"{2 * min(gpus, 4)} processes on {min(gpus, 4)} GPUs as so many nodes",
                   2 * min(gpus, 4), ["equal"], 100, steps=100, gpus=min(gpus, 4),
                   nodes=min(gpus, 4), transport="hierarchical")
    runner.run("CPUs", 8, ["equal", "step"], 100, cpu=True, steps=300)
    runner.run("CPUs", 8, ["killed"], 60, cpu=True, transport="shm")


# ---- what is printed -----------------------------------------------------------------------------


def table(title, head, rows):
    lines = [f"**{title}**", "", "| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join("" if c is None else str(c) for c in row) + " |" for row in rows]
    return lines + [""]


def of_section(records, section):
    return [r for r in records if r["section"] == section]


def markdown(records, machine):
    lines = [f"`make bench-node RANKS=n` on {machine}.", ""]
    rows = [[r["form"], r["ranks"], x["placement"], x["steps"], x["transport"],
             x["worst_imbalance"], x["seconds"]]
            for r in of_section(records, "equal") for x in r.get("result", [])]
    lines += table("Real routing (gpt-oss-20b): plans bit-identical on all ranks and equal to one "
                   "CPU's, dispatch exact over all sources, uneven and empty ranks",
                   ["form", "ranks", "placement", "steps", "transport", "worst imbalance",
                    "seconds"], rows)
    rows = [[r["form"], r["ranks"], x["transport"], x.get("ids"), x.get("graph_us"),
             x.get("graph_p99_us"), x.get("eager_cpu_us"), x.get("error")]
            for r in of_section(records, "step") for x in r.get("result", [])]
    lines += table("Whole step, 256 experts: slowest rank's median and p99 in a graph, CPU time of "
                   "an eager call", ["form", "ranks", "transport", "ids a rank", "graph us",
                                     "p99 us", "eager us", ""], rows)
    for section, what in (("layer", "log-normal routing, sigma 0.7"),
                          ("hot", "90 % of the selections on the first rank's experts")):
        for r in of_section(records, section):
            x = r.get("result")
            if not x:
                continue
            rows = [[y["case"], y["imbalance"], y["ms"], y["share_of_gain"], y["train_ms"],
                     y["train_share"]] for y in x["rows"]]
            lines += table(f"{r['form']}, {r['ranks']} ranks, MoE layer, {what}: "
                           f"{x['tokens']} tokens a rank, {x['experts']} experts, hidden "
                           f"{x['hidden']}, inner {x['inner']}",
                           ["case", "imbalance", "forward ms", "share of the possible gain",
                            "with backward and copies' gradients ms", "share"], rows)
    rows = [[r["form"], r["ranks"], x["transport"], ", ".join(x["outcomes"]),
             ", ".join(x["after"])]
            for r in of_section(records, "late") for x in r.get("result", [])]
    lines += table("The last rank later than the timeout, then a new communicator",
                   ["form", "ranks", "transport", "outcomes by rank", "afterwards"], rows)
    rows = [[r["form"], r["rank"], r["transport"], r["outcome"], r["error"], r["ids_valid"],
             r["timeout"], r["seconds"]] for r in of_section(records, "killed")]
    lines += table("A rank killed in mid-run, as the others see it",
                   ["form", "rank", "transport", "outcome", "error", "ids valid", "timeout s",
                    "after s"], rows)
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--ranks", type=int, default=8)
    parser.add_argument("--cpu", action="store_true", help="CPU ids over gloo, GPUs or not")
    parser.add_argument("--steps", type=int, default=0, help="of real routing a placement")
    parser.add_argument("--quick", action="store_true", help="a small layer")
    parser.add_argument("--one-form", action="store_true", help="not the forms with 8 processes")
    parser.add_argument("--only", nargs="+", choices=["equal", "step", "layer", "hot", "late"],
                        help="these parts of the first form")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "bench-node")
    options = parser.parse_args()
    if options.ranks < 1 or 64 % options.ranks or options.steps < 0:
        parser.error("--ranks must divide the 64 experts of the smallest layer, and --steps must "
                     "not be negative")
    options.out.mkdir(parents=True, exist_ok=True)
    gpus, name, version = gpus_here()
    runner = Runner(options.out)
    measure(runner, options.ranks, gpus, options)
    for record in runner.records:
        if "error" in record and record["section"] != "killed":
            runner.failed.append(f"{record['form']}, {record['section']}, rank {record['rank']}: "
                                 f"{record['error']}")
        bad = record["section"] == "killed" and (record["outcome"] != "unbalanced"
                                                 or not record["ids_valid"])
        if bad:
            runner.failed.append(f"{record['form']}, killed, rank {record['rank']}: "
                                 f"{record['outcome']} {record['message']}")
    machine = f"{gpus} x {name}" if gpus else f"{os.cpu_count()} processors, no GPU"
    text = markdown(runner.records, f"{machine}, torch {version}")
    document = {"schema": "lplb.bench_node/1", "machine": machine, "torch": version,
                "failed": runner.failed, "records": runner.records}
    (options.out / "node.json").write_text(json.dumps(document, indent=1) + "\n")
    (options.out / "node.md").write_text(text)
    print(text)
    for failure in runner.failed:
        print(f"failed: {failure}")
    print(f"{len(runner.failed)} failures, {time.monotonic() - runner.begin:.0f} s")
    return 1 if runner.failed else 0


if __name__ == "__main__":
    sys.exit(main())
