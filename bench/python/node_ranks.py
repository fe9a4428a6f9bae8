"""What one rank of bench_node.py does: checks and measurements that all ranks make together."""

import json
import os
import signal
import statistics
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "python")]

import numpy as np
import torch
import torch.distributed as dist

import lplb
import lplb.torch

CUBE = np.array([[3, 0, 1, 2, 7, 4, 5, 6], [6, 7, 4, 5, 0, 1, 2, 3]]).T
TRACE = ROOT / "data" / "gpt-oss-20b" / "token_topk.npz"
CHAIN, REPLAYS = 10, 300
PUTS = "nvshmem by puts"  # as if every rank were a node


def ring(ranks, columns=1):
    """r2o [ranks][columns]: copies from the next ranks."""
    return np.array([[(r + 1 + d) % ranks for d in range(columns)] for r in range(ranks)])


def topology(ranks):
    """LPLB's default for two redundant columns where it fits, else a ring."""
    return CUBE if ranks % 8 == 0 else ring(ranks)


class World:
    """The process group, this rank's device and what the sections are told."""

    def __init__(self):
        self.rank, self.size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        self.options = {"cpu": False, "small": False, "steps": 10000, "transport": "auto",
                        **json.loads(os.environ.get("LPLB_BENCH_NODE", "{}"))}
        gpus = 0 if self.options["cpu"] else torch.cuda.device_count()
        gpus = min(gpus, self.options.get("gpus", gpus))
        self.gpu = gpus > 0
        self.alone = gpus >= self.size  # on its GPU
        self.device = torch.device("cpu")
        if self.gpu:  # consecutive ranks on one GPU, so that nodes of ranks have GPUs of their own
            torch.cuda.set_device(self.rank * min(gpus, self.size) // self.size)
            self.device = torch.device("cuda", torch.cuda.current_device())
        else:
            torch.set_num_threads(1)
        self.backend = "nccl" if self.alone else "gloo"
        dist.init_process_group(self.backend)
        self.group = dist.group.WORLD
        self.host = dist.new_group(backend="gloo")  # for sums and barriers of the benchmark itself

    def tensor(self, array):
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device)

    def sum(self, tensor):
        """Of all ranks, on the host."""
        total = tensor.cpu()
        dist.all_reduce(total, group=self.host)
        return total

    def most(self, value):
        worst = torch.tensor([float(value)], dtype=torch.float64)
        dist.all_reduce(worst, dist.ReduceOp.MAX, group=self.host)
        return float(worst)

    def all(self, value):
        values = [None] * self.size
        dist.all_gather_object(values, value, group=self.host)
        return values

    def wait(self):
        if self.gpu:
            torch.cuda.synchronize()
        dist.barrier(group=self.host)

    def planner(self, table, experts, ranks, transport="auto", **options):
        """Over a placement of `ranks` ranks; this process is one of the sources."""
        if transport == PUTS:
            transport, options["nodes"] = "nvshmem", self.size
        return lplb.Planner.from_placement(self.tensor(table), experts, ranks, self.group,
                                           transport=transport, **options)

    def transports(self):
        if not self.gpu:
            return ["shm", "torch"]
        return ["p2p", "nvshmem", PUTS, "nccl", "torch"] if self.alone else ["p2p"]


def table_of(r2o, experts, copies, ranks, load=None):
    """physical_to_logical_map of LPLB's scheme."""
    planner = lplb.Planner(r2o, experts + copies * ranks, experts, ranks)
    if load is not None:
        planner.update_redundancy_mapping(load)
    return np.asarray(planner.phy2log)


# ---- plans and dispatch on real routing ----------------------------------------------------------


def shares_of_ranks(draw, total, ranks):
    """Uneven numbers of tokens, now and then none at all on a rank."""
    weight = draw.exponential(size=ranks) * (draw.random(ranks) > 0.15)
    if weight.sum() == 0:
        weight[draw.integers(ranks)] = 1
    cut = np.floor(np.cumsum(weight) / weight.sum() * total).astype(int)
    cut[-1] = total
    return np.concatenate([[0], cut])


