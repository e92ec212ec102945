"""Medical Segmentation Decathlon (Antonelli et al., Nature Communications 2022; CC BY-SA 4.0) as nnU-Net raw data."""

from __future__ import annotations

import json
import os
import shutil
import zlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

import nibabel

from nnunet_ext.data.fetch import archive_files, download, intact
from nnunet_ext.environment import decimal
from nnunet_ext.errors import UserError, reason_of
from nnunet_ext.files import atomic_folder, write_json
from nnunet_ext.image_files import HEADER_ERRORS, check_whole

# Bytes; the largest of the Decathlon's has some 50 KB.
_LARGEST_DESCRIPTION = 1 << 24

BASE = "https://msd-for-monai.s3-us-west-2.amazonaws.com"
ENDING = ".nii.gz"


@dataclass(frozen=True)
class DecathlonTask:
    """One task: its number and name, what it shows, and the MD5 of its archive."""

    number: int
    name: str
    content: str
    md5: str

    @property
    def archive(self) -> str:
        return f"Task{self.number:02d}_{self.name}.tar"


# Checksums as MONAI publishes them for the same bucket (monai.apps.DecathlonDataset, Apache-2.0).
TASKS = (
    DecathlonTask(1, "BrainTumour", "glioma; MR: FLAIR, T1w, T1gd, T2w", "240a19d752f0d9e9101544901065d872"),
    DecathlonTask(2, "Heart", "left atrium; MR", "06ee59366e1e5124267b774dbd654057"),
    DecathlonTask(3, "Liver", "liver and tumour; CT", "a90ec6c4aa7f6a3d087205e23d4e6397"),
    DecathlonTask(4, "Hippocampus", "anterior and posterior hippocampus; MR", "9d24dba78a72977dbd1d2e110310f31b"),
    DecathlonTask(5, "Prostate", "peripheral and transition zone; MR: T2, ADC", "35138f08b1efaef89d7424d2bcc928db"),
    DecathlonTask(6, "Lung", "lung tumour; CT", "8afd997733c7fc0432f71255ba4e52dc"),
    DecathlonTask(7, "Pancreas", "pancreas and tumour; CT", "4f7080cfca169fa8066d17ce6eb061e4"),
    DecathlonTask(8, "HepaticVessel", "hepatic vessels and tumour; CT", "641d79e80ec66453921d997fbf12a29c"),
    DecathlonTask(9, "Spleen", "spleen; CT", "410d4a301da4e5b2f6f86ec3ddba524e"),
    DecathlonTask(10, "Colon", "colon cancer; CT", "bad7a188931dc2f6acf72b08eb6202d0"),
)


def find_task(text: str) -> DecathlonTask:
    """A task by number (4), name (Hippocampus) or both (Task04_Hippocampus).

    Raises:
        UserError: there is none of that name.
    """
    for task in TASKS:
        if text.lower() in (str(task.number), task.name.lower(), task.archive[:-4].lower()):
            return task
    names = ", ".join(task.archive[:-4] for task in TASKS)
    raise UserError(f"{text} is no task of the Medical Segmentation Decathlon; choose from {names}")


def get_task(
    task: DecathlonTask,
    raw: str | os.PathLike[str],
    base: str = BASE,
    number: int | None = None,
    keep_archive: bool = False,
    progress: bool = False,
) -> Path:
    """Download a task into `raw` and convert it; returns the data set's folder, such as raw/Dataset004_Hippocampus.

    Args:
        task: which one.
        raw: nnU-Net's raw folder; the archive gathers here too and is removed in the end.
        base: address of the folder of archives.
        number: the data set's number; None: the task's.
        keep_archive: do not remove the archive.
        progress: show a bar on stderr.

    Raises:
        UserError: see `download` and `convert_archive`; or the data set exists already.
    """
    raw = Path(raw)
    target = raw / f"Dataset{task.number if number is None else number:03d}_{task.name}"
    if target.exists():
        raise UserError(f"{target} exists already; remove it or choose another number (-d)")
    archive = download(f"{base.rstrip('/')}/{task.archive}", raw / task.archive, task.md5, progress=progress)
    convert_archive(archive, target)
    if not keep_archive:
        archive.unlink()
    return target


def convert_archive(archive: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
    """Unpack a Decathlon archive as an nnU-Net raw data set; 4D images become one file per channel.

    Raises:
        UserError: the archive is damaged or unsafe, lacks dataset.json, or its images and labels are not those that
            dataset.json lists.
    """
    description: dict[str, Any] | None = None
    found: dict[str, set[str]] = {"imagesTr": set(), "labelsTr": set(), "imagesTs": set()}
    with atomic_folder(target) as folder:
        for kind in found:
            (folder / kind).mkdir()
        with intact(archive):
            for name, file in archive_files(archive):
                kind = name.parent.name
                if name.name == "dataset.json":
                    description = _read_description(archive, file)
                elif kind in found and name.name.endswith(ENDING):
                    case = name.name.removesuffix(ENDING)
                    _unpack(file, folder / kind, case, split=kind.startswith("images"))
                    found[kind].add(case)
        if description is None:
            raise UserError(f"{archive} has no dataset.json; it is no archive of the Decathlon")
        listed = {PurePosixPath(pair["image"]).name.removesuffix(ENDING) for pair in description["training"]}
        for kind in ("imagesTr", "labelsTr"):
            if found[kind] != listed:
                odd = sorted(found[kind] ^ listed)[0]
                raise UserError(f"{archive}: {kind} and dataset.json disagree about case {odd}; download it again")
        write_json(
            folder / "dataset.json",
            {
                "channel_names": description["modality"],
                "labels": {name: int(value) for value, name in description["labels"].items()},
                "numTraining": len(listed),
                "file_ending": ENDING,
                **{k: description[k] for k in ("name", "description", "reference", "licence") if k in description},
            },
        )


def _read_description(archive: str | os.PathLike[str], file: IO[bytes]) -> dict[str, Any]:
    try:
        description = json.loads(file.read(_LARGEST_DESCRIPTION).decode("utf-8"))
        training = description.setdefault("training", [])
        if (
            all(isinstance(description[key], dict) and description[key] for key in ("modality", "labels"))
            and all(isinstance(name, str) for key in ("modality", "labels") for name in description[key].values())
            and all(decimal(number) is not None for key in ("modality", "labels") for number in description[key])
            and all(isinstance(pair["image"], str) for pair in training)
        ):
            return dict(description)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass
    raise UserError(
        f"{archive} has a dataset.json without numbered modality and labels, or with odd entries; it is no archive of "
        "the Decathlon"
    )


def _unpack(file: IO[bytes], folder: Path, case: str, split: bool) -> None:
    whole = folder / f"{case}{ENDING}"
    with open(whole, "wb") as target:
        shutil.copyfileobj(file, target, 1 << 20)
    try:
        check_whole(whole)
        if not split:
            return
        image: Any = nibabel.load(whole)
        if len(image.shape) == 3:
            whole.rename(folder / f"{case}_0000{ENDING}")
            return
        if len(image.shape) != 4:
            raise ValueError(f"shape {image.shape}; expected three axes, or four with channels")
        for channel in range(image.shape[3]):
            nibabel.save(image.slicer[..., channel], folder / f"{case}_{channel:04d}{ENDING}")
    except (UserError, EOFError, zlib.error, MemoryError, *HEADER_ERRORS) as error:
        text = reason_of(error).replace(f"{whole} ", "")
        raise UserError(f"{whole.name} in the archive is damaged ({text}); download it again") from None
    whole.unlink()
