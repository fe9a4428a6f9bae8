"""EPLB's interface: the published example, an independent model of the algorithm, our options."""

import numpy as np
import pytest

import lplb
from lplb import eplb

WEIGHT = np.array([[90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86],
                   [20, 107, 104, 64, 19, 197, 187, 157, 172, 86, 16, 27]])
PUBLISHED = [[5, 6, 5, 7, 8, 4, 3, 4, 10, 9, 10, 2, 0, 1, 11, 1],
             [7, 10, 6, 8, 6, 11, 8, 9, 2, 4, 5, 1, 5, 0, 3, 1]]


def check_maps(phy2log, log2phy, logcnt):
    layers, slots = phy2log.shape
    for layer in range(layers):
        for e, count in enumerate(logcnt[layer]):
            copies = log2phy[layer, e]
            assert (copies[:count] >= 0).all() and (copies[count:] == -1).all()
            assert sorted(copies[:count]) == list(np.flatnonzero(phy2log[layer] == e))
    assert log2phy.shape[2] == logcnt.max() and (logcnt.sum(1) == slots).all()


def test_published_example():
    phy2log, log2phy, logcnt = eplb.rebalance_experts(WEIGHT, 16, 4, 2, 8)
    assert phy2log.tolist() == PUBLISHED
    assert {a.dtype for a in (phy2log, log2phy, logcnt)} == {np.dtype(np.int64)}
    check_maps(phy2log, log2phy, logcnt)


def test_torch_in_torch_out():
    torch = pytest.importorskip("torch")
    for dtype in (torch.int64, torch.float32, torch.float64):
        out = eplb.rebalance_experts(torch.from_numpy(WEIGHT).to(dtype), 16, 4, 2, 8)
        assert out[0].tolist() == PUBLISHED
        assert all(t.dtype == torch.int64 and t.device.type == "cpu" for t in out)
    index, rank = eplb.balanced_packing(torch.from_numpy(WEIGHT), 4)
    assert index.dtype == rank.dtype == torch.int64


@pytest.mark.parametrize("shape", [(288, 8, 4, 32), (288, 1, 1, 32), (256, 8, 1, 32),
                                   (320, 8, 8, 64), (288, 7, 4, 32)])
def test_maps_are_consistent(shape):
    rng = np.random.default_rng(8)
    weight = rng.lognormal(0, 1, (3, 256 if shape[1] != 7 else 252)) * 1000
    out = eplb.rebalance_experts(weight, *shape)
    check_maps(*out)
    if shape[1] % shape[2] == 0:
        phy2log, number, logcnt = eplb.rebalance_experts_hierarchical(weight, *shape)
        assert (phy2log == out[0]).all() and (logcnt == out[2]).all()
        for layer in range(3):
            slots = np.arange(shape[0])
            assert (out[1][layer, phy2log[layer], number[layer]] == slots).all()
    else:
        with pytest.raises(lplb.InputError, match="global"):
            eplb.rebalance_experts_hierarchical(weight, *shape)


def test_replicate_experts_copies_the_heaviest():
    rng = np.random.default_rng(9)
    weight = rng.random((2, 10)).astype(np.float32)
    phy2log, rank, logcnt = eplb.replicate_experts(weight, 25)
    for layer in range(2):
        count = np.ones(10, np.float32)
        for p in range(10, 25):
            e = int(np.argmax(weight[layer] / count))
            assert phy2log[layer, p] == e and rank[layer, p] == count[e]
            count[e] += 1
        assert (logcnt[layer] == count).all()
        assert (phy2log[layer, :10] == np.arange(10)).all() and not rank[layer, :10].any()


def test_balanced_packing_fills_packs():
    rng = np.random.default_rng(10)
    index, rank = eplb.balanced_packing(rng.random((4, 24)), 6)
    for layer in range(4):
        assert sorted(zip(index[layer], rank[layer])) == [(p, i) for p in range(6)
                                                          for i in range(4)]


def test_search_avoids_two_copies_on_one_rank_and_moves_little():
    rng = np.random.default_rng(11)
    load = np.rint(rng.lognormal(0, 1, (2, 32)) * 1000).astype(np.int64)
    first = eplb.rebalance_experts(load, 48, 1, 1, 8, algorithm="search", batch_tokens=4096)
    check_maps(*first)
    for layer in first[0].reshape(2, 8, 6):
        assert all(len(set(rank)) == 6 for rank in layer)
    drift = np.rint(load * rng.lognormal(0, 0.3, load.shape)).astype(np.int64)
    then = eplb.rebalance_experts(drift, 48, 1, 1, 8, algorithm="search", previous=first[0],
                                  max_moves=3, batch_tokens=4096)
    check_maps(*then)
    moves = lplb.Placement(then[0], 8).moves(lplb.Placement(first[0], 8))
    for layer in range(2):
        assert sum(m.layer == layer for m in moves) <= 3
    for m in moves:
        assert m.expert in first[0][m.layer].reshape(8, 6)[m.source_rank]
        assert m.expert not in first[0][m.layer].reshape(8, 6)[m.rank]
        assert then[0][m.layer, m.slot] == m.expert


def test_bad_input_is_named():
    for call, message in [
        (lambda: eplb.rebalance_experts(WEIGHT, 17, 4, 2, 8), "17"),
        (lambda: eplb.rebalance_experts(WEIGHT, 8, 4, 2, 8), "too few"),
        (lambda: eplb.rebalance_experts(WEIGHT, 16, 5, 5, 8), "5"),
        (lambda: eplb.rebalance_experts(WEIGHT[0], 16, 4, 2, 8), "shape"),
        (lambda: eplb.rebalance_experts(-WEIGHT, 16, 4, 2, 8), "-"),
        (lambda: eplb.rebalance_experts(WEIGHT * np.nan, 16, 4, 2, 8), "nan"),
        (lambda: eplb.rebalance_experts(WEIGHT, 16, 4, 2, 8, max_moves=3), "max_moves"),
        (lambda: eplb.rebalance_experts(WEIGHT, 16, 4, 2, 8, algorithm="best"), "best"),
        (lambda: eplb.balanced_packing(WEIGHT, 5), "5"),
        (lambda: eplb.replicate_experts(WEIGHT, 3), "3"),
    ]:
        with pytest.raises(lplb.InputError, match=message):
            call()


def test_search_takes_shares():
    rng = np.random.default_rng(9)
    share = rng.dirichlet(np.full(16, 0.3), 2)
    whole = np.rint(share * 1e6).astype(np.int64)

    def worst(weight):
        table, _, _ = eplb.rebalance_experts(weight, 20, 1, 1, 4, algorithm="search")
        return lplb.Placement(table, 4).imbalance(whole).max()

    even = worst(np.ones((2, 16)))  # a placement that knows nothing
    for weight in (share, share.astype(np.float32), share * 1e-12, share * 1234.5):
        assert abs(worst(weight) - worst(whole)) < 0.05 < even - worst(whole)
    for wrong, message in [(np.nan, "nan"), (np.inf, "inf"), (-0.5, "negative")]:
        share[0, 3] = wrong
        with pytest.raises(lplb.InputError, match=message):
            worst(share)
    with pytest.raises(lplb.InputError, match="whole"):
        eplb.rebalance_experts(np.full((3, 2, 16), 0.5), 20, 1, 1, 4, algorithm="search")
