"""SGLang's .pt dumps: every mode, without torch, without running what is pickled in them."""

import io
import json
import os
import pickle
import subprocess
import sys
import zipfile

import numpy as np
import pytest

import lplb
from lplb import _pt, convert

DATA = os.path.join(os.path.dirname(__file__), "data")


def data(*names):
    return [os.path.join(DATA, name) for name in names]


def test_every_kind_of_tensor():
    found = _pt.load(data("kinds.pt")[0])
    for values, kind in zip(found["kinds"], ("f8", "f4", "f2", "f4", "i8", "i4", "i2", "i1", "u1",
                                             "?")):
        assert values.dtype == np.dtype(kind) and (values == np.array([0, 1, 2], kind)).all()
    base = np.arange(12).reshape(3, 4)
    assert (found["base"] == base).all() and (found["part"] == base.T[1:3]).all()
    assert found["expanded"].tolist() == [7] * 4 and found["empty"].shape == (0, 3)
    assert found["plain"] == [1, 2.5, "x", None]


def test_stat():
    got = convert.read_dumps(data("stat.pt"))
    assert got["kind"] == "counts"
    assert (got["counts"] == np.arange(36).reshape(2, 3, 6)).all()


def test_per_pass_sums_ranks_and_maps_to_logical():
    got = convert.read_dumps(data("per_pass_0.pt", "per_pass_1.pt"))
    assert got["kind"] == "counts" and got["counts"].shape == (2, 3, 6)
    assert got["counts"][:, 0].sum() == 0
    # 5 and 4 tokens x 2 selections, one of them missing, in every pass and layer
    assert (got["counts"][:, 1:].sum(2) == 9 + 7).all()


def test_per_token():
    files = data("per_token_0.pt", "per_token_1.pt")
    got = convert.read_dumps(files)
    assert got["kind"] == "topk" and got["experts"] == 6
    ids = got["topk_ids"]
    assert ids.dtype == np.int16 and ids.shape == (2 * (5 + 4), 3, 2)
    assert (ids[:, 0] == -1).all() and ids.max() < 6
    counts = convert.read_dumps(files, kind="counts")["counts"]
    passes = convert.read_dumps(data("per_pass_0.pt", "per_pass_1.pt"))["counts"]
    assert (counts == passes).all()
    # passes in order of their number, ranks inside a pass
    for p, part in enumerate((ids[:9], ids[9:])):
        for layer in (1, 2):
            chosen = part[:, layer][part[:, layer] >= 0]
            assert (np.bincount(chosen, minlength=6) == counts[p, layer]).all()


@pytest.mark.parametrize("ending", ["npz", "json", "csv", "safetensors", "npy"])
def test_traces_are_written(tmp_path, ending):
    out = tmp_path / f"trace.{ending}"
    assert convert.main([*data("stat.pt"), "-o", str(out)]) == 0
    if ending == "npz":
        with np.load(out) as z:
            held = [z[k] for k in z.files if z[k].shape == (2, 3, 6)]
        assert len(held) == 1 and (held[0] == np.arange(36).reshape(2, 3, 6)).all()
    assert out.stat().st_size > 0


def run_convert(*arguments):
    env = {**os.environ, "PYTHONPATH": ":".join(p for p in sys.path if p)}
    return subprocess.run([sys.executable, "-m", "lplb.convert", *map(str, arguments)],
                          capture_output=True, text=True, env=env)


def test_command(tmp_path):
    out = tmp_path / "trace.npz"
    done = run_convert(*data("per_token_0.pt", "per_token_1.pt"), "-o", out, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"schema": "lplb.convert/1", "kind": "topk",
                                       "output": str(out), "tokens": 18, "layers": 3, "topk": 2}
    with np.load(out) as z:
        assert z["topk_ids"].shape == (18, 3, 2)
    place = tmp_path / "place.json"
    done = run_convert(*data("placement.pt"), "-o", place, "--ranks", 4)
    assert done.returncode == 0 and "3 layers" in done.stdout, done.stderr
    assert lplb.Placement.read(place, 4).layers == 3
    for arguments, message in [
        (data("placement.pt"), "--ranks"),
        (data("none.pt"), "No such file"),
        ([tmp_path / "empty"], "no .pt files"),
        (data("per_pass_0.pt", "per_pass_0.pt"), "given twice"),
        ([DATA, *data("stat.pt")], "given twice"),
        (data("stat.pt", "per_pass_0.pt"), "no logical_count"),
        (data("kinds.pt"), "none of the keys"),
    ]:
        (tmp_path / "empty").mkdir(exist_ok=True)
        bad = run_convert(*arguments, "-o", tmp_path / "x.npz")
        assert bad.returncode == 2 and message in bad.stderr, bad.stderr
        assert not (tmp_path / "x.npz").exists()
    assert run_convert().returncode == 2


