"""Segment images by clicks and masks from prompt files, with a trained model or SAM-Med3D's published weights.

examples:
  nnunet_ext predict-prompts -i imagesTs -p prompts -o out -m MODEL
  nnunet_ext predict-prompts -i images -p prompts -o out --weights sam_med3d_turbo.pth --labels liver=1 spleen=2
  nnunet_ext predict-prompts -i imagesTs -p prompts -o drawn --draw -m MODEL
  nnUNetv2_predict -i imagesTs -o out -prev_stage_predictions drawn -d 4 -c 3d_fullres -tr nnUNetTrainerSAMMed3D

MODEL is a result folder, nnUNet_results/DATASET/nnUNetTrainerSAMMed3D__PLANS__CONFIGURATION, or one of
nnUNetTrainerInteractive, which runs in the session of viewers (pip install 'nnunet-ext[interactive]').

A prompt file bears its case's name: <case>.prompts.json, <case>.mrk.json (3D Slicer), <case>.json (grand-challenge), or
<case>.csv (napari); docs/sam_med3d.md describes them. Windows lie around the clicks and follow the object where it
leaves them. With --weights no training and no nnU-Net data set is needed. Cases whose label map exists are not run
again with --continue, if it is whole. Label maps go to OUT/<case><file ending>.

Exit status: 0 all cases segmented, 1 a case failed (the others are segmented), 2 wrong usage.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from nnunet_ext.cli.device import chosen_device
from nnunet_ext.errors import UserError, reason_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-i", "--input", required=True, type=Path, metavar="FOLDER", help="images, as nnU-Net names them"
    )
    parser.add_argument("-p", "--prompts", required=True, type=Path, metavar="FOLDER", help="prompt files")
    parser.add_argument("-o", "--output", required=True, type=Path, metavar="FOLDER", help="label maps go here")
    model = parser.add_mutually_exclusive_group(required=True)
    model.add_argument("-m", "--model", type=Path, metavar="FOLDER", help="result folder of a promptable trainer")
    model.add_argument("--weights", type=Path, metavar="FILE", help="checkpoint of the official code (vit_b_ori)")
    parser.add_argument("-f", "--fold", help="fold of -m (default: the first there is)")
    parser.add_argument("-chk", "--checkpoint", default="checkpoint_final.pth", help="of -m (default: %(default)s)")
    parser.add_argument("--trust", action="store_true", help="read it as nnU-Net does, running whatever it holds")
    parser.add_argument(
        "--previous", type=Path, metavar="FOLDER", help="label maps to continue from, one for every case with prompts"
    )
    parser.add_argument(
        "--labels", nargs="+", default=[], metavar="NAME=VALUE", help="values of the names in prompt files"
    )
    parser.add_argument(
        "--space", choices=("voxel", "LPS", "RAS"), help="of grand-challenge points, which do not say it"
    )
    parser.add_argument("--draw", action="store_true", help="only draw the prompts, for -prev_stage_predictions")
    parser.add_argument("--radius", type=float, default=3.0, metavar="MM", help="of clicks drawn (default: 3)")
    parser.add_argument("--continue", dest="skip", action="store_true", help="keep label maps that exist and are whole")
    parser.add_argument(
        "-device", "--device", choices=("cuda", "cpu", "mps"), help="default: cuda where there is one, else cpu"
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress bar")


def run(arguments: argparse.Namespace) -> int:
    from tqdm import tqdm

    from nnunet_ext.clicks.folder import draw_case, pair_with_prompts, parse_labels, segment_case
    from nnunet_ext.clicks.model import PromptModel, load_official, load_trained
    from nnunet_ext.clicks.viewer_session import SessionModel
    from nnunet_ext.files import read_json, write_json
    from nnunet_ext.image_files import is_whole
    from nnunet_ext.images import write_mask

    if arguments.draw and arguments.model is None:
        raise UserError("--draw needs -m: nnUNetv2_predict runs trained models only")
    arguments.device = chosen_device(arguments.device, "predict-prompts")
    model: PromptModel | SessionModel
    if arguments.weights is not None:
        model = load_official(arguments.weights, arguments.device)
    else:
        model = load_trained(
            arguments.model, arguments.fold, arguments.checkpoint, arguments.device, trust=arguments.trust
        )
    labels = {**(model.labels or {}), **parse_labels(arguments.labels)} or None
    cases, unprompted = pair_with_prompts(
        arguments.input, arguments.prompts, model.channels, model.file_ending, arguments.previous
    )
    for name in unprompted:
        print(f"nnunet_ext predict-prompts: {name}: no prompt file, left out", file=sys.stderr)
    failed = 0
    for case in tqdm(cases, disable=arguments.quiet, unit="case"):
        path = arguments.output / f"{case.case}{model.file_ending}"
        if arguments.skip and is_whole(path):
            continue
        try:
            if arguments.draw:
                mask, image, lost = draw_case(case, labels, arguments.space, arguments.radius)
                if lost:
                    print(f"nnunet_ext predict-prompts: {case.case}: {lost} negative clicks not drawn", file=sys.stderr)
            else:
                mask, image = segment_case(model, case, labels, arguments.space)
            write_mask(mask, image, path)
        except Exception as error:  # whatever it is, the other cases can be segmented
            failed += 1
            named = "" if isinstance(error, UserError) else f"{case.case}: "
            print(f"nnunet_ext predict-prompts: {named}{reason_of(error)}", file=sys.stderr)
    described = arguments.output / "dataset.json"
    if arguments.model is not None and failed < len(cases) and not described.exists():
        # As nnUNetv2_predict: what the label maps are evaluated by.
        write_json(described, read_json(arguments.model / "dataset.json"))
    return 1 if failed else 0
