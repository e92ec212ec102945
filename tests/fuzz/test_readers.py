"""Every function that reads a file, and every environment variable, with damaged content: a value, or one line."""

from __future__ import annotations

import ast
import contextlib
import json
import random
import time
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from helpers import mutate, scenes, toy_runs
from helpers.model_folders import plans
from helpers.scene import decathlon, raw_dataset, volume

import nnunet_ext
from nnunet_ext import files, image_files, images
from nnunet_ext.architectures.universeg.few_shot import FewShotNetwork
from nnunet_ext.checkpoints import load as checkpoints
from nnunet_ext.cli.main import main
from nnunet_ext.clicks import model as clicks
from nnunet_ext.data import fetch, holdout, layout, volumes
from nnunet_ext.diffusion.sampling import Sampling
from nnunet_ext.environment import VARIABLES
from nnunet_ext.errors import UserError
from nnunet_ext.evaluation import images as evaluated_images
from nnunet_ext.evaluation import labels, samples, splits
from nnunet_ext.few_shot import folder as few_shot
from nnunet_ext.inference import model_files
from nnunet_ext.ops import causal_conv1d, selective_scan
from nnunet_ext.plans import files as plans_files
from nnunet_ext.prompts import files as prompts
from nnunet_ext.reports import evaluation_file, training_records
from nnunet_ext.reports.interaction_curves import read_interaction_curves
from nnunet_ext.sharing import archive as archives
from nnunet_ext.sharing import manifest
from nnunet_ext.slurm import progress
from nnunet_ext.trainers import run_record
from nnunet_ext.trainers.interactive import InteractiveSettings
from nnunet_ext.trainers.settings import TrainingSettings
from nnunet_ext.training_log import read_training_log

SECONDS, MEMORY = 10.0, 200 << 20
IMAGES = (".nii.gz", ".nii", ".nrrd", ".mha", ".tif", ".png", ".bmp")
DATASET = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "a": 1, "b": 2}, "file_ending": ".nii.gz"}


def image(folder: Path, ending: str) -> Path:
    array = volume(0)[1]
    path = folder / f"a{ending}"
    sitk.WriteImage(sitk.GetImageFromArray(array[2] if ending in (".png", ".bmp") else array), str(path))
    return path


def text(folder: Path, name: str, content: object) -> Path:
    path = folder / name
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def weights(folder: Path) -> Path:
    torch.manual_seed(0)
    torch.save({"state_dict": few_shot.UniverSeg([2, 3]).state_dict(), "epoch": 3}, folder / "weights.pt")
    return folder / "weights.pt"


def support(folder: Path) -> Path:
    network = FewShotNetwork(1, 3, encoder_blocks=[2, 3], image_size=16)
    buffers = {name: getattr(network, name) for name in ("support_images", "support_masks", "support_cases", "window")}
    torch.save({**buffers, "side": network.side}, folder / "support.pt")
    return folder / "support.pt"


def read_support(path: Path) -> None:
    network = FewShotNetwork(1, 3, encoder_blocks=[2, 3], image_size=16)
    network.support_file = str(path)
    network.read_support_file()


def summary(folder: Path) -> Path:
    scene = scenes.make(scenes.evaluate, folder / "scene")
    assert main(list(scene.words)) == 0
    return scene.output / "summary.json"


def archive(folder: Path) -> Path:
    (folder / "a.tar").write_bytes(decathlon(folder))
    return folder / "a.tar"


def read_archive(path: Path) -> None:
    with fetch.intact(path):
        for _, file in fetch.archive_files(path):
            file.read(1 << 20)


MANIFEST = manifest.Manifest("Dataset007_Toy", "T__P__c", ("0",), "CC0", "toys", 0, {"torch": "2"}, {"a": "0" * 64})


def read_packed(path: Path) -> None:
    """The file as a member of a packed one, and as the packed one."""
    with zipfile.ZipFile(path.with_name("a.zip"), "w") as packed:
        packed.write(path, "a/b")
    for name in (path.with_name("a.zip"), path):
        with archives.opened(name) as found:
            archives.unpack(name, found, lambda member: None, int)


