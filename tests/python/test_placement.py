"""Placements: their maps, their scores, the files and tensors of engines."""

import json

import numpy as np
import pytest

import lplb
from lplb import engines

MAP = np.array([[0, 1, 2, 3, 0, 1], [3, 2, 1, 0, 3, 2]])


def test_maps():
    p = lplb.Placement(MAP, 3)
    assert (p.layers, p.slots, p.ranks, p.n_logical_experts) == (2, 6, 3, 4)
    assert p.replica_count.tolist() == [[2, 2, 1, 1], [1, 1, 2, 2]]
    assert p.logical_to_physical_map[0].tolist() == [[0, 4], [1, 5], [2, -1], [3, -1]]
    assert p.slots_per_rank.tolist() == [2, 2, 2]


def test_moves():
    before = lplb.Placement([0, 1, 0, 2, 3, 2], 2)
    after = lplb.Placement([1, 0, 1, 2, 3, 0], 2)
    assert after.moves(before) == [(0, 5, 0, 1, 0)]
    assert before.moves(before) == []
    assert lplb.Move._fields == ("layer", "slot", "expert", "rank", "source_rank")


def test_imbalance():
    p = lplb.Placement([0, 1, 2, 0], 2)
    load = np.array([[[30, 10, 20]], [[0, 0, 0]]])
    assert p.imbalance(load).tolist() == [[1.0], [0.0]]
    assert p.imbalance(load[0], "even").tolist() == [35 / 30]
    with pytest.raises(lplb.InputError, match="shape"):
        p.imbalance(load[:, :, :2])
    with pytest.raises(lplb.InputError, match="best"):
        p.imbalance(load, "best")


def test_place():
    rng = np.random.default_rng(12)
    load = np.rint(rng.lognormal(0, 1, (3, 1, 32)) * 500).astype(np.int64)
    for options in (dict(algorithm="eplb"), dict(algorithm="search", seed=1),
                    dict(algorithm="search", slots_per_rank=[6, 6, 6, 4, 5, 5, 4, 4]),
                    dict(algorithm="search", speed=[1, 1, 1, 2, 2, 1, 1, 1]),
                    dict(algorithm="topology", topology="ring"),
                    dict(algorithm="topology", topology=np.array([[1, 2, 3, 4, 5, 6, 7, 0]]).T)):
        p = lplb.place(load, 8, 40, **options)
        assert (p.layers, p.slots, p.ranks, p.n_logical_experts) == (1, 40, 8, 32)
        assert (p.replica_count >= 1).all()
    dead = lplb.place(load, 8, 48, dead_ranks=[2])
    assert (dead.physical_to_logical_map.reshape(8, 6)[2] == -1).all()
    assert (lplb.place(load, 8, 40, work=10**6).replica_count >= 1).all()
    a, b = (lplb.place(load, 8, 40, seed=5) for _ in range(2))
    assert (a.physical_to_logical_map == b.physical_to_logical_map).all()
    for bad, message in [(dict(algorithm="best"), "best"), (dict(max_moves=3), "previous"),
                         (dict(dead_ranks=[8]), "dead rank 8"), (dict(speed=[1]), "speed"),
                         (dict(weight_of_sample=[1.0]), "weight_of_sample"),
                         (dict(topology=[1, 0], algorithm="topology"), "topology")]:
        with pytest.raises(lplb.InputError, match=message):
            lplb.place(load, 8, 40, **bad)
    with pytest.raises(lplb.InputError, match="missing|few"):
        lplb.place(load, 8, 32, dead_ranks=[0])


@pytest.mark.parametrize("format", ["sglang", "vllm", "trtllm", "vllm-ascend", "omni"])
def test_files_come_back(tmp_path, format):
    # omni's 0/1 tables forget the order of a rank's slots: let it be ascending
    table = np.array([[0, 1, 2, 3, 0, 1], [2, 3, 0, 1, 2, 3]])
    path = tmp_path / ("map.npy" if format == "omni" else "map")
    lplb.Placement(table, 3).write(path, format)
    back = lplb.Placement.read(path, 3)
    assert (back.physical_to_logical_map == table).all() and back.ranks == 3


def test_engine_files(tmp_path):
    path = tmp_path / "location.json"
    engines.write_sglang(MAP, path, ranks=3)
    assert json.loads(path.read_text())["physical_to_logical_map"] == MAP.tolist()
    engines.write_sglang(MAP, path, ranks=3, dense_layers=1)
    table = json.loads(path.read_text())["physical_to_logical_map"]
    assert table == [[0, 1, 2, 3, 0, 1], *MAP.tolist()]
    engines.write_vllm_ascend(MAP, tmp_path / "ascend.json", 3)
    data = json.loads((tmp_path / "ascend.json").read_text())
    assert data["moe_layer_count"] == 2
    devices = data["layer_list"][0]["device_list"]
    assert [d["device_expert"] for d in devices] == [[0, 1], [2, 3], [0, 1]]
    engines.write_trtllm(MAP, tmp_path / "balance.yaml", 3)
    text = (tmp_path / "balance.yaml").read_text()
    assert "num_slots: 6" in text and "initial_global_assignments" in text
    engines.write_vllm(MAP, tmp_path / "vllm.json", 3)
    for bad, message in [(dict(placement=MAP), "ranks="), (dict(placement=MAP, ranks=4), "6"),
                         (dict(placement=np.array([[0, 1, -1, 0]]), ranks=2), "empty"),
                         (dict(placement=lplb.Placement([0, 1, 2], 2, slots_per_rank=[1, 2])),
                          "unequal")]:
        with pytest.raises(lplb.InputError, match=message):
            engines.write_sglang(path=tmp_path / "x", **bad)


@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_engine_tensors(kind):
    if kind == "torch":
        pytest.importorskip("torch")
    s = engines.sglang_tensors(MAP, 3, tensors=kind)
    assert s["physical_to_logical_map"].tolist() == MAP.tolist()
    assert tuple(s["logical_to_all_physical_map"].shape) == (2, 4, 6)
    assert s["logical_to_all_physical_map"][0, 0].tolist() == [0, 4, -1, -1, -1, -1]
    assert s["logical_to_all_physical_map_num_valid"].tolist() == [[2, 2, 1, 1], [1, 1, 2, 2]]
    v = engines.vllm_tensors(lplb.Placement(MAP, 3), tensors=kind)
    assert tuple(v["logical_to_physical_map"].shape) == (2, 4, 3)
    assert v["logical_replica_count"].tolist() == [[2, 2, 1, 1], [1, 1, 2, 2]]
    assert all("int64" in str(t.dtype) for t in (*s.values(), *v.values()))
    with pytest.raises(lplb.InputError, match="jax"):
        engines.sglang_tensors(MAP, 3, tensors="jax")
