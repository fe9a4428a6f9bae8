"""For PyTorch models: the planner as a module, gradients of copies, weights of a new placement.

Tensors of expert weights have the local physical experts of a rank first: [n_local][...], slot p of
the placement being row p - first slot of the rank. Without a group (one process that holds all
ranks' experts) they are [P][...].
"""

from __future__ import annotations

import copy
import weakref
from typing import TYPE_CHECKING, Any, Iterable, Sequence

import numpy as np
import torch

from . import _library as c
from ._checks import expect
from .placement import Placement
from .planner import Planner

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Balance", "move_weights", "routing_map", "sum_replica_gradients", "top_k_of"]

# ---- the planner inside a model -----------------------------------------------------------------

_planners: weakref.WeakValueDictionary[str, Planner] = weakref.WeakValueDictionary()
# torch.compile keeps a registered operator whole instead of breaking the graph at it.
_operators = getattr(torch, "library", None)
_HAS_OPS = hasattr(_operators, "custom_op")

if _HAS_OPS:
    # A step is more than its output: it takes part in an exchange that all ranks must make equally
    # often. The counter, to which it adds, says so to the compiler, which may then neither drop a
    # call whose ids nobody reads, nor run two equal ones as one, nor change their order.

    @_operators.custom_op(
        "lplb::run", mutates_args=("counter",),
        schema="(Tensor idx, Tensor(a!) counter, str planner, bool locality) -> Tensor")
    def _run(idx: torch.Tensor, counter: torch.Tensor, planner: str, locality: bool
             ) -> torch.Tensor:
        return _planners[planner].run(idx, counter, locality=locality)

    @_run.register_fake
    def _(idx: torch.Tensor, counter: torch.Tensor, planner: str, locality: bool
          ) -> torch.Tensor:
        return torch.empty_like(idx, memory_format=torch.contiguous_format)


class Balance(torch.nn.Module):
    """`planner.run` as a module: forward(topk_ids) -> physical ids, of the same shape and type.

    With torch 2.4 and later it is one operator (lplb::run) that torch.compile leaves whole. The
    buffer `counter`, int64 [1], is LPLB's avail_counter: groups solved so far.

    copy.deepcopy shares the planner, as the averaged copies of a model want it: where its ranks
    share counts, all of them must then call the copy equally often, too. It does not pickle: save
    state_dict(), and make the module anew.
    """

    def __init__(self, planner: Planner, locality: bool = False) -> None:
        super().__init__()
        self.planner = expect(planner, Planner, "planner")
        self.locality = locality
        self.key = f"{id(planner):x}"
        self.register_buffer("counter", torch.zeros(1, dtype=torch.int64), persistent=False)
        _planners[self.key] = planner

    def __deepcopy__(self, memo: dict[int, Any]) -> Balance:
        memo[id(self.planner)] = self.planner
        copied = memo[id(self)] = type(self).__new__(type(self))
        copied.__dict__ = copy.deepcopy(self.__dict__, memo)
        return copied

    def forward(self, topk_ids: Tensor) -> Tensor:
        if self.counter.device != topk_ids.device:
            self.counter = self.counter.to(topk_ids.device)
        if _HAS_OPS:
            return torch.ops.lplb.run(topk_ids, self.counter, self.key, self.locality)
        return self.planner.run(topk_ids, self.counter, locality=self.locality)


# ---- the dense form of a choice -----------------------------------------------------------------


