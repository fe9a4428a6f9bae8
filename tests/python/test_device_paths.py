"""The GPU paths of the package, over a stand-in for liblplb_cuda that works on host memory.

What is tested is what the package adds: structs, buffers, shapes, the way from LPLB's interface to
the library's. tests on a GPU are in test_gpu.py.
"""

import ctypes
import re
import shutil
import subprocess

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import lplb
from common import CUBE, check_mapped, random_map, run_ranks, skewed_ids
from lplb import _arrays, _cuda, _library
from test_library import check_structs, declarations
from test_torch import free_port, join


@pytest.fixture(scope="session")
def library_of_stand_in(tmp_path_factory):
    from conftest import ROOT

    if not (ROOT / "include" / "lplb" / "cuda.h").exists() or not shutil.which("cc"):
        pytest.skip("no lplb/cuda.h or no C compiler")
    out = tmp_path_factory.mktemp("cuda") / "liblplb_cuda.so"
    subprocess.run(["cc", "-std=c11", "-shared", "-fPIC", "-Wall", "-Werror", f"-I{ROOT}/include",
                    str(ROOT / "tests" / "python" / "stand_in_cuda.c"), "-o", str(out),
                    _library.lib().path], check=True)
    return str(out)


@pytest.fixture
def device(library_of_stand_in, monkeypatch):
    """CPU tensors take the GPU's way."""
    monkeypatch.setenv("LPLB_CUDA_LIBRARY", library_of_stand_in)
    monkeypatch.setattr(_cuda, "_loaded", None)
    monkeypatch.setattr(_cuda, "check_group", lambda group: None)
    monkeypatch.setattr(_cuda, "current_stream", lambda device: 0)
    monkeypatch.setattr(_cuda, "_tensor_device", lambda index: torch.device("cpu"))
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(_arrays, "on_gpu", lambda x: isinstance(x, torch.Tensor))
    monkeypatch.setattr(_arrays, "device_index", lambda x: 0)

    def gather(out, own, group):  # gloo of torch 1.13 lacks the form that NCCL has
        rows = list(out.reshape(group.size(), -1))
        torch.distributed.all_gather(rows, own, group=group)

    def tensor_at(address, count, device):
        memory = (ctypes.c_int64 * count).from_address(address)
        return torch.from_numpy(np.ctypeslib.as_array(memory))

    monkeypatch.setattr(torch.distributed, "all_gather_into_tensor", gather, raising=False)
    monkeypatch.setattr(_cuda, "tensor_at", tensor_at)
    monkeypatch.setattr(_cuda, "own_group", lambda group, timeout: group)
    monkeypatch.setattr(_cuda, "check_abort", lambda group, device: None)
    return monkeypatch


def test_prototypes_and_structs_are_those_of_the_header(root, tmp_path):
    if not (root / "include" / "lplb" / "cuda.h").exists():
        pytest.skip("no lplb/cuda.h")
    declared = declarations(root)
    for name, prototype in _cuda.PROTOTYPES.items():
        assert len(prototype) - 1 == declared[name], name
    check_structs(root, tmp_path, "lplb/cuda_comm.h", {"lplb_cuda_comm_config": _cuda.CommConfig})
    check_structs(root, tmp_path, "lplb/cuda.h", {
        "lplb_cuda_config": _cuda.Config, "lplb_cuda_ids": _cuda.IdsStruct,
        "lplb_cuda_problem": _cuda.Problem, "lplb_cuda_report": _cuda.Report})


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_run_is_that_of_the_cpu(device, dtype):
    rng = np.random.default_rng(30)
    ids = skewed_ids(rng, (500, 3), 64)
    gpu = lplb.Planner(torch.from_numpy(CUBE.copy()), 80, 64, 8)
    cpu = lplb.Planner(CUBE, 80, 64, 8)
    gpu.keep_split = True
    counter = torch.zeros(1, dtype=torch.int64)
    assert gpu.last_status is None
    out = gpu.run(torch.from_numpy(ids).to(dtype), counter, 100)
    assert out.dtype == dtype and (out.numpy() == cpu.run(ids)).all()
    assert gpu.last_status == lplb.Status("optimal") and counter.item() == 1
    assert (gpu.last_plan.split == cpu.last_plan.split).all()
    assert (gpu.last_split().numpy()[:len(cpu.last_split())] == cpu.last_split()).all()
    target = torch.empty(ids.shape, dtype=torch.int32)
    assert gpu.run(torch.from_numpy(ids), out=target) is target and (target == out).all()
    assert (gpu.run(torch.from_numpy(ids).t().contiguous().t()) == out).all()
    for bad, message in [(dict(out=target[1:]), "out must be"), (dict(out=target.t()), "out must"),
                         (dict(out=target.float()), "int32 or int64"),
                         (dict(idx=target.float()), "int32 or int64")]:
        with pytest.raises(lplb.InputError, match=message):
            gpu.run(**{"idx": torch.from_numpy(ids), **bad})
    assert len(gpu._device_steps) == 2  # with 100 multiprocessors and with all
    (_, _, _, sms), step = next(iter(gpu._device_steps.items()))
    assert sms == 100 and step.config.n_sms == 100 and step.bytes > 0


