"""lplb train against the same model in PyTorch: loss and gradients of a first step, and a run."""

import json
import math
import os
import struct
import subprocess
import zlib
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch_twin import (OPTIONS, Twin, Windows, compare_curves, initial_weights, load_checkpoint,
                        read_safetensors, run_lplb, split_text)

LIBRARY = Path(os.environ.get("LPLB_LIBRARY", "build/liblplb.so")).resolve()
LPLB = LIBRARY.parent / "lplb"
pytestmark = pytest.mark.skipif(not (LIBRARY.parent / "lplb-train").exists(),
                                reason="built without the trainer")


@pytest.fixture
def text(tmp_path):
    """Documents of words that depend on the document, some of them short."""
    rng, lines = np.random.default_rng(4), []
    for document in range(120):
        lines.append("\f" if document else "")
        words = [f"w{rng.integers(9) * (document % 5)}x{document % 7}" for _ in range(40)]
        lines.append(" ".join(words[:rng.integers(3, 40)]) + "\n")
    path = tmp_path / "text.txt"
    path.write_text("".join(lines))
    return path


@pytest.mark.parametrize("precision,bound", [("f32", 1e-4), ("f64", 1e-9)])
@pytest.mark.parametrize("changes", [
    {},
    {"router": "sigmoid", "shared-width": 48, "dense-layers": 1, "kv-heads": 4},
    {"aux": "sequence"},
    {"router": "sigmoid", "aux": "sequence", "capacity-factor": 1.1},
    {"capacity-factor": 0.7, "drop": "position"},
])
def test_gradients(text, tmp_path, changes, precision, bound):
    options = dict(OPTIONS, text=text, **changes)
    weights, ours, loss = initial_weights(LPLB, options, tmp_path / "ck", precision)
    twin = Twin(weights, options)
    kept, _ = split_text(text, options["held-out"])
    theirs_loss, theirs = twin.gradients(Windows(kept, options["context"], options["seed"])
                                         .batch(0, options["global-batch"]))
    assert abs(loss - theirs_loss) <= bound * theirs_loss
    assert set(ours) == set(theirs)
    for name, gradient in theirs.items():
        wanted = gradient.numpy()
        error = np.linalg.norm(ours[name].reshape(wanted.shape) - wanted)
        assert error <= bound * np.linalg.norm(wanted), name


@pytest.mark.parametrize("precision,bound", [("f32", 1e-2), ("f64", 1e-6)])
def test_same_curve(text, precision, bound):
    """In float, rounding lets a token near a tie choose another expert, and the curves part."""
    options = dict(OPTIONS, text=text, steps=40)
    ours, theirs, ours_valid, valid = compare_curves(LPLB, options, precision)
    assert ours[-1] < 0.8 * ours[0]
    np.testing.assert_allclose(ours, theirs, rtol=bound)
    assert len(valid) == 2
    np.testing.assert_allclose(ours_valid, valid, rtol=bound)


@pytest.mark.parametrize("changes", [
    {"router": "sigmoid", "bias-rate": 0.01, "aux": "sequence"},
    {"capacity-factor": 0.9, "drop": "probs"},
    {"capacity-factor": 0.9, "drop": "position", "bias-rate": 0.01},
])
def test_same_curve_of_routers(text, changes):
    options = dict(OPTIONS, text=text, steps=20, **changes)
    ours, theirs, ours_valid, valid = compare_curves(LPLB, options, "f64")
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)
    np.testing.assert_allclose(ours_valid, valid, rtol=1e-6)
    if "bias-rate" in changes:  # without it the curve is another
        plain, _, _, _ = compare_curves(LPLB, dict(options, **{"bias-rate": 0}), "f64")
        assert max(abs(a - b) for a, b in zip(ours, plain)) > 1e-5


