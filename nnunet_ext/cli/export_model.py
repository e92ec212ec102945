"""Write a trained model, of any trainer here or of nnU-Net's own, as one file that import-model opens elsewhere.

In the file: plans, dataset.json without its list of cases, fingerprint, the folds' checkpoints without the state of the
optimiser, licence, a statement about the training data, versions, and a checksum of each. Not in it: images, names of
cases, logs. UniverSeg's checkpoints are the exception: they carry images of the training data, which is said, and must
be agreed to. nnUNetv2_install_pretrained_model_from_zip takes the file as well.

With --onnx each fold's network is in the file as ONNX, too, for nnunet_ext predict --runtime onnxruntime: written when
its logits are torch's to 1e-4 and its labels equal, on a generated window and on one of --case. Minutes for SegMamba.

examples:
  nnunet_ext export-model -d 4 -c 3d_fullres -tr nnUNetTrainerSegMamba -o hippocampus.zip --licence "CC BY-SA 4.0" \
--training-data "Medical Segmentation Decathlon, Task04" --onnx --case imagesTr/hippocampus_001_0000.nii.gz
  nnunet_ext export-model -m Dataset004_Hippocampus/nnUNetTrainer__nnUNetPlans__3d_fullres -f 0 -o one_fold.zip

Exit status: 0 written, 1 it cannot be, 2 wrong usage.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from nnunet_ext.cli.trained_model import trained_model
from nnunet_ext.environment import decimal
from nnunet_ext.errors import UsageError, one_line


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-d", metavar="DATASET", help="name or number of the data set the model was trained on")
    parser.add_argument("-c", metavar="CONFIGURATION", help="such as 3d_fullres")
    parser.add_argument("-tr", default="nnUNetTrainer", metavar="TRAINER", help="trainer (%(default)s)")
    parser.add_argument("-p", default="nnUNetPlans", metavar="PLANS", help="plans identifier (%(default)s)")
    parser.add_argument("-m", type=Path, metavar="FOLDER", help="the model's folder instead of -d, -p, -tr and -c")
    parser.add_argument("-f", nargs="+", metavar="FOLD", help="folds (default: all there are)")
    parser.add_argument("-chk", default="checkpoint_final.pth", metavar="FILE", help="checkpoint (%(default)s)")
    parser.add_argument("-o", type=Path, required=True, metavar="FILE", help="file to write, such as model.zip")
    parser.add_argument("--licence", metavar="TEXT", help="of the model (default: licence in dataset.json)")
    parser.add_argument(
        "--training-data", metavar="TEXT", help="what it was trained on (default: name and reference in dataset.json)"
    )
    parser.add_argument(
        "--with-training-images", action="store_true", help="UniverSeg: give the images away that its checkpoints carry"
    )

    parser.add_argument("--onnx", action="store_true", help="put each fold's network in the file as ONNX, too")
    parser.add_argument(
        "--case", type=Path, nargs="+", metavar="FILE", help="image to compare torch and ONNX on, a file per channel"
    )


def run(arguments: argparse.Namespace) -> int:
    if arguments.m is None and not (arguments.d and arguments.c):
        raise UsageError("give -d and -c (and -tr, -p), or the model's folder with -m")
    folds = arguments.f or []
    if any(fold != "all" and decimal(fold) is None for fold in folds) or len(set(folds)) != len(folds):
        raise UsageError(f"-f {' '.join(folds)} must be numbers or all, each once")
    if "/" in arguments.chk or not arguments.chk.endswith(".pth"):
        raise UsageError(f"-chk {arguments.chk} must be the name of a checkpoint such as checkpoint_final.pth")
    if arguments.o.suffix != ".zip":
        raise UsageError(f"-o {arguments.o} must end in .zip")
    if arguments.case and not arguments.onnx:
        raise UsageError("--case goes with --onnx")
    from nnunet_ext.sharing.pack import pack_model

    manifest = pack_model(
        trained_model(arguments),
        arguments.o,
        licence=arguments.licence,
        training_data=arguments.training_data,
        folds=folds,
        checkpoint=arguments.chk,
        with_training_images=arguments.with_training_images,
        onnx=arguments.onnx,
        case=arguments.case or [],
    )
    if manifest.training_images:
        print(
            f"WARNING: the file carries {manifest.training_images} IMAGES OF THE TRAINING DATA with their labels",
            file=sys.stderr,
        )
    about = f"licence: {manifest.licence}; trained on: {manifest.training_data}"
    folds = " ".join(manifest.folds)
    print(one_line(f"{manifest.dataset}/{manifest.model}, folds {folds}; {about}"), file=sys.stderr)
    print(one_line(f"next: nnunet_ext import-model {shlex.quote(str(arguments.o))}"), file=sys.stderr)
    print(arguments.o)
    return 0
