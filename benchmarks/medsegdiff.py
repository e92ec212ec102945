"""Does diffusion help? MedSegDiff-V2 beside its own control without diffusion and nnU-Net, on real data, on the CPU.

    python benchmarks/medsegdiff.py --data .../nnUNet_raw --work /scratch/medsegdiff

trains fold 0 of MSD Hippocampus (2d and 3d_fullres) and of HC18 (2d) by nnU-Net's own commands and predicts its
validation cases, the trained MedSegDiff-V2 also with other settings of its sampler. Every method of a task sees the
same patch, batch, epochs and iterations; the schedule is minutes long and ranks nobody's best. Writes
benchmarks/results/medsegdiff.csv and the table in docs/medsegdiff.md between its markers. What is finished is not
run again.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import io
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
from shared import few_validation_cases

from nnunet_ext.evaluation import evaluate_folder
from nnunet_ext.evaluation.summary import finite
from nnunet_ext.files import read_json, write_json, write_text

HERE = Path(__file__).parent
COLUMNS = (
    "task", "method", "dice_mean", "dice_sd", "hd95_mean_mm", "missed", "cases", "label_maps", "train_cpu_seconds",
    "predict_cpu_seconds", "parameters", "epochs", "iterations", "batch_size", "patch_size", "precision",
    "learning_rate", "date", "processor", "threads", "nnunetv2", "torch", "nnunet_ext",
)  # fmt: skip


@dataclass(frozen=True)
class Task:
    """One data set and configuration with its short schedule."""

    dataset: str
    configuration: str
    epochs: int
    iterations: int
    batch_size: int
    patch_size: tuple[int, ...] | None = None  # None: nnU-Net's
    cases: int = 20

    @property
    def number(self) -> str:
        return str(int(self.dataset[7:10]))


TASKS = {
    "hippocampus-3d": Task("Dataset004_Hippocampus", "3d_fullres", 6, 50, 2),
    "hippocampus-2d": Task("Dataset004_Hippocampus", "2d", 6, 50, 24),
    # Less than half of nnU-Net's patch per axis: a CPU has no time for more.
    "hc18-2d": Task("Dataset956_HC18", "2d", 3, 40, 2, (256, 384), cases=10),
}
# Name in the table -> trainer, learning rate at the start (None: the trainer's).
TRAINERS = {
    "nnU-Net": ("nnUNetTrainerExt", None),
    "direct control": ("nnUNetTrainerMedSegDiffV2Direct", "1e-3"),
    "MedSegDiff-V2": ("nnUNetTrainerMedSegDiffV2", "1e-3"),
}
# Predictions of one training: name -> environment.
SAMPLINGS: dict[str, Mapping[str, str]] = {
    "anchor alone": {"NNUNET_EXT_SAMPLING_STEPS": "0"},
    "1 step": {"NNUNET_EXT_SAMPLING_STEPS": "1"},
    "2 steps (default)": {},
    "10 steps": {"NNUNET_EXT_SAMPLING_STEPS": "10"},
    "2 steps, mean of 5": {"NNUNET_EXT_SAMPLES": "5"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder that holds the raw data sets")
    parser.add_argument("--work", type=Path, required=True, help="nnU-Net's three folders are made here")
    parser.add_argument("--only", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="bf16")
    arguments = parser.parse_args()
    os.environ.update({f"nnUNet_{name}": str(arguments.work / name) for name in ("raw", "preprocessed", "results")})
    os.environ.update(
        PATH=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        nnUNet_n_proc_DA="1",
        nnUNet_def_n_proc="1",
        NNUNET_EXT_VAL_ITERATIONS="2",
        NNUNET_EXT_PRECISION=arguments.precision,
        PYTHONWARNINGS="ignore",
    )
    records = []
    for name in arguments.only:
        task = TASKS[name]
        plans = plan(task, arguments.data, arguments.work)
        for method, (trainer, rate) in TRAINERS.items():
            model = arguments.work / "results" / task.dataset / f"{trainer}__{plans[method]}__{task.configuration}"
            train(task, trainer, plans[method], rate, model / "fold_0")
            samplings = SAMPLINGS if method == "MedSegDiff-V2" else {"": {}}
            for sampling, environment in samplings.items():
                output = predict(task, model, sampling, environment, arguments)
                row = score(name, task, ", ".join(filter(None, (method, sampling))), model, output, rate)
                print({key: row[key] for key in COLUMNS[:8]}, flush=True)
                records.append(row)
    write(records)


def command(*words: str, **more: str) -> float:
    """Run a command; its CPU seconds."""
    print("$", " ".join([*(f"{k}={v}" for k, v in more.items()), *words]), flush=True)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL, env={**os.environ, **more})
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 1)


def plan(task: Task, data: Path, work: Path) -> dict[str, str]:
    """Method -> plans, all of one patch and batch, and a split with fewer validation cases."""
    raw, preprocessed = work / "raw" / task.dataset, work / "preprocessed" / task.dataset
    if not raw.exists():
        raw.parent.mkdir(parents=True, exist_ok=True)
        raw.symlink_to((data / task.dataset).resolve(), target_is_directory=True)
    if not (preprocessed / f"nnUNetPlans_{task.configuration}").is_dir():
        options = ("-c", task.configuration, "-np", "1", "-npfp", "1")
        command("nnUNetv2_plan_and_preprocess", "-d", task.number, *options)
    few_validation_cases(preprocessed, task.cases)
    patch = () if task.patch_size is None else ("--patch-size", *map(str, task.patch_size))
    ours = f"nnUNetPlansMedSegDiffV2Tiny{task.configuration}"
    options = ("-c", task.configuration, "--batch-size", str(task.batch_size), *patch, "-o", ours)
    command("nnunet_ext", "plan", "-d", task.number, "--model", "medsegdiff", "--size", "tiny", *options)
    planned = read_json(preprocessed / f"{ours}.json")["configurations"][task.configuration]
    stock = read_json(preprocessed / "nnUNetPlans.json")
    stock["plans_name"] = f"nnUNetPlansSame{task.configuration}"
    stock["configurations"][task.configuration].update({key: planned[key] for key in ("patch_size", "batch_size")})
    write_json(preprocessed / f"{stock['plans_name']}.json", stock)
    return {"nnU-Net": stock["plans_name"], "direct control": ours, "MedSegDiff-V2": ours}


def train(task: Task, trainer: str, plans: str, rate: str | None, folder: Path) -> None:
    if (folder / "cpu_seconds.json").is_file():
        return
    more = {"NNUNET_EXT_EPOCHS": str(task.epochs), "NNUNET_EXT_ITERATIONS": str(task.iterations)}
    if rate is not None:
        more["NNUNET_EXT_LEARNING_RATE"] = rate
    words = ("nnUNetv2_train", task.number, task.configuration, "0", "-p", plans, "-tr", trainer, "-device", "cpu")
    seconds = command(*words, "--c", **more)
    # All of the command: start, augmentation, training, validation with mirroring.
    write_json(folder / "cpu_seconds.json", {"command": seconds})


def predict(
    task: Task, model: Path, sampling: str, environment: Mapping[str, str], arguments: argparse.Namespace
) -> Path:
    """Label maps of the validation cases, without mirroring, in single precision."""
    output = arguments.work / "predicted" / model.parent.name / model.name / (sampling.replace(" ", "_") or "only")
    if (output / "cpu_seconds.json").is_file():
        return output
    preprocessed = arguments.work / "preprocessed" / task.dataset
    cases = set(read_json(preprocessed / "splits_final.json")[0]["val"])
    images = arguments.work / "images" / task.dataset
    shutil.rmtree(images, ignore_errors=True)
    images.mkdir(parents=True)
    for image in (arguments.data / task.dataset / "imagesTr").iterdir():
        if image.name.split(".")[0][:-5] in cases:
            (images / image.name).symlink_to(image.resolve())
    options = ("-f", "0", "-device", "cpu", "--disable_tta", "--disable_progress_bar")
    words = ("nnunet_ext", "predict", "-i", str(images), "-o", str(output), "-m", str(model), *options)
    seconds = command(*words, **environment)
    write_json(output / "cpu_seconds.json", {"command": seconds})
    return output


def score(name: str, task: Task, method: str, model: Path, output: Path, rate: str | None) -> dict[str, object]:
    references = Path(os.environ["nnUNet_preprocessed"], task.dataset, "gt_segmentations")
    cases = sorted(path.name for path in output.iterdir() if (references / path.name).is_file())
    chosen = output.parent / "references"
    shutil.rmtree(chosen, ignore_errors=True)
    chosen.mkdir()
    for case in cases:
        (chosen / case).symlink_to(references / case)
    shutil.copy(model / "dataset.json", chosen)
    evaluation = evaluate_folder(chosen, output)
    dice, hd95 = (
        np.concatenate([finite(evaluation, target, metric) for target in evaluation.labels.targets])
        for metric in ("Dice", "HD95")
    )
    record = read_json(model / "fold_0" / "run.json")
    settings = record["settings"]
    return {
        "task": name,
        "method": method,
        "dice_mean": round(float(dice.mean()), 4),
        "dice_sd": round(float(dice.std(ddof=1)), 4),
        "hd95_mean_mm": round(float(hd95.mean()), 3) if len(hd95) else float("nan"),
        "missed": len(dice) - len(hd95),
        "cases": len(cases),
        "label_maps": len(dice),
        "train_cpu_seconds": read_json(model / "fold_0" / "cpu_seconds.json")["command"],
        "predict_cpu_seconds": read_json(output / "cpu_seconds.json")["command"],
        "parameters": record["parameters"],
        "epochs": settings["epochs"],
        "iterations": settings["iterations"],
        "batch_size": settings["batch_size"],
        "patch_size": "x".join(map(str, settings["patch_size"])),
        "precision": settings["precision"],
        "learning_rate": rate or "trainer's",
        "date": datetime.date.today().isoformat(),
        "processor": record["hardware"]["processor"],
        "threads": 1,
        **{key: record["software"][key] for key in ("nnunetv2", "torch", "nnunet_ext")},
    }


def write(records: list[dict[str, object]]) -> None:
    path, kept = HERE / "results" / "medsegdiff.csv", []
    if path.is_file():
        with path.open(newline="") as file:
            measured = {record["task"] for record in records}
            kept = [record for record in csv.DictReader(file) if record["task"] not in measured]
    rows = [*kept, *records]
    rows.sort(key=lambda row: list(TASKS).index(str(row["task"])))
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, buffer.getvalue())
    page = HERE.parent / "docs" / "medsegdiff.md"
    begin, end = "<!-- medsegdiff:begin -->", "<!-- medsegdiff:end -->"
    text = page.read_text(encoding="utf-8")
    head, rest = text.split(begin)
    write_text(page, f"{head}{begin}\n{markdown(rows)}\n{end}{rest.split(end)[1]}")


def markdown(rows: list[dict[str, object]]) -> str:
    lines = [
        "Fold 0, trained in {precision} with {threads} thread of {processor}, {date}; nnunetv2 {nnunetv2}, torch "
        "{torch}. HD95 over the structures that were found; CPU seconds of the whole commands.".format(**rows[-1]),
        "",
        "| task | method | Dice, mean ± SD | HD95, mm | missed | training, CPU s | prediction, CPU s |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        row = {**row, **{key: float(str(row[key])) for key in ("dice_mean", "dice_sd", "hd95_mean_mm")}}
        lines.append(
            "| {task} | {method} | {dice_mean:.3f} ± {dice_sd:.3f} | {hd95_mean_mm:.2f} | {missed} of {label_maps} | "
            "{train_cpu_seconds} | {predict_cpu_seconds} |".format(**row)
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
