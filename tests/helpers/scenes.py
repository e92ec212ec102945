"""For every command of `nnunet_ext` a small scene in which it succeeds: its files, its words, what it may write.

torch and nnU-Net are imported by the scenes that need them.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest

from helpers import toy_label_maps, toy_runs
from helpers.scene import DATASET, Scene, decathlon, preprocessed, raw_dataset, slices, volume, write_image
from nnunet_ext.cli.main import main
from nnunet_ext.data.msd import DecathlonTask
from nnunet_ext.discovery.table import entries
from nnunet_ext.errors import UserError
from nnunet_ext.files import atomic_path


def demo(base: Path) -> Scene:
    raw_dataset(base / "Dataset007_Toy", 6)
    words = ("demo", "-o", str(base / "out"), "--data", str(base / "Dataset007_Toy"), "--cases", "6", "--device", "cpu")

    def stopped(command: list[str], *more: object) -> None:
        raise UserError("stopped before the first command")

    return Scene(
        words, base, base / "out", fixed=("--cases",), whole=False, chatter=r"^Choosing|^Drawing",
        stubs=(("nnunet_ext.cli.demo.run_logged", stopped),),
    )  # fmt: skip


def doctor(base: Path) -> Scene:
    torch_here = {"imports": {"torch": None}, "devices": [], "backends": {}, "cuda_build": None, "messages": []}
    classes = {entry.name: {"module": entry.module, "error": None} for entry in entries()}
    look_up = {"attached": True, "nnunetv2": str(base), "classes": classes, "messages": []}
    stubs = (
        ("nnunet_ext.doctor.probes.torch_here", lambda: torch_here),
        ("nnunet_ext.doctor.probes.look_up", lambda entries: look_up),
    )
    return Scene(("doctor",), base, variables=preprocessed(base), stubs=stubs, starts=True, finds=True)


def models(base: Path) -> Scene:
    return Scene(("models",), base)


def plan_fast(base: Path) -> Scene:
    variables = preprocessed(base)
    return Scene(
        ("plan", "-d", "7", "--fast-preprocessing"), base, base / "pre" / DATASET, variables=variables,
        chatter=r"^/|^$|^next: ",
        fixed=("--memory", "--gpu-memory-target", "--model"),
    )  # fmt: skip


def plan_model(base: Path) -> Scene:
    words = ("plan", "-d", "7", "--model", "unetrpp", "--size", "tiny", "--patch-size", "32", "32", "32")
    table = r"^/|^$|^next: |^configuration  |^3d_fullres "
    fixed = ("--memory", "--gpu-memory-target", "--patch-size", "--batch-size", "--model")
    return Scene(
        (*words, "--batch-size", "2"),
        base,
        base / "pre" / DATASET,
        variables=preprocessed(base),
        chatter=table,
        fixed=fixed,
        weight=1,
    )


def import_weights(base: Path) -> Scene:
    import torch

    from nnunet_ext.architectures.universeg import UniverSeg

    variables = preprocessed(base)
    path = base / "pre" / DATASET / "nnUNetPlans.json"
    content = json.loads(path.read_text())
    content["configurations"] = {"2d": slices(content["configurations"]["3d_fullres"])}
    path.write_text(json.dumps(content))
    torch.manual_seed(0)
    torch.save(UniverSeg([4, 4]).state_dict(), base / "weights.pt")
    words = ("import-weights", "--model", "universeg", "-i", str(base / "weights.pt"), "-d", "7")
    chatter = r"^adapted: |^left as |tensors copied|^$|^next: "
    return Scene((*words, "-o", str(base / "out.pth")), base, base / "out.pth", variables=variables, chatter=chatter)


def slurm(base: Path) -> Scene:
    variables = preprocessed(base)
    words = ("slurm", "-d", "7", "-tr", "nnUNetTrainerExt", "-c", "3d_fullres", "-o", str(base / "out"))
    chatter = r"^$|^nothing submitted|^set in this shell|^  (NNUNET_EXT|nnUNet)_"
    return Scene(words, base, base / "out", variables=variables, chatter=chatter, fixed=("--gpus", "--at-once"))


def _pipeline(base: Path) -> dict[str, str]:
    """A folder of scripts, submitted, with one fold that has begun."""
    variables = preprocessed(base)
    words = (
        "slurm",
        "-d",
        "7",
        "-tr",
        "nnUNetTrainerExt",
        "-c",
        "3d_fullres",
        "-o",
        str(base / "jobs"),
        "-f",
        "0",
        "1",
    )
    with patch.dict("os.environ", variables):
        assert main(words) == 0
    (base / "jobs" / "jobs.txt").write_text("prepare 10 -\ntrain 11 0-1\nselect 12 -\n")
    (base / "jobs" / "logs" / "train_11_0.log").write_text(
        "2026-01-01 10:00:00 nnUNetTrainerExt nnUNetPlans fold 0 on node\nRuntimeError: a\nended with status 1\n"
    )
    fold = base / "results" / DATASET / "nnUNetTrainerExt__nnUNetPlans__3d_fullres" / "fold_0"
    fold.mkdir(parents=True)
    (fold / "training_log_2026_1_1_10_00_00.txt").write_text(toy_runs.training_log(3))
    (fold / "debug.json").write_text(json.dumps({"num_epochs": 5}))
    return variables


_NO_SLURM = (
    ("nnunet_ext.slurm.queue.require_slurm", lambda: None),
    ("nnunet_ext.cli.slurm_resume.require_slurm", lambda: None),
    ("nnunet_ext.slurm.queue._output", lambda *words, folder=None: "77\n" if words[0] == "sbatch" else ""),
    ("nnunet_ext.slurm.queue._try", lambda *words: None),
)


def slurm_status(base: Path) -> Scene:
    variables = _pipeline(base)
    words = ("slurm", "status", str(base / "jobs"))
    return Scene(words, base, None, variables=variables, stubs=_NO_SLURM, chatter="^next: ", finds=True)


def slurm_resume(base: Path) -> Scene:
    variables = _pipeline(base)
    words = ("slurm", "resume", str(base / "jobs"), "--dry-run")
    return Scene(words, base, None, variables=variables, stubs=_NO_SLURM, chatter="^nothing to submit")


def slurm_prepare(base: Path) -> Scene:
    variables = preprocessed(base, 5)
    (base / "pre" / DATASET / "splits_final.json").unlink()
    words = ("slurm", "prepare", "-d", "7", "-c", "3d_fullres")

    def refused(*command: str) -> None:
        raise UserError(f"{command[0]} failed with exit status 1; its messages are above")

    stubs = (("nnunet_ext.slurm.prepare._run", refused),)
    return Scene(words, base, base / "pre" / DATASET / "splits_final.json", variables=variables, stubs=stubs)


def slurm_select(base: Path) -> Scene:
    variables = preprocessed(base)
    validation = base / "results" / DATASET / "nnUNetTrainerExt__nnUNetPlans__3d_fullres" / "fold_0" / "validation"
    validation.mkdir(parents=True)
    (validation / "summary.json").write_text("{}")
    best = {"trainer": "nnUNetTrainerExt", "plans_identifier": "nnUNetPlans"}
    found = {"best_model_or_ensemble": {"selected_model_or_models": [best]}}
    stubs = (
        ("nnunetv2.evaluation.find_best_configuration.find_best_configuration", lambda *a, **k: found),
        ("nnunetv2.paths.nnUNet_results", variables["nnUNet_results"]),
        ("nnunetv2.paths.nnUNet_preprocessed", variables["nnUNet_preprocessed"]),
    )
    words = ("slurm", "select", "-d", "7", "-c", "3d_fullres", "-f", "0", "-r", "nnUNetTrainerExt__nnUNetPlans")
    return Scene(words, base, None, variables=variables, stubs=stubs)


def predict(base: Path) -> Scene:
    from helpers.model_folders import write_model

    model = write_model(
        base, {"channel_names": {"0": "CT"}, "labels": {"background": 0, "a": 1, "b": 2}, "file_ending": ".nii.gz"}
    )
    write_image(base / "images" / "a_0000.nii.gz", volume(0, (8, 16, 16))[0], (2.2, 2.2, 5.0))
    words = (
        "predict",
        "-m",
        str(model),
        "-i",
        str(base / "images"),
        "-o",
        str(base / "out"),
        "-f",
        "0",
        "-device",
        "cpu",
    )
    return Scene(
        (*words, "--disable_tta", "--disable_progress_bar"), base, base / "out", whole=False,
        # ITK warns of headers that nnU-Net reads all the same.
        chatter=r"^a: |^WARNING: In |^NiftiImageIO |^$|  \d+\.\d s$|cases are there already|^nnunet_ext: ",
        fixed=("-step_size", "--verbose"), weight=2,
    )  # fmt: skip


def predict_onnx(base: Path) -> Scene:
    from helpers.onnx_models import write_onnx_model

    model = write_onnx_model(base)
    write_image(base / "images" / "a_0000.nii.gz", volume(0, (8, 16, 16))[0], (2.2, 2.2, 5.0))
    words = ("predict", "-m", str(model), "-i", str(base / "images"), "-o", str(base / "out"), "-f", "0")
    return Scene(
        (*words, "--runtime", "onnxruntime", "--disable_progress_bar"), base, base / "out", whole=False,
        # ITK and VNL warn of headers that nnU-Net reads all the same, VNL with the matrix.
        chatter=r"^a: |vnl_svd|^M = \[|^ +(inf|nan|-?[\d.]+)\b|^\]|^WARNING: In |^NiftiImageIO |^$|  \d+\.\d s$|"
        r"cases are there already|^nnunet_ext: ",
        fixed=("-step_size", "--verbose", "--runtime"), weight=1,
    )  # fmt: skip


def _shared_model(base: Path) -> Path:
    from helpers.model_folders import write_model

    facts = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "a": 1}, "file_ending": ".nii.gz"}
    return write_model(base / DATASET, {**facts, "licence": "CC0", "name": "toys", "training": []})


def export_model(base: Path) -> Scene:
    words = ("export-model", "-m", str(_shared_model(base)), "-o", str(base / "out.zip"))
    return Scene(words, base, base / "out.zip", chatter="^Dataset007_Toy/|^next: ", weight=2)


def import_model(base: Path) -> Scene:
    words = ("export-model", "-m", str(_shared_model(base)), "-o", str(base / "model.zip"))
    assert main(words) == 0
    shutil.rmtree(base / DATASET)
    words = ("import-model", str(base / "model.zip"), "-o", str(base / "out"), "-q")
    chatter = "^licence: |^left out: |^next: |^it carries "
    return Scene(words, base, base / "out", chatter=chatter, weight=2)


PROMPTS = {
    "version": 1, "space": "voxel", "unit": "voxel",
    "objects": [{"label": 1, "name": "liver", "points": [{"xyz": [8, 8, 4], "positive": True}]}],
}  # fmt: skip


def predict_prompts(base: Path) -> Scene:
    from helpers.promptable_stubs import trained_folder

    model = trained_folder(base)
    for case in "abcd":
        write_image(base / "images" / f"{case}_0000.nii.gz", volume(0, (8, 16, 16))[0])
    folder = base / "prompts"
    folder.mkdir()
    (folder / "a.prompts.json").write_text(json.dumps(PROMPTS))
    control = {"label": "liver", "position": [3.0, 4.0, 5.0], "positionStatus": "defined"}
    markups = {"type": "Fiducial", "coordinateSystem": "LPS", "controlPoints": [control]}
    (folder / "b.mrk.json").write_text(json.dumps({"markups": [markups]}))
    points = {"name": "liver", "type": "Multiple points", "points": [{"name": "liver", "point": [5, 5, 5]}]}
    (folder / "c.json").write_text(json.dumps({**points, "version": {"major": 1, "minor": 0}}))
    (folder / "d.csv").write_text("index,axis-0,axis-1,axis-2,label\n0,4.0,8.0,8.0,liver\n1,3.0,8.0,8.0,liver\n")
    words = (
        "predict-prompts",
        "-i",
        str(base / "images"),
        "-p",
        str(folder),
        "-o",
        str(base / "out"),
        "-m",
        str(model),
    )
    more = ("--space", "voxel", "--draw", "-device", "cpu", "-q")
    return Scene((*words, *more), base, base / "out", whole=False, weight=2)


def clicks(base: Path) -> Scene:
    pytest.importorskip("nnInteractive.inference.inference_session")
    from helpers.promptable_stubs import trained_folder
    from nnunet_ext.checkpoints.sam_med3d import INTERACTIONS
    from nnunet_ext.checkpoints.viewer_folder import write_viewer_folder

    model = trained_folder(base)
    write_viewer_folder(model, {}, INTERACTIONS)
    image, labels = volume(0, (8, 16, 16))
    write_image(base / "images" / "a_0000.nii.gz", image)
    write_image(base / "labels" / "a.nii.gz", np.minimum(labels, 1))
    words = (
        "clicks",
        "-m",
        str(model),
        "-i",
        str(base / "images"),
        "-l",
        str(base / "labels"),
        "-o",
        str(base / "out"),
    )
    more = ("--users", "centre", "--no-autozoom", "-device", "cpu", "-q")
    return Scene((*words, *more), base, base / "out", whole=False, weight=1)


def predict_fewshot(base: Path) -> Scene:
    import torch

    from nnunet_ext.architectures.universeg import UniverSeg

    torch.manual_seed(0)
    torch.save(UniverSeg([2, 3]).state_dict(), base / "weights.pt")
    for number in range(2):
        image, labels = volume(number, (2, 20, 24))
        write_image(base / "images" / f"s{number}_0000.nii.gz", image)
        write_image(base / "labels" / f"s{number}.nii.gz", labels + (labels == 0) * 0)
    image, labels = volume(3, (8, 20, 24))
    write_image(base / "images" / "s2_0000.nii.gz", image)
    write_image(base / "labels" / "s2.nii.gz", labels)
    write_image(base / "in" / "q_0000.nii.gz", image[2:4])
    words = ("predict-fewshot", "--weights", str(base / "weights.pt"), "--support-images", str(base / "images"))
    more = ("--support-labels", str(base / "labels"), "-i", str(base / "in"), "-o", str(base / "out"), "-q")
    sizes = ("--image-size", "16", "--support-size", "2")
    fixed = ("--ensemble", "--support-size", "--image-size")
    return Scene((*words, *more, *sizes), base, base / "out", whole=False, fixed=fixed, weight=2)


def support(base: Path) -> Scene:
    from helpers.model_folders import write_model

    dataset = {"channel_names": {"0": "MR"}, "labels": {"background": 0, "a": 1, "b": 2}, "file_ending": ".nii.gz"}
    model = base / "nnUNetTrainerUniverSeg__nnUNetPlans__2d"
    write_model(base, dataset).rename(model)
    content = json.loads((model / "plans.json").read_text())
    content["configurations"] = {"2d": slices(content["configurations"]["3d_fullres"])}
    (model / "plans.json").write_text(json.dumps(content))
    for number in range(2):
        image, labels = volume(number)
        write_image(base / "images" / f"s{number}_0000.nii.gz", image)
        write_image(base / "labels" / f"s{number}.nii.gz", labels)
    words = ("support", "--model", str(model), "--support-images", str(base / "images"))
    more = ("--support-labels", str(base / "labels"), "-o", str(base / "out.pt"))
    return Scene((*words, *more), base, base / "out.pt", chatter=r"slices of \d+ cases$|^wrote ", weight=2)


def evaluate(base: Path) -> Scene:
    for number in range(2):
        toy_label_maps.save(base / "ref" / f"c{number}.nii.gz", toy_label_maps.case(number))
        toy_label_maps.save(base / "pred" / f"c{number}.nii.gz", np.roll(toy_label_maps.case(number), 1, 2))
    (base / "pred" / "dataset.json").write_text(json.dumps({"labels": toy_label_maps.LABELS, "file_ending": ".nii.gz"}))
    words = ("evaluate", "-r", str(base / "ref"), "-p", str(base / "pred"), "-o", str(base / "out"), "-q", "-n", "1")
    return Scene(words, base, base / "out", whole=False, fixed=("-n", "--processes"))


def evaluate_folds(base: Path) -> Scene:
    toy_runs.make_dataset(base)
    folder = toy_runs.make_run(base, "nnUNetTrainerExt", 1)
    variables = {"nnUNet_preprocessed": str(base / "preprocessed")}
    words = ("evaluate", "--folds", str(folder), "-o", str(base / "out"), "-q", "-n", "1")
    return Scene(words, base, base / "out", variables=variables, whole=False, fixed=("-n", "--processes"), weight=2)


def report(base: Path) -> Scene:
    toy_runs.make_dataset(base)
    variables = {"nnUNet_preprocessed": str(base / "preprocessed")}
    for trainer in ("nnUNetTrainerExt", "nnUNetTrainerSegMamba"):
        folder = toy_runs.make_run(base, trainer, 1)
        with patch.dict("os.environ", variables):
            assert main(["evaluate", "--folds", str(folder), "-q", "-n1"]) == 0
    shutil.rmtree(base / "raw")
    words = ("report", str(folder.parent / "*"), "-o", str(base / "out" / "r.html"), "-q", "-n", "1")
    return Scene(words, base, base / "out", (base / "results",), variables, fixed=("-n", "--processes"), weight=1)


def uncertainty(base: Path) -> Scene:
    for case in "ab":
        for number in range(3):
            array = np.roll(toy_label_maps.case(0), number, 2)
            toy_label_maps.save(base / "samples" / case / f"sample_{number:02d}.nii.gz", array)
        toy_label_maps.save(base / "ref" / f"{case}.nii.gz", toy_label_maps.case(0))
        (base / "samples" / case / "samples.json").write_text(json.dumps({"samples": 3}))
    shape = toy_label_maps.case(0).shape
    maps = {name: np.full(shape, 0.1, np.float16) for name in ("entropy", "variance", "mutual_information")}
    mean = np.full((3, *shape), 1 / 3, np.float16)
    np.savez_compressed(base / "samples" / "a" / "probabilities.npz", mean=mean, **maps)
    (base / "samples" / "dataset.json").write_text(
        json.dumps({"labels": toy_label_maps.LABELS, "file_ending": ".nii.gz"})
    )
    words = ("uncertainty", "-i", str(base / "samples"), "-r", str(base / "ref"), "-o", str(base / "out"), "-q")
    return Scene(words, base, base / "out", whole=False, fixed=("--bins",), weight=1)


def data_check(base: Path) -> Scene:
    raw_dataset(base / "Dataset042_Toy", 4)
    words = ("data", "check", str(base / "Dataset042_Toy"), "-n", "1", "-q", "-o", str(base / "out.html"))
    return Scene(words, base, base / "out.html", fixed=("-n", "--processes"), finds=True, weight=2)


def data_clean(base: Path) -> Scene:
    raw_dataset(base / "Dataset042_Toy")
    words = ("data", "clean", str(base / "Dataset042_Toy"), "-o", str(base / "Dataset142_Toy"), "--apply", "-q")
    return Scene((*words, "--rules", "repairs", "split-sides"), base, base / "Dataset142_Toy")


def data_convert(base: Path) -> Scene:
    for patient in ("patient001", "patient002"):
        for frame in ("frame01", "frame12"):
            image, labels = volume(1)
            write_image(base / "ACDC" / "training" / patient / f"{patient}_{frame}.nii.gz", image)
            write_image(base / "ACDC" / "training" / patient / f"{patient}_{frame}_gt.nii.gz", labels)
    words = ("data", "convert", "acdc", str(base / "ACDC"), str(base / "Dataset027_ACDC"), "-q")
    return Scene(words, base, base / "Dataset027_ACDC", chatter="^folds in ")


def _clinic(base: Path) -> Path:
    from helpers.dicom_files import square, write_rtstruct, write_series

    labels = volume(0, (4, 12, 10))[1]
    case = write_series(base / "clinic" / "a", labels.astype(np.int16) * 50)
    write_rtstruct(case / "rt.dcm", {"organ": [(1, square(2.5, 8.5)), (2, square(2.5, 8.5))]})
    return base / "clinic"


def data_convert_dicom(base: Path) -> Scene:
    words = ("data", "convert", "dicom", str(_clinic(base)), str(base / "Dataset040_Toy"), "-q")
    return Scene(words, base, base / "Dataset040_Toy", weight=2)


def data_dicom_seg(base: Path) -> Scene:
    import highdicom  # noqa: F401 (imported once, for every process that is forked)

    clinic = _clinic(base)
    assert main(["data", "convert", "dicom", str(clinic), str(base / "Dataset040_Toy"), "-q"]) == 0
    (base / "Dataset040_Toy" / "labelsTr").rename(base / "labels")
    (base / "Dataset040_Toy" / "dataset.json").rename(base / "labels" / "dataset.json")
    shutil.rmtree(base / "Dataset040_Toy")
    words = ("data", "dicom-seg", str(base / "labels"), str(clinic), str(base / "out"), "-q")
    return Scene(words, base, base / "out", weight=1)


def data_get(base: Path) -> Scene:
    archive = base / "archive.tar"
    archive.write_bytes(decathlon(base))

    def download(url: str, path: Path, md5: str, progress: bool) -> Path:
        if not archive.is_file():
            raise UserError("the address does not answer")
        with atomic_path(path) as temporary:
            shutil.copyfile(archive, temporary)
        return path

    stubs = (
        ("nnunet_ext.data.msd.download", download),
        ("nnunet_ext.cli.data_get.find_task", lambda name: DecathlonTask(99, "Toy", "", "")),
    )
    words = ("data", "get", "msd", "99", "-o", str(base / "out"), "-q")
    return Scene(words, base, base / "out", whole=False, stubs=stubs, fixed=("--base",))


def data_phantoms(base: Path) -> Scene:
    words = ("data", "phantoms", "-o", str(base / "out"), "-d", "901", "--training", "1", "--test", "1", "-q")
    return Scene(words, base, base / "out", whole=False, fixed=("--training", "--test"))


# Words of the command -> its scenes.
SCENES: dict[tuple[str, ...], tuple[Callable[[Path], Scene], ...]] = {
    ("demo",): (demo,),
    ("doctor",): (doctor,),
    ("models",): (models,),
    ("plan",): (plan_fast, plan_model),
    ("import-weights",): (import_weights,),
    ("export-model",): (export_model,),
    ("import-model",): (import_model,),
    ("slurm",): (slurm,),
    ("slurm", "status"): (slurm_status,),
    ("slurm", "resume"): (slurm_resume,),
    ("slurm", "prepare"): (slurm_prepare,),
    ("slurm", "select"): (slurm_select,),
    ("predict",): (predict, predict_onnx),
    ("predict-prompts",): (predict_prompts,),
    ("clicks",): (clicks,),
    ("predict-fewshot",): (predict_fewshot,),
    ("support",): (support,),
    ("evaluate",): (evaluate, evaluate_folds),
    ("report",): (report,),
    ("uncertainty",): (uncertainty,),
    ("data", "check"): (data_check,),
    ("data", "clean"): (data_clean,),
    ("data", "convert"): (data_convert, data_convert_dicom),
    ("data", "dicom-seg"): (data_dicom_seg,),
    ("data", "get"): (data_get,),
    ("data", "phantoms"): (data_phantoms,),
}


def make(builder: Callable[[Path], Scene], base: Path) -> Scene:
    """The scene of a builder in a new folder."""
    (base / "here").mkdir(parents=True)
    return builder(base)
