"""Dice under simulated clicks on real data: a small SAM-Med3D trained from scratch on the CPU for minutes.

    python benchmarks/clicks.py --data .../nnUNet_raw --work /scratch/clicks

preprocesses and trains fold 0 of MSD Hippocampus (two classes, 1 mm isotropic) and of SCD LV (cine MRI with slices of
8 to 10 mm) by nnU-Net's own commands, whose validation clicks through every case, and writes
benchmarks/results/clicks.csv and docs/clicks_*.png. What is finished is not run again. The users see the reference; the
row "none" is nnU-Net's own validation, without a prompt.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import io
import os
import resource
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

from shared import few_validation_cases

from nnunet_ext.files import read_json, write_json, write_text
from nnunet_ext.reports.clicks import write_click_curves

HERE = Path(__file__).parent
TRAINER = "nnUNetTrainerSAMMed3D"
COLUMNS = (
    "dataset", "class", "user", "cases", "metric", "clicks_1", "clicks_3", "clicks_5", "clicks_10", "auc", "size",
    "parameters", "epochs", "iterations", "batch_size", "patch_size", "precision", "learning_rate", "start",
    "cpu_seconds", "date", "processor", "threads", "nnunetv2", "torch", "nnunet_ext",
)  # fmt: skip


@dataclass(frozen=True)
class Run:
    """One data set and its short schedule."""

    dataset: str
    epochs: int
    iterations: int
    batch_size: int
    patch_size: tuple[int, ...] | None = None  # None: nnU-Net's
    size: str = "tiny"

    @property
    def number(self) -> str:
        return str(int(self.dataset[7:10]))


RUNS = {
    "hippocampus": Run("Dataset004_Hippocampus", 14, 100, 4),
    # The in-plane half of nnU-Net's patch: the network's cube would see twice as coarse otherwise.
    "scd-lv": Run("Dataset905_SCDLV", 4, 100, 4, (12, 128, 128)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder that holds the raw data sets")
    parser.add_argument("--work", type=Path, required=True, help="nnU-Net's three folders are made here")
    parser.add_argument("--only", nargs="+", choices=RUNS, default=list(RUNS))
    parser.add_argument("--learning-rate", default="5e-4")
    parser.add_argument("--cases", type=int, default=12, help="validation cases of a fold to score (default: 12)")
    parser.add_argument("--start", type=Path, help="weights to start from, as nnUNetv2_train -pretrained_weights")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="bf16")
    arguments = parser.parse_args()
    os.environ.update({f"nnUNet_{name}": str(arguments.work / name) for name in ("raw", "preprocessed", "results")})
    os.environ.update(
        PATH=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        nnUNet_n_proc_DA="1",
        nnUNet_def_n_proc="1",
        NNUNET_EXT_VAL_ITERATIONS="2",
        NNUNET_EXT_PRECISION=arguments.precision,
        NNUNET_EXT_LEARNING_RATE=arguments.learning_rate,
        PYTHONWARNINGS="ignore",
    )
    records, curves = [], []
    for name in arguments.only:
        run = RUNS[name]
        folder = train(run, arguments.data, arguments.work, arguments.start, arguments.cases)
        records += rows(run, folder, arguments.learning_rate, arguments.start)
        curves.append((run, folder))
    write(records)
    for run, folder in curves:
        summary = read_json(folder / "validation" / "prompted_summary.json")
        write_click_curves(summary, HERE.parent / "docs" / f"clicks_{run.dataset[11:].lower()}.png", run.dataset)


def command(*words: str) -> None:
    print("$", " ".join(words), flush=True)
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)


def train(run: Run, data: Path, work: Path, start: Path | None, cases: int) -> Path:
    """Everything up to the scores of one data set; returns the folder of fold 0."""
    raw, preprocessed = work / "raw" / run.dataset, work / "preprocessed" / run.dataset
    plans = f"nnUNetPlansSAMMed3D{run.size.capitalize()}"
    folder = work / "results" / run.dataset / f"{TRAINER}__{plans}__3d_fullres" / "fold_0"
    if (folder / "cpu_seconds.json").is_file():
        return folder
    if not raw.exists():
        raw.parent.mkdir(parents=True, exist_ok=True)
        raw.symlink_to((data / run.dataset).resolve(), target_is_directory=True)
    if not (preprocessed / "nnUNetPlans_3d_fullres").is_dir():
        command("nnUNetv2_plan_and_preprocess", "-d", run.number, "-c", "3d_fullres", "-np", "1", "-npfp", "1")
    few_validation_cases(preprocessed, cases)
    patch = () if run.patch_size is None else ("--patch-size", *map(str, run.patch_size))
    options = ("--size", run.size, "-c", "3d_fullres", "--batch-size", str(run.batch_size), *patch, "-o", plans)
    command("nnunet_ext", "plan", "-d", run.number, "--model", "sam_med3d", *options)
    os.environ.update(NNUNET_EXT_EPOCHS=str(run.epochs), NNUNET_EXT_ITERATIONS=str(run.iterations))
    more = ("--c",) if start is None else ("-pretrained_weights", str(start))
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command("nnUNetv2_train", run.number, "3d_fullres", "0", "-p", plans, "-tr", TRAINER, "-device", "cpu", *more)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    # All of the command: start, augmentation, training, both validations.
    write_json(folder / "cpu_seconds.json", {"command": round(seconds, 1)})
    return folder


def rows(run: Run, folder: Path, learning_rate: str, start: Path | None) -> list[dict[str, object]]:
    record = read_json(folder / "run.json")
    prompted = read_json(folder / "validation" / "prompted_summary.json")
    plain = read_json(folder / "validation" / "summary.json")
    settings = record["settings"]
    common = {
        "dataset": run.dataset,
        "size": run.size,
        "parameters": record["parameters"],
        "epochs": settings["epochs"],
        "iterations": settings["iterations"],
        "batch_size": settings["batch_size"],
        "patch_size": "x".join(map(str, settings["patch_size"])),
        "precision": settings["precision"],
        "learning_rate": learning_rate,
        "start": "random" if start is None else start.name,
        "cpu_seconds": read_json(folder / "cpu_seconds.json")["command"],
        "date": datetime.date.today().isoformat(),
        "processor": record["hardware"]["processor"],
        "threads": 1,
        **{name: record["software"][name] for name in ("nnunetv2", "torch", "nnunet_ext")},
    }
    labels = {str(v): k for k, v in read_json(folder.parent / "dataset.json")["labels"].items()}
    result: list[dict[str, object]] = [
        {
            **common, "class": labels[value], "user": "none", "cases": len(plain["metric_per_case"]), "metric": "Dice",
            **{f"clicks_{n}": round(scores["Dice"], 4) for n in (1, 3, 5, 10)},
        }
        for value, scores in plain["mean"].items()
    ]  # fmt: skip
    for user, found in prompted["users"].items():
        for name, scores in found["classes"].items():
            for metric in ("Dice", "NSD"):
                result.append(
                    {
                        **common, "class": name, "user": user, "cases": scores["n"], "metric": metric,
                        "auc": round(scores[f"{metric} AUC"], 4),
                        **{f"clicks_{n}": round(value, 4) for n, value in scores[metric].items()},
                    }
                )  # fmt: skip
    for row in result:
        print({key: row.get(key) for key in COLUMNS[:10]})
    return result


def write(records: list[dict[str, object]]) -> None:
    path, kept = HERE / "results" / "clicks.csv", []
    if path.is_file():
        with path.open(newline="") as file:
            measured = {record["dataset"] for record in records}
            kept = [record for record in csv.DictReader(file) if record["dataset"] not in measured]
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(sorted([*kept, *records], key=lambda record: str(record["dataset"])))
    write_text(path, buffer.getvalue())


if __name__ == "__main__":
    main()