# ---- hostile files ------------------------------------------------------------------------------


def archive(path, pickled, storages=(), compress=False):
    kind = zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED
    with zipfile.ZipFile(path, "w", kind) as z:
        z.writestr("a/data.pkl", pickled)
        for key, raw in storages:
            z.writestr(f"a/data/{key}", raw)
    return path


class Global:
    """Pickles as a reference to a global of torch, by name."""

    def __init__(self, module, name):
        self.module, self.name = module, name


class Writer(pickle._Pickler):
    def persistent_id(self, obj):
        return obj.pid if isinstance(obj, Storage) else None

    def save_call(self, obj):
        self.write(f"c{obj.function.module}\n{obj.function.name}\n".encode())
        self.save(obj.arguments)
        self.write(b"R")
        self.memoize(obj)

    def save_global_name(self, obj):
        self.write(f"c{obj.module}\n{obj.name}\n".encode())


class Storage:
    def __init__(self, kind, key, count):
        self.pid = ("storage", Global("torch", kind), key, "cpu", count)


class Call:
    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments


Writer.dispatch = {**pickle._Pickler.dispatch, Call: Writer.save_call,
                   Global: Writer.save_global_name}


def pickled(value):
    out = io.BytesIO()
    Writer(out, 2).dump(value)
    return out.getvalue()


def tensor(size, stride, offset=0, kind="LongStorage", key="0", count=4):
    return Call(Global("torch._utils", "_rebuild_tensor_v2"), Storage(kind, key, count), offset,
                size, stride, False, None)


RAW = np.arange(4).tobytes()


def test_the_writer_of_this_test_works(tmp_path):
    path = archive(tmp_path / "a.pt", pickled({"x": tensor((2, 2), (2, 1))}), [("0", RAW)])
    assert _pt.load(path)["x"].tolist() == [[0, 1], [2, 3]]


@pytest.mark.parametrize("value, message", [
    (Call(Global("os", "system"), "touch broken"), "os.system"),
    (Call(Global("builtins", "eval"), "1"), "builtins.eval"),
    (Call(Global("torch", "load"), "x"), "torch.load"),
    (Call(Global("numpy", "fromfile"), "x"), "numpy.fromfile"),
    (tensor((5,), (1,)), "beyond its storage"),
    (tensor((2,), (4,)), "beyond its storage"),
    (tensor((2,), (1,), offset=3), "beyond its storage"),
    (tensor((2,), (-1,), offset=3), "negative"),
    (tensor((2,), (1,), offset=-1), "negative"),
    (tensor((1 << 40,), (0,)), "expanded"),
    (tensor((1 << 40, 1 << 40), (0, 0)), "expanded"),
    (tensor((2,), (1, 1)), "malformed"),
    (tensor((2,), (1,), key="9"), "9"),
    (tensor((2,), (1,), key="../x"), "x"),
    (tensor((2,), (1,), count=1 << 50), "too few"),
    (tensor((2,), (1,), count=-1), "too few"),
    (tensor((2,), (1,), kind="QuantizedStorage"), "QuantizedStorage"),
])
def test_hostile_pickles_are_refused(tmp_path, value, message):
    path = archive(tmp_path / "a.pt", pickled({"x": value}), [("0", RAW)])
    with pytest.raises(lplb.InputError, match=message):
        _pt.load(path)
    assert not os.path.exists("broken")


