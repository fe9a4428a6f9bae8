"""The node benchmark on CPUs: what it checks holds, with few steps."""

import json
import os
import subprocess
import sys

import pytest

torch = pytest.importorskip("torch")

from test_torch import free_port


def run_ranks(root, ranks, sections, options):
    """What the ranks print, by rank; exit codes."""
    processes = []
    for rank in range(ranks):
        env = {**os.environ, "RANK": str(rank), "WORLD_SIZE": str(ranks), "LOCAL_RANK": str(rank),
               "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(options["port"]),
               "GLOO_SOCKET_IFNAME": "lo",
               "LPLB_BENCH_NODE": json.dumps({"cpu": True, "small": True, **options})}
        program = str(root / "bench" / "python" / "node_ranks.py")
        processes.append(subprocess.Popen([sys.executable, program, *sections], env=env,
                                          stdout=subprocess.PIPE, text=True))
    outs = [p.communicate(timeout=100)[0] for p in processes]
    rows = [[json.loads(line) for line in out.splitlines() if line.startswith("{")]
            for out in outs]
    return rows, [p.returncode for p in processes]


def test_sections(root):
    rows, codes = run_ranks(root, 2, ["equal", "layer", "late"], {"steps": 12, "port": free_port()})
    assert codes == [0, 0]
    equal, layer, late = rows[0]
    assert {r["placement"] for r in equal["result"]} == {"cube 8x2", "ring", "eplb"}
    cases = {r["case"]: r["imbalance"] for r in layer["result"]["rows"]}
    assert cases["eplb, exact split"] <= cases["eplb, even split"] < cases["contiguous"]
    assert cases["forced balance"] < 1.05
    assert late["result"][0]["after"] == ["optimal", "optimal"]


def test_killed_rank(root):
    rows, codes = run_ranks(root, 3, ["killed"], {"transport": "shm", "port": free_port()})
    assert codes == [0, 0, -9]
    for row in (rows[0][0], rows[1][0]):
        assert row["outcome"] == "unbalanced" and row["ids_valid"]
        assert row["error"] in ("LPLB_TIMEOUT", "LPLB_REMOTE")
