"""LPLB's published interface: names, shapes, dtypes, meanings, and its tests' tolerances.

Every test runs on numpy arrays and, where torch is there, on torch tensors.
"""

import numpy as np
import pytest

import lplb
from common import CUBE, HYPERCUBE, RING, check_mapped, skewed_ids, torus

try:
    import torch
except ImportError:
    torch = None

KINDS = ["numpy"] + (["torch"] if torch is not None else [])


@pytest.fixture(params=KINDS)
def make(request):
    """Turns a numpy array into the kind under test."""
    return np.asarray if request.param == "numpy" else lambda x: torch.from_numpy(np.array(x))


def name_of(x):
    return str(x.dtype).replace("torch.", "")


@pytest.mark.parametrize("r2o, ep_size, redundant, reorder, tolerance", [
    (CUBE, 32, 2, True, 1.07),
    (CUBE, 32, 4, False, 1.07),
    (CUBE, 64, 2, True, 1.1),
    (RING, 32, 1, True, 1.07),
    (HYPERCUBE, 16, 2, True, 1.03),
    (torus(8, 4), 32, 2, False, 1.01),
])
def test_published_tolerances(make, r2o, ep_size, redundant, reorder, tolerance):
    """Gaussian loads (mean 1, sigma 0.3; history sigma 0.15): max / mean as LPLB's tests ask.

    The published tests draw one load each. With others the placement itself may not allow the
    tolerance (on the ring 4 of 5 draws do not): what is asked for here is the least possible
    imbalance in every draw, and the tolerance where it is possible.
    """
    met = []
    for seed in range(8):
        reached, best = balance(make, r2o, ep_size, redundant, reorder, seed)
        assert reached <= best * (1 + 1e-5)
        met.append(reached < tolerance)
        assert met[-1] or best >= tolerance
    assert any(met)


def balance(make, r2o, ep_size, redundant, reorder, seed):
    """Max / mean over ranks with the shares of solve_probs, and the least possible one."""
    experts = 256
    rng = np.random.default_rng(seed)
    planner = lplb.Planner(make(r2o), experts + redundant * ep_size, experts, ep_size)
    history = None
    if reorder:
        history = make((np.maximum(rng.normal(1, 0.15, experts), 0) * 2**20).astype(np.int64))
    phy2log, _, _ = planner.update_redundancy_mapping(history)
    load = (np.maximum(rng.normal(1, 0.3, experts), 0) * 2**12).astype(np.int32)
    counter = make(np.zeros((), np.int32))
    share, total = planner.solve_probs(make(load), counter)
    assert int(counter) == planner.n_group == ep_size // len(r2o)
    shape = (planner.n_group, planner.group_size, planner.num_redundants)
    assert tuple(share.shape) == shape and name_of(share) == "float32"
    assert (np.asarray(total).reshape(-1) == load).all() and name_of(total) == "float32"
    assert np.asarray(share).min() >= 0 and np.asarray(share).max() <= 1

    columns, combined = planner.num_redundants, planner.combined_redundant_experts
    head = combined * columns
    of_slot = load[np.asarray(phy2log)].reshape(planner.n_group, planner.group_size, -1)
    copied = of_slot[:, :, :head].reshape(*shape[:2], combined, columns).sum(2)
    fixed = of_slot[:, :, head:-head].sum(2)
    kept = copied * np.asarray(share, np.float64)
    given = copied - kept
    rank_load = kept.sum(2) + fixed
    for d in range(columns):
        rank_load += given[:, r2o[:, d], d]

    # The problem as LPLB poses it: one share for all experts of a (rank, column).
    o2r = np.argsort(r2o, axis=0)
    hosts = [[g * len(r2o) + r, g * len(r2o) + int(o2r[r, d])] for g in range(planner.n_group)
             for r in range(len(r2o)) for d in range(columns)]
    best = lplb.solve(copied.reshape(-1), hosts, ep_size, fixed=fixed.reshape(-1))
    best.check()
    return rank_load.max() / rank_load.mean(), best.imbalance


def test_attributes(make):
    planner = lplb.Planner(make(CUBE.astype(np.int32)), 256 + 4 * 32, 256, 32)
    assert (planner.n_group, planner.group_size, planner.num_redundants) == (4, 8, 2)
    assert planner.combined_redundant_experts == 2
    assert planner.n_local_routed_experts == 12 and planner.n_local_logical_routed_experts == 8
    assert planner.ep_size == 32 and planner.ep_group is None
    assert planner.deep_ep_initialized is False
    assert (np.asarray(planner.r2o) == CUBE).all() and name_of(planner.r2o) == "int32"
    o2r = np.asarray(planner.o2r)
    for d in range(2):
        assert (CUBE[o2r[:, d], d] == np.arange(8)).all()
    assert name_of(planner.o2r) == name_of(planner.phy2log) == "int32"


