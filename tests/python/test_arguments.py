"""What callers may get wrong: every error is an InputError that names argument and value; copies
and pickles of what the C library owns; forks."""

import copy
import os
import pickle
import signal
import sys
import warnings

import numpy as np
import pytest

import lplb
from lplb import engines, eplb, runtime

LOAD = np.array([[5, 3, 2, 8]])
MAP = np.array([0, 1, 2, 3, 0, 1])


def planner(**options):
    return lplb.Planner.from_placement(MAP, 4, 2, **options)


def refused(match, body):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(lplb.InputError, match=match):
            body()


@pytest.mark.parametrize("value", [2**32 + 2, -2**31 - 1, 2**70, "2", 2.0, None, [2]])
def test_integers_that_c_would_cut(value):
    text = ".*".join(str(value).replace("[", "\\[").replace("]", "\\]").split())
    for what, body in [
            ("ranks", lambda: lplb.Placement(MAP, value)),
            ("ranks", lambda: lplb.place(LOAD, value, 6)),
            ("slots", lambda: lplb.place(LOAD, 2, value)),
            ("nodes", lambda: lplb.place(LOAD, 2, 6, nodes=value)),
            ("topk", lambda: lplb.place(LOAD, 2, 6, topk=value)),
            ("threads", lambda: planner(threads=value)),
            ("rank", lambda: lplb.Communicator.shared_memory("a", value, 2, 4096)),
            ("ranks", lambda: lplb.Communicator.custom("a", 0, value, 4096, None)),
            ("num_packs", lambda: eplb.balanced_packing(LOAD, value)),
            ("num_phy", lambda: eplb.replicate_experts(LOAD, value)),
            ("physical experts", lambda: eplb.rebalance_experts(LOAD, value, 1, 1, 2)),
            ("num_gpus", lambda: eplb.rebalance_experts(LOAD, 6, 1, 1, value)),
            ("layers", lambda: runtime.Tracker(value, 4)),
            ("window", lambda: runtime.Tracker(1, 4, "window", window=value)),
            ("ranks", lambda: runtime.Manager(1, 4, value, 6)),
            ("ranks", lambda: runtime.Monitor(value)),
            ("ranks", lambda: runtime.advise(LOAD, value)),
            ("ranks", lambda: lplb.solve([1], [[0]], value)),
            ("n_sms", lambda: planner().count_workload(MAP, value))]:
        refused(f"{what} is '?{text}", body)


def test_integers_of_64_bits_and_of_numpy():
    refused("seed is 1180591620717411303424", lambda: lplb.place(LOAD, 2, 6, seed=2**70))
    refused("n_logical_routed_experts is 8589934592",
            lambda: lplb.Planner.from_placement(MAP, 2**33, 2))
    refused("ep_size is '8'", lambda: lplb.Planner.from_placement(MAP, 4, "8"))
    refused("n_logical_routed_experts is None", lambda: lplb.Planner([[1], [0]], 4, None, 2))
    refused(r"redundant_to_original\[0\]\[0\] is 8589934593: does not fit 32",
            lambda: lplb.Planner([[2**33 + 1], [2**33]], 4, 2, 2))
    refused("rank is 1.5", lambda: planner(rank=1.5))
    refused("max_moves is -5", lambda: lplb.place(LOAD, 2, 6, max_moves=-5,
                                                  previous=lplb.Placement(MAP, 2)))
    assert lplb.place(LOAD, np.int64(2), np.int32(6), seed=np.uint64(2**64 - 1)).slots == 6


@pytest.mark.parametrize("ranks", [0, -1])
def test_no_ranks(ranks):
    for body in (lambda: lplb.place(LOAD, ranks, 6), lambda: runtime.Manager(1, 4, ranks, 6),
                 lambda: lplb.place(LOAD, ranks, 6, algorithm="topology", topology="ring"),
                 lambda: lplb.Placement(MAP, ranks), lambda: runtime.Monitor(ranks)):
        refused(f"{ranks}", body)


def test_values_that_are_no_counts():
    for value, text in ((np.inf, "inf"), (np.nan, "nan"), (1.5, "1.5"), (1e30, "1e\\+30"),
                        (-np.inf, "-inf")):
        refused(rf"tokens\[1\] is {text}", lambda: lplb.solve([1, value], [[0], [0]], 1))
        refused(rf"load\[0\]\[2\] is {text}", lambda: lplb.place([[1, 2, value, 3]], 2, 6))
    refused("complex", lambda: lplb.place(LOAD.astype(complex), 2, 6))
    refused("complex", lambda: eplb.rebalance_experts(LOAD.astype(complex), 6, 1, 1, 2))
    refused(r"speed\[0\] is 1.5", lambda: lplb.place(LOAD, 2, 6, speed=[1.5, 1]))
    refused(r"slots_per_rank\[0\] is 2.9", lambda: lplb.Placement(MAP, 2,
                                                                  slots_per_rank=[2.9, 3.1]))
    refused(r"hosts\[0\]\[0\] is 0.7", lambda: lplb.solve([3], [[0.7]], 2))
    refused(r"tokens\[0\] is 9223372036854775808: does not fit",
            lambda: lplb.solve(np.array([2**63], np.uint64), [[0]], 1))
    assert lplb.solve([1.0, 2.0], [[0], [0]], 1).max_load == 3


def test_objects_of_other_classes():
    p = lplb.Placement(MAP, 2)
    refused("previous is a ndarray", lambda: lplb.place(LOAD, 2, 6, previous=MAP))
    refused("before is a ndarray", lambda: p.moves(MAP))
    refused("placement is a ndarray", lambda: runtime.recover(MAP, [0]))
    refused("placement is a ndarray", lambda: runtime.validate(MAP))
    refused("solver is None", lambda: planner(solver=None))
    refused("expert is 99", lambda: lplb.solve([3], [[0]], 1).of_expert(99))
    refused("hosts is a list", lambda: lplb.solve([3], [0], 2))
    refused("no array", lambda: planner().run([[1], [1, 2]]))


