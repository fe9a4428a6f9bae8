"""Counts among ranks without torch: real processes, equal plans, failures that end in time."""

import os
import signal
import threading
import time
import warnings

import numpy as np
import pytest

import lplb
from lplb import _library as c
from common import CUBE, check_mapped, random_map, run_ranks, skewed_ids

RANKS, EXPERTS, PER_RANK = 4, 24, 8


def new_name():
    return f"pytest-{np.random.SeedSequence().entropy % 10**30}"


def connect(name, rank, ranks, timeout=10.0):
    return lplb.Communicator.shared_memory(name, rank, ranks, 4096, timeout)


def ids_of(rank, step):
    rng = np.random.default_rng(100 * step + rank)
    tokens = 0 if (rank + step) % 3 == 0 else int(rng.integers(1, 300))  # some rank has none
    return skewed_ids(rng, (tokens, 2), EXPERTS, sigma=1.5)


def many_steps(rank, ranks, name, table):
    comm = connect(name, rank, ranks)
    assert (comm.rank(), comm.size(), comm.transport, comm.alive) == (rank, ranks, "shm", True)
    planner = lplb.Planner.from_placement(table, EXPERTS, group=comm)
    outs, plans = [], []
    for step in range(30):
        outs.append(planner.run(ids_of(rank, step)))
        plans.append(planner.last_plan.split.tobytes())
        assert planner.last_status.ok
    return outs, plans