def test_redundancy_mapping(make):
    rng = np.random.default_rng(3)
    planner = lplb.Planner(make(CUBE), 256 + 4 * 32, 256, 32)
    load = rng.integers(0, 10**6, 256)
    for workload in (None, make(load), make(load.astype(np.float32)), make(load.astype(np.int32))):
        phy2log, log2phy, logcnt = planner.update_redundancy_mapping(workload)
        assert [tuple(x.shape) for x in (phy2log, log2phy, logcnt)] == [(384,), (256, 2), (256,)]
        assert {name_of(x) for x in (phy2log, log2phy, logcnt)} == {"int32"}
        assert (np.asarray(planner.phy2log) == np.asarray(phy2log)).all()
        table, slots = np.asarray(phy2log).reshape(32, 12), np.asarray(log2phy)
        counts = np.asarray(logcnt)
        assert sorted(table[:, :8].reshape(-1)) == list(range(256))
        assert ((slots >= 0).sum(1) == counts).all() and counts.max() == 2
        # redundant slot k of a rank copies the k-th expert of rank r2o[r][k % 2] of its group
        for r in range(32):
            for k in range(4):
                source = r // 8 * 8 + CUBE[r % 8, k % 2]
                assert table[r, 8 + k] == table[source, k]
        # originals come first
        assert (slots[:, 0] % 12 < 8).all() and (slots[counts == 2, 1] % 12 >= 8).all()
        flat = table.reshape(-1)
        assert (flat[slots[:, 0]] == np.arange(256)).all()
        if workload is None:
            assert (table[:, :8].reshape(-1) == np.arange(256)).all()
        else:
            own = load[table[:, :8]]
            assert (np.diff(own, axis=1) <= 0).all()  # heaviest first
            sums = own.sum(1)
            assert sums.max() / sums.mean() < 1.02


def test_count_workload(make):
    planner = lplb.Planner(make(CUBE), 256 + 64, 256, 32)
    rng = np.random.default_rng(4)
    for n_sms in (1, 7, 132):
        for shape in ((4096, 8), (5,), (0, 8)):
            ids = rng.integers(-1, 256, shape)
            counts, by_sm = planner.count_workload(make(ids), n_sms)
            assert tuple(counts.shape) == (256,) and tuple(by_sm.shape) == (n_sms, 256)
            assert name_of(counts) == name_of(by_sm) == "int32"
            want = np.bincount(ids[ids >= 0].reshape(-1), minlength=256)
            assert (np.asarray(counts) == want).all()
            sums = np.asarray(by_sm)
            assert (sums[-1] == want).all() and (np.diff(sums, axis=0) >= 0).all()


