"""What inference engines take: their tensors and their files, from a placement.

Every function takes a `Placement`, or a physical_to_logical_map int [L][P] together with ranks=.
Tensors are int64; tensors="torch" (default) or "numpy". SGLang and TensorRT-LLM count the dense
layers of a model too: dense_layers=3 puts three layers with the initial map before the others.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from . import _library as c
from ._arrays import Array
from ._checks import integer
from .placement import Placement

__all__ = ["sglang_tensors", "vllm_tensors", "write_sglang", "write_trtllm", "write_vllm",
           "write_vllm_ascend"]


def sglang_tensors(placement: Placement | Array, ranks: int | None = None, *,
                   dense_layers: int = 0, tensors: str = "torch") -> dict[str, Any]:
    """The fields of SGLang's ExpertLocationMetadata.

    physical_to_logical_map [L][P]; logical_to_all_physical_map [L][E][P], -1 padded;
    logical_to_all_physical_map_num_valid [L][E].
    """
    p = _engine_placement(placement, ranks, dense_layers)
    return _tensors(tensors, physical_to_logical_map=p.physical_to_logical_map,
                    logical_to_all_physical_map=_padded(p, p.slots),
                    logical_to_all_physical_map_num_valid=p.replica_count)


def vllm_tensors(placement: Placement | Array, ranks: int | None = None, *,
                 tensors: str = "torch") -> dict[str, Any]:
    """The maps of vLLM's EPLB state.

    physical_to_logical_map [L][P]; logical_to_physical_map [L][E][R + 1] with R = P - E redundant
    experts, -1 padded; logical_replica_count [L][E].
    """
    p = _engine_placement(placement, ranks)
    most = p.slots - p.n_logical_experts + 1
    return _tensors(tensors, physical_to_logical_map=p.physical_to_logical_map,
                    logical_to_physical_map=_padded(p, most),
                    logical_replica_count=p.replica_count)


def write_sglang(placement: Placement | Array, path: str | os.PathLike[str],
                 ranks: int | None = None, *, dense_layers: int = 0) -> None:
    """JSON for SGLang's --init-expert-location."""
    _engine_placement(placement, ranks, dense_layers).write(path, "sglang")


def write_vllm(placement: Placement | Array, path: str | os.PathLike[str],
               ranks: int | None = None) -> None:
    """vLLM's offline map (of the forks that read one)."""
    _engine_placement(placement, ranks).write(path, "vllm")


def write_vllm_ascend(placement: Placement | Array, path: str | os.PathLike[str],
                      ranks: int | None = None) -> None:
    """JSON for vllm-ascend's expert_map_path."""
    _engine_placement(placement, ranks).write(path, "vllm-ascend")


def write_trtllm(placement: Placement | Array, path: str | os.PathLike[str],
                 ranks: int | None = None, *, dense_layers: int = 0) -> None:
    """YAML for TensorRT-LLM's MoE load balancer (moe_load_balancer)."""
    _engine_placement(placement, ranks, dense_layers).write(path, "trtllm")


def _engine_placement(placement: Placement | Array, ranks: int | None,
                      dense_layers: int = 0) -> Placement:
    if not isinstance(placement, Placement):
        if ranks is None:
            raise c.bad("a bare map does not say on how many ranks its slots are: give ranks=")
        placement = Placement(placement, ranks)
    elif ranks is not None and ranks != placement.ranks:
        raise c.bad(f"the placement has {placement.ranks} ranks, not {ranks}")
    if (placement.physical_to_logical_map < 0).any():
        raise c.bad("the placement has empty slots, which this engine cannot have", c.UNSUPPORTED)
    if len(set(placement.slots_per_rank.tolist())) != 1:
        raise c.bad("the ranks have unequal numbers of slots, which this engine cannot have",
                    c.UNSUPPORTED)
    if integer(dense_layers, "dense_layers", 0):
        initial = np.arange(placement.slots) % placement.n_logical_experts
        table = np.concatenate([np.tile(initial, (dense_layers, 1)),
                                placement.physical_to_logical_map])
        placement = Placement(table, placement.ranks,
                              n_logical_experts=placement.n_logical_experts)
    return placement


def _padded(placement: Placement, most: int) -> np.ndarray:
    table = placement.logical_to_physical_map
    if table.shape[2] > most:
        raise c.bad(f"an expert has {table.shape[2]} copies, at most {most} fit")
    return np.pad(table, ((0, 0), (0, 0), (0, most - table.shape[2])), constant_values=-1)


def _tensors(kind: str, **arrays: np.ndarray) -> dict[str, Any]:
    out = {name: np.ascontiguousarray(a, dtype=np.int64) for name, a in arrays.items()}
    if kind == "numpy":
        return out
    if kind != "torch":
        raise c.bad(f"tensors '{kind}': torch or numpy")
    try:
        import torch
    except ImportError:
        raise c.bad("torch is not installed: give tensors=\"numpy\"", c.UNSUPPORTED) from None
    return {name: torch.from_numpy(a) for name, a in out.items()}