def test_values_out_of_their_range():
    p = planner()
    weight, _ = p.solve_probs(np.full(4, 6))
    _, sums = p.count_workload(MAP, 2)
    p.weighted_select_target(MAP, weight, sums, 2)
    for wrong in (2.0, -1.0, np.inf):
        bad = weight.copy()
        bad[1, 0] = wrong
        refused(rf"o_weight\[1\]\[0\] is {wrong}",
                lambda: p.weighted_select_target(MAP, bad, sums, 2))
    refused("n_sms is 0", lambda: p.weighted_select_target(MAP, weight, sums, 0))
    refused("even takes no tolerance", lambda: planner(solver="even:tolerance=1.5"))
    refused("group is 'x'", lambda: planner(group="x"))
    counter = np.zeros(1, np.int64)
    counter.flags.writeable = False
    refused("avail_counter is read-only", lambda: p.run(MAP, counter))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "torch", None)
        refused("tensors=\"numpy\"", lambda: engines.sglang_tensors(p.placement))


def test_tensors():
    torch = pytest.importorskip("torch")
    import lplb.torch as layers

    load = torch.tensor([[5.0, 3.0, 2.0, 8.0]])
    expected = lplb.place(load, 2, 6).physical_to_logical_map
    assert (lplb.place(load.bfloat16(), 2, 6).physical_to_logical_map == expected).all()
    for a, b in zip(eplb.rebalance_experts(load, 6, 1, 1, 2),
                    eplb.rebalance_experts(load.bfloat16(), 6, 1, 1, 2)):
        assert torch.equal(a, b)
    ring = lplb.Planner(torch.tensor([[1], [0]]), 6, 4, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of tensors over read-only memory
        maps = [ring.update_redundancy_mapping(w) for w in (load[0], load[0].bfloat16())]
    assert torch.equal(maps[0][0], maps[1][0])
    refused("to_dense", lambda: lplb.place(load.to_sparse(), 2, 6))
    refused("planner is a NoneType", lambda: layers.Balance(None))


def test_copies_of_models():
    torch = pytest.importorskip("torch")
    import lplb.torch as layers

    p = planner()
    model = torch.nn.Sequential(layers.Balance(p), torch.nn.Identity())
    average = copy.deepcopy(model)
    assert average[0].planner is p and average[0] is not model[0]
    ids = torch.tensor([0, 1, 2, 3])
    assert torch.equal(average(ids), model(ids))
    assert model[0].counter.item() == average[0].counter.item() == 1
    assert model[0].counter is not average[0].counter
    refused("state_dict", lambda: pickle.dumps(model))


def test_what_the_library_owns_is_not_copied():
    comm = lplb.Communicator.local()
    for thing in (comm, planner(), runtime.Tracker(1, 4), runtime.Manager(1, 4, 2, 6),
                  runtime.Monitor(2), runtime.Forecaster(1, 4),
                  runtime.PlanCache([[0], [0]], 1)):
        for body in (copy.copy, copy.deepcopy, pickle.dumps):
            refused("neither copied nor pickled", lambda: body(thing))
    assert comm.size() == 1


def test_placements_and_plans_are_copied():
    table = np.array([[0, 1, 2, -1, 3, 0], [3, 2, 1, 0, -1, -1]])
    p = lplb.Placement(table, 3, n_logical_experts=4, slots_per_rank=[1, 3, 2])
    for again in (copy.copy(p), copy.deepcopy(p), pickle.loads(pickle.dumps(p))):
        assert again is not p and again._handle is not p._handle
        assert (again.physical_to_logical_map == table).all() and again.ranks == 3
        assert again.slots_per_rank.tolist() == [1, 3, 2] and again.n_logical_experts == 4
        assert again.moves(p) == []
    plan = lplb.solve([90, 10, 10], [[0], [1, 0], [1]], 2)
    for again in (copy.deepcopy(plan), pickle.loads(pickle.dumps(plan))):
        again.check()
        assert again.explain() == plan.explain()
    try:
        runtime.recover(lplb.Placement([0, 1, 2, 3], 2), [0])
    except runtime.LostExperts as lost:
        again = pickle.loads(pickle.dumps(lost))
        assert again.experts == lost.experts and again.missing_slots == lost.missing_slots


def test_maps_are_read_only():
    p, q = lplb.Placement(MAP, 2), planner()
    for array in (p.physical_to_logical_map, p.rank_offset, q.phy2log):
        with pytest.raises(ValueError, match="read-only"):
            array[..., 0] = 1
    MAP.flags.writeable = True  # the caller's own stays as it was


@pytest.mark.parametrize("threads", [1, 2])
def test_a_forked_child_goes_on(threads):
    ids = np.random.default_rng(0).integers(0, 4, 1 << 18)
    p, manager = planner(threads=threads), runtime.Manager(1, 4, 2, 6, interval=1, min_interval=1)
    monitor = runtime.Monitor(2, serve=True)
    expected = p.run(ids)
    manager.step(0, LOAD)
    child = os.fork()
    if child == 0:
        signal.alarm(60)  # ends what waits for threads that are not there
        code = 1
        try:
            good = (p.run(ids) == expected).all()
            del p
            try:
                manager.step(1, LOAD)
            except lplb.Error as error:
                good = good and "in the child" in error.message
                code = 0 if good else 2
            del manager, monitor
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    assert (p.run(ids) == expected).all()
    manager.step(1, LOAD)
    assert "lplb" in monitor.text()
