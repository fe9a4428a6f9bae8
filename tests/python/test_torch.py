"""torch: tensors, process groups (gloo), gradients of copies, weights of a new placement."""

import socket
import sys
import time
import warnings

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import lplb
import lplb.torch
from common import CUBE, check_mapped, random_map, run_ranks, skewed_ids

dist = torch.distributed
EXPERTS, PER_RANK = 24, 8


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def join(rank, ranks, port):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank,
                            world_size=ranks)
    return dist.group.WORLD


# ---- one process --------------------------------------------------------------------------------


def test_results_are_those_of_numpy():
    rng = np.random.default_rng(16)
    ids = skewed_ids(rng, (400, 3), 64)
    a = lplb.Planner(CUBE, 80, 64, 8)
    b = lplb.Planner(torch.from_numpy(CUBE.copy()), 80, 64, 8)
    assert isinstance(b.phy2log, torch.Tensor) and isinstance(a.phy2log, np.ndarray)
    out = b.run(torch.from_numpy(ids))
    assert isinstance(out, torch.Tensor) and (out.numpy() == a.run(ids)).all()
    target = torch.empty(ids.shape, dtype=torch.int32)
    assert b.run(torch.from_numpy(ids), out=target) is target and (target == out).all()
    strided = torch.from_numpy(np.repeat(ids, 2, axis=1))[:, ::2]
    assert (b.run(strided) == out).all()
    # a planner of numpy arrays takes tensors, and the other way round
    assert isinstance(a.run(torch.from_numpy(ids)), torch.Tensor)
    assert isinstance(b.run(ids), np.ndarray)


def test_balance_module():
    planner = lplb.Planner(torch.from_numpy(CUBE.copy()), 80, 64, 8)
    ids = torch.from_numpy(skewed_ids(np.random.default_rng(17), (100, 4), 64))
    module = lplb.torch.Balance(planner)
    assert (module(ids) == planner.run(ids)).all() and module.counter.item() == 1  # group


@pytest.mark.skipif(not lplb.torch._HAS_OPS, reason="torch before 2.4")
def test_the_graph_is_not_broken():
    planner = lplb.Planner(torch.from_numpy(CUBE.copy()), 80, 64, 8)
    module = lplb.torch.Balance(planner)
    ids = torch.from_numpy(skewed_ids(np.random.default_rng(18), (100, 4), 64))
    compiled = torch.compile(lambda x: module(x + 0) * 1, fullgraph=True, backend="eager")
    assert (compiled(ids) == planner.run(ids)).all()
    before = module.counter.item()
    twice = torch.compile(lambda x: (module(x), module(x))[0], fullgraph=True, backend="aot_eager")
    assert (twice(ids) == planner.run(ids)).all()
    assert module.counter.item() == before + 2 * planner.n_group
    check = lplb.torch._operators.opcheck
    check(torch.ops.lplb.run.default, (ids, module.counter, module.key, False))


def random_placements(seed, ranks=4):
    rng = np.random.default_rng(seed)
    return [random_map(rng, EXPERTS, ranks, PER_RANK) for _ in range(2)]


def test_gradients_of_copies_alone():
    table, _ = random_placements(19)
    planner = lplb.Planner.from_placement(table, EXPERTS, 4)
    draw = torch.Generator().manual_seed(1)
    gradients = [torch.randn(len(table), 3, 2, generator=draw),
                 torch.randn(len(table), generator=draw),
                 torch.randn(len(table), 0, generator=draw),
                 torch.randn(len(table), 1 << 16, generator=draw)]  # larger than a bucket
    want = []
    for g in gradients:
        w = g.clone()
        for e in range(EXPERTS):
            slots = np.flatnonzero(table == e)
            total = g[slots[0]].clone()
            for s in slots[1:]:
                total += g[s]
            w[slots] = total
        want.append(w)
    lplb.torch.sum_replica_gradients(planner, gradients)
    assert all(torch.equal(a, b) for a, b in zip(gradients, want))


def test_weights_of_a_new_placement_alone():
    a, b = random_placements(20)
    weights = torch.arange(EXPERTS, dtype=torch.float64)[torch.from_numpy(a)]
    before, after = lplb.Placement(a, 4), lplb.Placement(b, 4)
    got, = lplb.torch.move_weights(before, after, [weights])
    assert (got == torch.from_numpy(b)).all()
    holes = np.array([0, 1, -1, 0])
    got, = lplb.torch.move_weights(lplb.Placement([0, 1, 1, 0], 2), lplb.Placement(holes, 2),
                                   [torch.tensor([5, 6, 6, 5])])
    assert got.tolist() == [5, 6, 0, 5]
    for call, message in [
        (lambda: lplb.torch.move_weights(before, after, [weights[1:]]), "31 rows"),
        (lambda: lplb.torch.move_weights(before, lplb.Placement([0, 1], 2), [weights]), "experts"),
        (lambda: lplb.torch.move_weights(lplb.Placement([[0, 1]] * 2, 2), after, []), "layers"),
    ]:
        with pytest.raises(lplb.InputError, match=message):
            call()