def test_all_ranks_plan_alike_and_realise_the_plan():
    table = random_map(np.random.default_rng(13), EXPERTS, RANKS, PER_RANK)
    results = run_ranks(many_steps, RANKS, new_name(), table)
    alone = lplb.Planner.from_placement(table, EXPERTS, RANKS)
    for step in range(30):
        assert len({plans[step] for _, plans in results}) == 1
        ids = [ids_of(r, step) for r in range(RANKS)]
        outs = [out[step] for out, _ in results]
        for i, o in zip(ids, outs):
            check_mapped(i, o, table)
        counts = sum(np.bincount(i[i >= 0], minlength=EXPERTS) for i in ids)
        loads = sum(np.bincount(o[o >= 0] // PER_RANK, minlength=RANKS) for o in outs)
        best = alone.plan(counts)
        assert (loads == best.loads).all() and results[0][1][step] == best.split.tobytes()


def share_ratio(rank, ranks, name):
    comm = connect(name, rank, ranks)
    planner = lplb.Planner(CUBE, 64 + 16, 64, 8, group=comm)
    ids = skewed_ids(np.random.default_rng(rank), (500, 4), 64, 0.3)
    counts, by_sm = planner.count_workload(ids, 10)
    share, total = planner.solve_probs(counts)
    return ids, share, total, planner.weighted_select_target(ids, share, by_sm, 10)


def test_three_steps_share_counts():
    """Two processes with half of eight ranks' tokens each."""
    results = run_ranks(share_ratio, 2, new_name())
    assert (results[0][1] == results[1][1]).all()
    counts = sum(np.bincount(ids[ids >= 0], minlength=64) for ids, *_ in results)
    planner = lplb.Planner(CUBE, 64 + 16, 64, 8)
    share, _ = planner.solve_probs(counts)
    assert (share == results[0][1]).all()
    loads = np.zeros(8, np.int64)
    for ids, _, total, out in results:
        check_mapped(ids, out, planner.phy2log)
        assert (total.reshape(-1) == counts).all()
        loads += np.bincount(out[out >= 0] // 10, minlength=8)
    assert loads.max() <= planner.plan(counts).max_load + 32


def lose_a_rank(rank, ranks, name, table):
    planner = lplb.Planner.from_placement(table, EXPERTS, group=connect(name, rank, ranks, 0.5))
    for step in range(3):
        planner.run(ids_of(rank, step))
    if rank == 2:
        time.sleep(1.5)  # the others do not wait so long
        return None
    ids, counter = ids_of(rank, 1), np.zeros(1, np.int32)
    begin = time.monotonic()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        out = planner.run(ids, counter)
        took = time.monotonic() - begin
        again = planner.run(ids, counter)
    assert 0.2 < took < 8, took
    check_mapped(ids, out, table)
    home = [int(np.flatnonzero(table == e)[0]) for e in range(EXPERTS)]
    assert (out[ids >= 0] == np.array(home)[ids[ids >= 0]]).all() and (again == out).all()
    status = planner.last_status
    assert status.outcome == "unbalanced" and not status.ok and counter[0] == 0
    assert status.error.status == c.REMOTE and "dead" in status.error.message
    assert "new Communicator" in status.error.message  # and who it was, if this rank waited for it
    assert "rank(s) 2 did not call" in status.error.message or "left" in status.error.message
    assert len(caught) == 1 and "unbalanced" in str(caught[0].message)
    with pytest.raises(lplb.Error, match="has no plan, its ids are unbalanced: .*dead"):
        planner.last_plan
    assert not planner._comm.alive
    return time.monotonic() - begin


def interrupted_soon(call):
    """Whether Ctrl-C ends a call that would wait for two minutes."""
    begin = time.monotonic()
    timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    try:
        call()
        return False
    except KeyboardInterrupt:
        timer.join()
        return time.monotonic() - begin < 60


def wait_and_interrupt(rank, ranks, name):
    signal.signal(signal.SIGINT, signal.default_int_handler)
    comm = connect(name, rank, ranks, 120.0)
    if rank == 0:
        assert interrupted_soon(lambda: connect(name + "b", 0, 2, 120.0))
        assert not os.path.exists(f"/dev/shm/lplb-{name}b")
        assert interrupted_soon(lambda: comm.all_gather(bytes(8))) and not comm.alive
    connect(name + "c", rank, ranks, 120.0)  # until here rank 1 stays


def test_ctrl_c_ends_a_wait():
    run_ranks(wait_and_interrupt, 2, new_name(), timeout=150)


def test_a_lost_rank_is_a_timeout_not_a_hang():
    table = random_map(np.random.default_rng(14), EXPERTS, 3, 10)
    run_ranks(lose_a_rank, 3, new_name(), table)


def disagree(rank, ranks, name):
    comm = connect(name, rank, ranks)
    with pytest.raises(lplb.Error, match="rank\\(s\\) 1 do not agree.*solver.*rank %d" % rank):
        lplb.Planner(CUBE, 80, 64, 8, group=comm, solver="even" if rank == 1 else "exact")
    with pytest.raises(lplb.Error, match="redundant_to_original"):
        r2o = CUBE[:, ::-1] if rank == 0 else CUBE
        lplb.Planner(r2o, 80, 64, 8, group=comm)
    planner = lplb.Planner(CUBE, 80, 64, 8, group=comm)  # the communicator still works
    ids = np.arange(64)
    planner.run(ids)
    load = np.arange(64)
    planner.update_redundancy_mapping(load if rank == 0 else load[::-1].copy())
    with pytest.warns(RuntimeWarning, match="another layer or placement"):
        out = planner.run(ids)
    assert planner.last_status.error.status == c.DISAGREE
    check_mapped(ids, out, planner.phy2log)
    planner.update_redundancy_mapping(load)
    planner.run(ids)
    assert planner.last_status.ok
    return True


def test_ranks_that_disagree_are_told():
    run_ranks(disagree, 2, new_name())


def differ_in_a_call(rank, ranks, name):
    comm = connect(name, rank, ranks)
    planner = lplb.Planner.from_placement(np.arange(16) % 12, 12, group=comm)
    ids = np.random.default_rng(rank).integers(0, 12, (50, 2))
    for calls in [(dict(locality=rank == 1), {}), ({}, dict(locality=True))]:
        outcomes = []
        for options in calls:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                out = planner.run(ids, **options)
            check_mapped(ids, out, planner.phy2log)
            outcomes.append(planner.last_status.error and planner.last_status.error.status)
        assert outcomes == ([c.DISAGREE, None] if calls[0] else [None, None]), outcomes
        assert len(caught) == 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if rank == 1:
            with pytest.raises(lplb.Error, match="locality"):
                planner.solve_probs(np.arange(12))
        else:
            planner.run(ids)
            assert planner.last_status.error.status == c.DISAGREE
    planner.run(ids)
    return planner.last_status.ok


def test_options_of_a_call_must_be_alike():
    assert all(run_ranks(differ_in_a_call, 4, new_name()))


def refuse_in_turn(rank, ranks, name, table):
    """Each kind of refusal on one rank: all are told in that step, and the next one is whole."""
    planner = lplb.Planner.from_placement(table, EXPERTS, group=connect(name, rank, ranks))
    good = ids_of(rank, 1)
    spoilt = [(dict(idx=np.array([EXPERTS])), "outside"), (dict(idx=good.astype(float)), "int32"),
              (dict(idx=None), "int32 or int64"), (dict(idx=good, out=good[:0]), "shape"),
              (dict(idx=good, n_sms=0), "n_sms"),
              (dict(idx=good, avail_counter=np.zeros(2, np.int32)), "avail_counter"),
              (dict(idx=good, avail_counter=3), "avail_counter")]
    results = []
    for step, (call, message) in enumerate(spoilt):
        if step % ranks == rank and message != "shape" or message == "shape" and rank == 1:
            with pytest.raises(lplb.InputError, match=message):
                planner.run(**call)
            assert planner.last_status.outcome == "failed" and not planner.last_status.ok
        else:
            who = 1 if message == "shape" else step % ranks
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                out = planner.run(good)
            check_mapped(good, out, table)
            status = planner.last_status
            assert status.outcome == "unbalanced" and status.error.status == c.REMOTE
            assert f"rank(s) {who} refused" in status.error.message
        ids = ids_of(rank, step)
        results.append((ids, planner.run(ids), planner.last_plan.split.tobytes()))
        assert planner.last_status.ok
    workload = np.zeros(EXPERTS + (rank == 2), np.int64)
    with pytest.raises(lplb.Error, match="entries" if rank == 2 else "rank.s. 2 refused"):
        planner.solve_probs(workload)
    _, total = planner.solve_probs(np.full(EXPERTS, rank))
    assert (total == sum(range(ranks))).all()
    return results


def test_a_rank_that_refuses_takes_part():
    table = random_map(np.random.default_rng(15), EXPERTS, 3, 10)
    results = run_ranks(refuse_in_turn, 3, new_name(), table)
    alone = lplb.Planner.from_placement(table, EXPERTS, 3)
    for step in zip(*results):
        counts = sum(np.bincount(ids[ids >= 0], minlength=EXPERTS) for ids, *_ in step)
        loads = sum(np.bincount(out[out >= 0] // 10, minlength=3) for _, out, _ in step)
        assert (loads == alone.plan(counts).loads).all() and len({s for *_, s in step}) == 1


def fail_to_make(rank, ranks, name):
    """What one rank cannot make, none has; then all can."""
    comm = connect(name, rank, ranks)
    for spoil in [dict(solver="none"), dict(n_routed_experts=81), dict(threads="x"),
                  dict(redundant_to_original=np.zeros((8, 2), int)), dict(timeout="x")]:
        call = dict(redundant_to_original=CUBE, n_routed_experts=80, n_logical_routed_experts=64,
                    ep_size=8, group=comm)
        message = "rank 1 cannot make its planner: InputError: " if rank != 1 else "^(?!rank 1)"
        with pytest.raises(lplb.Error, match=message):
            lplb.Planner(**{**call, **(spoil if rank == 1 else {})})
    with pytest.raises(lplb.Error, match="rank 1 cannot" if rank != 1 else "outside"):
        lplb.Planner.from_placement([0, 1, 2, 3 + 9 * (rank == 1)], 4, ranks, group=comm,
                                    slots_per_rank=[2, 1, 1])
    planner = lplb.Planner(CUBE, 80, 64, 8, group=comm)
    planner.run(np.arange(64))
    return planner.last_status.ok


def test_a_planner_is_made_by_all_or_none():
    assert all(run_ranks(fail_to_make, 3, new_name()))


def test_a_transport_of_ones_own():
    calls = []

    def gather(send, timeout):
        calls.append((len(send), timeout))
        if len(calls) > 3:
            raise TimeoutError("nobody there")
        return np.stack([send, send])

    comm = lplb.Communicator.custom("mine", 0, 2, 4096, gather, timeout=3)
    assert comm.transport == "mine" and comm.size() == 2
    assert comm.all_gather(b"abc") == [b"abc", b"abc"]
    assert comm.gather_counts(np.array([1, 2])).tolist() == [[1, 2], [1, 2]]
    comm.agree({"x": 1})
    assert {t for _, t in calls} == {3.0}
    with pytest.raises(lplb.Error, match="mine: TimeoutError: nobody there") as caught:
        comm.gather_counts(np.array([1, 2]))
    assert caught.value.status == c.TIMEOUT and not comm.alive
    with pytest.raises(lplb.Error, match="dead"):
        comm.all_gather(b"abc")
    wrong = lplb.Communicator.custom("mine", 0, 2, 4096, lambda send, timeout: send)
    with pytest.raises(lplb.Error, match="shape"):
        wrong.all_gather(b"abc")

    def interrupt(send, timeout):
        raise KeyboardInterrupt

    stopped = lplb.Communicator.custom("mine", 0, 2, 4096, interrupt)
    with pytest.raises(KeyboardInterrupt):
        stopped.all_gather(b"abc")


def test_alone_and_wrong_arguments():
    comm = lplb.Communicator.local()
    planner = lplb.Planner.from_placement(np.arange(8), 8, 4, group=comm)
    assert (planner.run(np.arange(8)) == np.arange(8)).all() and planner.transport == "local"
    for call, message in [
        (lambda: lplb.Communicator.shared_memory("a/b", 0, 1, 4096), "a/b"),
        (lambda: lplb.Communicator.shared_memory("ab", 1, 1, 4096), "outside"),
        (lambda: lplb.Communicator.shared_memory("ab", 0, 1, 10), "max_bytes"),
        (lambda: lplb.Communicator.shared_memory("ab", 0, 1, 4096, timeout=0), "timeout"),
        (lambda: lplb.Planner.from_placement(np.arange(8), 8, group=comm, rank=0), "not both"),
        (lambda: planner.reconnect(), "new"),
    ]:
        with pytest.raises(lplb.InputError if message != "new" else lplb.Error, match=message):
            call()
    with pytest.raises(lplb.Error) as caught:
        lplb.Communicator.shared_memory(new_name(), 0, 2, 4096, timeout=0.2)
    assert caught.value.status == c.TIMEOUT


class Buffer:
    """As much of a DeepEP buffer as the planner looks at."""

    def __init__(self, group):
        self.group = group

    def dispatch(self):
        pass

    combine = dispatch


class MpiComm:
    """As much of mpi4py's communicator: what DeepEP's `comm=` leaves in `buffer.group`."""

    def __init__(self, rank, size):
        self.rank, self.size = rank, size  # numbers, not methods as torch's

    def Get_rank(self):
        return self.rank

    def Get_size(self):
        return self.size


def test_init_from_deep_ep_without_torch_group():
    planner = lplb.Planner(CUBE, 80, 64, 8)
    for wrong, message in [(object(), "a object was given"), (Buffer(None), "group="),
                           (Buffer(MpiComm(0, 8)), "without a torch.distributed group"),
                           (Buffer(3), "group is a int"),
                           (Buffer(lplb.Communicator.local()), "1 ranks, the planner 8")]:
        with pytest.raises(lplb.InputError, match=message):
            planner.init_from_deep_ep(wrong)
        assert not planner.deep_ep_initialized
    comm = lplb.Communicator.local()
    alone = lplb.Planner.from_placement(np.arange(8), 8, ep_size=1, group=comm)
    alone.init_from_deep_ep(Buffer(None))  # the planner's own group does
    assert alone.deep_ep_initialized and alone.ep_group is comm
    alone.init_from_deep_ep(Buffer(MpiComm(0, 1)))  # so it does for a buffer over mpi4py
    assert alone.ep_group is comm
    for wrong, message in [(MpiComm(0, 2), "2 ranks, the planner 1"), (MpiComm(1, 1), "rank 1")]:
        with pytest.raises(lplb.InputError, match=message):
            alone.init_from_deep_ep(Buffer(wrong))
    other = lplb.Communicator.local()
    alone.init_from_deep_ep(Buffer(other))  # another buffer takes its place
    assert alone.ep_group is other and (alone.run(np.arange(8)) == np.arange(8)).all()


def named_transport(rank, ranks, name):
    comm = connect(name, rank, ranks)
    planner = lplb.Planner.from_placement(np.arange(8), 8, ranks, group=comm, transport="nccl")
    with pytest.raises(lplb.InputError, match="nccl carries counts of GPU ids"):
        planner.run(np.arange(8))
    with pytest.raises(lplb.InputError, match="nccl carries counts of GPU ids"):
        planner.solve_probs(np.arange(8))
    planner = lplb.Planner.from_placement(np.arange(8), 8, ranks, group=comm, transport="shm")
    planner.run(np.arange(8))
    return planner.last_status.ok


def test_transports_are_named():
    assert all(run_ranks(named_transport, 2, new_name()))
    planner = lplb.Planner(CUBE, 80, 64, 8, transport="shm")
    with pytest.raises(lplb.InputError, match="no group"):
        planner.run(np.arange(64))
    for wrong, message in [(dict(timeout=-1), "timeout"), (dict(timeout="x"), "timeout"),
                           (dict(max_ids=-1), "max_ids")]:
        with pytest.raises(lplb.InputError, match=message):
            lplb.Planner(CUBE, 80, 64, 8, **wrong)
    with pytest.raises(lplb.InputError, match="not known"):
        lplb.Planner(CUBE, 80, 64, 8, group=lplb.Communicator.local(), transport="tcp")
