"""Five folds of MSD Hippocampus on the CPU, our trainers beside plain nnU-Net under one short schedule.

    python benchmarks/hippocampus.py --data .../Dataset004_Hippocampus --work /scratch/hippocampus

preprocesses once, trains every fold of every trainer with nnU-Net's own command, pools the validation predictions and
writes benchmarks/results/hippocampus_cpu.csv and the same as a table in hippocampus_cpu.md. Every network sees the
same folds, patch, batch, epochs and iterations; the schedule is far too short to rank them (nnU-Net's own is 1000
epochs of 250 iterations). What is finished is not run again, so the command can be repeated after an interruption.
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
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from nnunet_ext.evaluation import Evaluation, evaluate_folds, write_results
from nnunet_ext.evaluation.summary import counts, finite
from nnunet_ext.files import read_json, write_json, write_text

DATASET = "Dataset004_Hippocampus"
FOLDS = range(5)
HERE = Path(__file__).parent
# Trainer -> (name in the table, model of `nnunet_ext plan`, None for nnU-Net's own network)
TRAINERS = {
    "nnUNetTrainerExt": ("nnU-Net (plain)", None),
    "nnUNetTrainerSegMamba": ("SegMamba tiny", "segmamba"),
    "nnUNetTrainerUNETRPP": ("UNETR++ tiny", "unetrpp"),
}
COLUMNS = (
    "method", "trainer", "label", "n", "dice_mean", "dice_sd", "hd95_mean_mm", "hd95_median_mm", "missed",
    "parameters", "epochs", "iterations", "precision", "batch_size", "patch_size",
    "train_cpu_seconds", "train_wall_seconds", "date", "processor", "threads", "nnunetv2", "torch", "nnunet_ext",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help=f"the raw folder {DATASET}")
    parser.add_argument("--work", type=Path, required=True, help="nnU-Net's three folders are made here")
    parser.add_argument("--trainers", nargs="+", choices=TRAINERS, default=list(TRAINERS))
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--iterations", type=int, default=50)
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="bf16")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()

    os.environ.update({f"nnUNet_{name}": str(arguments.work / name) for name in ("raw", "preprocessed", "results")})
    os.environ.update(
        PATH=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        OMP_NUM_THREADS=str(arguments.threads),
        nnUNet_n_proc_DA="1",
        nnUNet_def_n_proc="1",
        NNUNET_EXT_EPOCHS=str(arguments.epochs),
        NNUNET_EXT_ITERATIONS=str(arguments.iterations),
        NNUNET_EXT_VAL_ITERATIONS="5",
        NNUNET_EXT_PRECISION=arguments.precision,
        PYTHONWARNINGS="ignore",
    )
    preprocess(arguments.data, arguments.work)
    rows = []
    for trainer in arguments.trainers:
        plans = plan(trainer, arguments.work, arguments.batch_size)
        results = arguments.work / "results" / DATASET / f"{trainer}__{plans}__3d_fullres"
        for fold in FOLDS:
            train(trainer, plans, fold, results)
        evaluation = evaluate_folds(results, progress=True)
        write_results(evaluation, results / "evaluation")
        rows += table_rows(trainer, results, evaluation, arguments.threads)
    write(rows)


def command(*words: str) -> None:
    print("$", " ".join(words), flush=True)
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)


def preprocess(data: Path, work: Path, configurations: Sequence[str] = ("3d_fullres",)) -> None:
    raw = work / "raw" / DATASET
    if not raw.exists():
        raw.parent.mkdir(parents=True, exist_ok=True)
        raw.symlink_to(data.resolve(), target_is_directory=True)
    folder = work / "preprocessed" / DATASET
    if not (folder / "nnUNetPlans.json").is_file():
        command("nnUNetv2_plan_and_preprocess", "-d", "4", "--no_pp", "-npfp", "1")
    for configuration in configurations:
        if not (folder / f"nnUNetPlans_{configuration}").is_dir():
            command("nnUNetv2_preprocess", "-d", "4", "-c", configuration, "-np", "1")


def plan(trainer: str, work: Path, batch_size: int) -> str:
    """Plans of one batch size for all: nnU-Net's own batch of 9 would give it more samples per step."""
    model = TRAINERS[trainer][1]
    if model is None:
        folder = work / "preprocessed" / DATASET
        plans = read_json(folder / "nnUNetPlans.json")
        plans["plans_name"] = f"nnUNetPlansBatch{batch_size}"
        plans["configurations"]["3d_fullres"]["batch_size"] = batch_size
        write_json(folder / f"{plans['plans_name']}.json", plans)
        return plans["plans_name"]
    name = f"nnUNetPlans{trainer.removeprefix('nnUNetTrainer')}TinyBatch{batch_size}"
    size = ("--size", "tiny", "-c", "3d_fullres", "--batch-size", str(batch_size))
    command("nnunet_ext", "plan", "-d", "4", "--model", model, *size, "-o", name)
    return name


