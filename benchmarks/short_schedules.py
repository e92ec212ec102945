"""Learning rates for the smallest sizes on short schedules, searched on training cases of MSD Hippocampus alone.

    python benchmarks/short_schedules.py --data .../Dataset004_Hippocampus --work /scratch/short [--only SegMamba]

trains every method for 200 iterations of batch 2 (slices: 24) at its paper's learning rate, at three and at ten times
that, and writes the pseudo Dice of nnU-Net's online validation to benchmarks/results/short_schedules.csv. The
validation cases of fold 0 take no part: its 208 training cases are split again, 166 to train and 16 of the other 42 to
choose by. What is finished is not run again. The best found are the `training` of these sizes in nnunet_ext/models.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import io
import os
import sys
from pathlib import Path

from hippocampus import DATASET, command, preprocess
from trained import METHODS, Method, plan

from nnunet_ext.files import read_json, write_json, write_text
from nnunet_ext.machine import children_cpu_seconds, processor_name
from nnunet_ext.models import OWN, load
from nnunet_ext.training_log import read_training_log

RESULT = Path(__file__).parent / "results" / "short_schedules.csv"
EPOCHS, ITERATIONS = 4, 50
FACTORS = (1, 3, 10)
SEARCHED = ("UNETR++", "SegMamba", "SAM-Med3D", "MedSegDiff-V2", "MedSegDiff-V2 without diffusion", "nnU-Net")
COLUMNS = ("method", "trainer", "learning_rate", "iterations", "dice_by_epoch", "cpu_seconds", "date", "processor")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help=f"the raw folder {DATASET}")
    parser.add_argument("--work", type=Path, required=True, help="nnU-Net's three folders are made here")
    parser.add_argument("--only", nargs="+", choices=SEARCHED, default=list(SEARCHED))
    arguments = parser.parse_args()
    os.environ.update({f"nnUNet_{name}": str(arguments.work / name) for name in ("raw", "preprocessed")})
    os.environ.update(
        PATH=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        OMP_NUM_THREADS="1",
        nnUNet_n_proc_DA="1",
        nnUNet_def_n_proc="1",
        NNUNET_EXT_VAL_ITERATIONS="10",
        NNUNET_EXT_PRECISION="bf16",
        NNUNET_EXT_EPOCHS=str(EPOCHS),
        NNUNET_EXT_ITERATIONS=str(ITERATIONS),
        NNUNET_EXT_SEED="1",
        PYTHONWARNINGS="ignore",
    )
    preprocess(arguments.data, arguments.work, ["3d_fullres"])
    split_again(arguments.work / "preprocessed" / DATASET, arguments.data / "labelsTr")
    for name in arguments.only:
        for factor in FACTORS:
            try_one(name, METHODS[name], factor, arguments.work)


def split_again(folder: Path, labels: Path) -> None:
    """A split of fold 0's training cases in place of the folds, so that its validation cases are not looked at."""
    path = folder / "splits_final.json"
    if not path.is_file():
        from nnunetv2.utilities.crossval_split import generate_crossval_split

        cases = sorted(path.name.removesuffix(".nii.gz") for path in labels.glob("*.nii.gz"))
        fold = generate_crossval_split(cases, seed=12345, n_splits=5)[0]["train"]
        again = generate_crossval_split(fold, seed=1, n_splits=5)[0]
        # The final validation of every run takes all of them, three times a method.
        write_json(path, [{"train": again["train"], "val": again["val"][:16]}])


def own_learning_rate(trainer: str) -> float:
    rows = {t.name: t for model in OWN for t in model.trainers}
    module = rows[trainer].module if trainer in rows else "nnunet_ext.trainers.plain"
    return float(load(f"{module}:{trainer}").recipe.learning_rate)


def try_one(name: str, method: Method, factor: int, work: Path) -> None:
    rate = own_learning_rate(method.trainer) * factor
    results = work / f"results_{rate:g}"
    fold = results / DATASET / method.folder / "fold_0"
    os.environ.update(nnUNet_results=str(results), NNUNET_EXT_LEARNING_RATE=f"{rate:g}")
    done = fold / "searched.json"
    if not done.is_file():
        plan(method, work / "preprocessed" / DATASET)
        begun = children_cpu_seconds() or 0
        which = ("-p", method.plans, "-tr", method.trainer)
        command("nnUNetv2_train", "4", method.configuration, "0", *which, "-device", "cpu", "--disable_checkpointing")
        write_json(done, {"cpu_seconds": round((children_cpu_seconds() or 0) - begun, 1)})
    log = read_training_log(fold)
    if log is None:
        raise SystemExit(f"{fold} has no training log; delete {done} to train again")
    dice = " ".join(f"{value:.3f}" for value in log.curves["pseudo_dice"].values())
    row = (name, method.trainer, f"{rate:g}", EPOCHS * ITERATIONS, dice, read_json(done)["cpu_seconds"])
    write_row((*row, datetime.date.today().isoformat(), processor_name()))


def write_row(row: tuple) -> None:
    """Add a row, in place of an earlier one of the same method and learning rate."""
    rows = []
    if RESULT.is_file():
        with RESULT.open(newline="", encoding="utf-8") as file:
            rows = [tuple(found) for found in csv.reader(file)][1:]
    kept = [found for found in rows if (found[0], found[2]) != (row[0], row[2])]
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([COLUMNS, *kept, tuple(map(str, row))])
    write_text(RESULT, text.getvalue())
    print(f"{row[0]} at {row[2]}: {row[4]}", flush=True)


if __name__ == "__main__":
    main()
