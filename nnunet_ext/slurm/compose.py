"""From what a user types to a `Pipeline`: names looked up, folders found, everything that can be wrong found now."""

from __future__ import annotations

import difflib
import importlib.util
import os
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from nnunet_ext.datasets import base_folder, find_dataset
from nnunet_ext.discovery.table import trainers as all_trainers
from nnunet_ext.environment import unknown_variables
from nnunet_ext.errors import UsageError, UserError
from nnunet_ext.slurm.finished import refuse_other_schedules
from nnunet_ext.slurm.job import Resources
from nnunet_ext.slurm.pipeline import Pipeline, Small, Training
from nnunet_ext.slurm.prepare import data_identifier

# What ends a line of a script, and what UTF-8 cannot hold: nothing that quotes could help.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
# In the double quotes it is written into: plain text and variables, nothing that runs.
_SCRATCH = re.compile(r"""(?:[^"`\\$]|\$\w+|\$\{\w+(?::?-[^"`\\$}]*)?\})+""", re.ASCII)

# nnU-Net's schedule.
WHOLE_TRAINING = {"NNUNET_EXT_EPOCHS": 1000, "NNUNET_EXT_ITERATIONS": 250, "NNUNET_EXT_VAL_ITERATIONS": 50}
FOLDERS = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")


def compose(
    dataset: str,
    trainers: Sequence[str],
    configuration: str,
    plans: Sequence[str],
    folds: Sequence[str],
    resources: Resources,
    *,
    scheduler: str = "slurm",
    folder: Path | None = None,
    images: Path | None = None,
    references: Path | None = None,
    scratch: str | None = None,
    at_once: int | None = None,
    warn_seconds: int = 300,
    cpu_partition: str | None = None,
    setup: tuple[str, ...] = (),
    small: Small | None = None,
    accept_finished: bool = False,
) -> Pipeline:
    """Check and complete a description; parameters as of `Pipeline`.

    Raises:
        UserError: a variable, data set, trainer, plans, configuration, fold or value that cannot work, or a
            finished fold of another schedule.
    """
    typed = [dataset, configuration, *trainers, *plans, *folds, scratch, cpu_partition, *setup, *resources.extra]
    typed += [resources.partition, resources.account, resources.mail_user, resources.mail_type]
    refuse_control_characters(*typed, *(str(path) for path in (folder, images, references) if path is not None))
    for option, name in [("-c", configuration), *(("-p", name) for name in plans)]:
        if name.startswith("-"):
            raise UsageError(f"{option} {name} begins with a dash, which commands take for an option; choose another")
    raw, preprocessed, results = (str(base_folder(name).absolute()) for name in FOLDERS)
    name = dataset_name(dataset)
    if configuration == "3d_cascade_fullres":
        raise UserError(
            "-c 3d_cascade_fullres predicts in two stages, which this pipeline does not chain; use 3d_lowres"
        )
    _check_folds(folds)
    for trainer in trainers:
        _check_trainer(trainer)
    if len(plans) not in (1, len(trainers)):
        raise UserError(f"-p has {len(plans)} plans for {len(trainers)} trainers; give one for all or one for each")
    pairs = list(zip(trainers, plans if len(plans) > 1 else list(plans) * len(trainers), strict=True))
    if len(set(pairs)) < len(pairs):
        raise UserError(f"{' '.join(trainers)}: the same trainer with the same plans twice; name each once")
    runs = tuple(Training(t, p, _data(Path(preprocessed, name), p, configuration)) for t, p in pairs)
    if warn_seconds > resources.minutes * 60 // 2:
        raise UserError(f"--warn {warn_seconds} is more than half of the time limit; raise --time or lower --warn")
    if scratch is not None and not _SCRATCH.fullmatch(scratch):
        raise UsageError(f"--scratch {scratch} must be a folder, variables allowed, such as '$TMPDIR'")
    if images is None and references is not None:
        raise UserError("-r are the label maps of the images given with -i; give both")
    if images is None and _filled(Path(raw, name, "imagesTs")):
        images = Path(raw, name, "imagesTs")
        references = Path(raw, name, "labelsTs") if _filled(Path(raw, name, "labelsTs")) else None
    for given in (images, references):
        if given is not None and not _filled(given):
            raise UserError(f"{given} is no folder with files in it")
    pipeline = Pipeline(
        scheduler=scheduler,
        dataset=name,
        configuration=configuration,
        runs=runs,
        folds=tuple(folds),
        folder=str((folder or Path(f"slurm_{name}_{configuration}")).absolute()),
        raw=raw,
        preprocessed=preprocessed,
        results=results,
        path=str(Path(sys.executable).parent),
        resources=resources,
        images=None if images is None else str(images.absolute()),
        references=None if references is None else str(references.absolute()),
        scratch=scratch,
        at_once=at_once,
        warn_seconds=warn_seconds,
        cpu_partition=cpu_partition,
        setup=setup,
        variables=settings(os.environ),
        small=small or Small(),
        accept_finished=accept_finished,
    )
    places = (pipeline.folder, raw, preprocessed, results, pipeline.path, pipeline.images, pipeline.references)
    refuse_control_characters(*places, *(value for _, value in pipeline.variables))
    refuse_other_schedules(pipeline, dict(pipeline.variables))
    return pipeline