MARKUPS = {"markups": [{
    "type": "Fiducial", "coordinateSystem": "LPS",
    "controlPoints": [{"label": "liver", "position": [3.0, 4.0, 5.0], "positionStatus": "defined"}],
}]}  # fmt: skip
CHALLENGE = {
    "name": "liver", "type": "Multiple points", "version": {"major": 1, "minor": 0},
    "points": [{"name": "liver", "point": [5, 5, 5]}],
}  # fmt: skip
PROMPTS = {"version": 1, "space": "voxel", "objects": [{"label": 1, "points": [{"xyz": [8, 8, 4], "positive": True}]}]}
TABLE = "index,axis-0,axis-1,axis-2,label\n0,4.0,8.0,8.0,liver\n1,3.0,8.0,8.0,-liver\n"
ONE = images.Image(np.zeros((1, 8, 12, 10), np.float32), (1.0, 1.0, 1.0), np.eye(4))

MEANS = {
    "Dice": {"1": 0.5}, "NSD": {"1": 0.4}, "Dice AUC": 0.5, "interactions to": {"0.8": 1.0}, "reached": {"0.8": 0.0},
    "seconds each": 0.1,
}  # fmt: skip
CURVES = {
    "interactions": [1], "users": {"centre": "clicks"}, "models": {"ours": {"centre": {"mean": MEANS}}},
    "title": "liver", "note": "sees the reference", "cases": ["a"], "nsd_tolerance_mm": 1.0,
}  # fmt: skip

# What is read -> (how a whole file is made, the readers).
KINDS: dict[str, tuple[Callable[[Path], Path], tuple[Callable, ...]]] = {
    **{
        ending: (
            lambda folder, ending=ending: image(folder, ending),
            (image_files.read_image, image_files.read_values, image_files.check_whole, volumes.read_volume,
             evaluated_images.read_label_map, lambda path: few_shot.read_slices(path, "z")),
        )
        for ending in IMAGES
    },
    "NIfTI": (
        lambda folder: image(folder, ".nii.gz"),
        (image_files.read_nifti, images.read_image, lambda path: images.read_mask(path, ONE),
         lambda path: samples.read_samples([path, path]), lambda path: few_shot.read_image([path], 16, "y")),
    ),
    "JSON": (lambda folder: text(folder, "a.json", {"a": [1, {"b": "c"}]}), (files.read_json,)),
    "dataset.json": (
        lambda folder: text(folder, "dataset.json", DATASET),
        (labels.labels_from_dataset_json, lambda path: plans_files.read_dataset_json(path, "restore it")),
    ),
    "model": (
        lambda folder: (text(folder, "dataset.json", DATASET), text(folder, "plans.json", plans()))[1],
        (lambda path: model_files.read_plans(path.parent, "3d_fullres", model_files.read_dataset_json(path.parent)),
         lambda path: plans_files.read_plans(path, "restore it"), training_records.read_plans),
    ),
    "splits": (lambda folder: text(folder, "s.json", [{"train": ["a"], "val": ["b"]}]), (splits.read_splits,)),
    "manifest": (
        lambda folder: text(folder, manifest.NAME, MANIFEST.content()),
        (manifest.read_manifest, read_packed),
    ),
    "run.json": (
        lambda folder: text(folder, "run.json", toy_runs.run_record(3, 0)),
        (training_records.read_run_record, lambda path: run_record.read_record(str(path.parent))),
    ),
    "summary": (
        summary,
        (lambda path: evaluation_file.read_evaluation(path, path.parent),),
    ),
    "training log": (
        lambda folder: text(folder, "training_log_2026_1_1_10_00_00.txt", toy_runs.training_log(4)),
        (lambda path: read_training_log(path.parent), lambda path: progress.read_progress(path.parent)),
    ),
    "clicks": (lambda folder: text(folder, "clicks.json", CURVES), (read_interaction_curves,)),
    "prompts": (lambda folder: text(folder, "a.prompts.json", PROMPTS), (prompts.read_prompts,)),
    "markups": (lambda folder: text(folder, "a.mrk.json", MARKUPS), (prompts.read_prompts,)),
    "challenge": (
        lambda folder: text(folder, "a.json", CHALLENGE), (lambda path: prompts.read_prompts(path, "voxel"),)
    ),
    "napari": (lambda folder: text(folder, "a.csv", TABLE), (prompts.read_prompts,)),
    "weights": (
        weights,
        (checkpoints.read_checkpoint, checkpoints.read_without_code, few_shot.load_network, clicks.load_official),
    ),
    "support": (support, (read_support,)),
    "archive": (archive, (read_archive,)),
    "data set": (
        lambda folder: raw_dataset(folder / "Dataset001_A", 1) / "dataset.json",
        (lambda path: layout.read_layout(path.parent), lambda path: holdout.read_raw_dataset(path.parent)),
    ),
}  # fmt: skip
# These take what another reader has read, or are met in `test_commands.py` with all they need.
ELSEWHERE = {
    "prompts.foreign.read_slicer": "read_prompts", "prompts.foreign.read_grand_challenge": "read_prompts",
    "prompts.foreign.read_napari": "read_prompts", "prompts.raster.read_channel": "an array",
    "support.pool.read_pool": "nnU-Net's data sets", "checkpoints.load.read_trusted": "runs what it reads",
    "few_shot.folder.read_support": "predict-fewshot", "reports.figures.read_case": "demo, report",
    "reports.overlays.read_scored_case": "report",
    "slurm.status.read_status": "slurm status", "inference.model_files.read_dataset_json": "model",
    "inference.model_folder.read_training_checkpoint": "predict, import-weights",
    "dicom.headers.read_header": "read_contents", "dicom.series.read_series": "data convert dicom",
    "dicom.headers.read_contents": "data convert dicom", "dicom.drawn.read_drawn": "data convert dicom",
    "inference.onnx_model.read_onnx_metadata": "predict by onnxruntime",
    "plans.write.read_base_plans": "plan", "plans.write.read_description": "plan",
}  # fmt: skip


