"""The balancing runtime: trackers, forecaster, manager with hooks, monitor, advice."""

import json
import math
import urllib.request
import warnings

import numpy as np
import pytest

import lplb
from lplb.runtime import (BatchSizer, Forecaster, LostExperts, Manager, Monitor, PlanCache,
                          Tracker, advise, recover, validate)

L, E, G, P = 2, 16, 4, 24


def batches(seed, n, tokens=4000, sigma=1.0):
    rng = np.random.default_rng(seed)
    weight = np.exp(rng.normal(0, sigma, (L, E)))
    weight /= weight.sum(1, keepdims=True)
    return np.array([[rng.multinomial(tokens, weight[l]) for l in range(L)] for _ in range(n)])


def make(**options):
    options = {"interval": 40, "min_interval": 20, "adopt_lag": 5, "seed": 1, **options}
    return Manager(L, E, G, P, **options)


def test_window_tracker():
    t = Tracker(L, E, "window", window=5, samples=4)
    data = batches(1, 12)
    for b in data:
        t.update(b)
    t.mark("dummy")
    assert np.allclose(t.mean(), data[-5:].mean(0))
    assert np.allclose(t.variance(), data[-5:].var(0), rtol=1e-4)
    assert (t.counts(5) == data[-5:].sum(0)).all()
    assert (t.stats["batches"], t.stats["dummy"], t.stats["stage"]["decode"]) == (12, 1, 12)
    kept = t.samples()
    assert kept.shape == (4, L, E) and all((k == data).all((1, 2)).any() for k in kept)
    factor = t.covariance(1)
    assert np.allclose(factor.T @ factor, np.cov(kept[:, 1].T), rtol=1e-3, atol=1)


def test_ewma_and_stages():
    t = Tracker(1, 2, alpha=0.5)
    t.update([[4, 0]])
    t.update([[0, 4]])
    assert np.allclose(t.mean(), [[4 / 3, 8 / 3]])  # weights 0.25 and 0.5 of 0.75
    s = Tracker(1, 2, "stages", prefill_alpha=1, decode_alpha=1)
    s.update([[8, 0]], stage="prefill")
    s.update([[0, 2]], stage="decode")
    assert s.mean("prefill").tolist() == [[8, 0]] and s.mean("decode").tolist() == [[0, 2]]
    t.update(np.array([[0.5, 1.5]]))
    assert t.stats["batches"] == 3


def test_pairs_saving_and_refusals():
    a, b = Tracker(L, E), Tracker(L, E)
    for batch in batches(2, 6):
        a.update(batch)
        layer, expert = np.nonzero(batch)
        b.update_pairs(np.searchsorted(layer, np.arange(L + 1)), expert, batch[layer, expert])
    assert (a.mean() == b.mean()).all()
    fresh = Tracker(L, E)
    fresh.restore(a.save())
    assert (fresh.mean() == a.mean()).all() and fresh.stats == a.stats
    with pytest.raises(lplb.InputError):
        Tracker(L, E + 1).restore(a.save())
    with pytest.raises(lplb.InputError, match="count -1"):
        a.update(np.full((L, E), -1))
    with pytest.raises(lplb.InputError, match="shape"):
        a.update(np.ones((L, E + 1), int))
    with pytest.raises(lplb.InputError, match="window 4"):
        Tracker(L, E, "ewma", window=4)
    with pytest.raises(lplb.InputError, match="layer"):
        a.update(batches(2, 1)[0], stage="layer")


def test_forecaster_sees_a_trend():
    f = Forecaster(1, 2, block=2)
    for i in range(120):
        f.update([[1000 + 5 * i, 2000 - 5 * i]])
    share, used = f.predict()
    model, persistence = f.error(0)
    assert used.tolist() == [True] and model < persistence
    assert math.isclose(float(share.sum()), 1, rel_tol=1e-5)
    g = Forecaster(1, 2, block=2)
    g.restore(f.save())
    assert (g.predict()[0] == share).all()


