"""What goes beyond LPLB's interface: any placement, exactness, locality, plans that explain."""

import numpy as np
import pytest

import lplb
from common import CUBE, check_mapped, least_max_load, random_map, run_ranks, skewed_ids


def rank_loads(out, offset):
    slots = np.bincount(out[out >= 0], minlength=offset[-1])
    return np.add.reduceat(slots, offset[:-1])


@pytest.mark.parametrize("seed", range(40))
def test_any_placement_is_balanced_exactly(seed):
    rng = np.random.default_rng(seed)
    ranks, per_rank = int(rng.integers(1, 10)), int(rng.integers(2, 9))
    experts = int(rng.integers(1, ranks * per_rank + 1))
    table = random_map(rng, experts, ranks, per_rank)
    planner = lplb.Planner.from_placement(table, experts, ranks)
    ids = skewed_ids(rng, (int(rng.integers(0, 400)), 3), experts, sigma=2.0)
    out = planner.run(ids)
    check_mapped(ids, out, table)
    counts = np.bincount(ids[ids >= 0], minlength=experts)
    loads = rank_loads(out, planner.placement.rank_offset)
    plan = planner.last_plan
    assert (loads == plan.loads).all()
    assert loads.max() == least_max_load(counts, table, ranks) == plan.integer_bound
    assert planner.last_status == lplb.Status("optimal") and planner.last_status.ok
    plan.check()
    assert (plan.tokens == counts).all()
    for e in range(experts):
        assert sum(plan.of_expert(e).values()) == counts[e]


def test_unequal_ranks_and_empty_slots():
    table = np.array([0, 1, 2, -1, 3, 0, 1])
    planner = lplb.Planner.from_placement(table, 4, 3, slots_per_rank=[2, 3, 2])
    ids = np.array([0] * 90 + [1] * 30 + [2] * 10 + [3] * 20)
    out = planner.run(ids)
    check_mapped(ids, out, table)
    assert rank_loads(out, np.array([0, 2, 5, 7])).max() == planner.last_plan.integer_bound == 60
    with pytest.raises(lplb.InputError, match="7 slots"):
        lplb.Planner.from_placement(table, 4, 3)


def test_r2o_and_its_placement_agree():
    rng = np.random.default_rng(1)
    a = lplb.Planner(CUBE, 64 + 16, 64, 8)
    b = lplb.Planner.from_placement(a.phy2log, 64, 8)
    ids = skewed_ids(rng, (512, 8), 64)
    assert (a.run(ids) == b.run(ids)).all()


def test_outputs_of_the_caller():
    rng = np.random.default_rng(2)
    planner = lplb.Planner.from_placement(random_map(rng, 16, 4, 6), 16, 4)
    ids = skewed_ids(rng, (100, 2), 16)
    want = planner.run(ids)
    for dtype in (np.int32, np.int64):
        out = np.empty(ids.shape, dtype)
        assert planner.run(ids, out=out) is out and (out == want).all()
    same = ids.copy()
    assert planner.run(same, out=same) is same and (same == want).all()
    part = np.asfortranarray(ids)  # not contiguous: copied
    assert (planner.run(part) == want).all()
    frozen = np.empty_like(ids)
    frozen.flags.writeable = False
    with pytest.raises(lplb.InputError, match="read-only"):
        planner.run(ids, out=frozen)


def test_threads_do_not_change_results():
    rng = np.random.default_rng(3)
    table = random_map(rng, 64, 8, 10)
    ids = skewed_ids(rng, (20000, 2), 64)
    outs = [lplb.Planner.from_placement(table, 64, 8, threads=n).run(ids) for n in (1, 2, 3)]
    assert (outs[0] == outs[1]).all() and (outs[0] == outs[2]).all()


def test_solvers_and_tolerance():
    rng = np.random.default_rng(4)
    table = random_map(rng, 32, 8, 6)
    ids = skewed_ids(rng, (1000, 4), 32)
    best = None
    for solver in ("exact", "even", "greedy", "waterfill", "balance"):
        planner = lplb.Planner.from_placement(table, 32, 8, solver=solver)
        check_mapped(ids, planner.run(ids), table)
        load = planner.last_plan.max_load
        best = load if solver == "exact" else best
        assert load >= best
        assert planner.last_status.outcome == ("optimal" if solver == "exact" else "feasible")
    lax = lplb.Planner.from_placement(table, 32, 8, solver="exact:tolerance=100")
    counter = np.zeros(1, np.int32)
    lax.run(ids, counter)
    assert lax.last_status.outcome == "within_tolerance" and counter[0] == 1
    assert "even split" in lax.explain()