def check_block(expected_plan, counts, used, digests):
    """Counts int [n][E] and tokens of every slot int [n][P] over all sources, against one CPU."""
    worst = 0.0
    for tokens, slots, digest in zip(counts, used, digests):
        plan = expected_plan(tokens)
        worst = max(worst, plan.imbalance)
        of_host = np.zeros(len(plan.split), np.int64)
        np.add.at(of_host, plan.slot_host, slots)
        assert (of_host == plan.split).all(), "dispatch is not what the plan says"
        assert digest == digest_of(plan.split), "the plan differs from the CPU's"
    return worst


def digest_of(split):
    with np.errstate(over="ignore"):
        return int((split.astype(np.int64) * (np.arange(len(split), dtype=np.int64) * 7919 + 1)
                    ).sum())


def hosts_of_slots(planner, table):
    """For every slot the number of its (expert, rank) host in the plan's order."""
    hosts = planner._cpu_step().hosts
    rank = np.arange(len(table)) // (len(table) // hosts.ranks)
    key = hosts.expert * hosts.ranks + hosts.rank
    return np.searchsorted(key, table.astype(np.int64) * hosts.ranks + rank)


def equal_on(world, name, table, experts, steps, trace, draw):
    ranks = max(8, world.size)
    planner = world.planner(table, experts, ranks, world.options["transport"],
                            nodes=world.options.get("nodes"))
    planner.keep_split = True
    alone = lplb.Planner.from_placement(table, experts, ranks)
    slot_host = hosts_of_slots(alone, table)
    phy2log, n_slots = world.tensor(table.astype(np.int64)), len(table)
    weights = torch.arange(n_slots, device=world.device) * 7919 + 1
    worst, begin, block = 0.0, time.perf_counter(), 250
    for first in range(0, steps, block):
        n = min(block, steps - first)
        used = torch.zeros((n, n_slots + 1), dtype=torch.int64, device=world.device)
        wrong = torch.zeros((), dtype=torch.int64, device=world.device)
        counts, digests = np.zeros((n, experts), np.int64), []
        for i in range(n):
            layer = (first + i) % trace.shape[1]
            at = int(draw.integers(len(trace) - 4096))
            total = int(draw.integers(8, 4096))
            cut = shares_of_ranks(draw, total, world.size)
            batch = trace[at:at + total, layer].astype(np.int64)
            counts[i] = np.bincount(batch.reshape(-1), minlength=experts)
            ids = world.tensor(batch[cut[world.rank]:cut[world.rank + 1]])
            out = planner.run(ids)
            used[i].scatter_add_(0, out.reshape(-1), torch.ones_like(out).reshape(-1))
            wrong += (phy2log[out] != ids).sum()
            if world.gpu:
                digests.append((planner.last_split() * weights).sum())
            else:
                digests.append(digest_of(planner.last_split()))
        assert planner.last_status.ok, planner.last_status
        assert int(wrong) == 0, f"{int(wrong)} ids have a slot of another expert"
        if world.gpu:
            digests = torch.stack(digests).tolist()
        assert len(set(map(tuple, world.all(digests)))) == 1, "the ranks' plans differ"
        total_used = world.sum(used)[:, :n_slots].numpy()
        if world.rank == 0:
            def expected(tokens):
                plan = alone.plan(tokens)
                plan.slot_host = slot_host
                return plan
            worst = max(worst, check_block(expected, counts, total_used, digests))
    return {"placement": name, "steps": steps, "transport": planner.transport,
            "worst_imbalance": round(worst, 4), "seconds": round(time.perf_counter() - begin, 1)}


def equal(world):
    """Bit-identical plans, exact dispatch over all sources: real routing, uneven ranks."""
    trace = np.load(TRACE)["topk_ids"]
    experts, ranks = 32, max(8, world.size)
    history = np.bincount(trace[:20000, 0].reshape(-1), minlength=experts)
    placements = {
        "cube 8x2": table_of(CUBE, experts, 2, ranks) if ranks % 8 == 0 else None,
        "ring": table_of(ring(ranks), experts, 1, ranks),
        "eplb": lplb.place(history[None], ranks, experts + ranks,
                           algorithm="eplb").physical_to_logical_map[0],
    }
    draw = np.random.default_rng(7)  # the same on all ranks
    return [equal_on(world, name, table, experts, world.options["steps"], trace, draw)
            for name, table in placements.items() if table is not None]


# ---- the whole step ------------------------------------------------------------------------------