def test_manager_moves_through_its_hooks():
    log, events = [], []
    m = make(agree=lambda digest, ok: ok, stage=lambda layer, moves: log.append((layer, moves)),
             staged=lambda layer: log.append(("staged", layer)),
             commit=lambda layer, row: log.append(("commit", layer, row)),
             event=events.append)
    before = m.placement
    data = batches(3, 200)
    for step, batch in enumerate(data):
        m.step(step, batch)
    after = m.placement
    assert m.stats["moves"] == len(after.moves(before)) > 0
    assert after.imbalance(data[100:]).mean() < before.imbalance(data[100:]).mean() - 0.05
    for _, layer, row in (entry for entry in log if entry[0] == "commit"):
        last = row, layer
    assert (after.physical_to_logical_map[last[1]] == last[0]).all()
    assert all(e.text for e in events) and events == m.events()
    assert {"start", "request", "adopt", "switch", "done"} <= {e.kind for e in events}


def test_a_hook_that_raises_leaves_the_mapping():
    discarded = []

    def stage(layer, moves):
        raise OSError("no link")

    m = make(stage=stage, discard=discarded.append)
    before = m.placement.physical_to_logical_map
    with pytest.warns(RuntimeWarning, match="no link"):
        for step, batch in enumerate(batches(3, 60)):
            m.step(step, batch)
    assert m.stats["move_failures"] > 0 and discarded
    assert (m.placement.physical_to_logical_map == before).all()


def test_saved_managers_go_on_alike():
    data = batches(4, 300, sigma=1.5)
    a, b = make(synchronous=1), make(synchronous=1)
    for step in range(150):
        a.step(step, data[step])
    b.restore(a.save())
    for step in range(150, 300):
        a.step(step, data[step])
        b.step(step, data[step])
    assert a.stats["moves"] == b.stats["moves"] > 0
    assert (a.placement.physical_to_logical_map == b.placement.physical_to_logical_map).all()


def test_dead_ranks_and_bad_options():
    m = make()
    m.step(0, batches(5, 1)[0])
    m.set_dead([3])  # round robin: rank 3's experts live on ranks 0 and 1 as well
    assert (m.placement.physical_to_logical_map[:, 18:] == -1).all()
    m.set_dead([])
    with pytest.raises(lplb.InputError, match="slots are missing"):
        m.set_dead([0, 1])
    with pytest.raises(lplb.Error) as failure:
        m.placement
    assert failure.value.name == "LPLB_STATE"
    with pytest.raises(lplb.InputError, match="no option 'speed'"):
        make(speed=3)
    with pytest.raises(lplb.InputError, match="move_cost"):
        make(move_cost=-1)
    with pytest.raises(lplb.InputError, match="does not come after"):
        m.step(0, None)


def test_monitor(tmp_path):
    log, trace = tmp_path / "events.jsonl", tmp_path / "trace.json"
    monitor = Monitor(G, job="test", serve=True, event_log=log, trace=trace)
    m = make(monitor=monitor)
    for step, batch in enumerate(batches(6, 100)):
        m.step(step, batch)
        with monitor.range("expert work"):
            monitor.step(step, loads=[[4, 2, 1, 1]], tokens=8, step_ns=1_000_000)
    summary = monitor.summary()
    assert summary["schema"] == "lplb.monitor/1" and summary["steps"] == 100
    assert "imbalance" in monitor.text() or "Imbalance" in monitor.text()
    with urllib.request.urlopen(f"http://127.0.0.1:{monitor.port}/metrics") as answer:
        served = answer.read().decode()
    assert served.rstrip().endswith("# EOF") and "# EOF" in monitor.openmetrics()
    events = len(m.events())
    del m
    monitor.close()
    assert len(log.read_text().splitlines()) == events
    names = {e.get("name") for e in json.loads(trace.read_text())}
    assert {"expert work", "lplb step"} <= names