def load_example(root):
    sys.path.insert(0, str(root / "examples"))
    try:
        import torch_moe
    finally:
        sys.path.pop(0)
    return torch_moe


def check_example(result, limit):
    assert abs(result["loss"][0] - result["loss"][1]) <= 1e-6 * abs(result["loss"][0])
    assert result["gradient_error"] < 1e-5
    assert result["imbalance"][0] > 1.5 and result["imbalance"][1] < limit


def test_example_alone(root):
    check_example(load_example(root).compare(tokens=256), 1.2)


# ---- four processes -----------------------------------------------------------------------------


def ids_of(rank, step):
    rng = np.random.default_rng(100 * step + rank)
    tokens = 0 if (rank + step) % 3 == 0 else int(rng.integers(1, 200))
    return skewed_ids(rng, (tokens, 2), EXPERTS, sigma=1.5)


def gloo_steps(rank, ranks, port, table):
    group = join(rank, ranks, port)
    out = {}
    for transport in ("auto", "torch"):
        planner = lplb.Planner.from_placement(table, EXPERTS, group=group, transport=transport)
        assert planner.transport == ("shm" if transport == "auto" else "torch")
        assert planner.ep_size == ranks and planner.ep_group is group
        assert planner._node == [0] * ranks
        outs, plans = [], []
        for step in range(10):
            outs.append(planner.run(torch.from_numpy(ids_of(rank, step)), locality=step % 2 == 1))
            plans.append(planner.last_plan.split.tobytes())
        out[transport] = [o.numpy() for o in outs], plans
    dist.destroy_process_group()
    return out