def test_planners_grow(device):
    planner = lplb.Planner(torch.from_numpy(CUBE.copy()), 80, 64, 8, max_ids=1 << 17)
    few = torch.zeros(10, dtype=torch.int64)
    planner.run(few)
    step = next(iter(planner._device_steps.values()))
    assert step.config.max_ids == 1 << 17
    planner.run(torch.zeros(200000, dtype=torch.int64))
    assert step.config.max_ids == 1 << 18 and len(step._handles) == 2
    bad = torch.full((4,), 64)  # as a graph that was captured before would replay it
    step._ids.ids, step._ids.out, step._ids.n, step._n = bad.data_ptr(), bad.data_ptr(), 4, -1
    assert step.lib.lplb_cuda_run(step._handles[0], step._ids_at, step._problem_at, 0) == 0
    assert planner.last_status.outcome == "failed"
    assert planner.last_status == lplb.Status("optimal")  # it was told
    device.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    planner.run(few)
    with pytest.raises(lplb.InputError, match="before the capture"):
        planner.run(torch.zeros(300000, dtype=torch.int64))


def test_the_placement_changes_in_place(device):
    rng = np.random.default_rng(31)
    planner = lplb.Planner(torch.from_numpy(CUBE.copy()), 80, 64, 8)
    ids = torch.from_numpy(skewed_ids(rng, (200, 4), 64))
    planner.run(ids)
    step = next(iter(planner._device_steps.values()))
    phy2log, _, _ = planner.update_redundancy_mapping(torch.from_numpy(rng.integers(1, 99, 64)))
    out = planner.run(ids)
    assert next(iter(planner._device_steps.values())) is step
    check_mapped(ids, out, phy2log)


def test_errors_found_on_the_device(device):
    planner = lplb.Planner(torch.from_numpy(CUBE.copy()), 80, 64, 8)
    planner.run(torch.full((4,), 64))
    with pytest.raises(lplb.Error, match="it failed"):
        planner.last_plan  # which leaves the status to be read
    status = planner.last_status
    assert status.outcome == "failed" and status.error.status == _library.RANGE
    with pytest.raises(lplb.Error, match="it failed"):
        planner.explain()
    planner.run(torch.zeros(4, dtype=torch.int64))
    assert planner.last_status.ok
    with pytest.raises(lplb.InputError, match="keep_split"):
        planner.last_split()


@pytest.mark.parametrize("redundant", [2, 4])
def test_three_steps_are_those_of_the_cpu(device, redundant):
    rng = np.random.default_rng(32)
    experts = 128
    gpu = lplb.Planner(torch.from_numpy(CUBE.copy()), experts + 16 * redundant, experts, 16)
    cpu = lplb.Planner(CUBE, experts + 16 * redundant, experts, 16)
    history = rng.integers(1, 1000, experts)
    gpu.update_redundancy_mapping(torch.from_numpy(history))
    cpu.update_redundancy_mapping(history)
    ids = skewed_ids(rng, (3000, 2), experts, 0.3)
    ids[ids == 3] = -1  # an expert without tokens
    counts, by_sm = gpu.count_workload(torch.from_numpy(ids), 132)
    want, want_by_sm = cpu.count_workload(ids, 132)
    assert counts.dtype == by_sm.dtype == torch.int32
    assert (counts.numpy() == want).all() and (by_sm.numpy() == want_by_sm).all()
    no_experts = torch.from_numpy(np.where(np.arange(ids.size).reshape(ids.shape) % 5, ids, 999))
    counts_of_few, _ = gpu.count_workload(no_experts, 132)
    few = ids.reshape(-1)[np.arange(ids.size) % 5 != 0]
    assert (counts_of_few.numpy() == np.bincount(few[few >= 0], minlength=experts)).all()
    counter = torch.zeros((), dtype=torch.int32)
    share, total = gpu.solve_probs(counts, counter)
    want_share, want_total = cpu.solve_probs(want)
    assert counter.item() == 2 and share.dtype == total.dtype == torch.float32
    assert (share.numpy() == want_share).all() and (total.numpy() == want_total).all()
    out = gpu.weighted_select_target(torch.from_numpy(ids), share, by_sm, 132)
    assert (out.numpy() == cpu.weighted_select_target(ids, want_share, want_by_sm, 132)).all()


