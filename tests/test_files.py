"""Files appear whole or not at all, also on a full disk, and what killed writers left is cleared away."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from nnunet_ext.errors import UserError
from nnunet_ext.files import atomic_folder, atomic_path, write_text

WRITER = """
import sys, time
from pathlib import Path
from nnunet_ext.files import {how}
with {how}(sys.argv[1]) as temporary:
    ({inside}).write_bytes(b"half")
    print("writing", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize(("how", "inside"), [("atomic_path", "temporary"), ("atomic_folder", "temporary / 'part'")])
def test_leftovers_of_a_killed_writer_go_with_the_next_write(tmp_path, how, inside):
    target = tmp_path / "result.bin"
    run = subprocess.Popen(
        [sys.executable, "-c", WRITER.format(how=how, inside=inside), target], stdout=subprocess.PIPE
    )
    assert run.stdout.readline() == b"writing\n"
    (unfinished,) = tmp_path.iterdir()

    def write_again() -> None:
        with {"atomic_path": atomic_path, "atomic_folder": atomic_folder}[how](target) as temporary:
            (temporary if how == "atomic_path" else temporary / "part").write_bytes(b"whole")

    write_text(tmp_path / "other.bin", "")
    assert unfinished.exists(), "somebody else's file, still being written"
    if how == "atomic_path":
        write_again()
        assert unfinished.exists(), "another writer of the same file is at work"
    run.send_signal(signal.SIGKILL)
    run.wait()
    stranger = tmp_path / f".writing-00000000-{run.pid}-abcdefgh-result.bin"
    stranger.touch()
    write_again()
    assert {path.name for path in tmp_path.iterdir()} == {"result.bin", "other.bin", stranger.name}


def save_tensors(path: Path) -> None:
    torch.save({"weights": torch.rand(100_000)}, path)


def save_arrays(path: Path) -> None:
    with open(path, "wb") as file:
        np.savez_compressed(file, a=np.random.default_rng(0).random(100_000))


@pytest.mark.parametrize("save", [save_tensors, save_arrays, lambda path: path.write_bytes(os.urandom(10**6))])
def test_full_disk_is_one_line_and_keeps_the_old_file(full_disk, save):
    target = full_disk / "result"
    write_text(target, "old")
    with pytest.raises(UserError, match=r"cannot write .*/result: .*make room"), atomic_path(target) as temporary:
        save(temporary)
    assert [path.name for path in full_disk.iterdir()] == ["result"] and target.read_text() == "old"
    with pytest.raises(UserError, match=r"cannot write .*/folder: .*make room"):
        with atomic_folder(full_disk / "folder") as temporary:
            save(temporary / "result")
    assert [path.name for path in full_disk.iterdir()] == ["result"]


def test_error_that_comes_while_closing_is_one_line(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="No space left on device"):
        write_text(tmp_path / "a", "text")
    assert not list(tmp_path.iterdir())


def test_errors_of_other_kinds_are_not_taken_for_full_disks(tmp_path):
    with pytest.raises(RuntimeError, match="mat1 and mat2"), atomic_path(tmp_path / "a"):
        torch.ones(2, 3) @ torch.ones(2, 3)
    with pytest.raises(UserError, match=r"cannot read .*/missing: No such file"), atomic_path(tmp_path / "a"):
        (tmp_path / "missing").read_bytes()
    assert not list(tmp_path.iterdir())


def test_names_that_are_no_utf8_are_one_line(tmp_path):
    with pytest.raises(UserError, match=r"cannot write .*/a: it would hold 'run \\udcff', a name that is no UTF-8"):
        write_text(tmp_path / "a", "run \udcff")
    assert not list(tmp_path.iterdir())
