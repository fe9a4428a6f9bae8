"""Turns .pt dumps of SGLang's expert distribution recorder into traces and placements.

    python -m lplb.convert /tmp/expert_distribution_recorder_*.pt -o trace.npz

Modes stat, stat_approx, per_pass and per_token are recognised; give all ranks' files of per_pass
and per_token dumps, or their folder. Nothing that is pickled in the files is run.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import sys
from pathlib import Path
from typing import Any, Sequence

import numpy as np

from . import _library as c
from . import _pt
from ._arrays import address, as_integers
from .placement import FORMATS, Placement

_MOST_EXPERTS = 32767  # a trace holds ids as int16


def read_dumps(paths: Sequence[str | os.PathLike[str]], kind: str = "auto") -> dict[str, Any]:
    """Reads the .pt dumps of one recording (files, or folders of them).

    Returns {"kind": "counts", "counts": int64 [S][L][E]} for stat and per_pass dumps, and
    {"kind": "topk", "topk_ids": int16 [T][L][K], "experts": E} for per_token ones, whose counts
    kind="counts" gives instead. A dump of a placement gives {"kind": "placement",
    "physical_to_logical_map": int64 [L][P]}. Where a rank has no record of a pass that others have,
    "missing" says so.
    """
    files = _files(paths)
    dumps = [(path, _pt.load(path)) for path in files]
    for path, dump in dumps:
        if not isinstance(dump, dict):
            raise c.bad(f"{path}: holds a {type(dump).__name__}, not a recorder's dump", c.FORMAT)
    first = dumps[0][1]
    if "logical_count" in first:
        return {"kind": "counts", "counts": _stats(dumps)}
    if "records" in first:
        return _detailed(dumps, kind)
    if "physical_to_logical_map" in first:
        if len(dumps) > 1:
            raise c.bad(f"{files[0]} is a placement: give it alone")
        return {"kind": "placement",
                "physical_to_logical_map": _table(files[0], first, "physical_to_logical_map", 2)}
    raise c.bad(f"{files[0]}: has none of the keys logical_count, records, "
                "physical_to_logical_map", c.FORMAT)


def _files(paths: Sequence[str | os.PathLike[str]]) -> list[str]:
    out: list[str] = []
    for path in map(Path, paths):
        found = sorted(map(str, path.glob("*.pt"))) if path.is_dir() else [str(path)]
        if not found:
            raise c.Error(c.IO, f"{path}: no .pt files in this folder")
        out += found
    if not out:
        raise c.bad("no files given")
    seen: dict[str, str] = {}
    for name in out:
        real = os.path.realpath(name)
        if real in seen:
            raise c.bad(f"{name} is given twice (as {seen[real]}): it would count twice")
        seen[real] = name
    return out


def _table(path: str, holder: dict, key: str, ndim: int) -> np.ndarray:
    value = holder.get(key)
    if isinstance(value, list):
        value = np.asarray(value)
    if not isinstance(value, np.ndarray) or value.ndim != ndim or value.dtype.kind not in "iuf":
        raise c.bad(f"{path}: {key} is no {ndim}-dimensional tensor of numbers", c.FORMAT)
    return as_integers(value, f"{path}: {key}")


def _stats(dumps: list[tuple[str, Any]]) -> np.ndarray:
    """[S][L][E] of all files, one after the other."""
    parts = [_stat(*dump) for dump in dumps]
    for (path, _), part in zip(dumps, parts):
        if part.shape[1:] != parts[0].shape[1:]:
            raise c.bad(f"{path}: {part.shape[1]} layers of {part.shape[2]} experts, but "
                        f"{dumps[0][0]} has {parts[0].shape[1]} of {parts[0].shape[2]}: give the "
                        "files of one recording", c.FORMAT)
    return np.concatenate(parts)


def _stat(path: str, dump: dict) -> np.ndarray:
    if "logical_count" not in dump:
        raise c.bad(f"{path}: has no logical_count, unlike the first file", c.FORMAT)
    counts = _table(path, dump, "logical_count", np.ndim(dump["logical_count"]))
    if counts.ndim == 2:
        counts = counts[None]
    if counts.ndim != 3 or counts.min(initial=0) < 0:
        raise c.bad(f"{path}: logical_count has shape {counts.shape} or negative entries",
                    c.FORMAT)
    if counts.size == 0:
        raise c.bad(f"{path}: the recording is empty (logical_count has shape {counts.shape})",
                    c.FORMAT)
    return counts


def _detailed(dumps: list[tuple[str, Any]], kind: str) -> dict[str, Any]:
    """per_pass and per_token: the ranks' records belong together by forward_pass_id."""
    passes: dict[int, dict[int, tuple[str, dict, np.ndarray]]] = {}
    for path, dump in dumps:
        if not isinstance(dump.get("records"), list):
            raise c.bad(f"{path}: has no list of records", c.FORMAT)
        to_logical = _table(path, dump, "last_physical_to_logical_map", 2)
        if to_logical.size == 0 or to_logical.min() < 0 or to_logical.max() >= _MOST_EXPERTS:
            raise c.bad(f"{path}: last_physical_to_logical_map is not a map", c.FORMAT)
        for record in dump["records"]:
            if not isinstance(record, dict):
                raise c.bad(f"{path}: a record is a {type(record).__name__}", c.FORMAT)
            number, rank = record.get("forward_pass_id"), record.get("rank")
            if type(number) is not int or type(rank) is not int:
                raise c.bad(f"{path}: a record without forward_pass_id or rank", c.FORMAT)
            if rank in passes.setdefault(number, {}):
                raise c.bad(f"{path}: rank {rank} has two records of forward pass {number}; give "
                            "the files of one recording", c.FORMAT)
            passes[number][rank] = (path, record, to_logical)
    if not passes:
        raise c.bad(f"{dumps[0][0]}: the recording is empty", c.FORMAT)
    records = [passes[n][r] for n in sorted(passes) for r in sorted(passes[n])]
    experts = max(int(to_logical.max()) for _, _, to_logical in records) + 1
    layers = {len(to_logical) for _, _, to_logical in records}
    if len(layers) > 1:
        raise c.bad(f"{records[0][0]}: maps of {min(layers)} and of {max(layers)} layers: give the "
                    "files of one recording", c.FORMAT)
    missing = _missing(passes)
    if kind != "counts" and all("topk_ids_of_layer" in record for _, record, _ in records):
        return {"kind": "topk", "topk_ids": _tokens(records), "experts": experts, **missing}
    counts = [sum(_pass_counts(*passes[n][r], experts) for r in passes[n]) for n in sorted(passes)]
    return {"kind": "counts", "counts": np.stack(counts), **missing}