def test_shares_of_any_placement(device):
    rng = np.random.default_rng(33)
    table = random_map(rng, 20, 6, 7)
    gpu = lplb.Planner.from_placement(torch.from_numpy(table), 20, 6)
    cpu = lplb.Planner.from_placement(table, 20, 6)
    ids = skewed_ids(rng, (1000,), 20)
    ids[ids == 5] = -1
    counts, by_sm = gpu.count_workload(torch.from_numpy(ids), 8)
    share, _ = gpu.solve_probs(counts)
    want, _ = cpu.solve_probs(counts.numpy())
    assert np.allclose(share.numpy(), want, atol=1e-7)
    out = gpu.weighted_select_target(torch.from_numpy(ids), share, by_sm, 8)
    check_mapped(ids, out, table)


def test_locality_needs_a_rank(device):
    ids = torch.zeros(8, dtype=torch.int64)
    table = torch.tensor([0, 1, 0, 2, 1, 2])
    with pytest.raises(lplb.InputError, match="where the ids come from"):
        lplb.Planner.from_placement(table, 3, 3).run(ids, locality=True)
    planner = lplb.Planner.from_placement(table, 3, 3, rank=1, solver="exact:locality=1")
    planner.run(ids)
    assert next(iter(planner._device_steps))[2] is True


def gloo_is_refused(rank, ranks, port):
    group = join(rank, ranks, port)
    with pytest.raises(lplb.InputError, match="gloo"):
        _cuda.check_group(group)
    torch.distributed.destroy_process_group()


def test_gloo_does_not_gather_on_the_gpu():
    run_ranks(gloo_is_refused, 1, free_port())


def gathered(rank, ranks, port, table, transport):
    group = join(rank, ranks, port)
    planner = lplb.Planner.from_placement(torch.from_numpy(table), 24, group=group,
                                          transport=transport)
    ids = torch.from_numpy(skewed_ids(np.random.default_rng(rank), (50 * rank, 2), 24))
    out = planner.run(ids)
    share, total = planner.solve_probs(planner.count_workload(ids, 4)[0])
    status, used = planner.last_status, planner.transport
    torch.distributed.destroy_process_group()
    return ids.numpy(), out.numpy(), share.numpy(), total.numpy(), status.ok, used


@pytest.mark.parametrize("transport, used", [("torch", "torch"), ("auto", "p2p"), ("p2p", "p2p"),
                                             ("hierarchical", "hierarchical")])