def test_advise(tmp_path):
    counts = batches(7, 40)
    a = advise(counts, G)
    assert (a["experts"], a["layers"], a["ranks"]) == (E, L, G)
    load = counts.sum(0)
    cv = (load.std(1) / load.mean(1)).mean()
    assert math.isclose(a["measures"]["cv"], cv, rel_tol=1e-6)
    assert a["rule_groups"] == 4 and a["point"][0]["redundant"] == 0
    assert a["point"][0]["exact"] >= a["point"][-1]["exact"]
    assert all(t["exact"] >= 1 for t in a["topology"])
    np.savez(tmp_path / "load.npz", logical_count=counts)
    b = advise(tmp_path / "load.npz", G)
    assert b["measures"] == a["measures"]
    assert advise(counts, 3)["point"][0]["slots"] == 18 and advise(counts, 3, nodes=3)["group"]
    with pytest.raises(lplb.InputError, match="18, 21"):
        advise(counts, 3, slots=20)


def test_recover_names_everything_that_is_lost():
    before = make().placement
    after = recover(before, [3])
    assert (after.physical_to_logical_map[:, 18:] == -1).all()
    validate(after, [3])
    with pytest.raises(lplb.Error, match="rank 3"):
        validate(before, [3])
    contiguous = lplb.Placement(np.tile(np.repeat(np.arange(E), 2)[:P], (L, 1)), 4,
                                n_logical_experts=12)
    with pytest.raises(LostExperts) as failure:
        recover(contiguous, [0])  # experts 0 to 2 lived on rank 0 alone
    lost = failure.value
    assert {(m.layer, m.expert) for m in lost.experts} == {(l, e) for l in range(L)
                                                           for e in range(3)}
    assert lost.missing_slots == 0 and all(m.source_rank == -1 for m in lost.experts)
    for m in lost.experts:
        assert lost.placement.physical_to_logical_map[m.layer, m.slot] == m.expert
        assert m.rank == m.slot // 6 != 0
    validate(lost.placement, [0])
    with pytest.raises(LostExperts) as failure:
        recover(contiguous, [0, 1, 2])
    assert failure.value.missing_slots == 6 and failure.value.placement is None
    assert len(failure.value.experts) == 9 * L
    with pytest.raises(lplb.InputError, match="dead rank 9"):
        recover(contiguous, [9])


def test_lost_experts_of_a_manager():
    initial = lplb.Placement(np.tile(np.repeat(np.arange(12), 2), (L, 1)), G)
    loaded = []

    def manager(**options):
        return Manager(L, 12, G, P, initial=initial, interval=40, min_interval=20, **options)

    m = manager()
    assert m.lost() == ([], 0)
    with pytest.raises(LostExperts) as failure:
        m.set_dead([0])
    lost = failure.value
    assert len(lost.experts) == 3 * L and (lost.experts, lost.missing_slots) == m.lost()
    with pytest.raises(LostExperts):
        recover(initial, [0])
    try:
        recover(initial, [0])
    except LostExperts as again:
        m.reset(again.placement)  # its weights were loaded by the host
    assert m.lost() == ([], 0) and "reset" in {e.kind for e in m.events()}
    m = manager(load_lost=1, stage=lambda layer, moves: loaded.extend(moves))
    m.set_dead([0])  # loads what is lost by itself
    assert {(x.layer, x.expert) for x in loaded} == {(l, e) for l in range(L) for e in range(3)}
    assert all(x.source_rank == -1 for x in loaded) and m.stats["loaded"] == 3 * L
    validate(m.placement, [0])
    with pytest.raises(LostExperts, match="slots are missing") as failure:
        m.set_dead([0, 1, 2])
    assert failure.value.missing_slots == 6 and m.lost()[1] == 6