def capture(world, body):
    """A graph of CHAIN times the body."""
    stream = torch.cuda.Stream()
    world.wait()  # steps of a planner on two streams must be ordered
    with torch.cuda.stream(stream):
        for _ in range(3):
            body()
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
        for _ in range(CHAIN):
            body()
    world.wait()
    return graph


def graph_microseconds(world, body, replays=REPLAYS):
    """Median and p99 over replays of the time of one body in a graph of CHAIN."""
    graph = capture(world, body)
    events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(replays)]
    for _ in range(10):
        graph.replay()
    world.wait()
    for begin, end in events:
        begin.record()
        graph.replay()
        end.record()
    torch.cuda.synchronize()
    times = sorted(b.elapsed_time(e) * 1e3 / CHAIN for b, e in events)
    world.wait()
    return (round(world.most(statistics.median(times)), 2),
            round(world.most(times[int(0.99 * (len(times) - 1))]), 2))


def cpu_microseconds(world, body, blocks=15, calls=100):
    """Median of this thread's own time for a call; the GPU's queue never fills."""
    times = []
    for _ in range(blocks):
        world.wait()
        begin = time.thread_time()
        for _ in range(calls):
            body()
        times.append((time.thread_time() - begin) / calls * 1e6)
    world.wait()
    return round(world.most(statistics.median(times)), 2)


def log_normal_ids(draw, tokens, experts, topk, popularity):
    """Distinct experts of every token, by popularity (Gumbel's top-k)."""
    noise = draw.gumbel(size=(tokens, experts)).astype(np.float32)
    key = noise + np.log(popularity).astype(np.float32)
    return np.argpartition(-key, topk, axis=1)[:, :topk].astype(np.int64)


def gather_alone(world, experts):
    """The library's all-gather of the same bytes and nothing else."""
    own = torch.ones(experts, dtype=torch.int64, device=world.device)
    every = torch.empty((world.size, experts), dtype=torch.int64, device=world.device)
    return graph_microseconds(
        world, lambda: dist.all_gather_into_tensor(every, own, group=world.group))


def step(world):
    """65,536 ids a rank, 256 experts: every transport, and what it is made of."""
    experts, ranks, tokens = 256, world.size if world.size > 1 else 8, 8192
    tokens = tokens if world.gpu else 512
    r2o = topology(ranks)
    copies = 2 if r2o.shape[1] == 2 else 4
    table = table_of(r2o, experts, copies, ranks)
    popularity = np.exp(0.7 * np.random.default_rng(3).standard_normal(experts))
    ids = world.tensor(log_normal_ids(np.random.default_rng(world.rank), tokens, experts, 8,
                                      popularity))
    out = torch.empty_like(ids)
    rows = []
    for transport in world.transports():
        try:
            planner = world.planner(table, experts, ranks, transport, max_ids=1 << 16)
            planner.run(ids, out=out)
            row = {"transport": transport, "ids": ids.numel()}
            if world.alone:
                row["graph_us"], row["graph_p99_us"] = graph_microseconds(
                    world, lambda: planner.run(ids, out=out))
            row["eager_cpu_us"] = cpu_microseconds(
                world, lambda: planner.run(ids, out=out), calls=100 if world.alone else 5)
            assert planner.last_status.ok, planner.last_status
            rows.append(row)
        except lplb.Error as error:
            rows.append({"transport": transport, "error": str(error)})
    if world.alone:
        one = lplb.Planner.from_placement(world.tensor(table), experts, ranks, max_ids=1 << 16)
        one.run(ids, out=out)
        median, p99 = graph_microseconds(world, lambda: one.run(ids, out=out))
        rows.append({"transport": "none: one rank's counts only", "graph_us": median,
                     "graph_p99_us": p99})
        median, p99 = gather_alone(world, experts)
        rows.append({"transport": "all-gather of NCCL alone", "graph_us": median,
                     "graph_p99_us": p99})
    return rows


# ---- a rank that dies ----------------------------------------------------------------------------