def test_weighted_select_target(make):
    rng = np.random.default_rng(5)
    planner = lplb.Planner(make(CUBE), 256 + 64, 256, 32)
    phy2log, log2phy, _ = planner.update_redundancy_mapping(make(rng.integers(1, 1000, 256)))
    share = np.clip(rng.normal(0.5, 1 / 3, (4, 8, 2)), 0, 1).astype(np.float32)
    for shape in ((65536,), (1000, 8), (0,)):
        ids = rng.integers(-1, 256, shape)
        _, by_sm = planner.count_workload(make(ids), 100)
        out = planner.weighted_select_target(make(ids), make(share), by_sm, 100)
        assert name_of(out) == "int64"
        check_mapped(ids, out, phy2log)
        # originals of rank r, column d keep floor or ceiling of their share
        got = np.bincount(np.asarray(out)[ids >= 0], minlength=320)
        slots, table = np.asarray(log2phy), np.asarray(phy2log).reshape(32, 10)
        for r in range(32):
            for d in range(2):
                e = table[r, d]
                n = got[slots[e]].sum()
                assert abs(got[slots[e, 0]] - float(share[r // 8, r % 8, d]) * n) < 1


def test_three_steps_balance_like_run(make):
    rng = np.random.default_rng(6)
    planner = lplb.Planner(make(CUBE), 64 + 16, 64, 8)
    ids = skewed_ids(rng, (2048, 8), 64, 0.3)
    counts, by_sm = planner.count_workload(make(ids), 64)
    counter = make(np.zeros(1, np.int64))
    share, _ = planner.solve_probs(counts, counter)
    out = np.asarray(planner.weighted_select_target(make(ids), share, by_sm, 64))
    loads = np.bincount(out[out >= 0] // 10, minlength=8)
    best = planner.plan(counts)
    assert loads.max() <= best.max_load + 16  # one token an expert by rounding
    exact = np.asarray(planner.run(make(ids), counter))
    loads = np.bincount(exact[exact >= 0] // 10, minlength=8)
    assert loads.max() == best.max_load == planner.last_plan.max_load
    assert int(counter[0]) == 2


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
def test_counter_types(make, dtype, shape):
    planner = lplb.Planner(make(CUBE), 256 + 64, 256, 32)
    counter = make(np.zeros(shape, dtype))
    ids = make(np.arange(256).reshape(32, 8))
    planner.run(ids, counter, 100)
    planner.run(ids, avail_counter=counter, n_sms=20)
    planner.run(ids)
    assert int(counter.reshape(-1)[0]) == 8 and name_of(counter) == np.dtype(dtype).name


def test_run_takes_int32_and_int64(make):
    planner = lplb.Planner(make(CUBE), 64 + 16, 64, 8)
    ids = skewed_ids(np.random.default_rng(7), (100, 4), 64)
    wide = np.asarray(planner.run(make(ids)))
    narrow = planner.run(make(ids.astype(np.int32)))
    assert name_of(narrow) == "int32" and (np.asarray(narrow) == wide).all()
    check_mapped(ids, wide, planner.phy2log)


def test_no_tokens(make):
    planner = lplb.Planner(make(CUBE), 64 + 16, 64, 8)
    counter = make(np.zeros(1, np.int32))
    assert tuple(planner.run(make(np.zeros((0, 8), np.int64)), counter).shape) == (0, 8)
    out = planner.run(make(np.full((3, 2), -1)), counter)
    assert (np.asarray(out) == -1).all() and int(counter[0]) == 2
    share, total = planner.solve_probs(make(np.zeros(64, np.int32)), counter)
    assert np.isfinite(np.asarray(share)).all() and not np.asarray(total).any()


@pytest.mark.parametrize("bad, message", [
    (dict(redundant_to_original=np.arange(8)[:, None]), "beside the original"),
    (dict(redundant_to_original=np.array([[2, 2, 0]]).T), "permutation"),
    (dict(redundant_to_original=np.array([[1, 9, 0]]).T), "outside"),
    (dict(redundant_to_original=np.array([1, 0])), "shape"),
    (dict(ep_size=12), "multiple"),
    (dict(ep_size=None), "ep_size must be given"),
    (dict(n_routed_experts=256), "redundant experts a rank"),
    (dict(n_routed_experts=257), "multiple"),
    (dict(n_logical_routed_experts=255), "multiple"),
    (dict(n_routed_experts=256 + 3 * 32), "columns"),
    (dict(n_routed_experts=256 + 10 * 32), "only"),
    (dict(solver="best"), "best"),
    (dict(rank=32), "outside"),
])
def test_bad_configurations_are_named(bad, message):
    good = dict(redundant_to_original=CUBE, n_routed_experts=320, n_logical_routed_experts=256,
                ep_size=32)
    lplb.Planner(**good)
    with pytest.raises(lplb.InputError, match=message):
        planner = lplb.Planner(**{**good, **bad})
        planner.run(np.zeros(1, np.int64))


def test_bad_calls_are_named():
    planner = lplb.Planner(CUBE, 320, 256, 32)
    ids = np.zeros((4, 2), np.int64)
    for call, message in [
        (lambda: planner.run(ids.astype(np.float32)), "int32 or int64"),
        (lambda: planner.run(ids + 256), "256"),
        (lambda: planner.run(ids - 2), "-2"),
        (lambda: planner.run(ids, np.zeros(2, np.int32)), "one element"),
        (lambda: planner.run(ids, np.zeros(1, np.float32)), "int32 or int64"),
        (lambda: planner.run(ids, 0), "avail_counter"),
        (lambda: planner.run(ids, n_sms=0), "positive"),
        (lambda: planner.run(ids, out=np.zeros((4, 3), np.int64)), "shape"),
        (lambda: planner.run(ids, out=np.zeros((4, 4), np.int64)[:, ::2]), "contiguous"),
        (lambda: planner.run(ids, locality=True), "rank"),
        (lambda: planner.solve_probs(np.zeros(255, np.int32)), "256"),
        (lambda: planner.solve_probs(np.full(256, 0.5)), "whole"),
        (lambda: planner.solve_probs(np.full(256, -1)), "negative"),
        (lambda: planner.weighted_select_target(ids, np.zeros((4, 8, 1), np.float32),
                                                np.zeros((1, 256), np.int32), 1), "o_weight"),
        (lambda: planner.weighted_select_target(ids, np.zeros((4, 8, 2), np.float32),
                                                np.zeros((1, 256), np.int32), 1), "expert 0"),
        (lambda: planner.weighted_select_target(ids, np.full((4, 8, 2), np.nan, np.float32),
                                                planner.count_workload(ids, 1)[1], 1), "NaN"),
        (lambda: planner.update_redundancy_mapping(np.zeros(255)), "255"),
    ]:
        with pytest.raises(lplb.InputError, match=message):
            call()
