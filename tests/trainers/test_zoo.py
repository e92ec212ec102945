"""Every trainer through every kind of data set that it claims: plan, train, validate, predict twice, evaluate, report.

    pytest -n 0 -m slow tests/trainers/test_zoo.py

All in one process and with tiny networks. What a trainer does not claim is tried, too, and must be refused in one line.
A line per data set says which trainers ran and which refused, and how.
"""

from __future__ import annotations

import json
import multiprocessing
from dataclasses import dataclass, field
from multiprocessing.pool import ThreadPool
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers import nnunet_dataset, zoo
from helpers.model_folders import unet
from helpers.promptable_stubs import SIZES
from nnunetv2.experiment_planning.plan_and_preprocess_api import extract_fingerprints, plan_experiments, preprocess
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.run.run_training import run_training
from nnunetv2.training.logging.nnunet_logger import MetaLogger

from nnunet_ext import models
from nnunet_ext.cli.main import main
from nnunet_ext.discovery import lookup
from nnunet_ext.errors import TrainingError
from nnunet_ext.plans import interactive, write
from nnunet_ext.plans.memory import StepMemory
from nnunet_ext.trainers import run_record

pytestmark = pytest.mark.slow

TRAINERS = [(model, trainer) for model in models.OWN for trainer in model.trainers]
CASCADE = "3d_cascade_fullres"
# What makes the tiny sizes tinier; a model that is not here has its tiny size.
SMALLER = {
    "segmamba": {"depths": [1, 1, 1, 1], "dims": [4, 8, 8, 8], "hidden_size": 8},
    "unetrpp": {"depths": [1, 1, 1, 1], "dims": [8, 8, 16, 16], "feature_size": 4},
    "sam_med3d": {"sizes": SIZES, "rounds": 3},
    "medsegdiff": {"width": 4, "max_width": 8, "denoiser_width": 4, "embedding_dim": 8, "semantic_dim": 8},
    "universeg": {"encoder_blocks": [4, 4, 4], "image_size": 32},
    "interactive": {"features": 4, "blocks": [1, 1]},
}
# The network named by its path.
NETWORK = ["--network", "monai.networks.nets.BasicUNet", "--set", "features=[4,4,4,4,4,4]"]
SHORT = {"EPOCHS": "1", "ITERATIONS": "2", "VAL_ITERATIONS": "1", "SAMPLING_STEPS": "1", "SAMPLES": "1"}
# In nnUNetv2_predict their noise does not follow the place.
DRAWS = {"nnUNetTrainerMedSegDiffV2", "nnUNetTrainerMedSegDiffV2Paper"}


@dataclass
class Prepared:
    """A member's data set, preprocessed in `folder` below `base`, and what has become of each trainer on it."""

    member: zoo.Member
    base: Path
    folder: Path
    predictions: dict[str, Path] = field(default_factory=dict)
    refusals: dict[str, str] = field(default_factory=dict)

    @property
    def raw(self) -> Path:
        return self.base / "nnUNet_raw" / self.folder.name


@pytest.fixture(scope="module", params=zoo.MEMBERS, ids=lambda member: member.name)
def prepared(request, tmp_path_factory):
    """Planned and preprocessed by nnU-Net, with threads for its processes."""
    member, base = request.param, tmp_path_factory.mktemp("zoo")
    with pytest.MonkeyPatch.context() as patch:
        for name in nnunet_dataset.FOLDERS:
            (base / name).mkdir()
            patch.setenv(name, str(base / name))
        for name, value in SHORT.items():
            patch.setenv(f"NNUNET_EXT_{name}", value)
        patch.setattr(multiprocessing, "get_context", lambda *kind: SimpleNamespace(Pool=ThreadPool))
        # What takes long and is tested elsewhere.
        patch.setattr(write, "estimate", lambda *arguments: StepMemory(10**9, 0, 0, 0))
        patch.setattr(run_record, "count_gmacs", lambda *arguments: None)
        patch.setattr(MetaLogger, "plot_progress_png", lambda *arguments: None)
        lookup.enable()
        patch.setenv("nnUNet_n_proc_DA", "1")  # planning refuses 0
        folder = preprocessed(member, base)
        patch.setenv("nnUNet_n_proc_DA", "0")
        found = Prepared(member, base, folder)
        yield found
    lines = [f"{member.name}: ran {', '.join(found.predictions) or 'nothing'}"]
    lines += [f"{member.name}: {name} refused: {said}" for name, said in found.refusals.items()]
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print("", *lines, sep="\n")


