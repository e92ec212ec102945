"""UniverSeg on real data, on one CPU thread: few labelled cases, and another task without training.

    python benchmarks/fewshot.py --data DATA --work SCRATCH     # about 10 CPU minutes

DATA holds Dataset004_Hippocampus, Dataset905_SCDLV and Dataset956_HC18 in nnU-Net's raw format. Three experiments:

* hippocampus: nnUNetTrainerUniverSeg (`tiny`) and nnU-Net's own 2d network, trained on the same five cases for the
  same CPU time and validated by nnU-Net on the same other cases;
* transfer: UniverSeg trained on those five cases and on cardiac MRI, then HC18 (fetal heads in ultrasound, a data set
  and a label it has never seen) segmented from ten labelled images with `nnunet_ext predict-fewshot`;
* hc18: nnUNetTrainerUniverSeg trained on these ten images, validated by nnU-Net.

Writes benchmarks/results/fewshot.csv and fewshot_curve.csv (Dice against support size) and docs/fewshot_curve.png.
What is finished is not run again. The authors' weights are not used: this says nothing about them.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import io
import json
import os
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import SimpleITK as sitk
import torch

from nnunet_ext.few_shot.folder import find_images, load_network, read_support
from nnunet_ext.few_shot.support_curve import support_curve
from nnunet_ext.files import read_json, write_json, write_text
from nnunet_ext.reports.support_curve import CurvePoint, plot_curves
from nnunet_ext.trainers.run_record import describe_hardware, describe_software

HERE = Path(__file__).parent
HIPPOCAMPUS, CARDIAC, HC18 = "Dataset004_Hippocampus", "Dataset905_SCDLV", "Dataset956_HC18"
TRAINER, BASELINE = "nnUNetTrainerUniverSeg", "nnUNetTrainerExt"
EPOCHS = 10
COLUMNS = (
    "data", "method", "label", "labelled", "tested", "dice_mean", "dice_sd", "trained_on", "training_cpu_seconds",
    "iterations", "batch_size", "parameters", "date", "processor", "torch", "nnunet_ext",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True, help="nnU-Net's three folders are made here")
    parser.add_argument("--seconds", type=float, default=120, help="CPU seconds of each training (default: 120)")
    parser.add_argument("--tested", type=int, default=6, help="Hippocampus cases to validate on (default: 6)")
    parser.add_argument("--images", type=int, default=40, help="HC18 images to test on (default: 40)")
    parser.add_argument("--child", help=argparse.SUPPRESS)  # the command calling itself, see train
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    os.environ.update({f"nnUNet_{name}": str(arguments.work / name) for name in ("raw", "preprocessed", "results")})
    os.environ.update(
        PATH=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        nnUNet_n_proc_DA="0",
        nnUNet_def_n_proc="1",
        NNUNET_EXT_EPOCHS=str(EPOCHS),
        NNUNET_EXT_VAL_ITERATIONS="4",
        NNUNET_EXT_PRECISION="bf16",
        PYTHONWARNINGS="ignore",
    )
    if arguments.child:
        child(**json.loads(arguments.child))
        return
    prepare(arguments)
    rows: list[dict[str, object]] = []
    curves: dict[str, list[CurvePoint]] = {}

    run = train(arguments, HIPPOCAMPUS, TRAINER, "fewUniverSeg")
    curves["Hippocampus, trained on five cases"] = read_curve(run["folder"])
    rows += validation_rows("Hippocampus", "UniverSeg tiny", 5, run)
    run = train(arguments, HIPPOCAMPUS, BASELINE, "fewNnUNet")
    rows += validation_rows("Hippocampus", "nnU-Net 2d", 5, run)
    write(rows, curves)

    run = train(arguments, HIPPOCAMPUS, TRAINER, "transfer", others="905")
    points, row = transfer(arguments, run)
    curves["HC18, never trained on it"] = points
    rows.append(row)
    write(rows, curves)

    run = train(arguments, HC18, TRAINER, "fewUniverSeg")
    curves["HC18, trained on ten images"] = read_curve(run["folder"])
    rows += validation_rows("HC18", "UniverSeg tiny", 10, run)
    write(rows, curves)


def command(*words: str) -> None:
    print("$", " ".join(words), flush=True)
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)


def prepare(arguments: argparse.Namespace) -> None:
    """Preprocess, fix the folds, and write the plans: one name per experiment, so that results do not mix."""
    raw, preprocessed = arguments.work / "raw", arguments.work / "preprocessed"
    raw.mkdir(parents=True, exist_ok=True)
    for dataset, number in ((HIPPOCAMPUS, "4"), (CARDIAC, "905"), (HC18, "956")):
        if not (raw / dataset).exists():
            (raw / dataset).symlink_to((arguments.data / dataset).resolve(), target_is_directory=True)
        if not (preprocessed / dataset / "nnUNetPlans_2d").is_dir():
            command("nnUNetv2_plan_and_preprocess", "-d", number, "-c", "2d", "-np", "1", "-npfp", "1")
    for dataset, labelled, tested in ((HIPPOCAMPUS, 5, arguments.tested), (HC18, 10, arguments.images)):
        cases = sorted(path.name.split(".")[0] for path in (raw / dataset / "labelsTr").iterdir())
        drawn = np.random.default_rng(0).permutation(cases).tolist()
        split = {"train": sorted(drawn[:labelled]), "val": sorted(drawn[labelled : labelled + tested])}
        write_json(preprocessed / dataset / "splits_final.json", [split])
    size = ("--model", "universeg", "--size", "tiny", "-c", "2d", "--batch-size", "4")
    for dataset, name in ((HIPPOCAMPUS, "fewUniverSeg"), (HIPPOCAMPUS, "transfer"), (HC18, "fewUniverSeg")):
        if not (preprocessed / dataset / f"{name}.json").is_file():
            command("nnunet_ext", "plan", "-d", dataset, *size, "-o", name)
    # nnU-Net's own batch, made for a GPU, would leave no time for more than a few steps.
    plans = read_json(preprocessed / HIPPOCAMPUS / "nnUNetPlans.json")
    plans["plans_name"] = "fewNnUNet"
    plans["configurations"]["2d"]["batch_size"] = 12
    write_json(preprocessed / HIPPOCAMPUS / "fewNnUNet.json", plans)


def train(arguments: argparse.Namespace, dataset: str, trainer: str, plans: str, others: str = "") -> dict:
    """Train and validate in a process of its own; what it says goes to a log beside the results."""
    folder = arguments.work / "results" / dataset / f"{trainer}__{plans}__2d" / "fold_0"
    record = folder / "fewshot.json"
    if not record.is_file():
        job = {"dataset": dataset, "trainer": trainer, "plans": plans, "seconds": arguments.seconds}
        job["validate"] = not others  # the transferred network is tested on other data
        words = [sys.executable, __file__, "--data", str(arguments.data), "--work", str(arguments.work)]
        print(f"training {trainer} on {dataset} ({plans})", flush=True)
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / "output.log", "w") as log:
            environment = {**os.environ, "NNUNET_EXT_EPISODE_DATASETS": others}
            done = subprocess.run(
                [*words, "--child", json.dumps(job)], stdout=log, stderr=subprocess.STDOUT, env=environment
            )
        if done.returncode:
            raise SystemExit(f"failed; see {folder / 'output.log'}")
    return {**read_json(record), "folder": folder, "others": others}


def child(dataset: str, trainer: str, plans: str, seconds: float, validate: bool) -> None:
    """Take as many iterations as fit into the CPU seconds, by the time of a few; then nnU-Net's own validation."""
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    folder = Path(os.environ["nnUNet_preprocessed"], dataset)
    content = {**read_json(folder / f"{plans}.json"), "continue_training": False}
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002 (nnU-Net's augmentation draws from the global generator)
    trainer_class = recursive_find_trainer_class_by_name(trainer)
    own = trainer_class(content, "2d", 0, read_json(folder / "dataset.json"), torch.device("cpu"))
    own.on_train_start()
    own.network.train()
    for step in range(13):
        if step == 1:
            start = time.process_time()
        own.train_step(next(own.dataloader_train))
    own.num_iterations_per_epoch = max(round(seconds / (time.process_time() - start) * 12 / EPOCHS), 1)
    start = time.process_time()
    own.run_training()
    spent = time.process_time() - start
    if validate:
        own.perform_actual_validation()
    record = {
        "training_cpu_seconds": round(spent, 1),
        "iterations": own.num_iterations_per_epoch * EPOCHS,
        "batch_size": own.batch_size,
        "parameters": sum(parameter.numel() for parameter in own.network.parameters()),
    }
    write_json(Path(own.output_folder, "fewshot.json"), record)


def validation_rows(data: str, method: str, labelled: int, run: dict) -> list[dict[str, object]]:
    """Dice of each label in nnU-Net's validation."""
    summary = read_json(run["folder"] / "validation" / "summary.json")
    names = {str(value): name for name, value in read_json(run["folder"].parent / "dataset.json")["labels"].items()}
    cases = summary["metric_per_case"]
    return [
        row(data, method, names[label], labelled, [case["metrics"][label]["Dice"] for case in cases], run)
        for label in summary["mean"]
    ]


def row(data: str, method: str, label: str, labelled: int, dice: list[float], run: dict) -> dict[str, object]:
    trained_on = "the labelled cases" if not run["others"] else "5 Hippocampus and 10 cardiac MRI cases, not this data"
    software = describe_software()
    return {
        "data": data,
        "method": method,
        "label": label,
        "labelled": labelled,
        "tested": len(dice),
        "dice_mean": round(float(np.nanmean(dice)), 4),
        "dice_sd": round(float(np.nanstd(dice, ddof=1)), 4),
        "trained_on": trained_on,
        **{key: run[key] for key in ("training_cpu_seconds", "iterations", "batch_size", "parameters")},
        "date": datetime.date.today().isoformat(),
        "processor": f"{describe_hardware(torch.device('cpu'))['processor']}, one thread",
        **{package: software[package] for package in ("torch", "nnunet_ext")},
    }


def transfer(arguments: argparse.Namespace, run: dict) -> tuple[list[CurvePoint], dict[str, object]]:
    """HC18 from ten labelled images by a network that has never seen it: the command, and the curve."""
    split = read_json(arguments.work / "preprocessed" / HC18 / "splits_final.json")[0]
    base = arguments.work / "hc18"
    for part, cases in (("support", split["train"]), ("test", split["val"])):
        for kind, ending in (("images", "_0000.png"), ("labels", ".png")):
            (base / part / kind).mkdir(parents=True, exist_ok=True)
            for case in cases:
                link = base / part / kind / f"{case}{ending}"
                if not link.exists():
                    link.symlink_to((arguments.data / HC18 / f"{kind}Tr" / link.name).resolve())
    weights = run["folder"] / "checkpoint_final.pth"
    sets = ("--support-images", str(base / "support" / "images"), "--support-labels", str(base / "support" / "labels"))
    places = ("-i", str(base / "test" / "images"), "-o", str(base / "out"))
    command("nnunet_ext", "predict-fewshot", "--weights", str(weights), *sets, *places, "--support-size", "10", "-q")
    dice = []
    for case in find_images(base / "test" / "images"):
        found, true = (
            sitk.GetArrayFromImage(sitk.ReadImage(str(path))) > 0
            for path in (base / "out" / f"{case}.png", base / "test" / "labels" / f"{case}.png")
        )
        dice.append(2 * float((found & true).sum()) / float(found.sum() + true.sum()))
    core, size = load_network(weights)
    assert size is not None
    pools = [read_support(base / part / "images", base / part / "labels", size, "z") for part in ("test", "support")]
    points = support_curve(core, *pools, sizes=(1, 2, 4, 8))
    points = [CurvePoint(p.support_size, "head", p.dice_mean, p.dice_sd, p.cases) for p in points]
    return points, row("HC18", "UniverSeg tiny, no training on it", "head", 10, dice, run)


def read_curve(folder: Path) -> list[CurvePoint]:
    with open(folder / "support_curve.csv", newline="") as file:
        return [
            CurvePoint(int(r["support_size"]), r["label"], float(r["dice_mean"]), float(r["dice_sd"]), int(r["cases"]))
            for r in csv.DictReader(file)
        ]


def write(rows: list[dict[str, object]], curves: dict[str, list[CurvePoint]]) -> None:
    results = HERE / "results"
    points = [{"curve": name, **asdict(point)} for name, curve in curves.items() for point in curve]
    for name, columns, content in (
        ("fewshot.csv", COLUMNS, rows),
        ("fewshot_curve.csv", ("curve", *CurvePoint.__dataclass_fields__), points),
    ):
        buffer = io.StringIO()
        writer = csv.DictWriter(buffer, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(content)
        write_text(results / name, buffer.getvalue())
    plot_curves(curves, HERE.parent / "docs" / "fewshot_curve.png")
    for entry in rows:
        print("{data}: {method}, {label}: Dice {dice_mean} ± {dice_sd} ({training_cpu_seconds} CPU s)".format(**entry))


if __name__ == "__main__":
    main()