def test_counts_are_gathered(device, transport, used):
    table = random_map(np.random.default_rng(34), 24, 4, 8)
    results = run_ranks(gathered, 4, free_port(), table, transport)
    counts = sum(np.bincount(ids[ids >= 0], minlength=24) for ids, *_ in results)
    loads = sum(np.bincount(out[out >= 0] // 8, minlength=4) for _, out, *_ in results)
    alone = lplb.Planner.from_placement(table, 24, 4)
    assert (loads == alone.plan(counts).loads).all()
    want, _ = alone.solve_probs(counts)
    for ids, out, share, total, ok, name in results:
        check_mapped(ids, out, table)
        assert (total == counts).all() and np.allclose(share, want, atol=1e-7)
        assert ok and name == used


def refused_on_the_host(rank, ranks, port, table, transport):
    group = join(rank, ranks, port)
    planner = lplb.Planner.from_placement(torch.from_numpy(table), 24, group=group,
                                          transport=transport)
    good = torch.from_numpy(skewed_ids(np.random.default_rng(rank), (50, 2), 24))
    spoilt = [(dict(idx=good.float()), "int32 or int64"), (dict(idx=good, n_sms=0), "n_sms"),
              (dict(idx=good, out=good[1:]), "out must be"),
              (dict(idx=good, avail_counter=torch.zeros(2)), "avail_counter"),
              (dict(idx=None), "idx")]
    planner.run(good)
    for call, message in spoilt:
        if rank == 1:
            with pytest.raises(lplb.InputError, match=message):
                planner.run(**call)
            assert planner.last_status.outcome == "failed"
        else:
            planner.run(good)
            assert planner.last_status.ok
            assert planner.last_plan.tokens.sum() == planner_total(group, good)
        if rank == 1:
            planner_total(group, good[:0])
    out = planner.run(good)
    if rank == 1:
        with pytest.raises(lplb.InputError, match="entries"):
            planner.solve_probs(torch.zeros(3))
    else:
        planner.solve_probs(torch.ones(24, dtype=torch.int64))
    _, total = planner.solve_probs(torch.full((24,), rank))
    if transport == "torch":  # the tag goes with the rows; one rank alone makes another step
        planner.run(good, locality=rank == 0)
        assert planner.last_status.error.status == _library.DISAGREE
    planner.run(good, locality=True)
    assert planner.last_status.ok
    torch.distributed.destroy_process_group()
    return good.numpy(), out.numpy(), total.numpy()


def planner_total(group, ids):
    total = (ids >= 0).sum()
    torch.distributed.all_reduce(total, group=group)
    return int(total)


@pytest.mark.parametrize("transport", ["torch", "p2p"])
def test_refused_on_the_host(device, transport):
    table = random_map(np.random.default_rng(36), 24, 3, 10)
    results = run_ranks(refused_on_the_host, 3, free_port(), table, transport)
    counts = sum(np.bincount(ids[ids >= 0], minlength=24) for ids, *_ in results)
    loads = sum(np.bincount(out[out >= 0] // 10, minlength=3) for _, out, _ in results)
    assert (loads == lplb.Planner.from_placement(table, 24, 3).plan(counts).loads).all()
    assert all((total == 3).all() for *_, total in results)


def without_torch_groups(rank, ranks, name, table):
    comm = lplb.Communicator.shared_memory(name, rank, ranks, 4096)
    planner = lplb.Planner.from_placement(torch.from_numpy(table), 24, group=comm)
    ids = torch.from_numpy(skewed_ids(np.random.default_rng(rank), (50 * rank, 2), 24))
    out = planner.run(ids)
    _, total = planner.solve_probs(planner.count_workload(ids, 4)[0])
    with pytest.raises(lplb.InputError, match="torch.distributed group"):
        lplb.Planner.from_placement(torch.from_numpy(table), 24, group=comm,
                                    transport="torch").run(ids)
    with pytest.raises(lplb.InputError, match="CPU ids"):
        lplb.Planner.from_placement(torch.from_numpy(table), 24, group=comm,
                                    transport="shm").run(ids)
    with pytest.raises(lplb.InputError):  # the stand-in has no NCCL
        lplb.Planner.from_placement(torch.from_numpy(table), 24, group=comm,
                                    transport="nccl").run(ids)
    return ids.numpy(), out.numpy(), total.numpy()


def test_a_communicator_serves_the_gpu(device):
    table = random_map(np.random.default_rng(35), 24, 3, 10)
    name = f"pytest-{np.random.SeedSequence().entropy % 10**30}"
    results = run_ranks(without_torch_groups, 3, name, table)
    counts = sum(np.bincount(ids[ids >= 0], minlength=24) for ids, *_ in results)
    loads = sum(np.bincount(out[out >= 0] // 10, minlength=3) for _, out, _ in results)
    best = lplb.Planner.from_placement(table, 24, 3).plan(counts)
    assert (loads == best.loads).all()
    assert all((total == counts).all() for *_, total in results)


def test_without_the_library(monkeypatch):
    monkeypatch.setattr(_cuda, "_loaded", None)
    monkeypatch.setattr(_cuda, "find_library", lambda: None)
    with pytest.raises(lplb.InputError, match="liblplb_cuda"):
        _cuda.lib()
    monkeypatch.undo()
    monkeypatch.setenv("LPLB_CUDA_LIBRARY", "none.so")
    with pytest.raises(lplb.Error, match="none.so"):
        _cuda.find_library()
    assert re.match(r"liblplb_cuda\.so\.\d", _cuda.SONAME)
