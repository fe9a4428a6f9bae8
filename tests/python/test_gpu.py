"""The package on one GPU: the same results as on the CPU, graphs, streams, torch.compile."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
if not torch.cuda.is_available():
    pytest.skip("no GPU", allow_module_level=True)

import lplb
import lplb.torch
from common import CUBE, HYPERCUBE, RING, check_mapped, random_map, skewed_ids, torus
from lplb import _cuda

pytestmark = pytest.mark.skipif(_cuda.find_library() is None, reason="no liblplb_cuda")


def cuda(x):
    return torch.from_numpy(np.ascontiguousarray(x)).cuda()


def pair(r2o=CUBE, experts=256, redundant=2, ep_size=32, **options):
    total = experts + redundant * ep_size
    return (lplb.Planner(cuda(r2o), total, experts, ep_size, **options),
            lplb.Planner(r2o, total, experts, ep_size, **options))


@pytest.mark.parametrize("r2o, redundant, ep_size", [
    (CUBE, 2, 32), (CUBE, 4, 32), (CUBE, 2, 64), (RING, 1, 32), (HYPERCUBE, 2, 16),
    (torus(8, 4), 2, 32)])
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_run_is_that_of_the_cpu(r2o, redundant, ep_size, dtype):
    rng = np.random.default_rng(40)
    gpu, cpu = pair(r2o, 256, redundant, ep_size)
    assert gpu.phy2log.is_cuda and gpu.r2o.is_cuda
    history = rng.integers(1, 1000, 256)
    gpu.update_redundancy_mapping(cuda(history))
    cpu.update_redundancy_mapping(history)
    for tokens in (0, 1, 100, 4096):
        ids = skewed_ids(rng, (tokens, 8), 256, 0.5)
        counter = torch.zeros(1, dtype=torch.int64, device="cuda")
        out = gpu.run(cuda(ids).to(dtype), counter, 100)
        assert out.dtype == dtype and (out.cpu().numpy() == cpu.run(ids)).all()
        assert gpu.last_status.ok and counter.item() == gpu.n_group
        assert (gpu.last_plan.split == cpu.last_plan.split).all()


@pytest.mark.parametrize("seed", range(5))
def test_any_placement(seed):
    rng = np.random.default_rng(seed)
    ranks = int(rng.integers(2, 40))
    table = random_map(rng, ranks * 4, ranks, 6)
    gpu = lplb.Planner.from_placement(cuda(table), ranks * 4, ranks)
    cpu = lplb.Planner.from_placement(table, ranks * 4, ranks)
    ids = skewed_ids(rng, (2000, 4), ranks * 4)
    assert (gpu.run(cuda(ids)).cpu().numpy() == cpu.run(ids)).all()
    counts, by_sm = gpu.count_workload(cuda(ids), 50)
    share, _ = gpu.solve_probs(counts)
    want, _ = cpu.solve_probs(counts.cpu().numpy())
    assert np.allclose(share.cpu().numpy(), want, atol=1e-6)
    out = gpu.weighted_select_target(cuda(ids), share, by_sm, 50)
    check_mapped(ids, out.cpu().numpy(), table)


@pytest.mark.parametrize("redundant", [2, 4])
def test_three_steps(redundant):
    rng = np.random.default_rng(41)
    gpu, cpu = pair(redundant=redundant)
    ids = rng.integers(-1, 256, (4096, 8))
    counts, by_sm = gpu.count_workload(cuda(ids), 132)
    want, want_by_sm = cpu.count_workload(ids, 132)
    assert counts.dtype == by_sm.dtype == torch.int32
    assert (counts.cpu().numpy() == want).all() and (by_sm.cpu().numpy() == want_by_sm).all()
    counter = torch.zeros((), dtype=torch.int32, device="cuda")
    share, total = gpu.solve_probs(counts, counter)
    want_share, want_total = cpu.solve_probs(want)
    assert counter.item() == gpu.n_group
    assert np.allclose(share.cpu().numpy(), want_share, atol=1e-6)
    assert (total.cpu().numpy() == want_total).all()
    out = gpu.weighted_select_target(cuda(ids), share, by_sm, 132).cpu().numpy()
    check_mapped(ids, out, cpu.phy2log)


def test_graph():
    rng = np.random.default_rng(42)
    gpu, cpu = pair(max_ids=1 << 15)
    ids = cuda(skewed_ids(rng, (2048, 8), 256, 0.5))
    counter = torch.zeros(1, dtype=torch.int64, device="cuda")
    gpu.run(ids, counter)
    stream = torch.cuda.Stream()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        out = gpu.run(ids, counter)
    counter.zero_()
    for step in range(200):
        batch = skewed_ids(rng, (2048, 8), 256, 0.5)
        ids.copy_(cuda(batch))
        if step == 100:  # another placement, without a new capture
            history = rng.integers(1, 1000, 256)
            gpu.update_redundancy_mapping(cuda(history))
            cpu.update_redundancy_mapping(history)
            torch.cuda.synchronize()
        graph.replay()
        assert (out.cpu().numpy() == cpu.run(batch)).all(), step
    assert counter.item() == 200 * gpu.n_group


def test_growing_inside_a_capture_is_refused():
    gpu, _ = pair(max_ids=1 << 16)
    gpu.run(torch.zeros(8, dtype=torch.int64, device="cuda"))
    many = torch.zeros(1 << 17, dtype=torch.int64, device="cuda")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        with pytest.raises(lplb.InputError, match="before the capture"):
            gpu.run(many)
        many += 1
    graph.replay()


def test_current_stream():
    rng = np.random.default_rng(43)
    gpu, cpu = pair()
    batch = skewed_ids(rng, (4096, 8), 256)
    ids = torch.empty(batch.shape, dtype=torch.int64, device="cuda")
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        torch.cuda._sleep(50_000_000)
        ids.copy_(cuda(batch))
        out = gpu.run(ids)
    side.synchronize()
    assert (out.cpu().numpy() == cpu.run(batch)).all()


def test_errors():
    gpu, _ = pair()
    gpu.run(torch.tensor([0, 0, 256, 0], device="cuda"))
    status = gpu.last_status
    assert status.outcome == "failed" and "position 2" in status.error.message
    gpu.run(torch.zeros(4, dtype=torch.int64, device="cuda"))
    assert gpu.last_status.ok
    with pytest.raises(lplb.InputError, match="out must be"):
        gpu.run(torch.zeros(4, dtype=torch.int64, device="cuda"), out=torch.zeros(4).long())


@pytest.mark.skipif(not lplb.torch._HAS_OPS, reason="torch before 2.4")
def test_compile_does_not_break_the_graph():
    gpu, cpu = pair()
    module = lplb.torch.Balance(gpu)
    batch = skewed_ids(np.random.default_rng(44), (512, 8), 256)
    compiled = torch.compile(lambda x: module(x + 1 - 1) * 1, fullgraph=True)
    assert (compiled(cuda(batch)).cpu().numpy() == cpu.run(batch)).all()
    assert module.counter.is_cuda and module.counter.item() == gpu.n_group
    twice = torch.compile(lambda x: (module(x), module(x))[0], fullgraph=True)
    twice(cuda(batch))  # the one that nobody reads is made too
    assert module.counter.item() == 3 * gpu.n_group
    check = lplb.torch._operators.opcheck
    check(torch.ops.lplb.run.default, (cuda(batch), module.counter, module.key, False))


def test_locality():
    table = np.array([0, 1, 0, 2, 1, 2])
    ids = np.array([0] * 30 + [1] * 30 + [2] * 30)
    for rank in range(3):
        planner = lplb.Planner.from_placement(cuda(table), 3, 3, rank=rank)
        loads = np.bincount(planner.run(cuda(ids), locality=True).cpu().numpy() // 2, minlength=3)
        assert loads.max() == 30 and loads[rank] == 30


def test_example(root):
    from test_torch import check_example, load_example

    check_example(load_example(root).compare(tokens=256, device="cuda"), 1.2)
