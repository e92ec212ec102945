"""Shared by all tests: where the real data and the golden files are, and one thread per test."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from helpers import nnunet_dataset

GOLDEN = Path(__file__).parent / "golden"
REPOSITORY = Path(__file__).parent.parent

# Small tensors gain nothing from threads, and spinning ones slow every neighbour.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_addoption(parser):
    parser.addoption("--fuzz-seed", type=int, default=0, help="other inputs of the fuzz tests (default: 0)")
    parser.addoption("--fuzz-times", type=int, default=1, help="so many times the inputs of the slow fuzz tests")


@pytest.fixture
def fuzz_seed(request) -> int:
    return request.config.getoption("--fuzz-seed")


@pytest.fixture
def fuzz_times(request) -> int:
    return request.config.getoption("--fuzz-times")


@pytest.fixture
def full_disk(tmp_path):
    """A folder on a disk of 64 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("mounting a small disk needs root")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder with `Dataset004_Hippocampus` and others in nnU-Net raw format."""
    folder = Path(os.environ.get("NNUNET_EXT_TEST_DATA", REPOSITORY.parent / "shared" / "data"))
    if not (folder / "Dataset004_Hippocampus" / "dataset.json").is_file():
        pytest.skip(f"no real data under {folder}; set NNUNET_EXT_TEST_DATA")
    return folder.resolve()


@pytest.fixture(scope="session")
def preprocessed(tmp_path_factory) -> Path:
    """Folder of the preprocessed phantoms, made once; nnU-Net's three folders lie two levels up."""
    return nnunet_dataset.make(tmp_path_factory.mktemp("nnunet"))


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    """Where everything a test may need is installed, a skip is a failure: no test vanishes unseen."""
    outcome = yield
    report = outcome.get_result()
    if report.skipped and os.environ.get("NNUNET_EXT_TEST_NOTHING_SKIPPED") and not hasattr(report, "wasxfail"):
        reason = str(report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr)
        if not any(allowed in reason for allowed in ("CUDA device", "the interpreter")):
            report.outcome, report.longrepr = "failed", f"{item.nodeid}: {reason}; nothing may be skipped here"