def refuse_control_characters(*texts: str | None) -> None:
    """Refuse line breaks and the like in options and paths.

    Raises:
        UsageError: naming the text.
    """
    for text in texts:
        if text is not None and _CONTROL.search(text):
            raise UsageError(f"{text!r} holds a line break or another character that no script can hold; leave it out")


def split_options(texts: Sequence[str]) -> list[str]:
    """The words of what was given with --sbatch, quotes read as a shell reads them.

    Raises:
        UsageError: a quote is not closed, or a word holds a line break.
    """
    words: list[str] = []
    for text in texts:
        refuse_control_characters(text)
        try:
            words += shlex.split(text)
        except ValueError as error:
            raise UsageError(
                f"--sbatch {text}: {str(error).lower()}; close it, or escape it with a backslash"
            ) from None
    return words


def dataset_name(dataset: str) -> str:
    """Full name of a data set given by number or name, among raw and preprocessed ones.

    Raises:
        UserError: as `find_dataset`, or the name holds a line break.
    """
    refuse_control_characters(dataset)
    name = find_dataset(dataset, "nnUNet_raw", "nnUNet_preprocessed").name
    refuse_control_characters(name)
    return name


def settings(environment: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """Variables of nnU-Net and of this package that are set, without the three folders: the jobs must see them, too."""
    return tuple(
        (name, value)
        for name, value in sorted(environment.items())
        if re.fullmatch(r"(NNUNET_EXT|nnUNet)_\w+", name, re.ASCII) and name not in (*FOLDERS, "NNUNET_EXT_TEST_DATA")
    )


def carried(pipeline: Pipeline) -> list[str]:
    """One line for every variable of this shell that the scripts carry, with what it does to them."""
    lines = []
    unknown = unknown_variables(dict(pipeline.variables))
    for name, value in pipeline.variables:
        effect = f"  (has no effect: {unknown[name]})" if name in unknown else ""
        if name in WHOLE_TRAINING:
            effect = f"  (nnU-Net's own: {WHOLE_TRAINING[name]})"
        elif name in ("nnUNet_n_proc_DA", "nnUNet_def_n_proc"):
            effect = f"  (instead of what follows from {pipeline.resources.cpus} CPUs)"
        lines.append(f"{name}={value}{effect}")
    return lines


def shortening(pipeline: Pipeline) -> list[str]:
    """The variables that make training shorter than nnU-Net's, as a trial's do."""
    return [
        f"{name}={value}"
        for name, value in pipeline.variables
        if value.strip().isdecimal() and int(value) < WHOLE_TRAINING.get(name, 0)
    ]


def _check_folds(folds: Sequence[str]) -> None:
    if list(folds) == ["all"]:
        return
    wrong = [fold for fold in folds if not re.fullmatch(r"\d{1,9}", fold, re.ASCII)]
    if wrong:
        raise UserError(f"-f {wrong[0]} is no fold; expected numbers such as 0 1 2 3 4, or only all")
    if len(set(folds)) < len(folds):
        raise UserError(f"-f {' '.join(folds)} names a fold twice; name each once")


def _check_trainer(name: str) -> None:
    """Look for the class in the sources: importing nnU-Net to ask it takes many seconds."""
    ours = {entry.name: entry.trainer for entry in all_trainers()}
    if name in ours:
        about = ours[name]
        if about is not None and not about.automatic:
            raise UserError(
                f"-tr {name} trains a network that segments nothing by itself, and these jobs predict and compare; "
                "train it with nnUNetv2_train"
            )
        return
    spec = importlib.util.find_spec("nnunetv2")
    roots = (
        [Path(place, "training", "nnUNetTrainer") for place in (spec.submodule_search_locations or [])] if spec else []
    )
    roots += [Path(place) for place in os.environ.get("nnUNet_extTrainer", "").split(os.pathsep) if place]
    known = set(ours)
    for root in roots:
        for path in root.rglob("*.py"):
            known |= set(re.findall(r"^class (\w+)\(", path.read_text(encoding="utf-8", errors="replace"), re.M))
    if name not in known:
        near = difflib.get_close_matches(name, known, 3)
        raise UserError(f"-tr {name} is no trainer{'; did you mean ' + ' or '.join(near) + '?' if near else ''}")


def _data(folder: Path, plans: str, configuration: str) -> str:
    if "__" in plans:
        raise UserError(f"-p {plans} may not contain '__', which nnU-Net uses to split folder names")
    # nnU-Net's own plans are made by the first step; others exist before.
    if plans == "nnUNetPlans" and not (folder / f"{plans}.json").is_file():
        return f"nnUNetPlans_{configuration}"
    return data_identifier(folder, plans, configuration)


def _filled(folder: Path) -> bool:
    return folder.is_dir() and any(folder.iterdir())