def killed(world):
    """The last rank ends itself in mid-run; how the others find out."""
    transport = world.options["transport"]
    experts, timeout = 32, 2.0
    table = table_of(ring(8), experts, 1, 8)
    planner = world.planner(table, experts, 8, transport, timeout=timeout)
    ids = world.tensor(np.random.default_rng(world.rank).integers(0, experts, (256, 4)))
    for _ in range(20):
        planner.run(ids)
    assert planner.last_status.ok
    world.wait()
    if world.rank == world.size - 1:
        os.kill(os.getpid(), signal.SIGKILL)
    begin = time.perf_counter()
    try:
        out = planner.run(ids)
        status = planner.last_status
        outcome, error = status.outcome, status.error
    except lplb.Error as raised:
        out, outcome, error = None, "raised", raised
    seconds = time.perf_counter() - begin
    valid = out is not None and bool((world.tensor(table.astype(np.int64))[out] == ids).all())
    print(json.dumps({"section": "killed", "rank": world.rank, "transport": transport,
                      "outcome": outcome, "error": None if error is None else error.name,
                      "message": str(error), "ids_valid": valid, "timeout": timeout,
                      "seconds": round(seconds, 2)}), flush=True)
    os._exit(0)  # without waiting for collectives that cannot end


def late(world):
    """A rank that comes later than the timeout; then all make the communicator again and go on."""
    experts = 32
    table = table_of(ring(8), experts, 1, 8)
    ids = world.tensor(np.random.default_rng(world.rank).integers(0, experts, (256, 4)))
    home = world.tensor(table.astype(np.int64))
    return [late_over(world, transport, table, experts, ids, home)
            for transport in (world.transports() if world.gpu else ["shm"])]


def late_over(world, transport, table, experts, ids, home):
    try:
        planner = world.planner(table, experts, 8, transport, timeout=1.0)
        planner.run(ids)
    except lplb.InputError as error:
        return {"transport": transport, "outcomes": [str(error)], "after": []}
    assert planner.last_status.ok, planner.last_status
    world.wait()
    if world.rank == world.size - 1:
        time.sleep(2.0)
    outcomes = []
    for _ in range(2):  # who was late may find all counts there, and nobody in the next step
        out = planner.run(ids)
        outcomes.append(planner.last_status.outcome)
        assert bool((home[out] == ids).all())
    dist.barrier(group=world.host)
    planner.reconnect()
    planner.run(ids)
    after = planner.last_status
    row = {"transport": transport, "outcomes": world.all(outcomes[-1]),
           "after": world.all(after.outcome)}
    assert "optimal" not in row["outcomes"] and set(row["after"]) == {"optimal"}, row
    return row


# ---- a skewed layer ------------------------------------------------------------------------------


def inverse(order):
    return torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))


class Swap(torch.autograd.Function):
    """Rows to the ranks that want them; backward sends their gradients back."""

    @staticmethod
    def forward(ctx, rows, n_receive, n_send, group):
        ctx.sizes = n_send, n_receive, group
        out = rows.new_empty((sum(n_receive), *rows.shape[1:]))
        dist.all_to_all_single(out, rows.contiguous(), n_receive, n_send, group=group)
        return out

    @staticmethod
    def backward(ctx, gradient):
        n_receive, n_send, group = ctx.sizes
        return Swap.apply(gradient, n_receive, n_send, group), None, None, None


def grouped_works(device):
    """Whether torch has a grouped GEMM with a backward here. Without it each expert's product is a
    call of its own, and cuBLAS prepares for every number of rows it has not seen, which takes
    longer than the product."""
    try:
        rows, weights = (torch.ones(s, dtype=torch.bfloat16, device=device, requires_grad=True)
                         for s in ((32, 64), (2, 64, 64)))
        ends = torch.tensor([16, 32], dtype=torch.int32, device=device)
        out = torch._grouped_mm(rows, weights, offs=ends)
        out.backward(torch.ones_like(out))  # a sum's gradient has no strides, which it refuses
        return True
    except (AttributeError, RuntimeError, NotImplementedError):
        return False


