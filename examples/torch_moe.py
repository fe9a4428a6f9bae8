"""A Mixture-of-Experts layer with balanced expert parallelism, forward and backward.

    python examples/torch_moe.py                                    one process plays all ranks
    torchrun --nproc_per_node 4 examples/torch_moe.py               four processes, gloo or NCCL

Router, plan, dispatch (all-to-all), grouped GEMM over the physical experts of each rank, combine,
backward, sum of the copies' gradients. The program runs one step unbalanced (every token to its
expert's home) and one balanced, on skewed routing, and shows that loss and gradients agree while
the fullest rank's share falls.
"""

import argparse
import os

import torch
import torch.distributed as dist
from torch import nn

import lplb
import lplb.torch

# Redundant slot k of rank r copies expert k of rank r2o[r][k % 2].
RINGS = torch.tensor([[1, 2, 3, 0], [3, 0, 1, 2]]).T


class AllToAll(torch.autograd.Function):
    """Rows to the ranks that want them; backward sends their gradients back."""

    @staticmethod
    def forward(ctx, rows, n_send, n_receive, group):
        ctx.sizes = n_send, n_receive, group
        out = rows.new_empty((sum(n_receive), *rows.shape[1:]))
        dist.all_to_all_single(out, rows.contiguous(), n_receive, n_send, group=group)
        return out

    @staticmethod
    def backward(ctx, gradient):
        n_send, n_receive, group = ctx.sizes
        return AllToAll.apply(gradient, n_receive, n_send, group), None, None, None


