"""nnU-Net's final validation of a fold, with the same files, in one process and with exact fast export.

nnU-Net hands every class at full size to spawned workers; here a thread resizes and writes beside the next case. A
network that draws its noise by place is told where each window lies.
"""

from __future__ import annotations

import os
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from nnunetv2.configuration import default_num_processes
from nnunetv2.evaluation.evaluate_predictions import compute_metrics_on_folder
from nnunetv2.inference.export_prediction import resample_and_save
from nnunetv2.inference.sliding_window_prediction import compute_gaussian
from nnunetv2.paths import nnUNet_preprocessed
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from nnunetv2.utilities.label_handling.label_handling import convert_labelmap_to_one_hot
from torch import Tensor

from nnunet_ext.errors import reason_of
from nnunet_ext.inference.export import check_finite
from nnunet_ext.inference.predictor import Done, FolderPredictor, PredictionCase
from nnunet_ext.machine import available_cores

# nnU-Net's distance between barriers, which keep distributed ranks from waiting too long for each other.
_BARRIER_EVERY = 20


def validate_fold(trainer: Any, save_probabilities: bool = False) -> None:
    """Predict the validation cases of a trainer's fold with mirroring, and write `validation/summary.json`.

    Args:
        trainer: an initialised `SharedTrainer` with its network trained; prediction has its precision.
        save_probabilities: also write nnU-Net's .npz and .pkl of each case.

    Raises:
        TrainingError: a case could not be written; the others are.
    """
    trainer.set_deep_supervision_enabled(False)
    trainer.network.eval()
    folder = Path(trainer.output_folder, "validation")
    folder.mkdir(parents=True, exist_ok=True)
    predictor = FolderPredictor(precision=trainer.precision, device=trainer.device, allow_tqdm=False)
    predictor.manual_initialization(
        trainer.network.module if trainer.is_ddp else trainer.network,
        trainer.plans_manager,
        trainer.configuration_manager,
        None,
        trainer.dataset_json,
        type(trainer).__name__,
        trainer.inference_allowed_mirroring_axes,
    )
    _, cases = trainer.do_split()
    ranks = dist.get_world_size() if trainer.is_ddp else 1
    barriers = len(cases) // ranks - 1  # what every rank has
    cases = cases[trainer.local_rank :: ranks]
    dataset = trainer.dataset_class(
        trainer.preprocessed_dataset_folder,
        cases,
        folder_with_segs_from_previous_stage=trainer.folder_with_segs_from_previous_stage,
    )
    done: list[Done] = []
    with ThreadPoolExecutor(1) as behind:
        waiting: list[Future[Done]] = []
        for number, name in enumerate(dataset.identifiers):
            trainer.before_case(name)
            case = PredictionCase(name, (), folder / f"{name}{trainer.dataset_json['file_ending']}")
            while len(waiting) > 1:  # no more results in memory than are worked on
                done.append(waiting.pop(0).result())
            try:
                logits, properties = _predict(trainer, predictor, dataset, name)
                waiting.append(behind.submit(predictor.export, case, logits, properties, 0.0, save_probabilities))
                _write_next_stages(trainer, name, logits, properties)
            except Exception as error:  # whatever it is, the other cases can be predicted and other ranks wait
                done.append(Done(case, 0.0, reason_of(error)))
            if trainer.is_ddp and number < barriers and (number + 1) % _BARRIER_EVERY == 0:
                dist.barrier()
        done += [export.result() for export in waiting]
    failed = [f"{export.case.name} ({export.failure})" for export in done if export.failure]
    problem = f"validation could not write {', '.join(failed)}; mend that and continue with --val" if failed else None
    trainer.fail_together(problem)
    if trainer.local_rank == 0:
        _summarise(trainer, folder)
    trainer.set_deep_supervision_enabled(True)
    compute_gaussian.cache_clear()


def _predict(trainer: Any, predictor: FolderPredictor, dataset: Any, name: str) -> tuple[Tensor, dict]:
    """Logits (classes, *grid of the preprocessed image) of a case, which are finite, and its properties."""
    trainer.print_to_log_file(f"predicting {name}")
    data, properties = _case(trainer, dataset, name)
    trainer.print_to_log_file(f"{name}, shape {data.shape}, rank {trainer.local_rank}")
    logits = predictor.predict_sliding_window_return_logits(data).cpu()
    check_finite(logits)
    return logits, properties


def _case(trainer: Any, dataset: Any, name: str) -> tuple[Tensor, dict]:
    """The preprocessed image, with the stage before as further channels where there is one, and its properties."""
    data, _, previous, properties = dataset.load_case(name)
    data = np.array(data[:])
    if trainer.is_cascaded:
        labels = trainer.label_manager.foreground_labels
        data = np.vstack((data, convert_labelmap_to_one_hot(previous[:], labels, output_dtype=data.dtype)))
    return torch.from_numpy(data), properties


def _write_next_stages(trainer: Any, name: str, logits: Tensor, properties: dict) -> None:
    """Label maps for the cascade, on the grid of its data."""
    for stage in trainer.configuration_manager.next_stage_names or ():
        manager = trainer.plans_manager.get_configuration(stage)
        source = os.path.join(str(nnUNet_preprocessed), trainer.plans_manager.dataset_name, manager.data_identifier)
        dataset_class = infer_dataset_class(source)
        try:
            image = dataset_class(source, [name]).load_case(name)[0]
        except FileNotFoundError:
            trainer.print_to_log_file(
                f"Predicting next stage {stage} failed for case {name} because the preprocessed file is missing! "
                "Run the preprocessing for this configuration first!"
            )
            continue
        output = Path(trainer.output_folder_base, "predicted_next_stage", stage)
        output.mkdir(parents=True, exist_ok=True)
        resample_and_save(
            logits, image.shape[1:], str(output / name), trainer.plans_manager, trainer.configuration_manager,
            properties, trainer.dataset_json, default_num_processes, dataset_class,
        )  # fmt: skip


def _summarise(trainer: Any, folder: Path) -> None:
    labels = trainer.label_manager
    metrics = compute_metrics_on_folder(
        os.path.join(trainer.preprocessed_dataset_folder_base, "gt_segmentations"),
        str(folder),
        str(folder / "summary.json"),
        trainer.plans_manager.image_reader_writer_class(),
        trainer.dataset_json["file_ending"],
        labels.foreground_regions if labels.has_regions else labels.foreground_labels,
        labels.ignore_label,
        num_processes=min(default_num_processes, available_cores()),
        chill=True,
    )
    for label, scores in metrics["mean"].items():
        trainer.logger.log_summary(f"final_val/class_{label}_dice", scores["Dice"])
    dice = metrics["foreground_mean"]["Dice"]
    trainer.logger.log_summary("final_val/foreground_dice", dice)
    trainer.print_to_log_file("Validation complete", also_print_to_console=True)
    trainer.print_to_log_file("Mean Validation Dice: ", dice, also_print_to_console=True)