class Layer:
    """Dispatch, SwiGLU experts in bf16 (random weights), combine; backward, and the sum of the
    copies' gradients."""

    def __init__(self, world, table, hidden, inner):
        self.world, self.hidden, self.inner = world, hidden, inner
        self.local = len(table) // world.size
        draw = torch.Generator(device=world.device).manual_seed(1)
        self.dtype = torch.bfloat16 if world.gpu else torch.float32
        shapes = [(self.local, hidden, 2 * inner), (self.local, inner, hidden)]
        self.up, self.down = (torch.empty(s, dtype=self.dtype, device=world.device).normal_(
            0, s[1]**-0.5, generator=draw) for s in shapes)
        self.grouped = world.gpu and grouped_works(world.device)
        self.placement = lplb.Placement(np.asarray(table), world.size)

    def swap(self, rows, n_receive, n_send):
        return Swap.apply(rows, n_receive, n_send, self.world.group)

    def multiply(self, rows, weights, ends, counts):
        if self.grouped:
            return torch._grouped_mm(rows, weights, offs=ends)
        return torch.cat([part @ w for part, w in zip(rows.split(counts), weights)])

    def experts(self, rows, per_slot):
        counts = None if self.grouped else per_slot.tolist()
        ends = per_slot.cumsum(0).to(torch.int32)
        gate, up = self.multiply(rows, self.up, ends, counts).chunk(2, dim=1)
        return self.multiply(torch.nn.functional.silu(gate) * up, self.down, ends, counts)

    def forward(self, x, physical):
        """x [T][hidden], slots [T][K] -> [T][hidden]; equal weights of the choices."""
        flat = physical.reshape(-1)
        order = flat.argsort()
        slots = self.local * self.world.size
        sent = torch.bincount(flat, minlength=slots).reshape(self.world.size, self.local)
        got = torch.empty_like(sent)
        dist.all_to_all_single(got, sent, group=self.world.group)
        n_send, n_receive = sent.sum(1).tolist(), got.sum(1).tolist()
        rows = self.swap(x[order // physical.shape[1]], n_receive, n_send)
        slot = torch.arange(self.local, device=rows.device).repeat(self.world.size)
        by_slot = slot.repeat_interleave(got.reshape(-1), output_size=len(rows)).argsort(
            stable=True)
        out = self.experts(rows[by_slot], got.sum(0))[inverse(by_slot)]
        returned = self.swap(out, n_send, n_receive)[inverse(order)]
        return returned.reshape(*physical.shape, -1).mean(1)

    def train(self, x, physical):
        """Forward, backward to weights and inputs, gradients of copies added up."""
        weights = [self.up.requires_grad_(), self.down.requires_grad_()]
        x = x.detach().requires_grad_()
        out = self.forward(x, physical)
        out.backward(torch.full_like(out, 1e-3))
        lplb.torch.sum_replica_gradients(self.placement, [w.grad for w in weights],
                                         self.world.group)
        for w in weights:
            w.grad = None
            w.requires_grad_(False)


def layer_milliseconds(world, call, body, batches):
    """Median over batches of the slowest rank's time."""
    times = []
    for i, batch in enumerate(3 * batches):  # the first round finds memory and loads kernels
        world.wait()
        begin = time.perf_counter()
        call(*body(batch))
        if world.gpu:
            torch.cuda.synchronize()
        took = world.most((time.perf_counter() - begin) * 1e3)
        if i >= len(batches):
            times.append(took)
    return statistics.median(times)


def fullest(world, slots, ranks):
    """Largest share of the rows that a rank gets, over the mean."""
    loads = world.sum(torch.bincount(slots.reshape(-1), minlength=len(ranks)).cpu()).numpy()
    per_rank = loads.reshape(world.size, -1).sum(1)
    return per_rank.max() / per_rank.mean()


def measure_layer(world, draws, experts, copies, history, shape):
    """Layer time with each placement and split; draws: a list of ids, int64 [T][K] of this rank."""
    hidden, inner = shape
    ranks, topk = world.size, draws[0].shape[1]
    r2o = topology(ranks)
    x = torch.randn((len(draws[0]), hidden), device=world.device).to(
        torch.bfloat16 if world.gpu else torch.float32)
    batches = [world.tensor(ids) for ids in draws]
    shuffle = np.random.default_rng(world.rank).permutation(draws[0].size)
    even_ids = world.tensor((shuffle % experts).reshape(-1, topk))
    tables = {
        "contiguous": np.arange(experts),
        "eplb": lplb.place(history[None], ranks, experts + copies * ranks,
                           algorithm="eplb").physical_to_logical_map[0],
        "lplb": table_of(r2o, experts, copies, ranks, history),
    }
    cases = [("contiguous", "contiguous", None), ("eplb, even split", "eplb", "even"),
             ("eplb, exact split", "eplb", "exact"), ("lplb", "lplb", "exact"),
             ("forced balance", "contiguous", None)]
    rows, layer, present = [], None, None
    for name, placement, solver in cases:
        table = tables[placement]
        if present != placement:
            layer = None  # its weights make room
            layer = Layer(world, table, hidden, inner)
            present = placement
        planner = None
        if solver is not None:
            planner = world.planner(table, experts, ranks, solver=solver)

        def body(ids):
            if name == "forced balance":
                return x, even_ids
            return x, (ids if planner is None else planner.run(ids))
        excess = [fullest(world, body(ids)[1], table) for ids in batches]
        rows.append({"case": name, "imbalance": round(float(np.mean(excess)), 3),
                     "ms": round(layer_milliseconds(world, layer.forward, body, batches), 3),
                     "train_ms": round(layer_milliseconds(world, layer.train, body, batches), 3)})
    for time_of, gain in (("ms", "share_of_gain"), ("train_ms", "train_share")):
        worst, best = rows[0][time_of], rows[-1][time_of]
        for row in rows:
            row[gain] = (round((worst - row[time_of]) / (worst - best), 3) if worst > best
                         else None)
    return rows


def layer(world):
    """DeepSeek-V3's layer, log-normal routing: half of the variance lasts, half is the batch's."""
    small = world.options["small"] or not world.gpu
    experts, topk, tokens, shape = 256, 8, 4096, (7168, 2048)
    if small:
        experts, tokens, shape = 64, 256, (256, 64)
    lasting = np.random.default_rng(5).standard_normal(experts)
    draws, history = [], np.zeros(experts, np.int64)
    for b in range(16):
        now = np.random.default_rng(100 + b).standard_normal(experts)
        popularity = np.exp(0.7 * (lasting + now) / 2**0.5)
        ids = log_normal_ids(np.random.default_rng(1000 * b + world.rank), tokens, experts, topk,
                             popularity)
        counts = torch.from_numpy(np.bincount(ids.reshape(-1), minlength=experts))
        if b < 8:
            history += world.sum(counts).numpy()
        else:
            draws.append(ids)
    return {"tokens": tokens, "experts": experts, "hidden": shape[0], "inner": shape[1],
            "rows": measure_layer(world, draws, experts, max(2, 16 // world.size), history, shape)}


def hot(world):
    """Nine selections of ten among the first rank's experts; half of them have copies."""
    small = world.options["small"] or not world.gpu
    experts, topk, tokens, shape = 64, 8, 4096, (7168, 2048)
    if small:
        tokens, shape = 256, (256, 64)
    own = experts // world.size
    popularity = np.full(experts, 0.1 / (experts - own))
    popularity[:own] = 0.9 / own
    draws, history = [], np.zeros(experts, np.int64)
    for b in range(12):
        draw = np.random.default_rng(1000 * b + world.rank)
        ids = draw.choice(experts, size=(tokens, topk), p=popularity).astype(np.int64)
        counts = torch.from_numpy(np.bincount(ids.reshape(-1), minlength=experts))
        if b < 4:
            history += world.sum(counts).numpy()
        else:
            draws.append(ids)
    return {"tokens": tokens, "experts": experts, "hidden": shape[0], "inner": shape[1],
            "rows": measure_layer(world, draws, experts, own // 2, history, shape)}


SECTIONS = {"equal": equal, "step": step, "layer": layer, "hot": hot, "late": late,
            "killed": killed}


def main():
    world = World()
    failed = False
    for name in sys.argv[1:]:
        begin = time.perf_counter()
        try:
            result = {"result": SECTIONS[name](world)}
        except Exception as error:  # the other sections are worth having
            failed = True
            result = {"error": f"{type(error).__name__}: {error}"[:600]}
            import traceback

            traceback.print_exc()
        if world.rank == 0 or "error" in result:
            print(json.dumps({"section": name, "rank": world.rank, "backend": world.backend,
                              "seconds": round(time.perf_counter() - begin, 1), **result}),
                  flush=True)
        if "error" in result:
            os._exit(1)  # the others' collectives end with this process
    dist.destroy_process_group()
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