def public_readers() -> Iterator[str]:
    package = Path(nnunet_ext.__file__).parent
    for path in package.rglob("*.py"):
        module = ".".join(path.relative_to(package).with_suffix("").parts)
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("read_"):
                yield f"{module}.{node.name}"


def test_every_reader_is_here():
    source = Path(__file__).read_text(encoding="utf-8")
    missing = [name for name in public_readers() if name not in ELSEWHERE and f"{name.split('.')[-1]}" not in source]
    assert not missing
    assert set(ELSEWHERE) <= set(public_readers())


@contextlib.contextmanager
def bounded(what: str, wrong: list[str]) -> Iterator[None]:
    """A UserError of one printable line, little memory and time; anything else is noted."""
    tracemalloc.start()
    begun = time.process_time()
    try:
        yield
    except UserError as error:
        if not str(error).isprintable() or len(str(error)) > 12_000:
            wrong.append(f"{what}: {str(error)[:200]!r}")
    except Exception as error:
        wrong.append(f"{what}: {type(error).__name__}: {error}"[:300])
    finally:
        memory = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        if memory > MEMORY or time.process_time() - begun > SECONDS:
            wrong.append(f"{what}: {memory >> 20} MiB, {time.process_time() - begun:.1f} s")


def fuzz(kind: str, folder: Path, printed: Callable, count: int, seed: int) -> list[str]:
    """What went wrong with `count` damaged files."""
    make, readers = KINDS[kind]
    path, wrong, marker = make(folder), [], folder / "EXECUTED"
    whole = path.read_bytes()
    with np.errstate(all="ignore"):
        refused = {reader: _refuses(reader, path) for reader in readers}
    for number in range(count):
        rng = random.Random(f"{seed} {kind} {number}")
        reader = rng.choice(readers)
        what = f"seed {seed}, {kind}, input {number}: {mutate.file(path, rng, marker)}"
        with bounded(what, wrong), np.errstate(all="ignore"):
            reader(path)
        path.write_bytes(whole)
    assert not marker.exists(), "executed what a file says"
    out, err = printed()
    if out + err:
        wrong.append(f"seed {seed}, {kind}: printed {(out + err)[:300]!r}")
    assert not all(refused.values()), "no reader takes the whole file"
    return wrong


