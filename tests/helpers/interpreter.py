"""Tests of Triton kernels in Triton's interpreter, which must be chosen before Triton is imported: in its own process.

A file of such tests says `pytestmark = linux_only`, marks with `inside` what runs on kernels and with `outside` what
does not, and has one `outside` test that compares `passed(__file__)` with the number of its tests `inside`.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

linux_only = pytest.mark.skipif(
    sys.platform != "linux", reason=f"Triton comes with torch on Linux, not on {sys.platform}"
)
inside = pytest.mark.skipif(not INTERPRETED, reason="runs in the interpreter's process")
outside = pytest.mark.skipif(INTERPRETED, reason="starts the interpreter's process")


def passed(file: str) -> int:
    """How many tests of a file pass in the interpreter; a failure of any fails the caller with their report."""
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-x", "-p", "no:cacheprovider", file]
    done = subprocess.run(command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    counts = re.findall(r"(\d+) passed", done.stdout)
    return int(counts[-1]) if counts else 0
