"""Predict a folder of images with any trained nnU-Net model, stock trainers included: nnUNetv2_predict, faster on CPUs.

Options and results are those of nnUNetv2_predict; labels are equal except where two classes have equal scores, and
for MedSegDiff-V2, whose noise here follows the place in the image, so that overlapping windows draw alike. What is
added: --precision bf16 (processors with bf16 units take half the time or less), progress with the time left, files that
are whole or absent, a damaged image does not stop the others, and --continue_prediction looks into the files.

With --runtime onnxruntime networks that export-model --onnx wrote take the place of torch's; all around them, from
resampling to the mean over windows, mirrors and folds, stays as it is.

A model's folder of others is safe to open as far as its checkpoints go: those that hold more than tensors and plain
values are refused, unless --trust says to load them as nnU-Net does. Its plans.json names classes that are imported.

example:
  nnunet_ext predict -d 4 -i IN -o OUT -c 3d_fullres -tr nnUNetTrainerSegMamba -f 0 -device cpu --precision bf16

Exit status: 0 all cases predicted, 1 some could not be (each is named), 2 wrong usage.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from nnunet_ext.cli.device import chosen_device
from nnunet_ext.cli.trained_model import trained_model
from nnunet_ext.environment import decimal
from nnunet_ext.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-i", type=Path, required=True, metavar="FOLDER", help="images, named NAME_0000.ENDING")
    parser.add_argument("-o", type=Path, required=True, metavar="FOLDER", help="label maps go here")
    parser.add_argument("-d", metavar="DATASET", help="name or number of the data set the model was trained on")
    parser.add_argument("-p", default="nnUNetPlans", metavar="PLANS", help="plans identifier (%(default)s)")
    parser.add_argument("-tr", default="nnUNetTrainer", metavar="TRAINER", help="trainer (%(default)s)")
    parser.add_argument("-c", metavar="CONFIGURATION", help="such as 3d_fullres")
    parser.add_argument("-m", type=Path, metavar="FOLDER", help="the model's folder instead of -d, -p, -tr and -c")
    parser.add_argument("-f", nargs="+", default=["0", "1", "2", "3", "4"], metavar="FOLD", help="folds (%(default)s)")
    parser.add_argument("-step_size", type=float, default=0.5, help="of the sliding window (%(default)s)")
    parser.add_argument("--disable_tta", action="store_true", help="no mirroring: faster, less accurate")
    parser.add_argument("--save_probabilities", action="store_true", help="also write .npz and .pkl for ensembles")
    parser.add_argument(
        "--save_samples", type=Path, metavar="FOLDER", help="MedSegDiff-V2: each sample, for nnunet_ext uncertainty"
    )
    parser.add_argument("--continue_prediction", action="store_true", help="keep results that are whole and fit")
    parser.add_argument("-chk", default="checkpoint_final.pth", metavar="FILE", help="checkpoint (%(default)s)")
    parser.add_argument("-npp", type=int, default=3, metavar="N", help="cases prepared ahead, at most (%(default)s)")
    parser.add_argument("-nps", type=int, default=3, metavar="N", help="cases written at a time, at most (%(default)s)")
    parser.add_argument("--trust", action="store_true", help="read checkpoints as nnU-Net does, running what they hold")
    parser.add_argument("-prev_stage_predictions", type=Path, metavar="FOLDER", help="label maps of the first stage")
    parser.add_argument("-num_parts", type=int, default=1, metavar="N", help="share the cases among N commands")
    parser.add_argument("-part_id", type=int, default=0, metavar="K", help="which of them this is, from 0")
    parser.add_argument("-device", choices=("cpu", "cuda", "mps"), help="default: cuda where there is one, else cpu")
    parser.add_argument("--precision", choices=("fp32", "bf16", "fp16"), help="default: nnU-Net's, fp16 on cuda")
    parser.add_argument(
        "--runtime", choices=("torch", "onnxruntime"), default="torch", help="what runs the network (%(default)s)"
    )
    parser.add_argument(
        "--provider", metavar="NAME", help="of onnxruntime, such as CUDAExecutionProvider (CPUExecutionProvider)"
    )
    parser.add_argument("--disable_progress_bar", action="store_true", help="one line per case only")
    parser.add_argument("--not_on_device", action="store_true", help="results in main memory, for large cases on cuda")
    parser.add_argument("--verbose", action="store_true", help="what nnU-Net has to say")


def run(arguments: argparse.Namespace) -> int:
    problem = _problem(arguments)
    if problem:
        print(f"nnunet_ext predict: {problem}", file=sys.stderr)
        return 2
    import torch
    from tqdm import tqdm

    from nnunet_ext.inference.model_folder import open_model_folder
    from nnunet_ext.inference.predictor import FolderPredictor, cases_of, is_complete, write_arguments
    from nnunet_ext.machine import available_cores

    onnx = arguments.runtime == "onnxruntime"
    arguments.device = "cpu" if onnx else chosen_device(arguments.device, "predict")
    cores = available_cores()
    if arguments.device == "cpu" and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(cores)
    predictor = FolderPredictor(
        precision=arguments.precision,
        tile_step_size=arguments.step_size,
        use_mirroring=not arguments.disable_tta,
        perform_everything_on_device=arguments.device == "cuda" and not arguments.not_on_device,
        device=torch.device(arguments.device),
        verbose=arguments.verbose,
        allow_tqdm=False,
    )
    folds = [fold if fold == "all" else int(fold) for fold in arguments.f]
    if onnx:
        from nnunet_ext.inference.onnx_model import CPU, open_onnx_folder

        name = f"{Path(arguments.chk).stem}.onnx"
        open_onnx_folder(predictor, trained_model(arguments), folds, name, arguments.provider or CPU)
    else:
        open_model_folder(predictor, trained_model(arguments), folds, arguments.chk, trust=arguments.trust)
    previous = predictor.configuration_manager.previous_stage_name
    if previous and arguments.prev_stage_predictions is None:
        raise UserError(f"this is the second stage of a cascade; give -prev_stage_predictions of {previous}")
    ending, previous_stage = predictor.dataset_json["file_ending"], arguments.prev_stage_predictions
    cases = cases_of(arguments.i, arguments.o, ending, predictor.channels, previous_stage, predictor.colours)
    cases = cases[arguments.part_id :: arguments.num_parts]
    shown = {key: str(value) if isinstance(value, Path) else value for key, value in vars(arguments).items()}
    write_arguments(predictor, arguments.o, shown)
    if arguments.continue_prediction:
        left = [case for case in cases if not is_complete(case, arguments.save_probabilities)]
        print(f"{len(cases) - len(left)} of {len(cases)} cases are there already", file=sys.stderr)
        cases = left
    failures = []
    # A single case has nothing to count but its windows.
    predictor.allow_tqdm = len(cases) == 1 and not arguments.disable_progress_bar
    results = predictor.predict_folder(
        cases,
        threads=min(arguments.npp, cores),
        export_threads=min(arguments.nps, cores),
        save_probabilities=arguments.save_probabilities,
        samples_folder=arguments.save_samples,
    )
    with tqdm(total=len(cases), unit="case", disable=arguments.disable_progress_bar or len(cases) < 2) as bar:
        for done in results:
            bar.update()
            if done.failure:
                failures.append(done)
                bar.write(f"{done.case.name}: {done.failure}", file=sys.stderr)
            elif arguments.disable_progress_bar:
                print(f"{done.case.output}  {done.seconds:.1f} s", file=sys.stderr)
    if failures:
        names = ", ".join(done.case.name for done in failures)
        raise UserError(f"{len(failures)} of {len(cases)} cases could not be predicted: {names}")
    return 0


def _problem(arguments: argparse.Namespace) -> str | None:
    """What is wrong with the options, in one line."""
    if arguments.m is None and not (arguments.d and arguments.c):
        return "give -d and -c (and -tr, -p), or the model's folder with -m"
    if not 0 <= arguments.part_id < arguments.num_parts:
        return f"-part_id {arguments.part_id} must be from 0 to {arguments.num_parts - 1} (-num_parts - 1)"
    if not 0 < arguments.step_size <= 1:
        return f"-step_size {arguments.step_size} must be above 0 and at most 1"
    if arguments.runtime == "torch" and arguments.provider:
        return "--provider goes with --runtime onnxruntime"
    if arguments.runtime == "onnxruntime" and (arguments.device not in (None, "cpu") or arguments.precision):
        return "-device and --precision go with --runtime torch; onnxruntime has --provider, and computes in fp32"
    if any(fold != "all" and decimal(fold) is None for fold in arguments.f):
        return f"-f {' '.join(arguments.f)} must be numbers or all"
    return None