def train(trainer: str, plans: str, fold: int, results: Path) -> None:
    folder = results / f"fold_{fold}"
    if (folder / "validation" / "summary.json").is_file():
        return
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command("nnUNetv2_train", "4", "3d_fullres", str(fold), "-p", plans, "-tr", trainer, "-device", "cpu", "--c")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    # All of the command: start, workers, training, prediction of the validation cases with mirroring.
    write_json(folder / "cpu_seconds.json", {"command": round(seconds, 1)})


def table_rows(trainer: str, results: Path, evaluation: Evaluation, threads: int) -> list[dict[str, object]]:
    records = [read_json(results / f"fold_{fold}" / "run.json") for fold in FOLDS]
    settings = records[0]["settings"]
    if any(record["settings"] != settings for record in records):
        raise SystemExit(f"folds of {results} were trained with different settings; delete the older ones")
    common = {
        "method": TRAINERS[trainer][0],
        "trainer": trainer,
        "parameters": records[0]["parameters"],
        "epochs": settings["epochs"],
        "iterations": settings["iterations"],
        "precision": settings["precision"],
        "batch_size": settings["batch_size"],
        "patch_size": "x".join(map(str, settings["patch_size"])),
        "train_cpu_seconds": sum(read_json(results / f"fold_{f}" / "cpu_seconds.json")["command"] for f in FOLDS),
        "train_wall_seconds": round(sum(sum(record["epoch_seconds"]) for record in records)),
        "date": datetime.date.today().isoformat(),
        "processor": records[0]["hardware"]["processor"],
        "threads": threads,
        **{name: records[0]["software"][name] for name in ("nnunetv2", "torch", "nnunet_ext")},
    }
    rows = []
    for target, name in zip(evaluation.labels.targets, evaluation.labels.names, strict=True):
        dice, hd95 = (np.asarray(finite(evaluation, target, metric)) for metric in ("Dice", "HD95"))
        rows.append(
            {
                **common,
                "label": name,
                "n": len(dice),
                "dice_mean": round(float(dice.mean()), 4),
                "dice_sd": round(float(dice.std(ddof=1)), 4),
                # Over the cases in which both have the structure; NaN if there is none.
                "hd95_mean_mm": round(float(np.mean(hd95)), 3) if len(hd95) else float("nan"),
                "hd95_median_mm": round(float(np.median(hd95)), 3) if len(hd95) else float("nan"),
                "missed": counts(evaluation, target)["missed"],
            }
        )
    return rows


def write(rows: list[dict[str, object]]) -> None:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(HERE / "results" / "hippocampus_cpu.csv", buffer.getvalue())
    table = markdown(rows)
    print(table)
    write_text(HERE / "results" / "hippocampus_cpu.md", table + "\n")


def markdown(rows: list[dict[str, object]]) -> str:
    lines = [
        "Five-fold cross-validation, {n} cases pooled, {epochs} epochs of {iterations} iterations, batch {batch_size}, "
        "patch {patch_size}, trained in {precision} with {threads} thread of {processor}, {date}; nnunetv2 {nnunetv2}, "
        "torch {torch}. CPU time is that of `nnUNetv2_train` for all five folds, validation with mirroring "
        "included.".format(**rows[0]),
        "",
        "| method | parameters | label | Dice, mean ± SD | HD95, mean (median) in mm | missed | CPU min |",
        "|---|---|---|---|---|---|---|",
    ]
    line = (
        "| {method} | {millions:.1f} M | {label} | {dice_mean:.3f} ± {dice_sd:.3f} | {hd95} | {missed} | "
        "{minutes:.0f} |"
    )
    for row in rows:
        millions, minutes = float(str(row["parameters"])) / 1e6, float(str(row["train_cpu_seconds"])) / 60
        # No distance where every case was missed.
        hd95 = "–" if row["missed"] == row["n"] else "{hd95_mean_mm:.2f} ({hd95_median_mm:.2f})".format(**row)
        lines.append(line.format(**row, millions=millions, minutes=minutes, hd95=hd95))
    return "\n".join(lines)


if __name__ == "__main__":
    main()