def test_the_placement_can_change():
    rng = np.random.default_rng(5)
    planner = lplb.Planner.from_placement(random_map(rng, 16, 4, 6), 16, 4)
    ids = skewed_ids(rng, (200, 2), 16)
    planner.run(ids)
    table = random_map(rng, 16, 4, 6)
    planner.update_placement(table)
    check_mapped(ids, planner.run(ids), table)
    with pytest.raises(lplb.InputError, match="update_placement"):
        planner.update_redundancy_mapping()
    with pytest.raises(lplb.InputError, match="expert"):
        planner.update_placement(np.zeros(24, np.int64))


def test_shares_of_any_placement():
    rng = np.random.default_rng(6)
    table = random_map(rng, 20, 6, 7)
    planner = lplb.Planner.from_placement(table, 20, 6)
    ids = skewed_ids(rng, (3000,), 20)
    counts, by_sm = planner.count_workload(ids, 13)
    share, total = planner.solve_probs(counts)
    slots = planner.placement.logical_to_physical_map[0]
    assert share.shape == slots.shape and share.dtype == np.float32
    assert np.allclose(share.sum(1), 1) and (share[slots < 0] == 0).all()
    assert (total == counts).all()
    out = planner.weighted_select_target(ids, share, by_sm, 13)
    check_mapped(ids, out, table)
    got = np.bincount(out[out >= 0], minlength=42)
    for e in range(20):
        for x, p in enumerate(slots[e]):
            if p >= 0:
                assert abs(got[p] - share[e, x] * counts[e]) <= 1.001
    loads = rank_loads(out, planner.placement.rank_offset)
    assert loads.max() <= planner.plan(counts).max_load + 20


# ---- locality -----------------------------------------------------------------------------------


