"""Stand-ins for DeepEP's buffers on any torch.distributed backend: `Buffer`, inside a node, of
version 1 (version 2 keeps it as its legacy), and `ElasticBuffer` of version 2.

They have the documented signatures and meanings of `get_dispatch_layout`, `dispatch` and `combine`,
without their speed: a token is sent once to every rank that has one of its experts, the ids that
arrive are local to the rank (-1 for experts elsewhere), and combine sums over the ranks.
"""

import torch
import torch.distributed as dist


class Buffer:
    def __init__(self, group, num_nvl_bytes=0, num_rdma_bytes=0, low_latency_mode=False):
        self.group, self.rank, self.group_size = group, group.rank(), group.size()
        self.num_nvl_bytes, self.num_rdma_bytes = num_nvl_bytes, num_rdma_bytes
        self.low_latency_mode = low_latency_mode

    def get_dispatch_layout(self, topk_idx, num_experts, previous_event=None, async_finish=False,
                            allocate_on_comm_stream=False):
        assert topk_idx.dtype == torch.int64 and topk_idx.is_contiguous() and topk_idx.dim() == 2
        assert num_experts % self.group_size == 0
        chosen = topk_idx >= 0
        per_rank = num_experts // self.group_size
        rank_of = torch.where(chosen, topk_idx // per_rank, torch.full_like(topk_idx, -1))
        in_rank = (rank_of.unsqueeze(-1) == torch.arange(self.group_size, device=rank_of.device)
                   ).any(1)
        per_expert = torch.bincount(topk_idx[chosen], minlength=num_experts).int()
        return in_rank.sum(0).int(), None, per_expert, in_rank, None

    def dispatch(self, x, handle=None, num_tokens_per_rank=None, num_tokens_per_rdma_rank=None,
                 is_token_in_rank=None, num_tokens_per_expert=None, topk_idx=None,
                 topk_weights=None, expert_alignment=1):
        assert handle is None and topk_weights.dtype == torch.float32
        n_experts = num_tokens_per_expert.numel()
        local = n_experts // self.group_size
        token = [is_token_in_rank[:, r].nonzero().squeeze(1) for r in range(self.group_size)]
        n_send = [len(t) for t in token]
        assert n_send == num_tokens_per_rank.tolist()
        sent = torch.tensor(n_send, device=x.device)
        got = torch.empty_like(sent)
        dist.all_to_all_single(got, sent, group=self.group)
        n_receive = got.tolist()
        order = torch.cat(token)
        send = [x[order], topk_idx[order], topk_weights[order]]
        received = [self._exchange(t, n_send, n_receive) for t in send]
        recv_x, ids, weights = received
        here = (ids >= self.rank * local) & (ids < (self.rank + 1) * local)
        ids = torch.where(here, ids - self.rank * local, torch.full_like(ids, -1))
        weights = torch.where(here, weights, torch.zeros_like(weights))
        per_expert = torch.bincount(ids[ids >= 0], minlength=local).tolist()
        return recv_x, ids, weights, per_expert, (order, n_send, n_receive, len(x)), None

    def combine(self, x, handle, topk_weights=None, bias=None, config=None, previous_event=None,
                async_finish=False, allocate_on_comm_stream=False):
        order, n_send, n_receive, n = handle
        back = self._exchange(x, n_receive, n_send)
        out = torch.zeros((n, *x.shape[1:]), dtype=torch.float32, device=x.device)
        return out.index_add_(0, order, back.float()).to(x.dtype), None, None

    def _exchange(self, rows, n_send, n_receive):
        out = rows.new_empty((sum(n_receive), *rows.shape[1:]))
        dist.all_to_all_single(out, rows.contiguous(), n_receive, n_send, group=self.group)
        return out


class ElasticBuffer:
    """Takes sizes of the layer in place of bytes, and ids without a layout."""

    def __init__(self, group, num_bytes=None, num_cpu_bytes=0, num_max_tokens_per_rank=0, hidden=0,
                 num_topk=0):
        assert num_bytes is not None or num_max_tokens_per_rank * hidden > 0
        self.group, self.rank_idx, self.num_ranks = group, group.rank(), group.size()
        self.num_max_tokens_per_rank = num_max_tokens_per_rank
        self.nccl_comm_handle = object()
        self._legacy = Buffer(group)

    def dispatch(self, x, topk_idx=None, topk_weights=None, cumulative_local_expert_recv_stats=None,
                 num_experts=None, num_max_tokens_per_rank=None, expert_alignment=None):
        assert len(x) <= (num_max_tokens_per_rank or self.num_max_tokens_per_rank)
        per_rank, _, per_expert, in_rank, _ = self._legacy.get_dispatch_layout(topk_idx,
                                                                               num_experts)
        recv_x, ids, weights, _, handle, event = self._legacy.dispatch(
            x, num_tokens_per_rank=per_rank, is_token_in_rank=in_rank,
            num_tokens_per_expert=per_expert, topk_idx=topk_idx, topk_weights=topk_weights)
        return recv_x, ids, weights, handle, event

    def combine(self, x, handle, topk_weights=None, bias=None):
        return self._legacy.combine(x, handle)
