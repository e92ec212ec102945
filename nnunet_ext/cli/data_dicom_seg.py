"""Write predicted label maps as DICOM SEG, on the slices of the series they were predicted from.

Label maps are named after the folders of their series, as data convert dicom has named the images: liver1.nii.gz
belongs to FOLDER/liver1. Names of the segments are those of dataset.json, which predictions have beside them; a region
has all its values. The type of a segment has a code of its own (99NNUNET): no terminology knows a data set's names.

example:
  nnunet_ext data dicom-seg PREDICTIONS DICOM SEGS

Exit status: 0 done, 1 a label map does not fit its series, or cannot be written, 2 wrong usage.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from nnunet_ext.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("predictions", type=Path, metavar="LABELS", help="label maps, with dataset.json")
    parser.add_argument("source", type=Path, metavar="FOLDER", help="a folder of DICOM files per case, or one of them")
    parser.add_argument("output", type=Path, metavar="OUT", help="NAME.dcm go here")
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress bar")


def run(arguments: argparse.Namespace) -> int:
    from tqdm import tqdm

    from nnunet_ext.dicom.convert import find_dicom_cases
    from nnunet_ext.dicom.segmentation import write_segmentation
    from nnunet_ext.json_object import JsonObject
    from nnunet_ext.plans.files import file_ending, read_dataset_json

    file = arguments.predictions / "dataset.json"
    dataset = read_dataset_json(file, "give the folder that predict wrote")
    ending = file_ending(JsonObject(file, dataset))
    cases = {case.name: case for case in find_dicom_cases(arguments.source)}
    maps = sorted(path for path in arguments.predictions.iterdir() if path.name.endswith(ending))
    if not maps:
        raise UserError(f"{arguments.predictions} holds no label map (*{ending})")
    for path in maps:
        name = path.name.removesuffix(ending)
        if name not in cases:
            raise UserError(f"{path} has no series: {arguments.source / name} does not exist")
    for path in tqdm(maps, desc="write", unit="case", delay=2, disable=arguments.quiet):
        name = path.name.removesuffix(ending)
        output = arguments.output / f"{name}.dcm"
        write_segmentation(path, cases[name].series, dataset["labels"], output)
        print(output)
    return 0