class ExpertLayer(nn.Module):
    """Top-k routed experts; this rank holds the physical experts of its slots."""

    def __init__(self, planner, hidden, inner, top_k, group=None, seed=0):
        super().__init__()
        self.planner, self.top_k, self.group = planner, top_k, group
        self.rank = group.rank() if group is not None else 0
        local = planner.n_local_routed_experts if group is not None else planner.n_routed_experts
        self.first, self.local = self.rank * local, local
        experts = planner.n_logical_routed_experts
        draw = torch.Generator().manual_seed(seed)  # the same on all ranks, so that copies agree
        self.router = nn.Parameter(torch.randn(hidden, experts, generator=draw) / hidden**0.5)
        up = torch.randn(experts, hidden, inner, generator=draw) / hidden**0.5
        down = torch.randn(experts, inner, hidden, generator=draw) / inner**0.5
        mine = planner.phy2log[self.first:self.first + local].long().cpu()
        self.up = nn.Parameter(up[mine].contiguous())
        self.down = nn.Parameter(down[mine].contiguous())
        self.balance = lplb.torch.Balance(planner)
        home = torch.full((experts,), -1, dtype=torch.long)
        for slot, expert in reversed(list(enumerate(planner.phy2log.tolist()))):
            home[expert] = slot
        self.register_buffer("home", home)

    def forward(self, x, balanced=True):
        scores = (x @ self.router).softmax(-1)
        weight, ids = scores.topk(self.top_k, dim=-1)
        physical = self.balance(ids) if balanced else self.home[ids]
        order = physical.reshape(-1).argsort()  # slots of a rank are contiguous
        counts = torch.bincount(physical.reshape(-1), minlength=self.planner.n_routed_experts)
        rows = x[order // self.top_k]
        rows, counts, undo = self.dispatch(rows, counts)
        out = self.combine(self.experts(rows, counts), undo)
        back = torch.empty_like(order).scatter_(0, order, torch.arange(len(order)).to(order))
        out = out[back].reshape(*ids.shape, -1)
        return (out * weight.unsqueeze(-1)).sum(-2)

    def dispatch(self, rows, counts):
        """Rows sorted by slot to the ranks of their slots; sorted by slot again there."""
        self.received = int(counts.sum())
        if self.group is None:
            return rows, counts, None
        n = self.group.size()
        sent = counts.reshape(n, self.local)
        got = torch.empty_like(sent)
        dist.all_to_all_single(got, sent, group=self.group)
        n_send, n_receive = sent.sum(1).tolist(), got.sum(1).tolist()
        rows = AllToAll.apply(rows, n_send, n_receive, self.group)
        slot = torch.arange(self.local).to(got).repeat(n).repeat_interleave(got.reshape(-1))
        order = slot.argsort(stable=True)
        self.received = len(rows)
        return rows[order], got.sum(0), (order, n_send, n_receive)

    def experts(self, rows, counts):
        """Grouped GEMM: the rows of each slot with the slot's weights."""
        parts = rows.split(counts.tolist())
        return torch.cat([torch.relu(part @ self.up[s]) @ self.down[s]
                          for s, part in enumerate(parts)])

    def combine(self, out, undo):
        if undo is None:
            return out
        order, n_send, n_receive = undo
        back = torch.empty_like(order).scatter_(0, order, torch.arange(len(order)).to(order))
        return AllToAll.apply(out[back], n_receive, n_send, self.group)

    def after_backward(self):
        """Copies saw different tokens: give each the gradient of its whole expert."""
        lplb.torch.sum_replica_gradients(self.planner, [self.up.grad, self.down.grad], self.group)


def skewed_tokens(n, hidden, router, share, seed):
    """Tokens of which `share` lean towards the router's first quarter of experts."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(n, hidden, generator=draw)
    hot = router.detach().cpu()[:, :router.shape[1] // 4].mean(1)
    lean = (torch.rand(n, 1, generator=draw) < share).float()
    return x + lean * hot / hot.norm() * 3


def step(layer, x, balanced):
    """One forward and backward; (loss, gradients, rows that this rank computed)."""
    layer.zero_grad()
    loss = layer(x, balanced).square().mean()
    loss.backward()
    layer.after_backward()
    return loss.detach(), [p.grad.clone() for p in layer.parameters()], layer.received


def rank_loads(layer, x, balanced):
    """Selections computed by every rank."""
    with torch.no_grad():
        ids = (x @ layer.router).softmax(-1).topk(layer.top_k, dim=-1).indices
        physical = layer.balance(ids) if balanced else layer.home[ids]
    planner = layer.planner
    counts = torch.bincount(physical.reshape(-1), minlength=planner.n_routed_experts)
    if layer.group is not None:
        dist.all_reduce(counts, group=layer.group)
    return counts.reshape(planner.ep_size, -1).sum(1)


def compare(tokens=512, hidden=64, inner=96, experts=16, top_k=2, group=None, device="cpu"):
    """Runs both steps; {"loss": (a, b), "gradient_error": e, "imbalance": (a, b)}."""
    ranks = 4 if group is None else group.size()
    # Without four ranks a ring of two columns does not fit: fall back to one column.
    r2o = RINGS if ranks == 4 else torch.tensor([[(r + 1) % ranks] for r in range(ranks)])
    planner = lplb.Planner(r2o.to(device), experts + 4 * ranks, experts, ranks, group)
    layer = ExpertLayer(planner, hidden, inner, top_k, group).to(device)
    seed = 1 + layer.rank
    x = skewed_tokens(tokens, hidden, layer.router, 0.8, seed).to(device)
    loss_a, gradients_a, _ = step(layer, x, balanced=False)
    loss_b, gradients_b, _ = step(layer, x, balanced=True)
    error = max(float((a - b).abs().max() / a.abs().max())
                for a, b in zip(gradients_a, gradients_b))
    loads = [rank_loads(layer, x, balanced).double() for balanced in (False, True)]
    return {"loss": (float(loss_a), float(loss_b)), "gradient_error": error,
            "imbalance": tuple(float(n.max() / n.mean()) for n in loads)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tokens", type=int, default=512, help="tokens a rank")
    options = parser.parse_args()
    group, device = None, "cpu"
    if "RANK" in os.environ:
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
            device = "cuda"
        dist.init_process_group("nccl" if device == "cuda" else "gloo")
        group = dist.group.WORLD
    result = compare(tokens=options.tokens, group=group, device=device)
    if group is None or group.rank() == 0:
        print("loss        unbalanced {:.9f}  balanced {:.9f}".format(*result["loss"]))
        print("gradients   largest relative difference {:.2e}".format(result["gradient_error"]))
        print("imbalance   unbalanced {:.3f}  balanced {:.3f}".format(*result["imbalance"]))
    if group is not None:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
