"""Every Python block of the pages runs, a page's blocks one after the other."""

import re
import sys

import pytest

from conftest import ROOT

PAGES = ["python", "from-lplb", "from-eplb", "sglang", "vllm", "tensorrt-llm", "megatron",
         "multi-gpu"]


@pytest.mark.parametrize("page", PAGES)
def test_page(page, tmp_path, monkeypatch):
    text = (ROOT / "docs" / f"{page}.md").read_text()
    if "import torch" in text:
        pytest.importorskip("torch")
    blocks = re.findall(r"^```python\n(.*?)^```$", text, flags=re.S | re.M)
    assert blocks
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    names = {}
    for number, block in enumerate(blocks):
        exec(compile(block, f"{page}.md, block {number + 1}", "exec"), names)


def test_pages_are_reachable():
    text = (ROOT / "docs" / "python.md").read_text()
    for page in PAGES[1:]:
        assert f"({page}.md)" in text, page
