"""Convert DICOM, or the folder of a public data set, to nnU-Net's raw format.

examples:
  nnunet_ext data convert acdc ACDC/database nnUNet_raw/Dataset027_ACDC
  nnunet_ext data convert brats2023 BraTS2023-GLI-TrainingData nnUNet_raw/Dataset123_BraTS23 --link
  nnunet_ext data convert dicom FROM_THE_CLINIC nnUNet_raw/Dataset040_Liver --labels liver tumour

layouts:
  dicom      CASE/ with the slices of one series, and a SEG or RTSTRUCT drawn on it; cases without one are test cases
  brats2021  CASE/CASE_{t1,t1ce,t2,flair,seg}.nii.gz; regions WT, TC, ET
  brats2023  CASE/CASE-{t1n,t1c,t2w,t2f,seg}.nii.gz; regions WT, TC, ET; scans of a patient in one fold
  synapse    Training/img/img0001.nii.gz, label/label0001.nii.gz; 8 organs, the published split as fold 0
  btcv       the same files; all 13 organs
  acdc       training/patient001/patient001_frame01{,_gt}.nii.gz, testing/; both frames of a patient in one fold
  amos-ct, amos-mr, amos   imagesTr, labelsTr, imagesVa, labelsVa, imagesTs with amos_0001.nii.gz; CT up to 500

Where folds matter, splits_final.json lies in the new folder, and nnU-Net wants a copy in nnUNet_preprocessed/DATASET;
with nnUNet_preprocessed set it is put there too, unless there is one. Data sets must be downloaded from their owners.

Exit status: 0 done, 1 something is missing or cannot be written, 2 wrong usage.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from nnunet_ext.data.convert import convert
from nnunet_ext.data.layouts_public import SOURCES
from nnunet_ext.errors import UsageError
from nnunet_ext.files import write_text


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("layout", choices=("dicom", *SOURCES), metavar="LAYOUT", help="one of those above")
    parser.add_argument("source", type=Path, metavar="FOLDER", help="the unpacked data set")
    parser.add_argument("target", type=Path, metavar="DATASET", help="such as nnUNet_raw/Dataset027_ACDC")
    parser.add_argument("--link", action="store_true", help="link to unchanged files instead of copying them")
    parser.add_argument(
        "--labels", nargs="+", metavar="NAME", help="dicom: structures to take, the one that counts last (default: all)"
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress bar")


def run(arguments: argparse.Namespace) -> int:
    if arguments.layout == "dicom":
        return _run_dicom(arguments)
    if arguments.labels:
        raise UsageError("--labels goes with the layout dicom")
    folder = convert(arguments.layout, arguments.source, arguments.target, arguments.link, not arguments.quiet)
    print(folder)
    splits = folder / "splits_final.json"
    preprocessed = os.environ.get("nnUNet_preprocessed")
    if splits.is_file():
        copy = Path(preprocessed or "nnUNet_preprocessed") / folder.name / splits.name
        if preprocessed and not copy.exists():
            write_text(copy, splits.read_text(encoding="utf-8"))
            print(f"folds in {copy}", file=sys.stderr)
        else:
            print(f"folds in {splits}; before training: cp {splits} {copy}", file=sys.stderr)
    return 0


def _run_dicom(arguments: argparse.Namespace) -> int:
    from nnunet_ext.dicom.convert import convert_dicom

    labels = arguments.labels
    if arguments.link:
        raise UsageError("--link does not go with the layout dicom, whose images are written anew")
    if labels and (len(set(labels)) != len(labels) or not all(map(str.strip, labels))):
        raise UsageError(f"--labels {' '.join(labels)} must be names, each once")
    print(convert_dicom(arguments.source, arguments.target, labels, not arguments.quiet))
    return 0
