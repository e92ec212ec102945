"""Before the folds start together: plans, preprocessed data and splits_final.json, made where they are missing."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from nnunet_ext.datasets import base_folder
from nnunet_ext.errors import UserError
from nnunet_ext.evaluation.splits import read_splits
from nnunet_ext.files import write_json
from nnunet_ext.json_object import JsonObject
from nnunet_ext.plans.files import file_ending, inherited, read_plans

_REMEDY = "restore it, or plan and preprocess again"


def prepare(dataset: str, configuration: str, plans: Sequence[str], processes: int) -> None:
    """Make what training needs, with nnU-Net's own commands, printed before they run.

    The folds are nnU-Net's own (`KFold(5, shuffle, seed 12345)` of the sorted cases). Every fold would write them when
    it starts; with several starting at once one may read what another has half written.

    Args:
        dataset: full name.
        configuration: e.g. 3d_fullres.
        plans: names; nnUNetPlans is made when missing, others must exist.
        processes: for each of nnU-Net's pools.

    Raises:
        UserError: plans or configuration do not exist, a command fails, or there are fewer than five cases.
    """
    number = str(int(dataset[7:10]))
    count = str(processes)
    folder = base_folder("nnUNet_preprocessed") / dataset
    if any(not (folder / f"{name}.json").is_file() for name in plans) and not (folder / "nnUNetPlans.json").is_file():
        _run("nnUNetv2_plan_and_preprocess", "-d", number, "--no_pp", "-npfp", count)
    for name in plans:
        data = data_identifier(folder, name, configuration)
        if not complete(folder, data):
            _run("nnUNetv2_preprocess", "-d", number, "-plans_name", name, "-c", configuration, "-np", count)
        if not complete(folder, data):
            raise UserError(f"{folder / data} is not complete; look at nnUNetv2_preprocess's messages above")
    splits = folder / "splits_final.json"
    if not splits.is_file():
        first = folder / data_identifier(folder, plans[0], configuration)
        _write_splits(splits, sorted(path.stem for path in first.glob("*.pkl")))
    print(f"{dataset}: {', '.join(plans)}, preprocessed data and {len(read_splits(splits))} folds are in {folder}")


def data_identifier(folder: Path, plans: str, configuration: str) -> str:
    """The preprocessed folder that `configuration` of these plans reads.

    Raises:
        UserError: no such plans or configuration.
    """
    path = folder / f"{plans}.json"
    if not path.is_file():
        raise UserError(f"{path} does not exist; make these plans first, e.g. with nnunet_ext plan")
    about = read_plans(path, _REMEDY)
    known = about.object("configurations").names()
    if configuration not in known:
        raise UserError(f"-c {configuration} is not in {path.name}, which has {', '.join(known)}")
    return inherited(about, configuration).text("data_identifier")


def complete(folder: Path, data: str) -> bool:
    """Whether every case with a reference has been preprocessed: `data` is a sub-folder of `folder`, the data set's."""
    if not (folder / "gt_segmentations").is_dir():  # nnU-Net copies the references when it has preprocessed all cases
        return False
    ending = file_ending(JsonObject.read(folder / "dataset.json", _REMEDY))
    references = [path.name for path in (folder / "gt_segmentations").iterdir()]
    cases = {name.removesuffix(ending) for name in references if name.endswith(ending)}
    # The .pkl is the last of a case's files that nnU-Net writes.
    return bool(cases) and cases <= {path.stem for path in (folder / data).glob("*.pkl")}


def _write_splits(path: Path, cases: list[str]) -> None:
    from nnunetv2.utilities.crossval_split import generate_crossval_split

    if len(cases) < 5:
        raise UserError(
            f"{path.parent.name} has {len(cases)} cases and nnU-Net's five folds need at least 5; train with -f all or "
            f"write your own folds into {path}"
        )
    splits = generate_crossval_split(cases, seed=12345, n_splits=5)
    write_json(path, [{part: [str(case) for case in cases] for part, cases in fold.items()} for fold in splits])


def _run(*command: str) -> None:
    print("$ " + " ".join(command), flush=True)
    # A choice for the training, which planning refuses when it is 0.
    environment = {name: value for name, value in os.environ.items() if name != "nnUNet_n_proc_DA"}
    status = subprocess.run(command, env=environment, check=False).returncode
    if status:
        raise UserError(f"{command[0]} failed with exit status {status}; its messages are above")