def _missing(passes: dict[int, dict[int, Any]]) -> dict[str, str]:
    """{"missing": what} where a rank has no record of a pass: its tokens are not in the result."""
    ranks = range(max(max(by_rank) for by_rank in passes.values()) + 1)
    gaps = [(n, [r for r in ranks if r not in passes[n]]) for n in sorted(passes)]
    gaps = [(n, lacking) for n, lacking in gaps if lacking]
    if not gaps:
        return {}
    shown = ", ".join(map(str, gaps[0][1][:8])) + (", ..." if len(gaps[0][1]) > 8 else "")
    return {"missing": f"{len(gaps)} of {len(passes)} forward passes lack ranks (pass "
                       f"{gaps[0][0]}: {shown} of {len(ranks)}): give the files of all ranks"}


def _pass_counts(path: str, record: dict, to_logical: np.ndarray, experts: int) -> np.ndarray:
    physical = _table(path, record, "global_physical_count", 2)
    if physical.shape != to_logical.shape or physical.min() < 0:
        raise c.bad(f"{path}: global_physical_count has shape {physical.shape}, the map "
                    f"{to_logical.shape}, or it has negative entries", c.FORMAT)
    out = np.zeros((len(physical), experts), np.int64)
    for layer, row in enumerate(physical):
        np.add.at(out[layer], to_logical[layer], row)
    return out