def kept_at_home(ids_of, outs, per_rank):
    return sum(int((out[out >= 0] // per_rank == r).sum()) for r, out in enumerate(outs))


def local_run(rank, ranks, name, table, experts, ids_of, locality):
    comm = lplb.Communicator.shared_memory(name, rank, ranks, 4096)
    planner = lplb.Planner.from_placement(table, experts, group=comm)
    return planner.run(ids_of[rank], locality=locality), planner.last_plan.loads


def test_locality_keeps_tokens_and_the_optimum():
    rng = np.random.default_rng(7)
    ranks, per_rank, experts = 4, 6, 12
    table = random_map(rng, experts, ranks, per_rank)
    ids_of = [skewed_ids(rng, (150 + 30 * r, 2), experts) for r in range(ranks)]
    loads, kept = {}, {}
    for locality in (False, True):
        name = f"locality-{locality}-{rng.integers(1 << 40)}"
        results = run_ranks(local_run, ranks, name, table, experts, ids_of, locality)
        outs = [out for out, _ in results]
        for ids, out in zip(ids_of, outs):
            check_mapped(ids, out, table)
        loads[locality] = max(int(np.bincount(np.concatenate(
            [o[o >= 0] for o in outs]) // per_rank, minlength=ranks).max()), 0)
        kept[locality] = kept_at_home(ids_of, outs, per_rank)
    assert loads[True] == loads[False]
    assert kept[True] > kept[False]


def test_locality_of_one_process():
    """Without a group `rank` says where the ids come from."""
    table = np.array([0, 1, 0, 2, 1, 2])  # ranks 0, 1, 2
    ids = np.array([0] * 30 + [1] * 30 + [2] * 30)
    for rank in range(3):
        planner = lplb.Planner.from_placement(table, 3, 3, rank=rank)
        out = planner.run(ids, locality=True)
        check_mapped(ids, out, table)
        loads = np.bincount(out // 2, minlength=3)
        assert loads.max() == 30 and loads[rank] == 30
    with pytest.raises(lplb.InputError, match="rank"):
        lplb.Planner.from_placement(table, 3, 3).run(ids, locality=True)


# ---- plans --------------------------------------------------------------------------------------


def test_explain_names_bottleneck_and_next_copy():
    # expert 0 lives on rank 0 only and brings most tokens
    plan = lplb.solve([90, 10, 10, 10], [[0], [1, 2], [1], [2]], 3)
    assert plan.max_load == 90 and plan.outcome == "optimal"
    assert plan.bottleneck.tolist() == [0] and plan.bottleneck_experts.tolist() == [0]
    assert plan.lower_bound == 90 and plan.imbalance == 90 / 40
    text = plan.explain()
    assert "rank 0" in text and "0 (90)" in text
    assert "A copy of expert 0 on rank 1 would lower the bound from 90.0 to 50.0" in text
    even = lplb.solve([30, 30, 30], [[0, 1], [1, 2], [2, 0]], 3).explain()
    assert "every rank can be equally full" in even
    assert "nothing to balance" in lplb.solve([0], [[0]], 1).explain()


def test_solve_with_fixed_speed_and_sources():
    plan = lplb.solve([60], [[0, 1]], 2, fixed=[20, 0])
    assert plan.loads.tolist() == [40, 40]
    plan = lplb.solve([90], [[0, 1]], 2, speed=[2, 1])
    assert plan.loads.tolist() == [60, 30] and plan.lower_bound == 30
    plan = lplb.solve([10, 10], [[0, 1], [0, 1]], 2, sources=[[10, 0], [0, 10]])
    assert plan.of_expert(0) == {0: 10, 1: 0} and plan.of_expert(1) == {0: 0, 1: 10}
    for bad, message in [
        (dict(tokens=[1, 2], hosts=[[0]]), "tokens has shape"),
        (dict(tokens=[1], hosts=[[2]]), "outside"),
        (dict(tokens=[1], hosts=[[0, 0]]), "twice"),
        (dict(tokens=[1], hosts=[[]]), "no host"),
        (dict(tokens=[-1], hosts=[[0]]), "negative"),
        (dict(tokens=[1], hosts=[[0]], fixed=[1]), "fixed has shape"),
        (dict(tokens=[1], hosts=[[0]], speed=[1]), "speed has shape"),
        (dict(tokens=[1], hosts=[[0]], speed=[1, 0]), "speed"),
        (dict(tokens=[1], hosts=[[0]], node=[0]), "node has shape"),
        (dict(tokens=[1], hosts=[[0]], sources=[[1]]), "sources has shape"),
        (dict(tokens=[1], hosts=[[0]], sources=[[1], [1]]), "add up"),
        (dict(tokens=[2**62, 2**62], hosts=[[0], [0]]), "2\\^62"),
    ]:
        with pytest.raises(lplb.InputError, match=message):
            lplb.solve(ranks=2, **bad)


def test_another_map_has_its_own_sizes_and_shares():
    ring = np.array([[1, 2, 3, 0]]).T
    planner = lplb.Planner(ring, 20, 16, 4)
    ids = np.arange(16).repeat(5)
    table = planner.phy2log.copy()
    moved = np.random.default_rng(3).permutation(table)
    counts, by_sm = planner.count_workload(ids, 2)
    for other in (moved, np.r_[np.arange(16), np.arange(8)]):
        planner.update_placement(other)
        assert planner.n_routed_experts == 4 * planner.n_local_routed_experts == len(other)
        check_mapped(ids, planner.run(ids), other)
        with pytest.raises(lplb.InputError, match="does not follow redundant_to_original"):
            planner.solve_probs(counts)
    planner.update_redundancy_mapping(np.arange(16))
    assert planner.n_routed_experts == len(planner.phy2log) == 20
    follows = planner.phy2log.copy()
    planner.update_placement(table)  # a map that came from elsewhere, and follows it
    planner.update_placement(follows)
    share, _ = planner.solve_probs(counts)
    check_mapped(ids, planner.weighted_select_target(ids, share, by_sm, 2), follows)
    free = lplb.Planner.from_placement(table, 16, 4)
    free.update_placement(np.r_[np.arange(16), np.arange(8)])
    assert (free.n_routed_experts, free.n_local_routed_experts) == (24, 6)
    for layers in (np.stack([table] * 3), np.zeros((2, 0), int)):
        with pytest.raises(lplb.InputError, match="one layer"):
            free.update_placement(layers)
    free.update_placement(table[None])


def test_out_must_be_memory():
    import array

    planner = lplb.Planner.from_placement(np.arange(4)[::-1].copy(), 4, 2)
    for out in ([9] * 4, (9,) * 4, range(4)):
        with pytest.raises(lplb.InputError, match="nothing could be written"):
            planner.run(np.arange(4), out=out)
    out = array.array("q", [9] * 4)
    planner.run(np.arange(4), out=out)
    assert list(out) == [3, 2, 1, 0]


def test_plan_before_run():
    planner = lplb.Planner.from_placement(np.arange(4), ep_size=2)
    with pytest.raises(lplb.Error, match="call run first"):
        planner.last_plan
    with pytest.raises(lplb.InputError, match="int32 or int64"):
        planner.run(np.ones(3))
    assert planner.last_status.outcome == "failed"
    with pytest.raises(lplb.Error, match="it failed: .*int32 or int64"):
        planner.explain()
    assert planner.plan([4, 3, 2, 1]).loads.tolist() == [7, 3]
    assert "7" in planner.explain([4, 3, 2, 1])
