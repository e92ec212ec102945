"""Finished folds: whether they were trained by the schedule that the scripts ask for now."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nnunet_ext.errors import UserError
from nnunet_ext.files import read_json
from nnunet_ext.slurm.pipeline import TRAIN, Pipeline, Training
from nnunet_ext.slurm.progress import read_progress

# Variables that decide about a training, and their place in `settings` of run.json where it has one.
_DECISIVE = {
    "NNUNET_EXT_EPOCHS": "epochs",
    "NNUNET_EXT_ITERATIONS": "iterations",
    "NNUNET_EXT_PRECISION": "precision",
    "NNUNET_EXT_LEARNING_RATE": "learning_rate",
    "NNUNET_EXT_SUPPORT_SIZE": None,
    "NNUNET_EXT_EPISODE_DATASETS": None,
}
_EXPORT = re.compile(r"^export (NNUNET_EXT_\w+)=(.*)$", re.MULTILINE)


def refuse_other_schedules(pipeline: Pipeline, variables: Mapping[str, str]) -> None:
    """Refuse to pool folds that are finished with folds that will be trained differently.

    nnU-Net's own trainers leave no run.json and know none of the variables: theirs are taken as they are.

    Args:
        pipeline: whose folds are looked at.
        variables: that the training will see.

    Raises:
        UserError: naming the fold, what differs and what to do.
    """
    if pipeline.accept_finished:
        return
    found = []
    for run, fold in pipeline.tasks():
        folder = pipeline.result_folder(run) / f"fold_{fold}"
        progress = read_progress(folder)
        if progress.trained or progress.finished:
            differences = _differences(_record(folder), variables) + _other_plans(pipeline, run, _record(folder))
            if differences:
                found.append((folder, f"{run.trainer} {run.plans} fold {fold} with {', '.join(differences)}"))
    if found:
        folders = "its folder" if len(found) == 1 else "their folders"
        raise UserError(
            f"finished already, but trained otherwise: {'; '.join(text for _, text in found)}. Set the same as then, "
            f"train anew by moving {folders} away ({found[0][0]}), or keep what is there with --accept-finished"
        )


def variables_in_script(pipeline: Pipeline) -> dict[str, str]:
    """This package's variables as 2_train.sh exports them, edited or not; the last of each wins."""
    text = Path(pipeline.folder, f"{TRAIN}.sh").read_text(encoding="utf-8")
    return {name: " ".join(shlex.split(value)) for name, value in _EXPORT.findall(text)}


def _record(folder: Path) -> dict[str, Any]:
    """run.json of a fold; {} where there is none that can be read."""
    try:
        content = read_json(folder / "run.json")
    except UserError:
        return {}
    return content if isinstance(content, dict) else {}


def _differences(record: Mapping[str, Any], variables: Mapping[str, str]) -> list[str]:
    """`NNUNET_EXT_EPOCHS 1 (now unset)` for every decisive variable that the fold was trained with otherwise."""
    settings, environment = (_object(record, name) for name in ("settings", "environment"))
    found = []
    for name, key in _DECISIVE.items():
        now = variables.get(name, "").strip()
        if now and key and settings.get(key) is not None:
            then = str(settings[key])
        elif "environment" in record:
            then = str(environment.get(name, "")).strip()
        else:
            continue
        if not _same(then, now):
            found.append(f"{name} {then or 'unset'} (now {now or 'unset'})")
    return found


def _other_plans(pipeline: Pipeline, run: Training, record: Mapping[str, Any]) -> list[str]:
    """Patch and batch size of the fold where the plans that lie there now have others."""
    try:
        configurations = read_json(Path(pipeline.preprocessed, pipeline.dataset, f"{run.plans}.json"))["configurations"]
        planned, settings = configurations[pipeline.configuration], _object(record, "settings")
        pairs = [(name, settings.get(name), planned.get(name)) for name in ("patch_size", "batch_size")]
    except (UserError, KeyError, TypeError, AttributeError):  # made by the first step, or inherited
        return []
    return [
        f"{name.replace('_', ' ')} {then} (the plans now say {now})"
        for name, then, now in pairs
        if None not in (then, now) and then != now
    ]


def _object(record: Mapping[str, Any], name: str) -> dict[str, Any]:
    value = record.get(name)
    return value if isinstance(value, dict) else {}


def _same(then: str, now: str) -> bool:
    """`0.01` and `1e-2` are the same."""
    try:
        return float(then) == float(now)
    except ValueError:
        return then == now
