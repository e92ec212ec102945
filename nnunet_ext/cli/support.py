"""Put other labelled images in the place of those a UniverSeg checkpoint carries.

Checkpoints of nnUNetTrainerUniverSeg hold slices of their training cases, which support predictions. This command
preprocesses other labelled images for such a model and writes a support file; nnUNetv2_predict uses it when the
environment variable NNUNET_EXT_SUPPORT names it.

example:
  nnunet_ext support --model nnUNet_results/Dataset004_Hippocampus/nnUNetTrainerUniverSeg__nnUNetPlans__2d \\
      --support-images imagesTr --support-labels labelsTr -o mine.pt
  NNUNET_EXT_SUPPORT=mine.pt nnUNetv2_predict -d 4 -c 2d -f 0 -tr nnUNetTrainerUniverSeg -i IN -o OUT
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, type=Path, metavar="DIR", help="result folder above the folds")
    parser.add_argument("--support-images", required=True, type=Path, metavar="DIR", help="images that have labels")
    parser.add_argument("--support-labels", required=True, type=Path, metavar="DIR", help="their label maps")
    parser.add_argument("-o", "--output", required=True, type=Path, metavar="FILE", help="support file to write")


def run(arguments: argparse.Namespace) -> int:
    from nnunet_ext.few_shot.support_file import write_support_file

    found = write_support_file(arguments.model, arguments.support_images, arguments.support_labels, arguments.output)
    for task, where in found.items():
        print(f"{task}: {sum(map(len, where.values()))} slices of {len(where)} cases", file=sys.stderr)
    print(f"wrote {arguments.output}; use it with NNUNET_EXT_SUPPORT={arguments.output}", file=sys.stderr)
    return 0
