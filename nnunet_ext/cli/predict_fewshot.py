"""Segment images by a few labelled ones, with no training (UniverSeg).

Every label of the support's label maps is a task of its own; a label needs more than one half, and the largest
probability wins. Volumes are segmented slice by slice across --axis. Weights are the authors'
(universeg_v1_nf64_ss64_STA.pt, see docs/universeg.md; research only) or a checkpoint of nnUNetTrainerUniverSeg.

examples:
  nnunet_ext predict-fewshot --weights universeg_v1.pt --support-images sup/images --support-labels sup/labels \\
      -i IN -o OUT
  nnunet_ext predict-fewshot --weights checkpoint_final.pth --support-images sup/images --support-labels sup/labels \\
      -i IN -o OUT --support-size 64 --ensemble 5 --uncertainty

Files are named as in nnU-Net: images case_0000.png or case_0000.nii.gz, label maps case.png or case.nii.gz. Results
have the input's ending and geometry; variances go to OUT/uncertainty. OUT/dataset.json, the support's or the values of
its labels, tells nnunet_ext evaluate what they mean. A support case never supports an input of the
same name.

Exit status: 0 all cases segmented, 1 some could not be (each is named, the others are segmented), 2 wrong usage.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from nnunet_ext.cases import ending_of
from nnunet_ext.cli.device import chosen_device
from nnunet_ext.cli.numbers import at_least_one
from nnunet_ext.errors import UserError, reason_of

STRATEGIES = ("balanced", "random", "similar", "position")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--weights", required=True, type=Path, metavar="FILE", help="official .pt or own checkpoint")
    parser.add_argument("--support-images", required=True, type=Path, metavar="DIR", help="images that have labels")
    parser.add_argument("--support-labels", required=True, type=Path, metavar="DIR", help="their label maps")
    parser.add_argument("-i", "--input", required=True, type=Path, metavar="DIR", help="images to segment")
    parser.add_argument("-o", "--output", required=True, type=Path, metavar="DIR", help="label maps go here")
    parser.add_argument(
        "--support-size", type=at_least_one, metavar="N", help="labelled slices per pass (default: 64, on a CPU 16)"
    )
    parser.add_argument(
        "--ensemble", type=at_least_one, default=1, metavar="K", help="support draws that are averaged (%(default)s)"
    )
    parser.add_argument(
        "--strategy", choices=STRATEGIES, default="balanced",
        help="which slices support: spread over the cases, any, those that look alike, those at the same place in the "
        "volume (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--axis", choices=("z", "y", "x"), default="z", help="volumes are cut across it (%(default)s)")
    parser.add_argument("--uncertainty", action="store_true", help="write the variance over draws; needs --ensemble")
    parser.add_argument("--image-size", type=at_least_one, metavar="N", help="of the network (default: weights', 128)")
    parser.add_argument("--seed", type=int, default=0, help="of the draws (%(default)s)")
    parser.add_argument("--device", choices=("cpu", "cuda", "mps"), help="default: cuda where there is one, else cpu")
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress bar, no closing line")


def run(arguments: argparse.Namespace) -> int:
    if arguments.uncertainty and arguments.ensemble < 2:
        print("nnunet_ext predict-fewshot: --uncertainty needs --ensemble 2 or more", file=sys.stderr)
        return 2
    if arguments.ensemble > 1 and arguments.strategy in ("similar", "position"):
        message = f"--strategy {arguments.strategy} always draws the same; --ensemble needs balanced or random"
        print(f"nnunet_ext predict-fewshot: {message}", file=sys.stderr)
        return 2
    import torch

    from nnunet_ext.few_shot import folder

    cases = folder.find_images(arguments.input)
    device = torch.device(chosen_device(arguments.device, "predict-fewshot"))
    core, stored_size = folder.load_network(arguments.weights)
    size = arguments.image_size or stored_size or 128
    if size % core.multiple:
        raise UserError(f"--image-size {size} must be a multiple of {core.multiple} for these weights")
    support = folder.read_support(arguments.support_images, arguments.support_labels, size, arguments.axis)
    channels = {len(files) for files in cases.values()}
    if channels != {support.images.shape[1]}:
        raise UserError(
            f"{arguments.input} has {channels.pop()} channels and {arguments.support_images} "
            f"{support.images.shape[1]}; they must be of the same kind"
        )
    core.to(device)
    _say(arguments, support, stored_size)
    settings = {
        "support_size": arguments.support_size or (16 if device.type == "cpu" else 64),
        "ensemble": arguments.ensemble,
        "strategy": arguments.strategy,
        "seed": arguments.seed,
        "device": device,
    }
    failed = 0
    for case, files in cases.items():
        try:
            _predict(arguments, core, case, files, support, size, settings)
        except Exception as error:  # whatever it is, the other cases can be segmented
            failed += 1
            print(f"nnunet_ext predict-fewshot: {case}: {reason_of(error)}", file=sys.stderr)
    if failed < len(cases):
        folder.write_dataset_json(arguments.output, arguments.support_labels, support)
    if not arguments.quiet:
        print(f"{len(cases) - failed} of {len(cases)} cases in {arguments.output}", file=sys.stderr)
    return 1 if failed else 0


def _say(arguments: argparse.Namespace, support, stored_size: int | None) -> None:
    """What supports, and whose weights these are."""
    if arguments.quiet:
        return
    for task in range(len(support.tasks)):
        where = support.where(task)
        slices = sum(map(len, where.values()))
        print(f"label {support.tasks[task].name}: {slices} support slices of {len(where)} cases", file=sys.stderr)
    if arguments.strategy == "balanced" and arguments.ensemble == 1 and support.is_aligned():
        print("labels lie at the same place in all support volumes; if the images to segment are aligned with them, "
              "--strategy position takes slices from the same place", file=sys.stderr)  # fmt: skip
    if stored_size is None:
        print("the authors' weights are licensed for research only (OpenRAIL++-M)", file=sys.stderr)


def _predict(
    arguments: argparse.Namespace, core, case: str, files: tuple[Path, ...], support, size: int, settings
) -> None:
    import numpy as np
    from tqdm import tqdm

    from nnunet_ext.few_shot import folder

    views, slices = folder.read_image(files, size, arguments.axis)
    passes = folder.predict_case(core, views, slices, support, case, **settings)
    predictions = list(tqdm(passes, total=len(views), desc=case, unit="slice", disable=arguments.quiet))
    kind = folder.label_type([label for task in support.tasks for label in task.labels])
    labels = np.stack([prediction.labels for prediction in predictions]).astype(kind)
    ending = ending_of(files[0].name, folder.ENDINGS, any_case=True)
    folder.write_like(labels, slices, arguments.output / f"{case}{ending}")
    if arguments.uncertainty:
        variance = np.stack([prediction.variance for prediction in predictions]).astype(np.float32)
        folder.write_like(variance, slices, arguments.output / "uncertainty" / f"{case}.nii.gz")