def _tokens(records: list[tuple[str, dict, np.ndarray]]) -> np.ndarray:
    """Logical ids int16 [T][L][K] of all records, one after the other."""
    parts = []
    for path, record, to_logical in records:
        ids = _table(path, record, "topk_ids_of_layer", 3)  # physical ids [L][T][K]
        layers, slots = to_logical.shape
        if len(ids) != layers or ids.min(initial=0) < -1 or ids.max(initial=-1) >= slots:
            raise c.bad(f"{path}: topk_ids_of_layer does not fit the map of {layers} layers and "
                        f"{slots} slots", c.FORMAT)
        logical = np.take_along_axis(to_logical, np.maximum(ids, 0).reshape(layers, -1), axis=1)
        logical = np.where(ids < 0, -1, logical.reshape(ids.shape))
        parts.append(logical.transpose(1, 0, 2).astype(np.int16))
    if len({p.shape[2] for p in parts}) > 1:
        raise c.bad(f"{records[0][0]}: the records have different numbers of selections",
                    c.FORMAT)
    out = np.concatenate(parts)
    used = (out >= 0).any(axis=(0, 1))
    most = int(np.flatnonzero(used)[-1]) + 1 if used.any() else 1  # SGLang pads to 8 columns
    return np.ascontiguousarray(out[:, :, :most])


def write_trace(result: dict[str, Any], path: str | os.PathLike[str], source: str = "") -> None:
    """Writes what `read_dumps` returned: .npz, .npy, .json, .csv or .safetensors, by the ending."""
    trace = c.Trace(source=source.encode())
    if result["kind"] == "topk":
        ids = np.ascontiguousarray(result["topk_ids"], dtype=np.int16)
        trace.kind, trace.tokens, trace.layers, trace.topk = 0, *ids.shape
        trace.experts, trace.topk_ids = result["experts"], address(ids)
    else:
        counts = np.ascontiguousarray(result["counts"], dtype=np.int64)
        trace.kind = 1
        trace.steps, trace.layers, trace.experts = counts.shape
        trace.counts = address(counts)
    layer_id = np.arange(trace.layers, dtype=np.int32)
    trace.layer_id = address(layer_id)
    c.check(c.lib().lplb_trace_write(ctypes.byref(trace), os.fsencode(path)))


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m lplb.convert", formatter_class=argparse.RawDescriptionHelpFormatter,
        description=__doc__)
    parser.add_argument("input", nargs="+", help=".pt files of one recording, or a folder of them")
    parser.add_argument("-o", "--output", required=True,
                        help="trace: .npz, .npy, .json, .csv, .safetensors; placement: any file")
    parser.add_argument("--kind", choices=("auto", "counts"), default="auto",
                        help="counts: sum the tokens of a per_token dump")
    parser.add_argument("--ranks", type=int, default=0, help="for placements: number of ranks")
    parser.add_argument("--format", choices=sorted(FORMATS), default="sglang",
                        help="for placements: file format")
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    options = _arguments(argv)
    try:
        result = read_dumps(options.input, options.kind)
        summary: dict[str, Any] = {"schema": "lplb.convert/1", "kind": result["kind"],
                                   "output": options.output}
        if result["kind"] == "placement":
            table = result["physical_to_logical_map"]
            if options.ranks < 1:
                raise c.bad("a placement needs --ranks, the number of ranks its slots are on")
            Placement(table, options.ranks).write(options.output, options.format)
            summary.update(layers=table.shape[0], slots=table.shape[1], ranks=options.ranks)
        else:
            write_trace(result, options.output, f"SGLang recorder, {len(options.input)} input(s)")
            table = result["topk_ids" if result["kind"] == "topk" else "counts"]
            names = ("tokens", "layers", "topk") if result["kind"] == "topk" else (
                "steps", "layers", "experts")
            summary.update(zip(names, map(int, table.shape)))
    except c.Error as error:
        print(f"lplb.convert: {error}", file=sys.stderr)
        return 2
    if "missing" in result:
        print(f"lplb.convert: warning: {result['missing']}", file=sys.stderr)
    if options.json:
        print(json.dumps(summary))
    else:
        sizes = ", ".join(f"{value} {name}" for name, value in summary.items()
                          if isinstance(value, int))
        print(f"{options.output}: {result['kind']}, {sizes}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