def top_k_of(routing_map: Tensor, probs: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """Ids and weights of a dense choice, at most top_k a token.

    routing_map bool [T][E]; probs [T][E], used where the map is true. Returns int64 ids [T][top_k],
    -1 where a token has fewer, and their weights [T][top_k] with gradients, 0 there. Of a token
    with more than top_k the first are taken, by expert: nothing here waits for a GPU to count.
    """
    chosen, ids = routing_map.to(torch.int8).sort(dim=1, descending=True, stable=True)
    here = chosen[:, :top_k] > 0
    ids = ids[:, :top_k]
    weights = torch.where(here, probs.gather(1, ids), torch.zeros_like(probs[:, :1]))
    return torch.where(here, ids, torch.full_like(ids, -1)), weights


def routing_map(ids: Tensor, weights: Tensor, n_experts: int) -> tuple[Tensor, Tensor]:
    """The dense form of a choice, as HybridEP and Megatron's flex dispatcher take it.

    ids int [T][K], -1 = no selection; weights [T][K], those of an id that a row has twice are
    added. Returns bool [T][n_experts] and weights [T][n_experts] with gradients.
    """
    here = ids >= 0
    at = torch.where(here, ids, torch.zeros_like(ids)).long()
    zero = torch.zeros_like(weights)
    dense = weights.new_zeros(ids.shape[0], n_experts)
    dense = dense.scatter_add(1, at, torch.where(here, weights, zero))
    count = torch.zeros(ids.shape[0], n_experts, dtype=torch.int32, device=ids.device)
    return count.scatter_add_(1, at, here.to(torch.int32)) > 0, dense


# ---- rows among ranks ---------------------------------------------------------------------------


def _placement(where: Planner | Placement) -> Placement:
    placement = where.placement if isinstance(where, Planner) else where
    if placement.layers != 1:
        raise c.bad(f"the placement has {placement.layers} layers; give one layer's")
    return placement


def _rank_and_rows(placement: Placement, group: Any, tensors: Sequence[Tensor]
                   ) -> tuple[int, int, int]:
    """(rank, first slot, number of rows); all slots where there is no group."""
    if group is None:
        rank, first, rows = 0, 0, placement.slots
    else:
        if group.size() != placement.ranks:
            raise c.bad(f"the group has {group.size()} ranks, the placement {placement.ranks}")
        rank = group.rank()
        first = int(placement.rank_offset[rank])
        rows = int(placement.rank_offset[rank + 1]) - first
    for t in tensors:
        if t.shape[0] != rows:
            raise c.bad(f"a tensor has {t.shape[0]} rows, rank {rank} has {rows} experts")
    return rank, first, rows


def _exchange_rows(tensor: Tensor, send: list[list[int]], n_receive: list[int], group: Any
                   ) -> Tensor:
    """Sends rows of tensor: send[r] lists those for rank r; returns the received ones by rank."""
    order = torch.tensor([row for rows in send for row in rows], dtype=torch.long,
                         device=tensor.device)
    return _send_rows(tensor.index_select(0, order), send, n_receive, group)


def _send_rows(out: Tensor, send: list[list[int]], n_receive: list[int], group: Any) -> Tensor:
    """The same with the rows side by side already; send only says how many."""
    into = torch.empty((sum(n_receive), *out.shape[1:]), dtype=out.dtype, device=out.device)
    torch.distributed.all_to_all_single(into, out.contiguous(), n_receive,
                                        [len(rows) for rows in send], group=group)
    return into


# ---- gradients of copies ------------------------------------------------------------------------


def sum_replica_gradients(where: Planner | Placement, gradients: Iterable[Tensor],
                          group: Any = None) -> None:
    """Gives every copy of an expert the sum of the gradients of all its copies, in place.

    Copies see different tokens, so each has a part of its expert's gradient; with the sum they
    stay equal when the optimizer steps. gradients: tensors [n_local][...] ([P][...] without group),
    best all of a layer, or of all layers with this placement, in one call: tensors of one type
    travel together. Sums are made in the order of slots, on one rank, so that all copies get the
    same bits. A collective call of the group.
    """
    placement, tensors = _placement(where), list(gradients)
    rank, _first, _rows = _rank_and_rows(placement, group, tensors)
    plan = _SumPlan.of(placement, rank, group is not None)
    bucket: list[Tensor] = []
    for tensor in sorted(tensors, key=lambda t: str((t.dtype, t.device))):  # stable
        size = sum(t.numel() * t.element_size() for t in bucket)
        if bucket and ((tensor.dtype, tensor.device) != (bucket[0].dtype, bucket[0].device)
                       or size + tensor.numel() * tensor.element_size() > _BUCKET_BYTES):
            _sum_bucket(bucket, plan, group)
            bucket = []
        bucket.append(tensor)
    if bucket:
        _sum_bucket(bucket, plan, group)


_BUCKET_BYTES = 4 << 20  # larger tensors travel alone: there a call costs less than a copy
_sum_plans: weakref.WeakKeyDictionary[Placement, dict[tuple, _SumPlan]] = (
    weakref.WeakKeyDictionary())


class _SumPlan:
    """Who sends which rows to whom, and what is added to what, for one rank.

    An expert is summed on the rank of its first slot. Arrived rows are those of this rank (local),
    then those of the others by rank, each in the order of experts and slots.
    """

    def __init__(self, placement: Placement, rank: int, shared: bool) -> None:
        table = placement.physical_to_logical_map[0]
        ranks = placement.ranks if shared else 1
        owner = np.repeat(np.arange(placement.ranks), placement.slots_per_rank) if shared else (
            np.zeros(placement.slots, np.int64))
        first = int(placement.rank_offset[rank]) if shared else 0
        experts = [np.flatnonzero(table == e) for e in range(placement.n_logical_experts)]
        experts = [slots for slots in experts if len(slots) > 1]
        mine = [slots for slots in experts if owner[slots[0]] == rank]
        # Sums are numbered by falling numbers of copies: the k-th copies then belong to the first.
        order = sorted(range(len(mine)), key=lambda i: -len(mine[i]))
        number = {int(mine[i][0]): n for n, i in enumerate(order)}
        local: list[int] = []  # rows summed here
        local_sums: list[int] = []
        to: list[list[int]] = [[] for _ in range(ranks)]  # rows for the ranks that sum them
        back: list[list[int]] = [[] for _ in range(ranks)]  # sums for the ranks of the copies
        source: list[list[tuple[int, int]]] = [[] for _ in range(ranks)]
        for slots in experts:
            here = owner[slots[0]]
            for k, slot in enumerate(slots):
                if owner[slot] == rank and here == rank:
                    local.append(int(slot) - first)
                    local_sums.append(number[int(slots[0])])
                    source[rank].append((number[int(slots[0])], k))
                elif owner[slot] == rank:
                    to[here].append(int(slot) - first)
                elif here == rank:
                    back[owner[slot]].append(number[int(slots[0])])
                    source[owner[slot]].append((number[int(slots[0])], k))
        arrived = source[rank] + [s for r in range(ranks) if r != rank for s in source[r]]
        copies = max((len(slots) for slots in mine), default=0)
        self.terms = [[0] * sum(len(slots) > k for slots in mine) for k in range(copies)]
        for at, (n, k) in enumerate(arrived):
            self.terms[k][n] = at
        self.to, self.back, self.local, self.local_sums = to, back, local, local_sums
        self.away = [row for rows in to for row in rows]
        # Where the sums may lie in the tensor itself: in the row of the first copy, to which the
        # others are added in the order of their slots, those of this rank first.
        self.home = [local[at] for at in self.terms[0]] if copies else []
        self.orders = [n for numbers in back for n in numbers]

    @classmethod
    def of(cls, placement: Placement, rank: int, shared: bool) -> _SumPlan:
        plans = _sum_plans.setdefault(placement, {})
        if (rank, shared) not in plans:
            plans[rank, shared] = cls(placement, rank, shared)
        return plans[rank, shared]


def _take(tensors: list[Tensor], rows: list[int]) -> Tensor:
    """[rows][...] of all tensors side by side."""
    index = torch.tensor(rows, dtype=torch.long, device=tensors[0].device)
    return torch.cat([t.index_select(0, index).reshape(len(rows), t.shape[1:].numel())
                      for t in tensors], dim=1)


def _put(tensors: list[Tensor], rows: list[int], values: Tensor) -> None:
    index = torch.tensor(rows, dtype=torch.long, device=tensors[0].device)
    widths = [t.shape[1:].numel() for t in tensors]
    for tensor, part in zip(tensors, values.split(widths, dim=1)):
        tensor.index_copy_(0, index, part.reshape(len(rows), *tensor.shape[1:]))


def _sum_alone(tensor: Tensor, plan: _SumPlan, group: Any) -> None:
    """For rows so large that a copy of them costs more than an operator a row."""
    got = tensor[:0]
    if group is not None:
        got = _exchange_rows(tensor, plan.to, [len(rows) for rows in plan.back], group)
    for rows in plan.terms[1:]:
        for n, at in enumerate(rows):
            here = at < len(plan.local)
            tensor[plan.home[n]] += tensor[plan.local[at]] if here else got[at - len(plan.local)]
    for row, n in zip(plan.local, plan.local_sums):
        if row != plan.home[n]:
            tensor[row].copy_(tensor[plan.home[n]])
    if group is not None:
        sums = [[plan.home[n] for n in numbers] for numbers in plan.back]
        got = _exchange_rows(tensor, sums, [len(rows) for rows in plan.to], group)
        for row, total in zip(plan.away, got):
            tensor[row].copy_(total)


def _sum_bucket(tensors: list[Tensor], plan: _SumPlan, group: Any) -> None:
    if not tensors[0].shape[0] or not any(t.numel() for t in tensors):
        return
    if len(tensors) == 1 and tensors[0].numel() * tensors[0].element_size() > _BUCKET_BYTES:
        _sum_alone(tensors[0], plan, group)
        return
    parts = _take(tensors, plan.local)
    if group is not None:
        got = _send_rows(_take(tensors, plan.away), plan.to, [len(rows) for rows in plan.back],
                         group)
        parts = torch.cat([parts, got])
    sums = parts[:0]
    for k, rows in enumerate(plan.terms):
        term = parts.index_select(0, torch.tensor(rows, dtype=torch.long, device=parts.device))
        if k == 0:
            sums = term
        else:
            sums[:len(rows)] += term
    _put(tensors, plan.local, sums.index_select(
        0, torch.tensor(plan.local_sums, dtype=torch.long, device=sums.device)))
    if group is not None:
        out = sums.index_select(0, torch.tensor(plan.orders, dtype=torch.long,
                                                device=sums.device))
        _put(tensors, plan.away, _send_rows(out, plan.back, [len(rows) for rows in plan.to],
                                            group))


# ---- weights of a new placement -----------------------------------------------------------------


def move_weights(before: Planner | Placement, after: Planner | Placement,
                 tensors: Iterable[Tensor], group: Any = None) -> list[Tensor]:
    """The same experts' rows (weights, optimizer state) under another placement.

    tensors: [n_local][...] under `before` ([P][...] without group). Returns new tensors under
    `after`, of the same types; rows of empty slots are zero. Each expert that is new on a rank is
    sent once, by the rank that `Placement.moves` names. A collective call of the group.
    """
    old, new = _placement(before), _placement(after)
    tensors = list(tensors)
    if old.n_logical_experts != new.n_logical_experts:
        raise c.bad(f"{old.n_logical_experts} and {new.n_logical_experts} experts: not the same "
                    "layer")
    if group is None:
        return [_permute(t, old, new) for t in tensors]
    if old.ranks != new.ranks:
        raise c.bad(f"{old.ranks} ranks before, {new.ranks} after; a group does not change")
    rank, first, _rows = _rank_and_rows(old, group, tensors)
    send: list[list[int]] = [[] for _ in range(new.ranks)]
    receive: list[list[int]] = [[] for _ in range(new.ranks)]  # experts, by sender
    held = old.physical_to_logical_map[0][first:int(old.rank_offset[rank + 1])]
    row_of = {int(e): row for row, e in reversed(list(enumerate(held))) if e >= 0}
    for move in new.moves(old):
        if move.source_rank < 0:
            raise c.bad(f"no rank holds expert {move.expert}: load it from a checkpoint first")
        if move.source_rank == rank:
            send[move.rank].append(row_of[move.expert])
        if move.rank == rank:
            receive[move.source_rank].append(move.expert)
    arrived = {e: i for i, e in enumerate(e for experts in receive for e in experts)}
    begin, end = int(new.rank_offset[rank]), int(new.rank_offset[rank + 1])
    wanted = new.physical_to_logical_map[0][begin:end]
    out = []
    for t in tensors:
        got = _exchange_rows(t, send, [len(experts) for experts in receive], group)
        rows = torch.zeros((end - begin, *t.shape[1:]), dtype=t.dtype, device=t.device)
        for row, e in enumerate(map(int, wanted)):
            if e >= 0:
                rows[row].copy_(t[row_of[e]] if e in row_of else got[arrived[e]])
        out.append(rows)
    return out


def _permute(tensor: Tensor, old: Placement, new: Placement) -> Tensor:
    _rank_and_rows(old, None, [tensor])
    first = old.logical_to_physical_map[0, :, 0]
    wanted = new.physical_to_logical_map[0]
    source = torch.from_numpy(first[np.maximum(wanted, 0)].astype(np.int64)).to(tensor.device)
    out = tensor.detach().index_select(0, source)
    out[torch.from_numpy(wanted < 0).to(tensor.device)] = 0
    return out
