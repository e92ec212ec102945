"""A cleaned copy of a data set, with a log of every change; the original is only read.

plan = clean_dataset("Dataset042_Things", rules=("finite", "canonical"))            # says what would change
clean_dataset("Dataset042_Things", rules=("finite",), output="nnUNet_raw/Dataset142_Things")
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from tqdm import tqdm

from nnunet_ext import __version__
from nnunet_ext.data.clean_rules import PAIRED, RULES, SETS, CaseToClean
from nnunet_ext.data.inspect_case import hash_voxels
from nnunet_ext.data.layout import CaseFiles, Layout, raw_dataset, read_layout
from nnunet_ext.data.volumes import read_volume
from nnunet_ext.errors import UserError, reason_of
from nnunet_ext.files import atomic_folder, write_json

LOG = "cleaning.json"
# Rules about the whole data set, done before or beside those of `RULES`.
_WHOLE = ("drop-unreadable", "consecutive-labels")
_FORMS = ("forms-disagree", "forms-moved", "no-form", "simpleitk-refuses", "simpleitk-differs")
NAMES = (*RULES, *_WHOLE)


def expand_rules(names: Sequence[str]) -> tuple[str, ...]:
    """Rule names in the order they are applied, sets such as sam-med3d replaced by their members.

    Raises:
        UserError: a name is unknown.
    """
    wanted: list[str] = []
    for name in names:
        if name not in SETS and name not in NAMES:
            raise UserError(f"{name} is no rule; choose from {', '.join([*SETS, *NAMES])}")
        wanted += SETS.get(name, (name,))
    # Repairs come first, because the rules about targets measure in mm and look at labels.
    first = ("drop-unreadable", *SETS["repairs"])
    order = [*first, *[name for name in NAMES if name not in first]]
    return tuple(name for name in order if name in wanted)


def clean_dataset(
    dataset: str | os.PathLike[str],
    rules: Sequence[str],
    output: str | os.PathLike[str] | None = None,
    symmetric: Sequence[str] | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """Apply rules to a copy of a NIfTI data set, or only say what they would change.

    Args:
        dataset: folder, name or number.
        rules: names of rules or of sets of rules; see `expand_rules`.
        output: the new data set, which must not exist; None changes nothing.
        symmetric: labels that `split-sides` splits; None: those whose names are in `PAIRED`.
        progress: show a bar on stderr for work longer than two seconds.

    Returns:
        The log, which is also written as cleaning.json into the new data set: for every file where it came from, the
        hash of its voxels before and after, and each change by rule.

    Raises:
        UserError: unknown rule or label, a file that cannot be read, `output` exists or cannot be written.
    """
    rules = expand_rules(rules)
    layout = read_layout(raw_dataset(dataset))
    if layout.file_ending not in (".nii.gz", ".nii"):
        raise UserError(f"{layout.folder} has {layout.file_ending} files; data clean works on NIfTI data sets")
    renumbered, paired, labels = _label_plan(layout, rules, symmetric)
    log: dict[str, Any] = {
        "source": str(layout.folder),
        "rules": list(rules),
        "software": f"nnunet_ext {__version__}",
        "labels_before": layout.labels,
        "labels_after": labels,
        "renumbered": {str(old): new for old, new in renumbered.items() if old != new},
        "cases": [],
    }
    if output is None:
        log["cases"] = list(_all_cases(layout, rules, renumbered, paired, None, progress))
        return log
    with atomic_folder(output) as folder:
        log["cases"] = list(_all_cases(layout, rules, renumbered, paired, folder, progress))
        kept = sum(case["split"] == "Tr" and case["dropped"] is None for case in log["cases"])
        if not kept:
            raise UserError(f"the rules {', '.join(rules)} leave no training case of {layout.folder}; choose fewer")
        description = {key: value for key, value in layout.description.items() if key != "dataset"}
        write_json(folder / "dataset.json", {**description, "labels": labels, "numTraining": kept})
        write_json(folder / LOG, log)
    return log


def _all_cases(
    layout: Layout,
    rules: Sequence[str],
    renumbered: dict[int, int],
    paired: dict[int, int],
    folder: Path | None,
    progress: bool,
) -> Any:
    for files in tqdm(layout.cases, desc="clean", unit="case", delay=2, disable=not progress):
        try:
            yield _one_case(layout, files, rules, renumbered, paired, folder)
        except OSError:
            raise  # the new data set cannot be written
        except Exception as error:
            # A header or voxels without sense may stop any library at any line.
            known = isinstance(error, UserError)
            reason = str(error) if known else f"case {files.name} cannot be cleaned ({reason_of(error)})"
            if "drop-unreadable" not in rules:
                raise UserError(f"{reason} (or add the rule drop-unreadable)") from None
            if folder is not None:
                for target in _targets(layout, files):
                    (folder / target).unlink(missing_ok=True)
            yield {"name": files.name, "split": files.split, "dropped": reason, "changes": [], "files": []}


def _targets(layout: Layout, files: CaseFiles) -> list[str]:
    """The files of a case in the new data set: its channels, then its label map."""
    ending = layout.file_ending
    channels = [f"images{files.split}/{files.name}_{channel:04d}{ending}" for channel in range(len(files.images))]
    return [*channels, f"labels{files.split}/{files.name}{ending}"]


def _one_case(
    layout: Layout,
    files: CaseFiles,
    rules: Sequence[str],
    renumbered: dict[int, int],
    paired: dict[int, int],
    folder: Path | None,
) -> dict[str, Any]:
    volumes = [read_volume(path) for path in files.images]
    label = read_volume(files.label) if files.label is not None else None
    everything = [*volumes, *([label] if label is not None else [])]
    for volume in everything:
        if any(finding.check == "voxel-size-invalid" for finding in volume.findings):
            raise UserError(f"{volume.path}: {volume.findings[0].value}; write the true voxel size into its header")
        if volume.array.ndim != 3:
            raise UserError(f"{volume.path} has shape {volume.array.shape[::-1]}; expected one 3D volume")
    case = CaseToClean(
        files.name,
        [volume.scaled.T for volume in volumes],
        [volume.affine for volume in volumes],
        None if label is None else _integers(label.path, label.scaled.T),
        None if label is None else label.affine,
        [any(finding.check in _FORMS for finding in volume.findings) for volume in everything],
        image_changed=[False] * len(volumes),
    )
    changes = []
    if case.labels is not None and label is not None and label.array.dtype.kind == "f" and "cast-labels" not in rules:
        case.labels = label.scaled.T  # stays as it was unless asked
    for name in rules:
        if name == "consecutive-labels":
            found = _renumber(case, renumbered)
        elif name in RULES and not (files.split == "Ts" and name.startswith("drop-")):
            found = RULES[name](case, paired)
        else:
            continue
        changes += [{"rule": name, **change} for change in found]
        if case.dropped is not None:
            break
    written = []
    targets = _targets(layout, files)
    if case.dropped is None:
        for channel, volume in enumerate(volumes):
            target = targets[channel]
            array = case.images[channel] if case.image_changed[channel] else None
            written.append(_write(folder, target, volume.path, volume.array, array, case.affines[channel]))
        if label is not None and case.label_affine is not None:
            array = case.labels if case.label_changed else None
            written.append(_write(folder, targets[-1], label.path, label.array, array, case.label_affine))
    return {"name": files.name, "split": files.split, "dropped": case.dropped, "changes": changes, "files": written}


def _write(
    folder: Path | None, target: str, source: Path, before: np.ndarray, after: np.ndarray | None, affine: np.ndarray
) -> dict[str, Any]:
    record = {
        "file": target,
        "source": str(source),
        "blake2b_before": hash_voxels(before),
        "rewritten": after is not None,
    }
    if after is not None:
        record["blake2b_after"] = hash_voxels(np.ascontiguousarray(after.T))
    if folder is None:
        return record
    path = folder / target
    path.parent.mkdir(exist_ok=True)
    if after is None:
        shutil.copyfile(source, path)
        return record
    if after.dtype in (np.int64, np.uint64, np.bool_):  # types that few programs read from NIfTI
        after = after.astype(np.int32 if after.dtype != np.bool_ else np.uint8)
    image = nibabel.Nifti1Image(after, affine)
    image.set_qform(affine, code=1)
    image.set_sform(affine, code=1)
    image.header.set_xyzt_units("mm")
    nibabel.save(image, path)
    return record


def _integers(path: Path, array: np.ndarray) -> np.ndarray:
    if array.dtype.kind != "f":
        return array
    if not np.isfinite(array).all() or (array != np.rint(array)).any() or np.abs(array).max(initial=0) >= 2**31:
        raise UserError(f"{path} has values that are not whole numbers; make the label map again")
    return array.astype(np.int32)


def _renumber(case: CaseToClean, renumbered: dict[int, int]) -> list[dict[str, Any]]:
    moved = {old: new for old, new in renumbered.items() if old != new}
    if case.labels is None or not moved:
        return []
    before, changes = case.labels, []
    for old, new in moved.items():
        mask = before == old
        if mask.any():
            case.relabel(mask, new)
            changes.append({"label": old, "to": new, "voxels": int(mask.sum())})
    return changes


def _label_plan(
    layout: Layout, rules: Sequence[str], symmetric: Sequence[str] | None
) -> tuple[dict[int, int], dict[int, int], dict[str, Any]]:
    """Old to new values, left to right values, and the labels of the new dataset.json."""
    values = layout.values
    renumbered = (
        {old: new for new, old in enumerate(values)} if "consecutive-labels" in rules else {v: v for v in values}
    )
    paired: dict[int, int] = {}
    labels: dict[str, Any] = {}
    if "split-sides" in rules:
        names = [name for name in layout.labels if _is_paired(name)] if symmetric is None else list(symmetric)
        for name in names:
            if not isinstance(layout.labels.get(name), int) or layout.labels[name] == 0:
                raise UserError(f"{name} is no label that can be split; dataset.json has {', '.join(layout.labels)}")
        free = max(renumbered.values()) + 1
        paired = {renumbered[layout.labels[name]]: free + position for position, name in enumerate(names)}
    for name, value in layout.labels.items():
        members = [renumbered[int(v)] for v in (value if isinstance(value, list) else [value])]
        if isinstance(value, list):
            labels[name] = members + [paired[v] for v in members if v in paired]
        elif members[0] in paired:
            labels[f"left {name}"] = members[0]
        else:
            labels[name] = members[0]
    for name, value in layout.labels.items():  # the new values last, so that the old order stays
        if isinstance(value, int) and renumbered[value] in paired:
            labels[f"right {name}"] = paired[renumbered[value]]
    return renumbered, paired, labels


def _is_paired(name: str) -> bool:
    words = name.lower().replace("_", " ")
    sided = any(word in ("left", "right", "l", "r") for word in words.split())
    return not sided and any(word in words for word in PAIRED)
