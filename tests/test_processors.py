"""Numbers do not depend on the processor: a few tests once more, as on one without AVX and fused multiply-add."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parent
CHOSEN = [
    "architectures/test_precision.py",
    "architectures/test_medsegdiff.py::test_time_embedding_is_the_published",
    "ops/test_scan_cpu.py::test_single_precision_is_accurate_over_a_long_sequence",
    "ops/test_scan_cpu.py::test_extreme_step_sizes",
    "ops/test_scan_cpu.py::test_nan_is_never_swallowed",
    "ops/test_selective_scan.py::test_golden_values_and_all_gradients[cpu]",
]
# For torch's own kernels, oneDNN's and MKL's in torch, and those that numba compiles.
OLDEST = {
    "ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_CBWR": "COMPATIBLE",
    "NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": "",
}  # fmt: skip


def test_an_old_processor_computes_the_same(tmp_path):
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-n",
        "0",
        "-p",
        "no:cacheprovider",
        *(str(TESTS / name) for name in CHOSEN),
    ]
    environment = {**os.environ, **OLDEST, "NUMBA_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(command, env=environment, cwd=TESTS.parent, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and " passed" in done.stdout and "skipped" not in done.stdout, done.stdout[-5000:]