def preprocessed(member: zoo.Member, base: Path) -> Path:
    """The raw data set, and what nnU-Net makes of it; returns the preprocessed folder."""
    raw, number = zoo.make(member, base / "nnUNet_raw"), int(member.number)
    extract_fingerprints([number], num_processes=1, check_dataset_integrity=True)
    plan_experiments([number])
    folder = base / "nnUNet_preprocessed" / raw.name
    plans = json.loads((folder / "nnUNetPlans.json").read_text())
    configurations = plans["configurations"]
    if member.configuration == CASCADE:
        full = configurations["3d_fullres"]
        low = {**full, "data_identifier": "nnUNetPlans_3d_lowres", "next_stage": CASCADE}
        configurations["3d_lowres"] = {**low, "spacing": [1.5 * n for n in full["spacing"]]}
        configurations[CASCADE] = {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"}
        (folder / "nnUNetPlans.json").write_text(json.dumps(plans))
    own = [name for name, settings in configurations.items() if "data_identifier" in settings]
    preprocess([number], configurations=own, num_processes=[1] * len(own))
    return folder


def configuration_for(member: zoo.Member, trainer: models.Trainer) -> str:
    """Slices of volumes for trainers of slices alone; else the member's own, claimed or not."""
    return "2d" if trainer.inputs == ("2d",) and member.configuration != CASCADE else member.configuration


def plan(model: models.Model, data: Prepared, configuration: str, capsys) -> str:
    """Plans with a tiny network for a configuration and what it continues: their name."""
    name, base = f"Zoo{model.suffix}", "nnUNetPlans"
    own = ["3d_lowres", "3d_fullres"] if configuration == CASCADE else [configuration]
    patch = [24, 24] if configuration == "2d" else [8, 24, 24]
    if model.network:
        base = name
        named = NETWORK if model.name == "adapted" else ["--model", model.name, "--size", "tiny"]
        if model.preprocessor and configuration == "3d_fullres":
            named += ["-p", planned_and_preprocessed(model, data)]
        words = [*named, "-c", *own, "--patch-size", *map(str, patch)]
        if main(["plan", "-d", data.member.number, *words, "--batch-size", "2", "-o", name]):
            raise TrainingError(capsys.readouterr().err.strip())
    plans = json.loads((data.folder / f"{base}.json").read_text()) | {"plans_name": name}
    for key in own:
        settings = plans["configurations"][key]
        settings |= {"patch_size": patch, "batch_size": 2}
        if model.network:
            settings["architecture"]["arch_kwargs"] |= SMALLER.get(model.name, {})
        else:
            settings["architecture"] = unet(len(patch), stages=3)
    (data.folder / f"{name}.json").write_text(json.dumps(plans))
    return name


def planned_and_preprocessed(model: models.Model, data: Prepared) -> str:
    """The plans of a model that needs data of its own, made by its planner."""
    number = int(data.member.number)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("nnUNet_n_proc_DA", "1")
        patch.setenv("NNUNET_EXT_INTERACTIVE_CHANNELS", "all")
        patch.setattr(interactive, "estimate", lambda *arguments: StepMemory(10**9, 0, 0, 0))
        plan_experiments([number], experiment_planner_class_name=model.planner)
        name = f"nnUNet{model.suffix}Plans"
        preprocess([number], name, configurations=["3d_fullres"], num_processes=[1])
    return name


def train_and_predict(model: models.Model, trainer: models.Trainer, data: Prepared, capsys) -> Path | None:
    """All steps but the report; returns the folder of predictions, None where somebody has to click for them.

    Raises:
        TrainingError: the trainer or the planning of its network refuses.
    """
    member, configuration = data.member, configuration_for(data.member, trainer)
    plans = plan(model, data, configuration, capsys)
    # The second stage of a cascade needs the first stage's predictions of all cases.
    fold = 0 if member.cases >= 5 and configuration != CASCADE else "all"
    previous = None
    for stage in ["3d_lowres", CASCADE] if configuration == CASCADE else [configuration]:
        run_training(data.folder.name, stage, fold, trainer.name, plans, device=torch.device("cpu"))
        trained = data.base / "nnUNet_results" / data.folder.name / f"{trainer.name}__{plans}__{stage}"
        if not trainer.automatic:
            return check_clicks(data, trained / f"fold_{fold}")
        check_validation(data, trained / f"fold_{fold}")
        previous = predict_twice(data, trained, fold, previous, capsys)
    words = ["-r", str(data.raw / "labelsTs"), "-p", str(previous), "-n", "1", "-q"]
    capsys.readouterr()
    assert main(["evaluate", *words]) == 0, capsys.readouterr().err
    return previous


def check_clicks(data: Prepared, fold: Path) -> None:
    """Every label or region that occurs is clicked on, and nothing claims to be automatic."""
    summary = json.loads((fold / "validation" / "prompted_summary.json").read_text())
    names = data.member.labels.keys() - {"background", "ignore"}
    assert summary["users"]["centre"]["mean"]["n"] and {score["target"] for score in summary["cases"]} <= names
    assert not (fold / "validation" / "summary.json").exists()


def check_validation(data: Prepared, fold: Path) -> None:
    """Every label or region is scored."""
    if data.member.cases == 1 and "UniverSeg" in fold.parent.name:
        return  # its one case supports every prediction
    summary = json.loads((fold / "validation" / "summary.json").read_text())
    assert len(summary["mean"]) == len(data.member.labels.keys() - {"background", "ignore"})


def predict_twice(data: Prepared, trained: Path, fold: int | str, previous: Path | None, capsys) -> Path:
    """By `nnunet_ext predict` and by nnU-Net; the folder of the former's label maps, which must be the latter's."""
    member, name = data.member, data.member.case_name.format(data.member.cases)
    found, expected = (data.base / who / trained.name for who in ("ours", "nnunet"))
    words = ["-m", trained, "-i", data.raw / "imagesTs", "-o", found, "-f", fold, "-device", "cpu", "--disable_tta"]
    words += ["-prev_stage_predictions", previous] if previous else []
    capsys.readouterr()
    assert main(["predict", *map(str, words)]) == 0, capsys.readouterr().err
    predictor = nnUNetPredictor(device=torch.device("cpu"), use_mirroring=False, allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(trained), [fold], "checkpoint_final.pth")
    expected.mkdir(parents=True)
    files = sorted(str(path) for path in (data.raw / "imagesTs").iterdir() if path.name.endswith(member.ending))
    before = previous and str(previous)
    predictor.predict_from_files_sequential([files], [str(expected / name)], False, True, before)
    read = predictor.plans_manager.image_reader_writer_class().read_seg
    ours, theirs = (read(str(folder / f"{name}{member.ending}"))[0] for folder in (found, expected))
    # An untrained network's classes lie close together; each voxel is looked at in test_as_nnunet.py.
    assert ours.shape == theirs.shape
    assert predictor.trainer_name in DRAWS or (ours != theirs).mean() < 0.02
    return found


@pytest.mark.parametrize(("model", "trainer"), TRAINERS, ids=[trainer.name for _, trainer in TRAINERS])
def test_trainer(prepared, capsys, model, trainer):
    configuration = configuration_for(prepared.member, trainer)
    if ("cascade" if configuration == CASCADE else configuration) in trainer.inputs:
        predicted = train_and_predict(model, trainer, prepared, capsys)
        if predicted is not None:
            prepared.predictions[trainer.name] = predicted
        return
    with pytest.raises(TrainingError) as refused:
        train_and_predict(model, trainer, prepared, capsys)
    said = str(refused.value).replace(str(prepared.base), "")
    assert "\n" not in said and model.title in said
    prepared.refusals[trainer.name] = said


def test_report(prepared, capsys):
    """Of all that has been predicted; of the baseline where this test runs alone."""
    if not prepared.predictions:
        model, trainer = TRAINERS[0]
        prepared.predictions[trainer.name] = train_and_predict(model, trainer, prepared, capsys)
    page = prepared.base / "report.html"
    runs = [f"{name}={path}" for name, path in prepared.predictions.items()]
    capsys.readouterr()
    assert main(["report", *runs, "-r", str(prepared.raw / "labelsTs"), "-o", str(page), "-n", "1", "-q"]) == 0, (
        capsys.readouterr().err
    )
    text = page.read_text()
    assert all(name in text for name in prepared.predictions)
