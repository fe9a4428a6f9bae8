"""The ctypes side agrees with the C headers, errors arrive, the library is found."""

import ast
import ctypes
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest

import lplb
from lplb import _library as c


def declarations(root):
    """{name: number of parameters} of the public headers."""
    out = {}
    for header in (root / "include" / "lplb").glob("*.h"):
        text = re.sub(r"/\*.*?\*/", "", header.read_text(), flags=re.S)
        for match in re.finditer(r"LPLB_API\s+[^;()]*?\b(lplb_\w+)\(([^;]*)\);", text):
            name, given = match.groups()
            given = re.sub(r"\([^()]*\)", "", given).strip()
            out[name] = 0 if given in ("void", "") else given.count(",") + 1
    return out


def test_prototypes_are_those_of_the_headers(root):
    declared = declarations(root)
    assert len(declared) > 40
    for name, prototype in c.PROTOTYPES.items():
        assert name in declared, name
        assert len(prototype) - 1 == declared[name], name


STRUCTS = {"lplb_hosts": c.Hosts, "lplb_ipm_options": c.IpmOptions,
           "lplb_plan_config": c.PlanConfig, "lplb_plan_input": c.PlanInput,
           "lplb_plan": c.PlanResult, "lplb_fraction": c.Fraction, "lplb_bound": c.Bound,
           "lplb_placement": c.PlacementStruct, "lplb_move": c.Move,
           "lplb_place_config": c.PlaceConfig, "lplb_topology": c.Topology, "lplb_trace": c.Trace,
           "lplb_transport": c.Transport}


def test_structs_are_those_of_the_headers(root, tmp_path):
    check_structs(root, tmp_path, "lplb/lplb.h", STRUCTS)


def check_structs(root, tmp_path, header, structs):
    if not shutil.which("cc"):
        pytest.skip("no C compiler")
    lines, wanted = [], []
    for name, struct in structs.items():
        lines.append(f'printf("%zu\\n", sizeof({name}));')
        wanted.append(ctypes.sizeof(struct))
        for field, *_ in struct._fields_:
            member = field.rstrip("_")
            lines.append(f'printf("%zu\\n", offsetof({name}, {member}));')
            wanted.append(getattr(struct, field).offset)
    source = tmp_path / "sizes.c"
    source.write_text("\n".join([f"#include <{header}>", "#include <stdio.h>", "int main(void) {",
                                 *lines, "return 0;", "}", ""]))
    subprocess.run(["cc", f"-I{root}/include", str(source), "-o", str(tmp_path / "sizes")],
                   check=True)
    out = subprocess.run([str(tmp_path / "sizes")], check=True, capture_output=True, text=True)
    assert [int(n) for n in out.stdout.split()] == wanted


def test_codes_are_those_of_the_header(root):
    text = (root / "include" / "lplb" / "status.h").read_text()
    codes = dict(re.findall(r"X\((\w+), (-?\d+),", text))
    assert len(codes) > 15
    for name, value in codes.items():
        assert getattr(c, name) == int(value)


def test_version_is_the_librarys(root):
    assert c.lib().lplb_version().decode() == lplb.__version__
    assert f"VERSION {lplb.__version__} " in (root / "CMakeLists.txt").read_text()


def test_errors_name_what_is_wrong():
    with pytest.raises(lplb.Error) as caught:
        lplb.Placement([0, 1, 2], 2)
    assert isinstance(caught.value, ValueError)
    assert caught.value.status == c.INVALID and caught.value.name == "LPLB_INVALID"
    assert "3" in caught.value.message and "2" in caught.value.message
    with pytest.raises(lplb.InputError, match="expert 1"):
        lplb.Placement([0, 0, 2, 2], 2)


def run_python(code, **environment):
    import os

    path = [p for p in sys.path if p]
    env = {**os.environ, "PYTHONPATH": ":".join(path), **environment}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)


def test_library_is_named_by_the_environment(tmp_path):
    code = "import lplb; lplb.Placement([0, 1], 2)"
    missing = run_python(code, LPLB_LIBRARY=str(tmp_path / "none.so"))
    assert missing.returncode != 0 and "does not exist" in missing.stderr
    empty = run_python(code, LPLB_LIBRARY=str(tmp_path))
    assert empty.returncode != 0 and "there is no liblplb.so.0" in empty.stderr
    wrong = tmp_path / "liblplb.so.0"
    wrong.write_text("no library")
    assert "cannot load" in run_python(code, LPLB_LIBRARY=str(tmp_path)).stderr
    found = run_python(code, LPLB_LIBRARY=c.lib().path)
    assert found.returncode == 0, found.stderr


def test_torch_is_not_imported():
    code = ("import sys, numpy, lplb, lplb.eplb, lplb.convert, lplb.engines\n"
            "p = lplb.Planner.from_placement(numpy.arange(8), ep_size=4)\n"
            "p.run(numpy.arange(8))\n"
            "assert 'torch' not in sys.modules")
    done = run_python(code, LPLB_LIBRARY=c.lib().path)
    assert done.returncode == 0, done.stderr


def test_dlpack_arrays_work():
    class Foreign:  # an array of another library
        def __init__(self, data):
            self.data, self.shape, self.dtype = data, data.shape, data.dtype

        def __dlpack__(self, **options):
            return self.data.__dlpack__()

        def __dlpack_device__(self):
            return self.data.__dlpack_device__()

    planner = lplb.Planner.from_placement(np.arange(8), ep_size=4)
    ids = np.array([[3, -1], [7, 0]])
    assert (planner.run(Foreign(ids)) == ids).all()


def runtime_unions(tree):
    """Lines with X | Y where Python 3.9 would evaluate it: outside annotations that
    `from __future__ import annotations` turns into text."""
    for node in ast.walk(tree):
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
            sides = (node.left, node.right)
            if any(isinstance(s, ast.Constant) and s.value is None for s in sides):
                yield node.lineno


def without_annotations(tree):
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            node.returns = None
        elif isinstance(node, ast.arg):
            node.annotation = None
        elif isinstance(node, ast.AnnAssign):
            node.annotation = ast.Constant(None)
    return tree


def test_sources_are_python_3_9(root):
    """Syntax, and what newer versions evaluate but 3.9 does not."""
    newer = {"strict", "slots", "kw_only"}  # arguments of zip and dataclass since 3.10
    for path in sorted((root / "python" / "lplb").glob("*.py")) + [root / "examples/torch_moe.py"]:
        text = path.read_text()
        tree = ast.parse(text, str(path), feature_version=(3, 9))
        postponed = "from __future__ import annotations" in text
        if postponed:
            tree = without_annotations(tree)
        assert not list(runtime_unions(tree)), path.name
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                name = getattr(node.func, "id", getattr(node.func, "attr", ""))
                used = {k.arg for k in node.keywords} & newer
                assert not (used and name in ("zip", "dataclass")), (path.name, node.lineno, used)
            assert not (isinstance(node, ast.Attribute) and node.attr == "bit_count"), path.name
