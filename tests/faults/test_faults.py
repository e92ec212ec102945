"""Every command that writes, killed, interrupted, on a full or read-only disk, and twice at the same time.

What must hold afterwards is stated in docs/reliability.md. `--fuzz-seed` chooses other moments.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import tarfile
import time
import zipfile
from pathlib import Path
from xml.etree import ElementTree

import pytest
from helpers.forks import Server
from helpers.scenes import SCENES
from pydicom import dcmread

from nnunet_ext.errors import UserError
from nnunet_ext.image_files import check_whole

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on the interpreter's system")

# Those that write; plan with a model and predict by onnxruntime write as the others of that name.
WRITERS = (
    "demo", "plan_fast", "import_weights", "slurm", "slurm_prepare", "predict", "predict_prompts", "predict_fewshot",
    "support", "evaluate", "evaluate_folds", "report", "uncertainty", "data_check", "data_clean", "data_convert",
    "data_get", "data_phantoms", "export_model", "import_model", "data_convert_dicom", "data_dicom_seg", "clicks",
)  # fmt: skip
EACH_WRITER = pytest.mark.parametrize("name", WRITERS)
# These print only.
READERS = ("doctor", "models", "slurm_status", "slurm_resume", "slurm_select")
# Of commands that need neither torch nor nnU-Net.
SOME = ("evaluate", "data_clean")
# These refuse a result that is there.
ONCE = (
    "demo", "data_clean", "data_convert", "data_get", "data_phantoms", "import_model", "data_convert_dicom",
)  # fmt: skip
# Exit status of the scenes.
FINDS = ("demo", "data_check")
DISK_BYTES = 24 << 20


@pytest.fixture(scope="module")
def server():
    started = Server()
    yield started
    started.close()


def test_every_command_that_writes_is_here():
    made = {builder.__name__ for builders in SCENES.values() for builder in builders}
    assert made == {*WRITERS, *READERS, "plan_model", "predict_onnx"}


class Stage:
    """A scene with its inputs, and its files after a run that nothing disturbed."""

    def __init__(self, server: Server, name: str, base: Path) -> None:
        self.server, self.name, self.base = server, name, base
        made = server.make(name, base)
        self.inputs = self.listing()
        self.results = [Path(path) for path in (made["output"], *made["more"])]
        status, lines, self.touched = server.run(base)
        assert status == (1 if name in FINDS else 0), lines
        self.whole = {path for path in self.listing() if self.is_result(path)}
        self.clear()

    def listing(self) -> dict[Path, tuple]:
        """Files and what changes when they are written."""
        facts = {path: path.lstat() for path in self.base.rglob("*") if path.is_symlink() or path.is_file()}
        return {path: (found.st_size, found.st_mtime_ns) for path, found in facts.items()}

    def is_result(self, path: Path) -> bool:
        return path not in self.inputs and any(path.is_relative_to(result) for result in self.results)

    def clear(self) -> None:
        """Remove all results."""
        for path in self.listing().keys() - self.inputs.keys():
            path.unlink()
        for result in self.results:
            if result.is_dir() and not any(path.is_relative_to(result) for path in self.inputs):
                shutil.rmtree(result)

    def check(self, *, unfinished: bool = False) -> None:
        """The inputs are as they were, every result is whole, and nothing else is there."""
        found = self.listing()
        results = {path for path in found if self.is_result(path)}
        # A report evaluates runs again whose evaluation is not there.
        kept = {path for path in self.inputs if not any(path.is_relative_to(result) for result in self.results[1:])}
        assert {path: found.get(path) for path in kept} == {path: self.inputs[path] for path in kept}
        left = {path for path in found.keys() - self.inputs.keys() if ".writing-" in str(path.relative_to(self.base))}
        assert unfinished or not left, left
        strange = found.keys() - self.inputs.keys() - results - left
        assert not strange, strange
        for path in results - left:
            assert is_whole(path), f"{path}: {path.stat().st_size} bytes"

    def run_again(self) -> None:
        """The next start ends well, whatever is there, and leaves what an undisturbed run leaves."""
        # What a demo leaves behind is only removed when the user says so.
        status, lines, _ = self.server.run(self.base, words=["--overwrite"] if self.name == "demo" else [])
        there = self.name in ONCE and status == 1 and re.search("exists already", lines[-1])
        assert there or status == (1 if self.name in FINDS else 0), lines
        self.check()
        assert {path for path in self.listing() if self.is_result(path)} == self.whole or self.name == "demo"


def is_whole(path: Path) -> bool:
    try:
        if path.suffix == ".json":
            json.loads(path.read_text())
        elif path.suffix == ".html":
            return path.read_text().rstrip().endswith("</html>")
        elif path.suffix in (".pth", ".pt", ".zip"):
            return zipfile.ZipFile(path).testzip() is None
        elif path.suffix == ".svg":
            ElementTree.parse(path)
        elif path.name.endswith((".nii.gz", ".nii")):
            check_whole(path)
        elif path.suffix == ".png":
            return path.read_bytes()[-8:-4] == b"IEND"
        elif path.suffix == ".dcm":
            return len(dcmread(path).pixel_array) > 0
        elif path.suffix == ".tar":
            return tarfile.is_tarfile(path)
        else:
            return path.suffix in (".log", "") or path.read_bytes().endswith(b"\n")
    except (ValueError, UserError, zipfile.BadZipFile, ElementTree.ParseError):
        return False
    return True


def one_line(lines: list[str], words: str) -> None:
    """The last line says it, and none is a traceback."""
    assert lines and lines[-1].startswith("nnunet_ext ") and re.search(words, " ".join(lines)), lines
    assert not any("Traceback" in line for line in lines), lines


def kill(stage: Stage, rng: random.Random, times: int) -> None:
    """SIGKILL as it touches a file for the n-th time, then start again; half of the times over an old result."""
    moments = [rng.randint(1, stage.touched) for _ in range(times)]
    for turn, moment in enumerate(moments):
        stage.clear()
        if turn % 2 and stage.name not in ONCE:
            stage.server.run(stage.base)
        status, lines, touched = stage.server.run(stage.base, signal=(signal.SIGKILL, moment))
        assert status == -signal.SIGKILL or touched < moment, lines  # less is to be done over an old result
        stage.check(unfinished=True)
        stage.run_again()


def interrupt(stage: Stage, rng: random.Random, times: int) -> None:
    """SIGINT in the same way: one line, exit status 130, nothing unfinished."""
    for _ in range(times):
        stage.clear()
        moment = rng.randint(1, stage.touched)
        status, lines, _ = stage.server.run(stage.base, signal=(signal.SIGINT, moment))
        assert status == 130 or (moment == stage.touched and status in (0, 1)), (moment, status, lines)
        if status == 130:
            one_line(lines, "interrupted")
        stage.check()
        stage.run_again()


@pytest.mark.parametrize("name", SOME)
def test_killed_and_interrupted(server, name, tmp_path, fuzz_seed):
    stage = Stage(server, name, tmp_path / "scene")
    rng = random.Random(f"{fuzz_seed} {name}")
    kill(stage, rng, 2)
    interrupt(stage, rng, 1)


@pytest.mark.slow
@EACH_WRITER
def test_killed_at_many_moments(server, name, tmp_path, fuzz_seed, fuzz_times):
    stage = Stage(server, name, tmp_path / "scene")
    kill(stage, random.Random(f"kill {fuzz_seed} {name}"), 3 * fuzz_times)


@pytest.mark.slow
@EACH_WRITER
def test_interrupted_at_many_moments(server, name, tmp_path, fuzz_seed, fuzz_times):
    stage = Stage(server, name, tmp_path / "scene")
    interrupt(stage, random.Random(f"interrupt {fuzz_seed} {name}"), fuzz_times)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["predict", "report", "uncertainty", "data_clean"])
def test_killed_at_any_time(server, name, tmp_path, fuzz_seed, fuzz_times):
    """By the clock, so that libraries are met in the middle of a file."""
    stage = Stage(server, name, tmp_path / "scene")
    begun = time.monotonic()
    server.run(stage.base)
    seconds = time.monotonic() - begun
    rng = random.Random(f"time {fuzz_seed} {name}")
    for _ in range(2 * fuzz_times):
        stage.clear()
        process = server.start(stage.base)
        time.sleep(rng.random() * seconds)
        os.kill(process, signal.SIGKILL)
        server.wait(process)
        stage.check(unfinished=True)
        stage.run_again()


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 24 MiB of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", folder]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting a small disk needs root; the limit on the size of files is tested all the same")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def fill(folder: Path, free: int) -> Path:
    """A file that leaves `free` bytes of the disk."""
    filler = folder / "filler"
    with open(filler, "wb") as file:
        while (left := os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize - free) > 0:
            file.write(bytes(min(left, 1 << 20)))
            file.flush()
    return filler


def fails(stage: Stage, words: str, **options: object) -> bool:
    """Run where not everything can be written: one line and nothing unfinished, or success."""
    status, lines, _ = stage.server.run(stage.base, **options)
    failed = status != (1 if stage.name in FINDS else 0) or (stage.name == "demo" and "stopped" not in lines[-1])
    failed = failed or (stage.name in FINDS and bool(lines) and "cannot write" in lines[-1])
    if failed:
        assert status == 1, (status, lines)
        one_line(lines, words)
    stage.check()
    return failed


NO_ROOM = r"No space left|File too large|is the disk full|make room|Make room"


@pytest.mark.parametrize("name", SOME)
def test_no_file_may_grow(server, name, tmp_path):
    """The limit on the size of files, which needs no root, in the place of a full disk."""
    stage = Stage(server, name, tmp_path / "scene")
    assert fails(stage, NO_ROOM, file_size=30)
    stage.clear()
    stage.run_again()


@pytest.mark.slow
@EACH_WRITER
def test_full_disk(server, name, small_disk):
    stage = Stage(server, name, small_disk / "scene")
    failed = []
    for free in (0, 6 << 10):
        for old in (False, True):
            stage.clear()
            if old and name not in ONCE:
                stage.server.run(stage.base)
            filler = fill(small_disk, free)
            failed.append(fails(stage, NO_ROOM))
            filler.unlink()
    assert any(failed)
    stage.clear()
    stage.run_again()


@pytest.mark.slow
@EACH_WRITER
def test_read_only_disk(server, name, small_disk):
    stage = Stage(server, name, small_disk / "scene")
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    try:
        status, lines, _ = stage.server.run(stage.base)
    finally:
        subprocess.run(["mount", "-o", "remount,rw", small_disk], check=True)
    assert status == 1, lines
    one_line(lines, "Read-only file system|cannot write to")
    stage.check()


@pytest.mark.slow
@EACH_WRITER
def test_two_at_the_same_time(server, name, tmp_path):
    stage = Stage(server, name, tmp_path / "scene")
    processes = [server.start(stage.base) for _ in range(2)]
    ended = [server.wait(process) for process in processes]
    for status, lines, _ in ended:
        assert status in (0, 1) and not any("Traceback" in line for line in lines), lines
        if status and name not in FINDS:
            one_line(lines, r"exists already|cannot write|not empty|earlier demo")
    assert name in FINDS or 0 in [status for status, *_ in ended], ended
    stage.check()
    assert {path for path in stage.listing() if stage.is_result(path)} == stage.whole or name == "demo"