def write_safetensors(path, tensors, metadata):
    """As the safetensors package does: lengths, header, tensors one after the other."""
    header, data, names = {"__metadata__": metadata}, b"", {"float32": "F32", "float64": "F64",
                                                            "int64": "I64", "int32": "I32"}
    for name, tensor in tensors.items():
        raw = tensor.tobytes()
        header[name] = {"dtype": names[str(tensor.dtype)], "shape": list(tensor.shape),
                        "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def test_weights_from_outside(text, tmp_path):
    """Weights that PyTorch changed and wrote are those that training goes on with: with the twin's
    after-training weights in the file, our loss of the next batch is the twin's."""
    options = dict(OPTIONS, text=text, steps=2, checkpoint=tmp_path / "ck")
    options["checkpoint-every"] = 1
    run_lplb(LPLB, dict(options, steps=1, **{"warmup-steps": 1}))
    manifest_path = tmp_path / "ck" / "latest.json"
    manifest = json.loads(manifest_path.read_text())
    path = tmp_path / "ck" / manifest["file"]
    raw = path.read_bytes()
    metadata = json.loads(raw[8:8 + struct.unpack("<Q", raw[:8])[0]])["__metadata__"]
    tensors = load_checkpoint(tmp_path / "ck")
    with torch.no_grad():
        changed = {name: (torch.tensor(value) * 1.25 + 0.01).numpy()
                   if not name.startswith(("optimizer.", "lplb.")) else value
                   for name, value in tensors.items() if name != "lplb.crc32"}  # the old bytes'
    write_safetensors(path, changed, metadata)
    manifest["crc32"] = zlib.crc32(path.read_bytes())
    manifest_path.write_text(json.dumps(manifest))
    log = run_lplb(LPLB, dict(options, **{"warmup-steps": 1}), "--resume")
    kept, _ = split_text(text, options["held-out"])
    loss, _ = Twin(changed, options).losses(*Windows(kept, options["context"], options["seed"])
                                            .batch(options["global-batch"],
                                                   options["global-batch"]))
    assert [line["step"] for line in log] == [2]
    assert math.isclose(log[0]["loss"], loss.item(), rel_tol=1e-4)


def export(text, tmp_path):
    """A checkpoint with a selection bias, and its weights as --export writes them."""
    options = dict(OPTIONS, text=text, steps=3, checkpoint=tmp_path / "ck", router="sigmoid",
                   **{"bias-rate": 0.01, "warmup-steps": 1})
    run_lplb(LPLB, options)
    path = tmp_path / "weights.safetensors"
    subprocess.run([LPLB, "train", "--checkpoint", options["checkpoint"], "--export", path],
                   check=True)
    return options, path


def test_exported_weights_in_pytorch(text, tmp_path):
    """The safetensors package reads what --export writes; what it writes, --init reads, in bf16
    too; the bits are those of the checkpoint."""
    safetensors = pytest.importorskip("safetensors.torch")
    options, path = export(text, tmp_path)
    weights, checkpoint = safetensors.load_file(str(path)), load_checkpoint(tmp_path / "ck")
    wanted = {name for name in checkpoint if not name.startswith(("optimizer.", "lplb."))}
    bias = "model.layers.{}.mlp.gate.e_score_correction_bias"
    assert set(weights) == wanted | {bias.format(layer) for layer in range(options["layers"])}
    for name in wanted:
        assert (weights[name].numpy() == checkpoint[name]).all(), name
    for layer, row in enumerate(checkpoint["lplb.selection_bias"]):
        assert (weights[bias.format(layer)].numpy() == row).all()
    back, again = tmp_path / "back.safetensors", tmp_path / "again.safetensors"
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        safetensors.save_file({name: value.to(dtype) for name, value in weights.items()}, str(back))
        folder = tmp_path / str(dtype)
        run_lplb(LPLB, dict(options, checkpoint=folder, init=back, steps=1, rate=1e-30,
                            **{"min-rate": 0, "warmup-steps": 0, "bias-rate": 0}))
        subprocess.run([LPLB, "train", "--checkpoint", folder, "--export", again], check=True)
        for name, value in safetensors.load_file(str(again)).items():
            assert torch.equal(value, weights[name].to(dtype).float()), name


def test_exported_weights_make_the_same_loss(text, tmp_path):
    options, path = export(text, tmp_path)
    kept, _ = split_text(text, options["held-out"])
    shape = dict(options, **{"bias-rate": 0})
    weights = read_safetensors(path)
    twin = Twin({n: v for n, v in weights.items() if "correction_bias" not in n}, shape)
    for layer in range(options["layers"]):
        twin.bias[layer] = torch.tensor(
            weights[f"model.layers.{layer}.mlp.gate.e_score_correction_bias"])
    batch = Windows(kept, options["context"], options["seed"]).batch(0, options["global-batch"])
    log = run_lplb(LPLB, dict(shape, init=path, steps=1, checkpoint=tmp_path / "from",
                              **{"warmup-steps": 0}))
    assert math.isclose(log[0]["loss"], twin.losses(*batch)[0].item(), rel_tol=1e-4)
