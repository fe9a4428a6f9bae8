"""EPLB's interface (github.com/deepseek-ai/EPLB), and our own placement behind the same outputs.

Results are those of the published code; where its sort leaves ties open, the lower index comes
first. torch tensors in, torch tensors out (on the CPU, as published); numpy in, numpy out.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from . import _library as c
from ._arrays import Array, address, as_loads, as_numpy, is_torch
from ._checks import integer
from .placement import Placement, place

__all__ = ["balanced_packing", "rebalance_experts", "rebalance_experts_hierarchical",
           "replicate_experts"]

_TOTAL_BITS = 45  # of a layer's loads, so that no share above 1e-9 loses more than 3e-5 of itself


def balanced_packing(weight: Array, num_packs: int) -> tuple[Array, Array]:
    """Packs n items into packs of n / num_packs items with sums as equal as possible.

    weight: [X][n]. Returns int64 pack_index [X][n] and rank_in_pack [X][n].
    """
    load = _weight(weight, "weight")
    index = np.empty(load.shape, np.int32)
    rank = np.empty(load.shape, np.int32)
    c.check(c.lib().lplb_eplb_balanced_packing(address(load), *load.shape,
                                                   integer(num_packs, "num_packs"),
                                                   address(index), address(rank)))
    return _like(weight, index, rank)


def replicate_experts(weight: Array, num_phy: int) -> tuple[Array, Array, Array]:
    """Makes num_phy copies of the experts so that the heaviest copy is as light as possible.

    weight: [X][num_log]. Returns int64 phy2log [X][num_phy], rank [X][num_phy] (number of the copy
    among its expert's) and logcnt [X][num_log].
    """
    load = _weight(weight, "weight")
    layers, n = load.shape
    num_phy = integer(num_phy, "num_phy")
    phy2log = np.empty((layers, max(num_phy, 0)), np.int32)
    rank = np.empty_like(phy2log)
    logcnt = np.empty((layers, n), np.int32)
    c.check(c.lib().lplb_eplb_replicate_experts(address(load), layers, n, num_phy,
                                                    address(phy2log), address(rank),
                                                    address(logcnt)))
    return _like(weight, phy2log, rank, logcnt)


def rebalance_experts_hierarchical(weight: Array, num_physical_experts: int, num_groups: int,
                                   num_nodes: int, num_gpus: int) -> tuple[Array, Array, Array]:
    """Groups to nodes, copies inside nodes, copies to GPUs; num_nodes must divide num_groups.

    weight: [L][E]. Returns int64 phy2log [L][P], the number of each copy among its expert's [L][P],
    and the number of copies [L][E].
    """
    if integer(num_nodes, "num_nodes", 1) and integer(num_groups, "num_groups") % num_nodes:
        raise c.bad(f"{num_groups} groups do not divide into {num_nodes} nodes; rebalance_experts "
                    "then uses the global policy")
    load = _weight(weight, "weight")
    phy2log, log2phy, logcnt = _rebalance(load, num_physical_experts, num_groups, num_nodes,
                                          num_gpus)
    number = np.empty_like(phy2log)
    layer, _expert, copy = np.nonzero(log2phy >= 0)
    number[layer, log2phy[log2phy >= 0]] = copy
    return _like(weight, phy2log, number, logcnt)


def rebalance_experts(weight: Array, num_replicas: int, num_groups: int, num_nodes: int,
                      num_gpus: int, *, algorithm: str = "eplb",
                      previous: Array | Placement | None = None, **options: Any
                      ) -> tuple[Array, Array, Array]:
    """Places num_replicas expert copies on num_gpus GPUs.

    weight: load [L][E]. Returns int64 physical_to_logical_map [L][num_replicas],
    logical_to_physical_map [L][E][X] (-1 padded, X = most copies of an expert) and
    expert_count [L][E]. Loads may be fractions, such as shares or averages.

    algorithm "eplb" is the published one. "search" is ours: no two copies of an expert on one GPU,
    good for the next batches rather than the summed load, and near to `previous` (a map [L][P] or
    a Placement); it also takes weight [samples][L][E] of counts, and the options of `lplb.place`:
    max_moves (a layer), batch_tokens, topk, seed, effort, threads, dead_ranks, speed, even_split.
    """
    if algorithm == "eplb":
        if previous is not None or options:
            names = ["previous"] * (previous is not None) + list(options)
            raise c.bad(f"{', '.join(names)}: only algorithm=\"search\" takes this")
        load = _weight(weight, "weight")
        return _like(weight, *_rebalance(load, num_replicas, num_groups, num_nodes, num_gpus))
    num_gpus = integer(num_gpus, "num_gpus", 1)
    if previous is not None and not isinstance(previous, Placement):
        previous = Placement(previous, num_gpus, n_logical_experts=int(weight.shape[-1]))
    placement = place(_whole(as_numpy(weight)), num_gpus, num_replicas, algorithm=algorithm,
                      nodes=num_nodes, groups=num_groups, previous=previous, **options)
    return _like(weight, placement.physical_to_logical_map, placement.logical_to_physical_map,
                 placement.replica_count)


def _whole(load: np.ndarray) -> np.ndarray:
    """Loads as `lplb.place` takes them: fractions [L][E] are scaled, by a power of two, so far that
    what rounding takes from them is nothing."""
    if load.dtype.kind != "f" or load.ndim != 2:
        return load  # place says what is wrong with it, if anything is
    load = load.astype(np.float64)
    for layer, expert in np.argwhere(~np.isfinite(load) | (load < 0))[:1]:
        raise c.bad(f"weight[{layer}][{expert}] is {load[layer, expert]}, must be finite and not "
                    "negative", c.RANGE)
    most = load.sum(1).max(initial=0)
    if most == 0 or np.array_equal(np.rint(load), load):
        return load
    return np.rint(np.ldexp(load, _TOTAL_BITS - int(np.frexp(most)[1])))


def _rebalance(load: np.ndarray, slots: int, groups: int, nodes: int, gpus: int
               ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    layers, n = load.shape
    slots = integer(slots, "the number of physical experts")
    groups, nodes = integer(groups, "num_groups"), integer(nodes, "num_nodes")
    gpus = integer(gpus, "num_gpus")
    phy2log = np.empty((layers, max(slots, 0)), np.int32)
    log2phy = np.empty((layers, n, max(slots - n, 0) + 1), np.int32)
    logcnt = np.empty((layers, n), np.int32)
    c.check(c.lib().lplb_eplb_rebalance_experts(
        address(load), layers, n, slots, groups, nodes, gpus, address(phy2log), address(log2phy),
        address(logcnt)))
    return phy2log, log2phy[:, :, :int(logcnt.max())], logcnt


def _weight(weight: Array, what: str) -> np.ndarray:
    load = as_loads(weight, what)
    if load.ndim != 2 or 0 in load.shape:
        raise c.bad(f"{what} has shape {load.shape}, must be [layers][items]")
    return np.ascontiguousarray(load, dtype=np.float32)


def _like(model: Array, *arrays: np.ndarray) -> tuple[Array, ...]:
    out = tuple(np.ascontiguousarray(a, dtype=np.int64) for a in arrays)
    if is_torch(model):
        import torch

        return tuple(torch.from_numpy(a) for a in out)
    return out
