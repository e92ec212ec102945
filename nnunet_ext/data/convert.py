"""Writing a public data set as nnU-Net raw data."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from tqdm import tqdm

from nnunet_ext.data.layouts_public import ENDING, SOURCES, SourceCase
from nnunet_ext.errors import UserError
from nnunet_ext.evaluation.images import read_label_map
from nnunet_ext.files import atomic_folder, write_json
from nnunet_ext.image_files import check_whole


def convert(
    kind: str,
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    link: bool = False,
    progress: bool = False,
) -> Path:
    """Convert a folder of a public data set; returns the new data set, which appears only when complete.

    Args:
        kind: a key of `SOURCES`.
        source: the unpacked folder.
        target: such as nnUNet_raw/Dataset027_ACDC.
        link: make symbolic links to files that stay as they are instead of copies.
        progress: show a bar on stderr for work longer than two seconds.

    Raises:
        UserError: unknown kind, a file is missing or damaged, a label value is not of this data set, or `target`
            exists.
    """
    if kind not in SOURCES:
        raise UserError(f"{kind} is no layout; choose from {', '.join(SOURCES)}")
    target = Path(target)
    if not re.fullmatch(r"Dataset\d{3}_.+", target.name):
        raise UserError(f"{target} is not named as nnU-Net wants it; expected a folder such as Dataset027_ACDC")
    found = SOURCES[kind](Path(os.path.abspath(source)))
    with atomic_folder(target) as folder:
        for split, cases in (("Tr", found.training), ("Ts", found.test)):
            for kind_of_file in ("images", "labels"):
                if kind_of_file == "images" or any(case.label for case in cases):
                    (folder / f"{kind_of_file}{split}").mkdir()
            for case in tqdm(cases, desc=f"convert {split}", unit="case", delay=2, disable=not progress):
                _write_case(folder, split, case, found.new_values, link)
        description = {
            "channel_names": {str(index): name for index, name in enumerate(found.channels)},
            "labels": found.labels,
            "numTraining": len(found.training),
            "file_ending": ENDING,
        }
        if found.regions_order is not None:
            description["regions_class_order"] = list(found.regions_order)
        write_json(folder / "dataset.json", description)
        if found.folds is not None:
            write_json(folder / "splits_final.json", found.folds)
    return target


def _write_case(folder: Path, split: str, case: SourceCase, new_values: dict[int, int] | None, link: bool) -> None:
    for channel, source in enumerate(case.images):
        _place(source, folder / f"images{split}" / f"{case.name}_{channel:04d}{ENDING}", link)
    if case.label is None:
        return
    target = folder / f"labels{split}" / f"{case.name}{ENDING}"
    if new_values is None:
        _place(case.label, target, link)
        return
    labels = read_label_map(case.label).array.T  # x, y, z, as the file has them
    unknown = sorted(set(np.unique(labels).tolist()) - set(new_values))
    if unknown:
        raise UserError(f"{case.label} holds the value {unknown[0]}; this data set has {sorted(new_values)}")
    table: np.ndarray = np.zeros(max(new_values) + 1, np.uint8)
    for old, new in new_values.items():
        table[old] = new
    header: Any = nibabel.load(case.label).header.copy()
    header.set_data_dtype(np.uint8)
    header["scl_slope"], header["scl_inter"] = np.nan, np.nan
    nibabel.save(nibabel.Nifti1Image(table[labels], None, header), target)


def _place(source: Path, target: Path, link: bool) -> None:
    check_whole(source)
    if link:
        try:
            target.symlink_to(source)
        except (OSError, NotImplementedError) as error:
            reason = getattr(error, "strerror", None) or error
            raise UserError(
                f"no link to {source} can be made in {target.parent} ({reason}); leave out --link"
            ) from None
    else:
        shutil.copyfile(source, target)