def _refuses(reader: Callable, path: Path) -> bool:
    try:
        reader(path)
    except UserError:
        return True
    return False


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_files_are_one_line(kind, tmp_path, capfd, fuzz_seed):
    wrong = fuzz(kind, tmp_path, lambda: capfd.readouterr(), 10, fuzz_seed)
    assert not wrong, "\n".join(wrong)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_many_damaged_files_are_one_line_each(kind, tmp_path, capfd, fuzz_seed, fuzz_times):
    wrong = fuzz(kind, tmp_path, lambda: capfd.readouterr(), 140 * fuzz_times, fuzz_seed + 1)
    assert not wrong, "\n".join(wrong)


def _network(environment: dict[str, str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        network = FewShotNetwork(1, 3, encoder_blocks=[2, 3], image_size=16)
        network.read_support_file()


def _backend(operator) -> Callable[[dict[str, str]], None]:
    def choose(environment: dict[str, str]) -> None:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in environment.items():
                patch.setenv(name, value)
            try:
                operator.choose_backend(torch.device("cpu"))
            except ValueError as error:  # nnU-Net's trainers and the predictor make one line of it
                raise UserError(error) from None

    return choose


def _sampling(environment: dict[str, str]) -> None:
    Sampling("ddim", 2, 1, "mean").changed(1000, environment)


def _interactive(environment: dict[str, str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        InteractiveSettings.from_environment()


SETTINGS = (
    "EPOCHS", "ITERATIONS", "VAL_ITERATIONS", "PRECISION", "CHECKPOINT_EVERY", "PATIENCE", "LOADER", "SEED",
    "OPTIMIZER", "LEARNING_RATE", "SCHEDULE", "WARMUP_EPOCHS", "WEIGHT_DECAY", "GRADIENT_CLIP",
)  # fmt: skip
# Who reads a variable; of the others doctor, the look-up of classes, a data set's name and the tests.
READ_BY = {
    "NNUNET_EXT_SCAN": _backend(selective_scan),
    "NNUNET_EXT_CONVOLUTION": _backend(causal_conv1d),
    **{f"NNUNET_EXT_{name}": TrainingSettings.from_environment for name in SETTINGS},
    **{f"NNUNET_EXT_SUPPORT{name}": _network for name in ("", "_SIZE", "_DRAWS")},
    **{f"NNUNET_EXT_{name}": _sampling for name in ("SAMPLER", "SAMPLING_STEPS", "SAMPLES", "FUSION", "SAMPLING_SEED")},
}
READ_BY |= {f"NNUNET_EXT_INTERACTIVE_{name}": _interactive for name in ("OBJECTS", "ROUNDS", "GRADIENTS")}
# A licence may be any text.
OTHERWISE = (
    "AUTOLOAD",
    "LICENCE",
    "INTERACTIVE_CHANNELS",
    "EPISODE_DATASETS",
    "TEST_DATA",
    "TEST_NOTHING_SKIPPED",
    "TEST_SEEDS",
)


def test_every_variable_is_read_here():
    assert set(READ_BY) | {f"NNUNET_EXT_{name}" for name in OTHERWISE} == set(VARIABLES)


@pytest.mark.parametrize("name", READ_BY)
def test_odd_values_of_variables_are_one_line(name):
    wrong: list[str] = []
    values = ("0", "-1", "1.5", "nan", "inf", "1e999", "9" * 5000, "²", "٣", "a\nb", "x" * 5000, "..", "/", "$(x)", "*")
    for value in values:
        with bounded(f"{name}={value[:30]!r}", wrong):
            READ_BY[name]({name: value})
    assert not wrong, "\n".join(wrong)
    with pytest.raises(UserError, match=name):
        READ_BY[name]({name: "no such thing"})
