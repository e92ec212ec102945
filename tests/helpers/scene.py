"""What a scene is, and the data sets the scenes of `helpers.scenes` are made of."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import shutil
import tarfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from unittest.mock import patch

import numpy as np
import SimpleITK as sitk

DATASET = "Dataset007_Toy"


@dataclass(frozen=True)
class Scene:
    """A command that succeeds.

    Attributes:
        words: the command line.
        base: holds all files; the command runs in `base`/here.
        output: what it writes, a file or a folder; None for a command that only prints.
        more: folders it may write into, too.
        variables: of the environment.
        fixed: options whose value is left alone, since others are sound and take long, or name a network address.
        whole: a failure leaves nothing at all.
        finds: exit status 1 may mean that something was found, which stdout says.
        chatter: pattern of lines on stderr that are no errors.
        starts: it may start other programs.
        stubs: what is replaced while it runs, (target, by what).
        weight: how many inputs it gets, beside the others: 3, or less where a run takes long.
    """

    words: tuple[str, ...]
    base: Path
    output: Path | None = None
    more: tuple[Path, ...] = ()
    variables: dict[str, str] = field(default_factory=dict)
    fixed: tuple[str, ...] = ()
    whole: bool = True
    finds: bool = False
    chatter: str = ""
    starts: bool = False
    stubs: tuple[tuple[str, object], ...] = ()
    weight: int = 3

    @contextlib.contextmanager
    def prepared(self) -> Iterator[None]:
        """With its stubs in place."""
        with ExitStack() as stack:
            for target, stub in self.stubs:
                stack.enter_context(patch(target, stub))
            yield


def write_image(path: Path, array: np.ndarray, spacing: tuple[float, ...] = (1.0, 1.0, 2.0)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(spacing[: image.GetDimension()])
    sitk.WriteImage(image, str(path))


def volume(seed: int, shape: tuple[int, ...] = (8, 12, 10)) -> tuple[np.ndarray, np.ndarray]:
    """An image and its label map: a box of label 1 and a smaller one of label 2."""
    labels = np.zeros(shape, np.uint8)
    labels[1:6, 2:9, 2:8] = 1
    labels[2:4, 3:6, 3 : 6 + seed % 2] = 2
    return (labels * 50 + np.random.default_rng(seed).normal(100, 5, shape)).astype(np.float32), labels


def raw_dataset(folder: Path, cases: int = 3) -> Path:
    for number in range(cases):
        image, labels = volume(number)
        write_image(folder / "imagesTr" / f"c{number}_0000.nii.gz", image)
        write_image(folder / "labelsTr" / f"c{number}.nii.gz", labels)
    facts = {"channel_names": {"0": "MR"}, "labels": {"background": 0, "left a": 1, "b": 2}, "numTraining": cases}
    (folder / "dataset.json").write_text(json.dumps({**facts, "file_ending": ".nii.gz"}))
    return folder


def preprocessed(base: Path, cases: int = 3) -> dict[str, str]:
    """nnU-Net's three folders with a data set that has plans, its results and references; the variables for them."""
    from helpers.model_folders import plans

    folder = base / "pre" / DATASET
    (base / "results" / DATASET).mkdir(parents=True)
    raw_dataset(base / "raw" / DATASET, cases)
    shutil.copytree(base / "raw" / DATASET / "labelsTr", folder / "gt_segmentations")
    shutil.copyfile(base / "raw" / DATASET / "dataset.json", folder / "dataset.json")
    content = plans(DATASET)
    for configuration in content["configurations"].values():
        configuration["data_identifier"] = "nnUNetPlans_3d_fullres"
        configuration["median_image_size_in_voxels"] = [8.0, 12.0, 10.0]
    (folder / "nnUNetPlans.json").write_text(json.dumps(content))
    (folder / "nnUNetPlans_3d_fullres").mkdir()
    for number in range(cases):
        (folder / "nnUNetPlans_3d_fullres" / f"c{number}.pkl").write_bytes(b"\x80\x04}.")
    splits = [{"train": ["c1", "c2"], "val": ["c0"]}, {"train": ["c0"], "val": ["c1", "c2"]}]
    (folder / "splits_final.json").write_text(json.dumps(splits))
    return {
        "nnUNet_raw": str(base / "raw"),
        "nnUNet_preprocessed": str(base / "pre"),
        "nnUNet_results": str(base / "results"),
    }


def slices(configuration: dict) -> dict:
    """Plans of a small UniverSeg from those of a 3D network."""
    architecture = {
        "network_class_name": "nnunet_ext.architectures.universeg.FewShotNetwork",
        "arch_kwargs": {"encoder_blocks": [4, 4], "image_size": 32}, "_kw_requires_import": [],
    }  # fmt: skip
    return {**configuration, "patch_size": [32, 32], "spacing": [2.0, 2.0], "architecture": architecture}


def decathlon(base: Path) -> bytes:
    """An archive as the Decathlon's: two cases and a test image."""
    members = {}
    for number in range(2):
        image, labels = volume(number)
        for kind, array in (("imagesTr", image), ("labelsTr", labels), ("imagesTs", image)):
            write_image(base / "member.nii", array)
            members[f"{kind}/c{number}.nii.gz"] = gzip.compress((base / "member.nii").read_bytes(), 1)
    (base / "member.nii").unlink()
    pairs = [{"image": f"./imagesTr/c{n}.nii.gz", "label": f"./labelsTr/c{n}.nii.gz"} for n in range(2)]
    facts = {"modality": {"0": "MR"}, "labels": {"0": "background", "1": "a", "2": "b"}, "training": pairs}
    members["dataset.json"] = json.dumps(facts).encode()
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(f"Task99_Toy/{name}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()