def test_manager_reads_and_places():
    asked = []

    def place(request):
        asked.append(request)
        return lplb.place(request.load, request.ranks, request.slots, algorithm="eplb")

    m = make(place=place, always=1, tracker="window", tracker_options={"window": 30, "samples": 4})
    data = batches(8, 90)
    for step, batch in enumerate(data):
        m.step(step, batch)
    assert asked and asked[0].load.shape[1:] == (L, E) and asked[0].placement.shape == (L, P)
    assert m.stats["adopted"] >= 1 and m.stats["adopt_lag"] == 5
    assert np.allclose(m.tracker.mean(), data[-30:].mean(0))
    assert m.tracker.samples().shape == (4, L, E) and m.forecaster is None
    f = make(forecaster={"block": 10})
    for step, batch in enumerate(data):
        f.step(step, batch)
    assert f.forecaster.predict()[0].shape == (L, E)
    with pytest.warns(RuntimeWarning, match="no idea"):
        broken = make(place=lambda request: (_ for _ in ()).throw(OSError("no idea")), always=1)
        for step, batch in enumerate(data):
            broken.step(step, batch)
    assert broken.stats["worker_failures"] > 0


def test_manager_by_topology():
    m = make(algorithm="topology", topology="torus:2x2", always=1)
    for step, batch in enumerate(batches(9, 90)):
        m.step(step, batch)
    table = m.placement.physical_to_logical_map.reshape(L, G, 6)
    assert m.stats["adopted"] >= 1
    for rank, sources in enumerate([[2, 1], [3, 0], [0, 3], [1, 2]]):  # other node, same node
        for layer in range(L):
            held = set(table[layer, rank])
            assert len(held) == 6 and all(held & set(table[layer, r]) for r in sources)
    with pytest.raises(lplb.InputError):
        make(topology="ring")
    with pytest.raises(lplb.InputError):
        make(late="never")
    assert make(late="postpone").stats["postponed"] == 0


def test_tuning():
    sizer = BatchSizer(1000, 100, 4000)
    assert [sizer.update(1_000_000) for _ in range(4)] == [1000, 1000, 1250, 1250]
    for _ in range(3):
        sizer.update(50_000_000)
    assert sizer.size == 1000 and (sizer.grown, sizer.shrunk) == (1, 1)
    with pytest.raises(lplb.InputError):
        BatchSizer(10, 100, 4000)
    cache = PlanCache([[0, 1], [1], [0]], 2, capacity=2, quantum=10)
    first, hit = cache.solve([100, 30, 20])
    assert not hit and first.outcome == "optimal" and first.max_load == 75
    near, hit = cache.solve([102, 30, 20])
    assert hit and near.outcome == "feasible" and near.loads.sum() == 152
    assert cache.stats["hits"] == 1 and cache.stats["exact_hits"] == 0
    with pytest.raises(lplb.InputError, match="shape"):
        cache.solve([1, 2])


def test_misspelt_options_are_refused():
    with pytest.raises(lplb.InputError, match="alpah"):
        Tracker(1, 4, alpah=0.9)
    with pytest.raises(lplb.InputError, match="foo"):
        Forecaster(1, 4, foo=1)
    with pytest.raises(lplb.InputError, match="foo"):
        Manager(1, 4, 2, 6, forecaster={"foo": 1})
    with pytest.raises(lplb.InputError, match=r"\[1\]"):
        Manager(1, 4, 2, 6).set_dead(1)


def test_loads_that_are_refused_are_told_once():
    manager = Manager(2, 64, 8, 80)
    good = np.ones((2, 64))
    for loads, warns in [(good, False), (-good, True), (-good, False), (good, False),
                         (good * np.nan, True), (good, False)]:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            manager.step(manager.stats["steps"], loads)
        assert [str(w.message)[:30] for w in caught] == (
            ["the manager refuses the loads "] if warns else [])
        assert not caught or "outside [0" in str(caught[0].message)
    assert manager.stats["loads_refused"] == 3
    with pytest.raises(lplb.InputError, match="must not be negative"):
        Monitor(ranks=8).step(0, -np.ones((1, 8)))


def test_a_commit_that_raises_comes_too_late():
    def commit(layer, row):
        raise ValueError("no room")

    manager = Manager(1, 16, 4, 20, interval=4, min_interval=2, commit=commit)
    load = np.where(np.arange(16) % 9 == 0, 1000, 1)[None]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for step in range(40):
            manager.step(step, np.roll(load, step // 10, 1))
    assert any("in force all the same" in str(w.message) for w in caught)
    assert manager.stats["layers_switched"] > 0
