"""What takes several GPUs, one process each: run with torchrun; rank 0 prints JSON lines.

    torchrun --nproc-per-node 2 tests/python/gpu_ranks.py [SECTION...]

Sections: equal (plans and ids of the ranks against one CPU planner), equal_local (the same with
locality: also what stays on its rank), deepep (dispatch, experts and combine with balanced ids; by
DeepEP where it can be imported, else by a stand-in), moved (a rank with another placement). They
also run on CPUs over gloo, in the tests. What they cost is measured by bench/python/bench_node.py.
"""

import importlib.util
import json
import os
import sys
import traceback
from pathlib import Path

if __name__ == "__main__":
    root = Path(__file__).resolve().parents[2]
    sys.path[:0] = [str(root / "python"), str(root / "tests" / "python"), str(root / "examples")]

import numpy as np
import torch
import torch.distributed as dist

import lplb
from lplb import _cpu
from lplb._arrays import Ids


def ring(ranks, columns=1):
    """r2o [ranks][columns]: copies from the next ranks."""
    return torch.tensor([[(r + 1 + d) % ranks for d in range(columns)] for r in range(ranks)])


def skewed_ids(shape, experts, seed, hot_share=0.9):
    """Logical ids of which hot_share choose among the first rank's quarter of experts."""
    draw = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, experts, shape, generator=draw)
    hot = torch.rand(shape, generator=draw) < hot_share
    return torch.where(hot, ids % max(1, experts // 4), ids)


def equal(group, device):
    """Ids of 20 batches: a slot of their expert each, and loads that no split could better."""
    ranks, rank, experts = group.size(), group.rank(), 64
    redundant = experts // ranks // 2
    planner = lplb.Planner(ring(ranks).to(device), experts + redundant * ranks, experts,
                           group=group)
    alone = lplb.Planner(ring(ranks), experts + redundant * ranks, experts, ranks)
    worst = 0.0
    for step in range(20):
        tokens = 0 if (rank + step) % 5 == 0 else 100 + 37 * rank + step
        ids = skewed_ids((tokens, 4), experts, 1000 * step + rank, 0.5).to(device)
        out = planner.run(ids)
        assert torch.equal(planner.phy2log.long()[out], ids)
        counts = torch.bincount(ids.reshape(-1), minlength=experts)
        slots = torch.bincount(out.reshape(-1), minlength=planner.n_routed_experts)
        dist.all_reduce(counts, group=group)
        dist.all_reduce(slots, group=group)
        best = alone.plan(counts)
        loads = slots.reshape(ranks, -1).sum(1)
        assert loads.tolist() == best.loads.tolist()
        assert planner.last_status.ok
        worst = max(worst, best.imbalance)
    return {"batches": 20, "worst_imbalance": round(worst, 4)}


class KnownCounts:
    """In place of a communicator, for a CPU step whose source_counts are filled in by hand."""

    def __init__(self, ranks):
        self.ranks = ranks

    def size(self):
        return self.ranks


def keep_local(group, device, transport):
    """Batches without and with locality: what each rank gets, and what stays where it was."""
    ranks, rank, experts = group.size(), group.rank(), 64
    draw = torch.Generator().manual_seed(5)
    spare = torch.randint(0, experts, (ranks * 8,), generator=draw)
    table = torch.cat([torch.arange(experts).reshape(ranks, -1), spare.reshape(ranks, -1)], 1)
    table = table.reshape(-1)
    per_rank = table.numel() // ranks
    planner = lplb.Planner.from_placement(table.to(device), experts, group=group,
                                          transport=transport)
    alone = _cpu.Step(planner.placement, "exact", KnownCounts(ranks), rank, range(ranks),
                      planner._node, 1, planner._home)
    plain, kept, total = 0, 0, 0
    for batch in range(20):
        # none, one block of a GPU's step, or several
        tokens = 0 if (rank + batch) % 5 == 0 else 100 + 37 * rank + 997 * (batch % 4)
        ids = skewed_ids((tokens, 4), experts, 1000 * batch + rank, 0.4).to(device)
        ids[:, 0] = (ids[:, 0] + rank * experts // ranks) % experts  # favourites of its own
        for locality in (False, True):
            out = planner.run(ids, locality=locality)
            assert planner.last_status.ok, planner.last_status
            assert torch.equal(table.to(device)[out], ids)
            own = torch.bincount(ids.reshape(-1), minlength=experts)
            sent = torch.bincount(out.reshape(-1), minlength=table.numel())
            every = [torch.empty_like(own) for _ in range(ranks)]
            slots = [torch.empty_like(sent) for _ in range(ranks)]
            dist.all_gather(every, own, group=group)
            dist.all_gather(slots, sent, group=group)
            counts = torch.stack(every).cpu().numpy()
            here = by_rank(torch.stack(slots).cpu().numpy(), table.numpy(), per_rank, experts)
            plan = planner.last_plan
            assert plan.max_load == planner.plan(counts.sum(0)).max_load
            got = here.sum(0)[plan.hosts.rank, plan.hosts.expert]
            assert (got == plan.split).all(), batch
            stay = int(here[range(ranks), range(ranks)].sum())
            if not locality:
                plain += stay
                continue
            could = np.minimum(plan.split, counts[plan.hosts.rank, plan.hosts.expert]).sum()
            assert stay == could, (batch, stay, int(could))
            kept, total = kept + stay, total + int(counts.sum())
            # a GPU's split is that without locality
            alone.source_counts[:] = counts
            alone.solve(device.type == "cpu")
            assert (alone.solver.split == plan.split).all()
            ids_on_cpu, expected = Ids(ids.cpu()), Ids(torch.empty_like(ids, device="cpu"))
            alone.map(ids_on_cpu, expected, True)
            assert torch.equal(expected.array, out.cpu()), batch
    # Without it, sources in order fill hosts in order, which of two ranks keeps what can be kept.
    assert kept > plain or ranks == 2 and device.type != "cpu" and kept == plain, (kept, plain)
    return {"stay_on_rank": round(kept / total, 4), "without_locality": round(plain / total, 4)}


def equal_local(group, device, transports=("p2p", "nccl")):
    """As `equal` with locality: every (expert, rank) gets what the plan says, no other ids could
    leave more tokens of any expert on their rank, and each id's slot is that of the CPU."""
    return {name: keep_local(group, device, name) for name in transports}


def by_rank(slots, table, per_rank, experts):
    """Tokens [source][rank][E] of tokens [source][P]."""
    out = np.zeros((len(slots), len(table) // per_rank, experts), np.int64)
    for slot, expert in enumerate(table):
        out[:, slot // per_rank, expert] += slots[:, slot]
    return out


def deepep(group, device, buffer_class=None):
    """Balanced ids straight into DeepEP: the output is that of the unbalanced layer.

    buffer_class: of version 1 or ElasticBuffer of version 2; default: DeepEP's Buffer, or ours.
    """
    if buffer_class is None:
        if importlib.util.find_spec("deep_ep") is not None:
            from deep_ep import Buffer as buffer_class
        else:
            from deep_ep_stand_in import Buffer as buffer_class
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    ranks, rank, experts, hidden, top_k = group.size(), group.rank(), 32, 512, 4
    elastic = not hasattr(buffer_class, "get_dispatch_layout")
    buffer = (buffer_class(group, num_max_tokens_per_rank=256, hidden=hidden, num_topk=top_k)
              if elastic else buffer_class(group, 1 << 28))
    redundant = experts // ranks // 2
    planner = lplb.Planner(ring(ranks).to(device), experts + redundant * ranks, experts,
                           ep_size=ranks)
    planner.init_from_deep_ep(buffer)
    local = planner.n_local_routed_experts
    table = planner.phy2log.long()
    mine = table[rank * local:(rank + 1) * local]
    draw = torch.Generator().manual_seed(rank)
    x = torch.randn(256, hidden, generator=draw).to(device, dtype)
    among = [experts // ranks if draw_one < 0.9 else experts  # mostly rank 0's experts
             for draw_one in torch.rand(256, generator=draw).tolist()]
    ids = torch.stack([torch.randperm(n, generator=draw)[:top_k] for n in among]).to(device)
    weights = torch.rand(256, top_k, generator=draw).to(device)
    home = torch.full((experts,), -1, dtype=torch.long, device=device)
    for slot in range(planner.n_routed_experts - 1, -1, -1):
        home[table[slot]] = slot

    def layer(physical):
        if elastic:
            recv_x, recv_ids, recv_weights, handle, _ = buffer.dispatch(
                x, topk_idx=physical, topk_weights=weights, num_experts=planner.n_routed_experts)
        else:
            layout = buffer.get_dispatch_layout(physical, planner.n_routed_experts)
            per_rank, per_rdma_rank, per_expert, in_rank, _ = layout
            recv_x, recv_ids, recv_weights, _, handle, _ = buffer.dispatch(
                x, num_tokens_per_rank=per_rank, num_tokens_per_rdma_rank=per_rdma_rank,
                is_token_in_rank=in_rank, num_tokens_per_expert=per_expert, topk_idx=physical,
                topk_weights=weights)
        out = torch.zeros(recv_x.shape, dtype=torch.float32, device=device)
        for slot in range(local):  # expert e: multiply by e + 1
            w = torch.where(recv_ids == slot, recv_weights, 0.0).sum(1, keepdim=True)
            out += w * recv_x.float() * float(mine[slot] + 1)
        return buffer.combine(out.to(dtype), handle)[0].float(), int((recv_ids >= 0).sum())

    plain, received_plain = layer(home[ids])
    balanced_ids = planner.run(ids)
    assert balanced_ids.dtype == torch.int64 and torch.equal(table[balanced_ids], ids)
    balanced, received = layer(balanced_ids)
    error = float((plain - balanced).abs().max() / plain.abs().max())
    assert error < (1e-5 if dtype == torch.float32 else 2e-2), error
    counts = torch.tensor([received_plain, received], device=device)
    every = [torch.empty_like(counts) for _ in range(ranks)]
    dist.all_gather(every, counts, group=group)
    most = torch.stack(every).max(0).values.tolist()
    assert most[1] <= most[0]
    return {"buffer": buffer_class.__module__, "transport": planner.transport, "error": error,
            "most_selections": {"unbalanced": most[0], "balanced": most[1]}}


def moved(group, device, transports=("p2p", "nvshmem", "nccl", "torch")):
    """A rank that has another placement for a step: all are told, and the next step goes well."""
    ranks, experts = group.size(), 16
    one = torch.arange(experts).reshape(ranks, -1)
    table = torch.cat([one, one.roll(1, 0)], dim=1).reshape(-1).to(device)
    other = torch.cat([one, one.roll(1, 0).flip(1)], dim=1).reshape(-1).to(device)
    ids = skewed_ids((64, 2), experts, group.rank()).to(device)
    results = {}
    for transport in transports:
        try:
            planner = lplb.Planner.from_placement(table, experts, group=group, transport=transport,
                                                  timeout=5.0)
            planner.run(ids)
        except lplb.InputError as error:  # the same on all ranks
            results[transport] = str(error)
            continue
        assert planner.last_status.ok, planner.last_status
        names = []
        for step_table in (other if group.rank() == ranks - 1 else table, table):
            planner.update_placement(step_table)
            out = planner.run(ids)
            status = planner.last_status
            names.append(status.error.name if status.error else status.outcome)
            assert torch.equal(step_table[out], ids)
        assert names == ["LPLB_DISAGREE", "optimal"], (transport, names)
        results[transport] = names
    return results


SECTIONS = {"equal": equal, "equal_local": equal_local, "deepep": deepep, "moved": moved}


def main():
    torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    device = torch.device("cuda", torch.cuda.current_device())
    dist.init_process_group("nccl")
    group = dist.group.WORLD
    failed = False
    for name in sys.argv[1:] or SECTIONS:
        try:
            result = SECTIONS[name](group, device)
        except Exception as error:  # the other sections are worth having
            failed = True
            traceback.print_exc()
            result = {"error": f"{type(error).__name__}: {error}"[:500]}
        if group.rank() == 0 or "error" in result:
            print(json.dumps({"section": name, "rank": group.rank(), **result}), flush=True)
    dist.destroy_process_group()
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