def test_gloo_ranks_plan_alike():
    table, _ = random_placements(21)
    results = run_ranks(gloo_steps, 4, free_port(), table)
    alone = lplb.Planner.from_placement(table, EXPERTS, 4)
    for step in range(10):
        assert len({r[t][1][step] for r in results for t in r}) == 1
        ids = [ids_of(r, step) for r in range(4)]
        outs = [r["auto"][0][step] for r in results]
        for i, o, r in zip(ids, outs, results):
            check_mapped(i, o, table)
            assert (o == r["torch"][0][step]).all()
        counts = sum(np.bincount(i[i >= 0], minlength=EXPERTS) for i in ids)
        loads = sum(np.bincount(o[o >= 0] // PER_RANK, minlength=4) for o in outs)
        assert loads.max() == alone.plan(counts).max_load


def gloo_lplb(rank, ranks, port):
    """LPLB's interface with a group, as published: the counts are reduced over it."""
    group = join(rank, ranks, port)
    r2o = torch.tensor([[1, 2, 3, 0]]).T
    planner = lplb.Planner(r2o, 16 + 4, 16, group=group)

    from test_comm import Buffer

    buffer = Buffer(group)
    draw = torch.Generator().manual_seed(rank)
    counts = torch.randint(0, 100, (16,), generator=draw, dtype=torch.int32)
    share, total = planner.solve_probs(counts, torch.zeros((), dtype=torch.int32))
    planner.init_from_deep_ep(buffer)
    assert planner.deep_ep_initialized
    again, _ = planner.solve_probs(counts, torch.zeros((), dtype=torch.int32))
    assert torch.equal(share, again)
    want = counts.clone()
    dist.all_reduce(want)
    assert torch.equal(total.reshape(-1), want.float())

    late = lplb.Planner(r2o, 16 + 4, 16, ep_size=4)
    late.init_from_deep_ep(buffer)  # gives a planner without group its group
    assert torch.equal(late.solve_probs(counts)[0], share)
    dist.destroy_process_group()
    return share.numpy().tobytes()


def test_gloo_with_lplbs_interface():
    assert len(set(run_ranks(gloo_lplb, 4, free_port()))) == 1


def gloo_failures(rank, ranks, port):
    group = join(rank, ranks, port)
    with pytest.raises(lplb.Error, match="do not agree"):
        lplb.Planner.from_placement(np.arange(8) % (8 - rank // 3), group=group,
                                    transport="torch")
    with pytest.raises(lplb.Error, match="different transports"):
        lplb.Planner.from_placement(np.arange(8), group=group,
                                    transport="torch" if rank == 1 else "auto")
    ring = torch.tensor([[1, 2, 3, 0]]).T
    with pytest.raises(lplb.Error, match="rank 1 cannot make its planner: InputError" if rank != 1
                       else "beside the original"):
        lplb.Planner(ring * (rank != 1), 20, 16, group=group)
    with pytest.raises(lplb.InputError, match="group has 4 ranks, ep_size is 8"):
        lplb.Planner(ring, 40, 32, 8, group=group)
    planner = lplb.Planner.from_placement(np.arange(8), group=group, transport="torch",
                                          timeout=0.5)
    ids = torch.arange(8)
    planner.run(ids)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if rank == 2:
            with pytest.raises(lplb.InputError, match="int32 or int64"):
                planner.run(ids.float())
        else:
            assert (planner.run(ids) == ids).all()
            assert "rank(s) 2 refused" in planner.last_status.error.message
        planner.run(ids, locality=rank == 1)
        assert "locality" in planner.last_status.error.message
    planner.run(ids)
    assert planner.last_status.ok
    if rank == 3:
        time.sleep(2)
    begin = time.monotonic()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        out = planner.run(ids)
    assert (out == ids).all()
    if rank != 3:  # the late rank finds all others' counts
        assert planner.last_status.outcome == "unbalanced", planner.last_status
        assert "did not" in str(planner.last_status.error) or "not all" in str(
            planner.last_status.error)
        assert 0.3 < time.monotonic() - begin < 10
    planner.reconnect()
    planner.run(ids)
    assert planner.last_status.ok
    dist.destroy_process_group()
    return True


def test_gloo_failures():
    run_ranks(gloo_failures, 4, free_port())


def gloo_gradients(rank, ranks, port, a, b):
    group = join(rank, ranks, port)
    planner = lplb.Planner.from_placement(a, EXPERTS, group=group)
    mine = slice(rank * PER_RANK, (rank + 1) * PER_RANK)
    draw = torch.Generator().manual_seed(2)
    every = [torch.randn(len(a), n, generator=draw) for n in (3, 1, 1 << 18)]  # one of a bucket
    gradients = [e[mine].clone() for e in every]
    lplb.torch.sum_replica_gradients(planner, gradients, group)
    lplb.torch.sum_replica_gradients(lplb.Placement(a, ranks), every)
    assert all(torch.equal(g, e[mine]) for g, e in zip(gradients, every))
    weights = torch.from_numpy(a[mine] * 10)
    moved, = lplb.torch.move_weights(planner, lplb.Placement(b, ranks), [weights], group)
    assert (moved == torch.from_numpy(b[mine] * 10)).all()
    same, = lplb.torch.move_weights(planner, planner, [weights], group)
    assert torch.equal(same, weights)
    dist.destroy_process_group()
    return True


def test_gloo_gradients_and_moves():
    run_ranks(gloo_gradients, 4, free_port(), *random_placements(22))


def gloo_example(rank, ranks, port, root):
    group = join(rank, ranks, port)
    result = load_example(root).compare(tokens=256, group=group)
    dist.destroy_process_group()
    return result


def test_example_on_four_ranks(root):
    for result in run_ranks(gloo_example, 4, free_port(), root):
        check_example(result, 1.2)


def test_dense_and_sparse_choices():
    draw = torch.Generator().manual_seed(3)
    probs = torch.rand(50, 12, generator=draw, requires_grad=True)
    ids = probs.detach().topk(3, dim=1).indices
    ids[7, 1:] = -1
    dense = torch.zeros(50, 12, dtype=torch.bool)
    for t in range(50):
        dense[t, ids[t][ids[t] >= 0]] = True
    got, weights = lplb.torch.top_k_of(dense, probs, 3)
    assert [sorted(a) for a in got.tolist()] == [sorted(a) for a in ids.tolist()]
    back, back_probs = lplb.torch.routing_map(got, weights, 12)
    assert torch.equal(back, dense)
    assert torch.equal(back_probs, torch.where(dense, probs, torch.zeros(())))
    back_probs.sum().backward()
    assert torch.equal(probs.grad, dense.float())


def gloo_sections(rank, ranks, port):
    import gpu_ranks
    from deep_ep_stand_in import Buffer, ElasticBuffer

    group = join(rank, ranks, port)
    device = torch.device("cpu")
    gpu_ranks.equal(group, device)
    gpu_ranks.equal_local(group, device, ("auto", "torch"))
    gpu_ranks.moved(group, device, ("auto", "torch"))
    result = gpu_ranks.deepep(group, device, Buffer)
    assert gpu_ranks.deepep(group, device, ElasticBuffer) == result
    dist.destroy_process_group()
    return result


def test_balanced_ids_go_through_deep_ep():
    for result in run_ranks(gloo_sections, 4, free_port()):
        most = result["most_selections"]
        assert most["balanced"] < 0.7 * most["unbalanced"]
