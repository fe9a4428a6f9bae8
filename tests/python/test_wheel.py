"""An installed wheel (scripts/wheel.sh): it needs nothing but the C library and numpy."""

import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import lplb
from lplb import _library, runtime

FOLDER = Path(lplb.__file__).parent
pytestmark = pytest.mark.skipif(not (FOLDER / "liblplb.so.0").exists(),
                                reason="not an installed wheel")
SYSTEM = re.compile(r"(lib(c|m|dl|rt|pthread|gcc_s)|ld-linux.*)\.so\.\d+$")


def test_libraries_are_in_the_wheel():
    assert Path(_library.lib().path).parent == FOLDER
    libraries = list(FOLDER.glob("*.so*"))
    assert len(libraries) >= 4
    for library in libraries:
        dynamic = subprocess.run(["readelf", "-d", str(library)], check=True, capture_output=True,
                                 text=True).stdout
        for needed in re.findall(r"\(NEEDED\).*\[(.*)\]", dynamic):
            assert SYSTEM.match(needed) or (FOLDER / needed).exists(), (library.name, needed)
        assert re.findall(r"\(R(?:UN)?PATH\).*\[(.*)\]", dynamic) == ["$ORIGIN"], library.name


def test_licences_are_in_the_wheel():
    if not Path("/usr/bin/dpkg").exists():
        pytest.skip("licences of Debian packages only")
    texts = list((FOLDER / "licenses").glob("*.txt"))
    assert {t.name for t in texts} >= {"libjansson4.txt", "libzip4.txt"} or len(texts) >= 4


def test_one_wheel_for_all_pythons():
    tags = importlib.metadata.distribution("lplb").read_text("WHEEL")
    assert re.search(r"^Tag: py3-none-linux_\w+$", tags, re.M)


def test_files_are_read(tmp_path):
    """Archives and YAML go through the libraries that came along."""
    ids = np.random.default_rng(1).integers(0, 8, (512, 2, 2))
    np.savez_compressed(tmp_path / "ids.npz", topk_ids=ids)
    assert runtime.advise(tmp_path / "ids.npz", ranks=4)["point"]
    load = np.random.default_rng(1).integers(1, 100, (2, 8))
    placement = lplb.place(load, ranks=4, slots=12)
    placement.write(tmp_path / "placement.yaml", "trtllm")
    again = lplb.Placement.read(tmp_path / "placement.yaml", ranks=4)
    assert (again.physical_to_logical_map == placement.physical_to_logical_map).all()


def test_from_another_folder(tmp_path):
    run = subprocess.run([sys.executable, "-m", "lplb.convert", "--help"], cwd=tmp_path,
                         capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
