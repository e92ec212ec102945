"""Fine-tuning across data sets: a training on Hippocampus (MRI of the brain) as the start of one on SCD LV (the heart).

    python benchmarks/fine_tuning.py --data .../Dataset905_SCDLV --work /scratch/fine_tuning \
        --checkpoint .../nnUNetTrainerExt__nnUNetPlansBatch2__3d_fullres/fold_0/checkpoint_final.pth

The checkpoint is that of nnU-Net's own network by `benchmarks/trained.py`, or any other. Both arms have the same plans
(those that `import-weights --write-plans` gives, with a patch for one CPU core), cases, schedule and seeds of batches:
one starts as nnU-Net initialises, the other with `-pretrained_weights`. Two volumes each of three patients train, one
each of the two others validates. What is finished is not run again, so the command can be repeated, with further seeds
too. Writes results/fine_tuning.csv (Dice on validation patches after every epoch, of whole volumes after the last) and
docs/fine_tuning.png.
"""

from __future__ import annotations

import argparse
import csv
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from shared import write_rows

from nnunet_ext.files import atomic_path, read_json, write_json
from nnunet_ext.training_log import read_training_log

DATASET, CONFIGURATION, TRAINER = "Dataset905_SCDLV", "3d_fullres", "nnUNetTrainerExt"
BASE, PLANS = "nnUNetPlansPatch", "nnUNetPlansFrom004"
SUMMARY, SECONDS = "validation/summary.json", "training_cpu_seconds.json"
HERE = Path(__file__).parent
RESULTS, PICTURE = HERE / "results" / "fine_tuning.csv", HERE.parent / "docs" / "fine_tuning.png"
PATCH, BATCH = (8, 48, 48), 2
ARMS = {"scratch": "from scratch", "fine_tuned": "from Hippocampus"}
COLUMNS = (
    "arm", "seed", "epoch", "dice", "volume_dice", "iterations", "learning_rate", "patch", "trainer", "trained_on",
    "cpu_seconds", "date", "cpu", "python", "versions",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help=f"the raw folder {DATASET}")
    parser.add_argument("--work", type=Path, required=True, help="nnU-Net's three folders are made here")
    parser.add_argument("--checkpoint", type=Path, required=True, help="of a training on another data set")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--iterations", type=int, default=25)
    parser.add_argument("--learning-rate", type=float, default=0.01)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)  # arm and seed, in a process of its own
    arguments = parser.parse_args()
    os.environ.update({f"nnUNet_{name}": str(arguments.work / name) for name in ("raw", "preprocessed", "results")})
    os.environ.update(
        PATH=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        OMP_NUM_THREADS="1",
        nnUNet_n_proc_DA="1",
        nnUNet_def_n_proc="1",
        NNUNET_EXT_EPOCHS=str(arguments.epochs),
        NNUNET_EXT_ITERATIONS=str(arguments.iterations),
        NNUNET_EXT_VAL_ITERATIONS="6",
        NNUNET_EXT_LEARNING_RATE=str(arguments.learning_rate),
        NNUNET_EXT_PRECISION="fp32",
        PYTHONWARNINGS="ignore",
    )
    start = arguments.work / "start.pth"
    if arguments.one:
        train(arguments.work, arguments.one[0], int(arguments.one[1]), start)
        return
    prepare(arguments.data, arguments.work, arguments.checkpoint, start)
    for seed in arguments.seeds:
        for arm in arguments.arms:
            if not (fold_of(arguments.work, arm, seed) / SUMMARY).is_file():
                subprocess.run([sys.executable, __file__, *sys.argv[1:], "--one", arm, str(seed)], check=True)
    rows = [row for arm in ARMS for seed in arguments.seeds for row in rows_of(arguments.work, arm, seed)]
    write_rows(RESULTS, COLUMNS, rows, ("nnunetv2", "torch"))
    draw(RESULTS, PICTURE)


def prepare(data: Path, work: Path, checkpoint: Path, start: Path) -> None:
    """Preprocess, plan with the patch of one core, split by patient, and fit the weights to the data set."""
    raw, folder = work / "raw" / DATASET, work / "preprocessed" / DATASET
    if not raw.exists():
        raw.parent.mkdir(parents=True, exist_ok=True)
        raw.symlink_to(data.resolve(), target_is_directory=True)
    if not (folder / f"nnUNetPlans_{CONFIGURATION}").is_dir():
        command("nnUNetv2_plan_and_preprocess", "-d", "905", "-c", CONFIGURATION, "-np", "1", "-npfp", "1")
    plans = read_json(folder / "nnUNetPlans.json") | {"plans_name": BASE}
    plans["configurations"] = {CONFIGURATION: plans["configurations"][CONFIGURATION]}
    plans["configurations"][CONFIGURATION] |= {"patch_size": list(PATCH), "batch_size": BATCH}
    write_json(folder / f"{BASE}.json", plans)
    cases = sorted(path.name.split(".")[0] for path in (folder / "gt_segmentations").iterdir())
    patients = sorted({case.partition("_")[0] for case in cases})
    trained = [case for case in cases if case.startswith(tuple(patients[:3]))]
    held_out = [f"{patient}_ED" for patient in patients[3:]]
    write_json(folder / "splits_final.json", [{"train": trained, "val": held_out}])
    command("nnunet_ext", "import-weights", "-d", "905", "-p", BASE, "--write-plans", PLANS, "-i", str(checkpoint),
            "-o", str(start))  # fmt: skip


