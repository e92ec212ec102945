"""What `nnunet_ext data check` can find: one table of names, severities and remedies."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

SEVERITIES = ("error", "warning", "note")

# Name of the check: severity, what to do about it. Errors stop a training or make it learn something wrong; warnings
# need a person's eye; notes are facts that surprise people later.
CHECKS: dict[str, tuple[str, str]] = {
    # dataset.json and files
    "dataset-json": ("error", "correct dataset.json; nnU-Net needs channel_names, labels, numTraining and file_ending"),
    "labels-not-consecutive": ("error", "number the labels 0, 1, 2 ... (data clean --rules consecutive-labels)"),
    "case-count": ("error", "set numTraining to the number of training cases, or restore the missing ones"),
    "missing-channel": ("error", "restore the file, or remove the case"),
    "image-without-label": ("error", "restore the label file, or move the images to imagesTs"),
    "label-without-image": ("warning", "restore the image, or remove the label file; nnU-Net ignores it silently"),
    "stray-file": ("warning", "remove it or rename it to CASE_0000 + file ending; nnU-Net ignores it silently"),
    # one file
    "unreadable": ("error", "restore the file from its source; SimpleITK may read it with the missing part set to 0"),
    "not-checked": ("error", "the header or the voxels make no sense; write the file anew from its source"),
    "not-3d": ("error", "split it into one 3D file per channel, CASE_0000, CASE_0001 ..."),
    "channel-count": ("error", "an RGB image counts as three channels; make channel_names and the files agree"),
    "simpleitk-refuses": ("error", "make the axes orthogonal (data clean --rules repair-forms); nnU-Net reads it so"),
    "simpleitk-differs": ("error", "write the file anew with one geometry (data clean --rules repair-forms)"),
    "not-finite": ("error", "replace them (data clean --rules finite); SimpleITK reads them as 0 without a word"),
    "constant": ("error", "remove the case or restore the image; nothing can be learned from it"),
    "voxel-size-invalid": ("error", "write the true voxel size into the header"),
    "voxel-size-absurd": ("warning", "check the unit; expected millimetres"),
    "units": ("warning", "nnU-Net takes the header's numbers as millimetres; convert them"),
    "forms-disagree": ("error", "decide which is right and write both alike (data clean --rules repair-forms)"),
    "forms-moved": ("warning", "tools that prefer the qform see the image elsewhere; write both alike"),
    "no-form": ("warning", "orientation is unknown, and each tool guesses its own; write an sform"),
    "tiny-volume": ("warning", "check the voxel size and whether this is a scan (data clean --rules sam-med3d)"),
    # image against label and channels
    "shape-differs": ("error", "resample onto the grid of the first channel"),
    "grid-moved": ("error", "find out which header is right; copying it blindly may hide a shifted label"),
    "grid-differs-slightly": ("warning", "copy the image's header (data clean --rules copy-header)"),
    "identical-channels": ("error", "restore the channel that was overwritten"),
    # labels
    "label-not-whole": ("error", "make the label map again; it was probably resampled with linear interpolation"),
    "label-unknown": ("error", "declare the value in dataset.json or remove it"),
    "label-type": ("note", "store labels as unsigned integers (data clean --rules cast-labels)"),
    "no-foreground": ("warning", "check whether the annotation is missing or the structure truly absent"),
    "no-background": ("warning", "check the label map; every voxel belongs to a structure"),
    "stray-component": ("warning", "look at it, then remove it (data clean --rules largest-components)"),
    "label-never-present": ("warning", "remove the label from dataset.json or find the cases that should have it"),
    # the cohort
    "duplicate-image": ("error", "remove one; across folds or test set it makes the score too good"),
    "near-duplicate-image": (
        "warning",
        "the same scan resaved or a neighbour in time: keep both in one fold (--patients)",
    ),
    "duplicate-label": ("error", "one of them belongs to another case; restore it"),
    "orientation-differs": ("warning", "nnU-Net does not reorient; make all alike (data clean --rules canonical)"),
    "voxel-size-outlier": ("warning", "check the header against the acquisition"),
    "intensity-outlier": ("warning", "check the unit and the scaling of this image"),
    "hu-offset": ("warning", "subtract the offset: CT values are expected in HU, air at -1000"),
    "label-implausible": ("warning", "look at the overlay: the label may belong to another case or be shifted"),
    "left-right": ("warning", "look at the case: left and right may be swapped, or the image mirrored"),
    "patients-share-folds": ("warning", "write grouped folds (--splits splits_final.json); nnU-Net splits by case"),
}


@dataclass(frozen=True)
class Finding:
    """One thing found.

    Attributes:
        check: its name, a key of `CHECKS`.
        file: the file or case it concerns, as the user would type it.
        value: what is there and what was expected.
    """

    check: str
    file: str
    value: str

    @property
    def severity(self) -> str:
        return CHECKS[self.check][0]

    @property
    def remedy(self) -> str:
        return CHECKS[self.check][1]

    def as_dict(self) -> dict[str, Any]:
        return {"severity": self.severity, **asdict(self), "remedy": self.remedy}
