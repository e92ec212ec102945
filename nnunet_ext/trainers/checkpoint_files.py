"""Checkpoint files: kept under a second name, and found out to be damaged."""

from __future__ import annotations

import os
import pickle
import shutil
from pathlib import Path

import torch

from nnunet_ext.errors import TrainingError, UserError
from nnunet_ext.files import remove_leftovers, write_text, writing_prefix


def keep(path: Path, kept: Path) -> None:
    """Give the file a second name, without a moment in which either name is missing."""
    remove_leftovers(kept)
    link = kept.with_name(writing_prefix() + kept.name)
    link.unlink(missing_ok=True)
    try:
        os.link(path, link)
    except (OSError, AttributeError):  # file systems, or systems, without hard links
        shutil.copyfile(path, link)
    os.replace(link, kept)


def to_continue(path: Path, latest: Path) -> Path:
    """What --c goes on from when nnU-Net takes `path`: `latest` where it is the newer, of a run that went on since.

    nnU-Net takes checkpoint_final.pth whenever there is one; a training that ends removes checkpoint_latest.pth, so
    where both are, another has begun after it.
    """
    both = path.is_file() and latest.is_file()
    return latest if both and latest.stat().st_mtime > path.stat().st_mtime else path


def why_unreadable(path: Path) -> str | None:
    """None if the file is a whole checkpoint. Reads its index only: a truncated archive has none."""
    if not path.is_file():
        return "it does not exist"
    try:
        torch.load(path, map_location="cpu", weights_only=False, mmap=True)
    except (RuntimeError, EOFError, OSError, ValueError, pickle.UnpicklingError) as error:
        return (str(error).strip().splitlines() or [type(error).__name__])[0]
    return None


def check_writable(folder: str) -> None:
    """Refuse a folder of results that cannot be written, before anything is computed.

    Raises:
        TrainingError: it cannot.
    """
    probe = Path(folder, ".nnunet_ext_can_write")
    try:
        write_text(probe, "")
        probe.unlink()
    except UserError:
        raise TrainingError(f"nnUNet_results={folder} cannot be written; set it to a folder you may write to") from None
