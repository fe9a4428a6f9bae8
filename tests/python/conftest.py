"""Tests of the Python package.

They run on the source beside them and the library that LPLB_LIBRARY names (or build/), unless
LPLB_TEST_INSTALLED=1: then on the installed package. LPLB_TEST_TORCH=0 hides torch, so that what
must work without it is tested without it; tests that need torch are then skipped.
"""

import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
if os.environ.get("LPLB_LIBRARY"):  # tests change the folder
    os.environ["LPLB_LIBRARY"] = os.path.abspath(os.environ["LPLB_LIBRARY"])
if os.environ.get("LPLB_TEST_INSTALLED") != "1":
    sys.path.insert(0, str(ROOT / "python"))
os.environ.setdefault("USE_LIBUV", "0")  # Debian 13's torch is built without, and asks for it
if os.environ.get("LPLB_TEST_TORCH") == "0":
    sys.modules["torch"] = None  # `import torch` now fails


@pytest.fixture
def root():
    return ROOT
