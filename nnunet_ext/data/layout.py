"""The files of an nnU-Net raw data set, found without assuming that they are all there."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nnunet_ext import tiff
from nnunet_ext.cases import ChannelFiles, channel_files
from nnunet_ext.data.findings import Finding
from nnunet_ext.datasets import find_dataset
from nnunet_ext.errors import UserError
from nnunet_ext.files import read_json, utf8_name

# Folder suffix: training and test cases.
SPLITS = ("Tr", "Ts")


@dataclass(frozen=True)
class CaseFiles:
    """One case: `split` is Tr or Ts, `images` one file per channel, `label` None where there is none."""

    name: str
    split: str
    images: tuple[Path, ...]
    label: Path | None


@dataclass(frozen=True)
class Layout:
    """A raw data set as it lies on the disk.

    Attributes:
        folder: with dataset.json, imagesTr, labelsTr and perhaps imagesTs, labelsTs.
        description: dataset.json.
        channels: channel names in order.
        labels: name to value, or to the values of a region.
        file_ending: such as .nii.gz.
        cases: those with all their channels.
        findings: what is wrong so far.
    """

    folder: Path
    description: dict[str, Any]
    channels: tuple[str, ...]
    labels: dict[str, Any]
    file_ending: str
    cases: tuple[CaseFiles, ...]
    findings: tuple[Finding, ...] = field(default=())

    @property
    def values(self) -> tuple[int, ...]:
        """All declared label values, 0 included."""
        found = {0}
        for value in self.labels.values():
            found.update(int(v) for v in (value if isinstance(value, (list, tuple)) else [value]))
        return tuple(sorted(found))

    def name_of(self, value: int) -> str:
        return next((name for name, v in self.labels.items() if v == value), str(value))

    @property
    def is_ct(self) -> tuple[bool, ...]:
        return tuple(name.lower() == "ct" for name in self.channels)


def raw_dataset(dataset: str | os.PathLike[str]) -> Path:
    """The folder of a raw data set given as a path, or by name or number in nnUNet_raw.

    Raises:
        UserError: a path to no folder, or as `find_dataset`.
    """
    if Path(dataset).is_dir():
        return Path(os.path.abspath(dataset))
    text = str(dataset)
    if Path(text).name != text:
        raise UserError(f"{text} is not a folder; give one, or a data set's name or number in nnUNet_raw")
    return find_dataset(text, "nnUNet_raw", remedy="give its folder, or check the number or name")


def read_layout(folder: Path) -> Layout:
    """Find the cases of a raw data set and list what is missing.

    Raises:
        UserError: there is no dataset.json that says what a channel, a label and an image file are.
    """
    path = folder / "dataset.json"
    if not path.is_file():
        raise UserError(f"{folder} has no dataset.json; expected an nnU-Net raw data set (see nnunet_ext data convert)")
    description = read_json(path)
    if not isinstance(description, dict):
        raise UserError(f"{path} is no JSON object; expected nnU-Net v2's form of dataset.json")
    channels = description.get("channel_names", description.get("modality"))
    labels, ending = description.get("labels"), description.get("file_ending")
    if not (isinstance(channels, dict) and channels and isinstance(labels, dict) and isinstance(ending, str)) or (
        not ending.startswith(".")
    ):
        raise UserError(
            f"{path} lacks channel_names, labels or file_ending; expected nnU-Net v2's form of dataset.json"
        )
    findings = list(_check_labels(path, labels))
    names, odd = _channel_names(path, channels)
    findings += odd
    if not isinstance(description.get("numTraining"), int):
        findings.append(Finding("dataset-json", str(path), "no numTraining"))
    cases: list[CaseFiles] = []
    if isinstance(description.get("dataset"), dict):
        for name, files in description["dataset"].items():
            if not (isinstance(files, dict) and isinstance(files.get("images"), list) and files["images"]):
                raise UserError(f"{path} lists no images of case {name}; expected images and label for each")
            images = tuple(folder / os.path.expandvars(image) for image in files["images"])
            label = files.get("label")
            cases.append(CaseFiles(name, "Tr", images, folder / os.path.expandvars(str(label)) if label else None))
        splits: tuple[str, ...] = ("Ts",)
    else:
        splits = SPLITS
    for split in splits:
        found, wrong = _find_cases(folder, split, ending, len(channels), _colours(description, ending))
        cases += found
        findings += wrong
    training = sum(case.split == "Tr" for case in cases)
    declared = description.get("numTraining")
    if isinstance(declared, int) and declared != training and not any(f.check == "missing-channel" for f in findings):
        findings.append(Finding("case-count", str(path), f"numTraining is {declared}, {training} cases are complete"))
    if not training and not any(f.check == "missing-channel" for f in findings):
        raise UserError(f"{folder / 'imagesTr'} has no case named CASE_0000{ending}; check file_ending in {path}")
    return Layout(folder, description, names, labels, ending, tuple(cases), tuple(findings))


def _channel_names(path: Path, channels: dict[str, Any]) -> tuple[tuple[str, ...], list[Finding]]:
    """The names in the order of their numbers, or as they stand where these are none."""
    findings = []
    order = [str(number) for number in range(len(channels))]
    if set(channels) != set(order):
        text = f"channel_names are numbered {', '.join(channels)}; expected {', '.join(order)}"
        findings.append(Finding("dataset-json", str(path), text))
        order = list(channels)
    if odd := [name for name in channels.values() if not isinstance(name, str) or not name]:
        findings.append(Finding("dataset-json", str(path), f"a channel is named {odd[0]!r}; expected a word"))
    return tuple(str(channels[number]) for number in order), findings


def _colours(description: dict[str, Any], ending: str) -> bool:
    """Whether nnU-Net reads the files with its reader of natural images, for which a file may hold several channels."""
    reader = description.get("overwrite_image_reader_writer", "NaturalImage2DIO")
    return ending.lower() in (".png", ".bmp", ".tif") and reader in ("NaturalImage2DIO", "None", None)


def _holds_several(path: Path) -> bool:
    """Whether an image has colours; an unreadable one may, and is reported as unreadable."""
    import SimpleITK as sitk

    reader = sitk.ImageFileReader()
    try:
        reader.SetFileName(utf8_name(path))
        reader.ReadImageInformation()
    except (RuntimeError, UserError):
        return True
    return bool(reader.GetNumberOfComponents() > 1)


def _check_labels(path: Path, labels: dict[str, Any]) -> list[Finding]:
    try:
        if any(isinstance(v, float) and v != int(v) for value in labels.values() for v in _as_list(value)):
            raise ValueError
        values = sorted({int(v) for value in labels.values() for v in (value if isinstance(value, list) else [value])})
    except (TypeError, ValueError, OverflowError):
        raise UserError(f"{path} has a label whose value is not a whole number or a list of them") from None
    if labels.get("background") != 0:
        return [Finding("dataset-json", str(path), f"background is {labels.get('background')}; expected 0")]
    if values != list(range(len(values))):
        return [Finding("labels-not-consecutive", str(path), f"values {values}; expected 0 to {len(values) - 1}")]
    return []


def _find_cases(
    folder: Path, split: str, ending: str, channels: int, colours: bool
) -> tuple[list[CaseFiles], list[Finding]]:
    images, label_folder = folder / f"images{split}", folder / f"labels{split}"
    there = channel_files(images, (ending,)) if images.is_dir() else ChannelFiles({}, ())
    # Of a TIFF stack nnU-Net reads the spacing there.
    spacings = {f"{name}.json" for name in there.cases} if ending.lower() in tiff.ENDINGS else set()
    strays = [path for path in there.others if path.name not in spacings]
    findings = [Finding("stray-file", str(path), f"not named CASE_0000{ending}") for path in strays]
    counted = {name: len(files) for name, files in there.cases.items()}
    present = {path for files in there.cases.values() for path in files.values()}
    cases = []
    for name in counted:
        wanted = tuple(images / f"{name}_{channel:04d}{ending}" for channel in range(channels))
        missing = [path for path in wanted if path not in present]
        if missing and colours and wanted[0] not in missing and _holds_several(wanted[0]):
            # Whether their colours add up is seen when they are read.
            wanted = tuple(path for path in wanted if path not in missing)
            missing = []
        findings += [Finding("missing-channel", str(p), f"one of {channels} channels of case {name}") for p in missing]
        if counted[name] > len(wanted) - len(missing):
            text = f"{counted[name]} channel files; dataset.json names {channels}"
            findings.append(Finding("channel-count", str(images / name), text))
        label: Path | None = label_folder / f"{name}{ending}"
        if label is not None and not label.is_file():
            if split == "Tr":
                findings.append(Finding("image-without-label", str(label), f"case {name} has images only"))
            label = None
        if not missing:
            cases.append(CaseFiles(name, split, wanted, label))
    for path in sorted(label_folder.glob("*")):
        if path.name[0] != "." and path.name[: -len(ending)] not in counted and path.name not in spacings:
            findings.append(Finding("label-without-image", str(path), "no image of that name"))
    return cases, findings


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value]