def test_damaged_files_are_refused(tmp_path):
    good = open(data("stat.pt")[0], "rb").read()
    path = tmp_path / "a.pt"
    rng = np.random.default_rng(15)
    for _ in range(300):
        bad = bytearray(good)
        for _ in range(int(rng.integers(1, 8))):
            bad[int(rng.integers(len(bad)))] = int(rng.integers(256))
        path.write_bytes(bytes(bad[:int(rng.integers(1, len(bad) + 1))]))
        try:
            convert.read_dumps([path])
        except lplb.Error:
            pass
    archive(path, pickled({"x": tensor((2,), (1,))}), [("0", b"\0" * 10**6)], compress=True)
    with pytest.raises(lplb.InputError, match="compressed"):
        _pt.load(path)
    with zipfile.ZipFile(path, "w") as z:
        z.writestr("readme", "x")
    with pytest.raises(lplb.InputError, match="not one of torch.save"):
        _pt.load(path)
    for raw, message in ((b"\x80\x02old", "before 1.6"), (b"", "the file is empty"),
                         (good[:200], "cut short"), (b"text", "not a file of torch.save")):
        path.write_bytes(raw)
        with pytest.raises(lplb.InputError, match=message):
            _pt.load(path)


def test_recordings_that_do_not_fit_together(tmp_path, capsys):
    def dump(name, value, raw):
        return archive(tmp_path / name, pickled(value), [("0", raw)])

    def counts(layers, experts):
        return tensor((1, layers, experts), (layers * experts, experts, 1), count=layers * experts)

    a = dump("a.pt", {"logical_count": counts(2, 2)}, RAW)
    for layers, experts in ((1, 4), (2, 1)):
        b = dump("b.pt", {"logical_count": counts(layers, experts)}, RAW)
        with pytest.raises(lplb.InputError, match=f"b.pt: {layers} layers of {experts} experts"):
            convert.read_dumps([a, b])
    inf = np.array([0, np.inf, np.nan, 1e30])
    c = dump("c.pt", {"logical_count": tensor((1, 1, 4), (4, 4, 1), kind="DoubleStorage")},
             inf.tobytes())
    with pytest.raises(lplb.InputError, match=r"c.pt: logical_count\[0\]\[0\]\[1\] is inf"):
        convert.read_dumps([c])
    assert "missing" not in convert.read_dumps(data("per_pass_0.pt", "per_pass_1.pt"))
    assert convert.main([*data("per_pass_1.pt"), "-o", str(tmp_path / "t.npz")]) == 0
    assert "2 of 2 forward passes lack ranks (pass 3: 0 of 2)" in capsys.readouterr().err


@pytest.mark.parametrize("value, message", [
    ({"logical_count": tensor((4,), (1,))}, "shape"),
    ({"logical_count": "x"}, "no"),
    ({"logical_count": tensor((1, 2, 2), (0, 2, 1), kind="DoubleStorage", key="f")},
     r"logical_count\[0\]\[0\]\[0\] is 0.5: must be whole"),
    ({"logical_count": tensor((0, 2, 2), (4, 2, 1))}, "a.pt: the recording is empty"),
    ({"records": 5}, "list"),
    ({"records": [], "last_physical_to_logical_map": tensor((2, 2), (2, 1))}, "empty"),
    ({"records": [7], "last_physical_to_logical_map": tensor((2, 2), (2, 1))}, "a record is"),
    ({"records": [{}], "last_physical_to_logical_map": tensor((2, 2), (2, 1))}, "forward_pass_id"),
    ({"records": [{"forward_pass_id": 1, "rank": 0}],
      "last_physical_to_logical_map": tensor((2, 2), (2, 1))}, "global_physical_count"),
    ({"records": [{"forward_pass_id": 1, "rank": 0,
                   "topk_ids_of_layer": tensor((2, 1, 2), (2, 2, 1))}],
      "last_physical_to_logical_map": tensor((2, 2), (2, 1))}, "does not fit"),
    ([1, 2], "list"),
])
def test_odd_contents_are_refused(tmp_path, value, message):
    raw = [("0", RAW), ("f", np.full(4, 0.5).tobytes())]
    path = archive(tmp_path / "a.pt", pickled(value), raw)
    with pytest.raises(lplb.InputError, match=message):
        convert.read_dumps([path])
