"""What the tests share: topologies, random placements, an independent check of mapped ids."""

import multiprocessing
import os
import traceback

import numpy as np

CUBE = np.array([[3, 0, 1, 2, 7, 4, 5, 6], [6, 7, 4, 5, 0, 1, 2, 3]]).T
RING = np.array([[1, 2, 3, 4, 5, 6, 7, 0]]).T
HYPERCUBE = np.array([[3, 0, 1, 2, 7, 4, 5, 6, 11, 8, 9, 10, 15, 12, 13, 14],
                      [12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]]).T


def torus(m, n):
    return np.array([[(i + 1) % m * n + j, i * n + (j + 1) % n]
                     for i in range(m) for j in range(n)])


def random_map(rng, experts, ranks, per_rank):
    """physical_to_logical_map [P]: every expert once, the rest at random, all shuffled."""
    spare = ranks * per_rank - experts
    assert spare >= 0
    table = np.concatenate([np.arange(experts), rng.integers(0, experts, spare)])
    return rng.permutation(table)


def skewed_ids(rng, shape, experts, sigma=1.0, dtype=np.int64, gaps=0.02):
    weight = np.exp(rng.normal(0, sigma, experts))
    ids = rng.choice(experts, size=shape, p=weight / weight.sum())
    ids[rng.random(shape) < gaps] = -1
    return ids.astype(dtype)


def check_mapped(ids, out, table):
    """Every id became a slot of its expert, -1 stayed -1."""
    ids, out, table = np.asarray(ids), np.asarray(out), np.asarray(table)
    assert out.shape == ids.shape
    assert ((out == -1) == (ids == -1)).all()
    assert (table[out[ids >= 0]] == ids[ids >= 0]).all()


def least_max_load(counts, table, ranks):
    """The least possible load of the fullest rank, by trying all sets of ranks (ranks <= 12)."""
    per_rank = len(table) // ranks
    hosts = np.zeros(len(counts), np.int64)
    np.bitwise_or.at(hosts, table, 1 << (np.arange(len(table)) // per_rank))
    best = 0
    for ranks_set in range(1, 1 << ranks):
        inside = int(counts[(hosts & ~ranks_set) == 0].sum())
        best = max(best, -(-inside // bin(ranks_set).count("1")))
    return best


def run_ranks(body, ranks, *args, timeout=60):
    """body(rank, ranks, *args) in forked processes; their results by rank."""
    context = multiprocessing.get_context("fork")
    pipes, children = [], []
    for rank in range(ranks):
        receive, send = context.Pipe(duplex=False)

        def child(rank=rank, send=send):
            try:
                send.send((True, body(rank, ranks, *args)))
            except BaseException:
                send.send((False, traceback.format_exc()))
            send.close()
            os._exit(0)

        process = context.Process(target=child)
        process.start()
        send.close()
        pipes.append(receive)
        children.append(process)
    results = []
    try:
        for rank, pipe in enumerate(pipes):
            assert pipe.poll(timeout), f"rank {rank} did not finish within {timeout} s"
            good, value = pipe.recv()
            assert good, f"rank {rank}:\n{value}"
            results.append(value)
    finally:
        for process in children:
            process.join(1)
            if process.is_alive():
                process.kill()
    return results