def command(*words: str) -> None:
    print("$", " ".join(words), flush=True)
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)


def fold_of(work: Path, arm: str, seed: int) -> Path:
    return work / f"{arm}_{seed}" / "results" / DATASET / f"{TRAINER}__{PLANS}__{CONFIGURATION}" / "fold_0"


def train(work: Path, arm: str, seed: int, start: Path) -> None:
    """What `nnUNetv2_train` does, but that the validation predicts without mirroring, for one core."""
    os.environ.update(nnUNet_results=str(work / f"{arm}_{seed}" / "results"), NNUNET_EXT_SEED=str(seed))
    import torch
    from nnunetv2.run.run_training import get_trainer_from_args, maybe_load_checkpoint

    torch.manual_seed(seed)  # weights are drawn
    begun = time.process_time()
    trainer = get_trainer_from_args("905", CONFIGURATION, 0, TRAINER, PLANS, device=torch.device("cpu"))
    maybe_load_checkpoint(trainer, False, False, str(start) if arm == "fine_tuned" else None)
    trainer.run_training()
    write_json(fold_of(work, arm, seed) / SECONDS, round(time.process_time() - begun, 1))
    trainer.inference_allowed_mirroring_axes = None
    trainer.perform_actual_validation()


def rows_of(work: Path, arm: str, seed: int) -> list[dict[str, Any]]:
    """A row per epoch; Dice of whole volumes stands in the last, once they are predicted."""
    fold = fold_of(work, arm, seed)
    if not (fold / "checkpoint_final.pth").is_file():
        return []
    record = read_json(fold / "run.json")
    volumes = round(read_json(fold / SUMMARY)["foreground_mean"]["Dice"], 4) if (fold / SUMMARY).is_file() else ""
    seconds = read_json(fold / SECONDS) if (fold / SECONDS).is_file() else ""
    log = read_training_log(fold)
    assert log is not None
    curve = log.curves["pseudo_dice"]
    return [
        {
            "arm": arm, "seed": seed, "epoch": epoch + 1, "dice": round(curve.get(epoch, float("nan")), 4),
            "volume_dice": volumes if epoch + 1 == record["settings"]["epochs"] else "",
            "iterations": (epoch + 1) * record["settings"]["iterations"],
            "learning_rate": record["settings"]["learning_rate"],
            "patch": "x".join(map(str, record["settings"]["patch_size"])), "trainer": record["trainer"],
            "trained_on": "nothing" if arm == "scratch" else "Dataset004_Hippocampus",
            "cpu_seconds": seconds,
        }
        for epoch in range(record["settings"]["epochs"])
    ]  # fmt: skip


def draw(results: Path, picture: Path) -> None:
    """Dice against iterations: a thin line per run, the mean of each arm above."""
    import matplotlib
    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from nnunet_ext.reports.figures import COLOURS

    with open(results, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    matplotlib.rcdefaults()
    figure = Figure(figsize=(5.2, 3.4), facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for (arm, words), colour in zip(ARMS.items(), COLOURS, strict=False):
        runs = {}
        for row in rows:
            if row["arm"] == arm:
                runs.setdefault(row["seed"], []).append((int(row["iterations"]), float(row["dice"])))
        for run in runs.values():
            axes.plot(*zip(*run, strict=True), color=colour, alpha=0.35, linewidth=1)
        if runs:
            mean = np.mean([np.array(run) for run in runs.values()], axis=0)
            axes.plot(mean[:, 0], mean[:, 1], color=colour, linewidth=2, label=words)
    axes.set_ylim(0, 1)
    axes.set_xlim(left=0)
    axes.grid(alpha=0.3)
    axes.set_xlabel("iterations")
    axes.set_ylabel("Dice on validation patches")
    axes.set_title("SCD LV, two patients held out", fontsize=10)
    axes.legend(frameon=False, fontsize=9, loc="lower right")
    with atomic_path(picture) as temporary:
        figure.savefig(temporary, dpi=150, format="png")
    print(f"written: {picture}")


if __name__ == "__main__":
    main()
