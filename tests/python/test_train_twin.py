"""lplb train against the same model in PyTorch: loss and gradients of a first step, and a run."""

import os
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch_twin import OPTIONS, Twin, Windows, compare_curves, initial_weights, split_text

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
