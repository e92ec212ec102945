"""The best run of a cross-validation by nnU-Net's own rule, and the post-processing of every run.

nnU-Net's command compares every trainer with every plans; runs here pair them, so its functions are called instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nnunet_ext.errors import UserError


def select(dataset: str, configuration: str, runs: Sequence[str], folds: Sequence[int], processes: int) -> str:
    """Pool the validation predictions of the folds and choose the run with the highest mean Dice.

    Leaves what `nnUNetv2_find_best_configuration` leaves (inference_information.json, inference_instructions.txt,
    crossval_results_folds_*), with a postprocessing.pkl for every run, not for the best alone.

    Args:
        dataset: full name.
        configuration: of all runs.
        runs: TRAINER__PLANS.
        folds: numbers.
        processes: for nnU-Net's pools.

    Returns:
        The best of `runs`.

    Raises:
        UserError: a run is not called TRAINER__PLANS, or a fold is not finished.
    """
    from nnunetv2.evaluation.find_best_configuration import find_best_configuration
    from nnunetv2.paths import nnUNet_preprocessed, nnUNet_results
    from nnunetv2.postprocessing.remove_connected_components import determine_postprocessing

    models = []
    for run in runs:
        trainer, separator, plans = run.partition("__")
        if not separator or "__" in plans:
            raise UserError(f"-r {run} must be TRAINER__PLANS")
        models.append({"trainer": trainer, "plans": plans, "configuration": configuration})
        for fold in folds:
            summary = Path(
                str(nnUNet_results), dataset, f"{run}__{configuration}", f"fold_{fold}", "validation", "summary.json"
            )
            if not summary.is_file():
                raise UserError(f"{summary} does not exist: fold {fold} of {run} is not finished; train it first")
    found = find_best_configuration(
        dataset, models, allow_ensembling=False, num_processes=processes, folds=tuple(folds)
    )
    chosen = found["best_model_or_ensemble"]["selected_model_or_models"][0]
    best = f"{chosen['trainer']}__{chosen['plans_identifier']}"
    for run in runs:
        if run == best:
            continue  # nnU-Net has just done it
        pooled = Path(
            str(nnUNet_results),
            dataset,
            f"{run}__{configuration}",
            "crossval_results_folds_" + "_".join(map(str, folds)),
        )
        references = Path(str(nnUNet_preprocessed), dataset, "gt_segmentations")
        files = (str(pooled / name) for name in ("plans.json", "dataset.json"))
        determine_postprocessing(str(pooled), str(references), *files, num_processes=processes)
    return best
