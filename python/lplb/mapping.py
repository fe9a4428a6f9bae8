"""Mappings that are in use: whether one may be used, and what remains of one when ranks die."""

from __future__ import annotations

import ctypes
from ctypes import POINTER, c_int, c_int32, c_int64, c_uint64, c_void_p
from typing import Any, Sequence

import numpy as np

from . import _library as c
from ._arrays import Array, address, as_integers
from ._checks import expect
from .placement import Move, Placement, dead_flags


class _Recovery(ctypes.Structure):
    _fields_ = [("placement", POINTER(c.PlacementStruct)), ("n_lost", c_int64),
                ("lost", POINTER(c.Move)), ("missing_slots", c_int32)]


c.PROTOTYPES.update({
    "lplb_mapping_validate": (c_int, POINTER(c.PlacementStruct), c_void_p, c_int32),
    "lplb_mapping_round_robin": (c_int, POINTER(c.PlacementStruct), c_void_p),
    "lplb_mapping_digest": (c_uint64, POINTER(c.PlacementStruct)),
    "lplb_recover": (c_int, POINTER(c.PlacementStruct), c_void_p, c_void_p,
                     POINTER(POINTER(_Recovery))),
    "lplb_recovery_destroy": (None, POINTER(_Recovery)),
    "lplb_placement_copy": (c_int, POINTER(c.PlacementStruct),
                            POINTER(POINTER(c.PlacementStruct))),
})


class LostExperts(c.InputError):
    """Survivors do not hold every expert.

    experts: every (layer, expert) without a copy as a Move with the slot and rank to load it into
    from a checkpoint (slot and rank -1 where slots are missing, source_rank -1); missing_slots:
    live slots that a layer lacks for one copy of every expert (equally many in all layers);
    placement: the one that is valid once they are loaded, None where slots are missing or when the
    manager raises it (keep manager.placement, and recover(kept, dead) has it).
    """

    def __init__(self, status: int, message: str, experts: list[Move], missing_slots: int,
                 placement: Placement | None = None) -> None:
        super().__init__(status, message)
        self.experts = experts
        self.missing_slots = missing_slots
        self.placement = placement

    def __reduce__(self):
        return type(self), (self.status, self.message, self.experts, self.missing_slots,
                            self.placement)


def moves_of(moves: Any, n: int) -> list[Move]:
    return [Move(m.layer, m.slot, m.expert, m.rank, m.source_rank) for m in moves[:n]]


def validate(placement: Placement, dead_ranks: Sequence[int] = (), full: bool = False) -> None:
    """Raises for the first reason why a mapping must not be used: an expert without a slot, an id
    out of range, something on a dead rank, or, with `full`, an empty slot of a live rank."""
    dead = dead_flags(dead_ranks, expect(placement, Placement, "placement").ranks)
    c.check(c.lib().lplb_mapping_validate(placement._handle, address(dead), full))


def digest(placement: Placement) -> int:
    """The same on every machine for the same mapping: what ranks compare."""
    return c.lib().lplb_mapping_digest(expect(placement, Placement, "placement")._handle)


def recover(placement: Placement, dead_ranks: Sequence[int], load: Array | None = None
            ) -> Placement:
    """What survivors can serve at once, without a move: they keep what they hold.

    Raises LostExperts, which carries everything that is lost, where an expert has no copy left.
    load [L][E]: whose redundant copies make room then (those whose going hurts least).
    """
    dead = dead_flags(dead_ranks, expect(placement, Placement, "placement").ranks)
    counts = None
    if load is not None:
        counts = as_integers(load, "load")
        if counts.shape != (placement.layers, placement.n_logical_experts):
            raise c.bad(f"load has shape {counts.shape}, must be [{placement.layers}]"
                        f"[{placement.n_logical_experts}]")
    out = POINTER(_Recovery)()
    status = c.lib().lplb_recover(placement._handle, address(dead),
                                  None if counts is None else address(counts), ctypes.byref(out))
    if status not in (c.OK, c.INFEASIBLE):
        raise c.last_error(status)
    failure = c.last_error(status) if status else None
    try:
        r = out.contents
        found = None
        if r.placement:
            copy = POINTER(c.PlacementStruct)()
            c.check(c.lib().lplb_placement_copy(r.placement, ctypes.byref(copy)))
            found = Placement._adopt(copy)
        if failure:
            raise LostExperts(status, failure.message, moves_of(r.lost, r.n_lost),
                              r.missing_slots, found)
        return found
    finally:
        c.lib().lplb_recovery_destroy(out)
