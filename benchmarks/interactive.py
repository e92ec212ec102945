"""Early prompting trained for so many CPU seconds on one core, then clicked on by simulated users; nnU-Net as long.

    python benchmarks/interactive.py --data .../Dataset004_Hippocampus --work /scratch/interactive --seconds 3600

plans with nnUNetPlannerInteractive, takes as many epochs as fit the seconds (measured before), trains with nnU-Net's
`run_training`, and writes Dice and NSD after 1, 3, 5 and 10 clicks on validation cases to
benchmarks/results/interactive_DATASET.csv. With --baseline nnU-Net's own network is trained as long on its own plans,
whose automatic masks are the row without clicks. Nothing is chosen on the validation cases. The users see the
reference, so the rows with clicks are no scores of automatic use. What is finished is not run again.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

from shared import few_validation_cases, write_rows

from nnunet_ext.files import read_json, write_json

HERE = Path(__file__).parent
CALIBRATED_STEPS = 12
# So many of the first validation cases of fold 0 were looked at while the optimiser was chosen; they are not scored.
LOOKED_AT = {"Dataset004_Hippocampus": 4}
PLANS, STOCK = "nnUNetInteractivePlans", "nnUNetPlans"
COLUMNS = (
    "method", "objects", "gradients", "user", "clicks", "dice", "nsd_1mm", "n", "parameters", "patch_size",
    "batch_size", "epochs", "iterations", "precision", "cpu_seconds", "date", "cpu", "python", "versions",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a raw folder DatasetXXX_NAME")
    parser.add_argument("--work", type=Path, required=True, help="nnU-Net's three folders are made here")
    parser.add_argument("--seconds", type=int, default=3600, help="of the training's CPU time")
    parser.add_argument("--size", choices=("tiny", "small", "base"), default="tiny")
    parser.add_argument("--objects", choices=("labels", "components"), default="labels")
    parser.add_argument("--gradients", choices=("last", "all"), default="last")
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--cases", type=int, default=20, help="validation cases of fold 0")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="bf16")
    parser.add_argument("--baseline", action="store_true", help="train nnU-Net's own network as long, too")
    arguments = parser.parse_args()

    os.environ.update({f"nnUNet_{name}": str(arguments.work / name) for name in ("raw", "preprocessed", "results")})
    os.environ.update(
        PATH=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        OMP_NUM_THREADS="1",
        nnUNet_n_proc_DA="1",
        nnUNet_def_n_proc="1",
        NNUNET_EXT_ITERATIONS="25",
        NNUNET_EXT_VAL_ITERATIONS="1",
        NNUNET_EXT_PRECISION=arguments.precision,
        NNUNET_EXT_INTERACTIVE_OBJECTS=arguments.objects,
        NNUNET_EXT_INTERACTIVE_GRADIENTS=arguments.gradients,
        PYTHONWARNINGS="ignore",
    )
    dataset = arguments.data.name
    prepare(arguments, dataset)
    name = f"{PLANS}{arguments.size.capitalize()}{arguments.objects.capitalize()}{arguments.gradients.capitalize()}"
    number = str(int(dataset[7:10]))
    words = ("--model", "interactive", "--size", arguments.size, "-p", PLANS, "-o", name)
    command("nnunet_ext", "plan", "-d", number, *words, "--batch-size", str(arguments.batch_size))
    folder = train(dataset, "nnUNetTrainerInteractive", name, arguments.seconds)
    rows = clicked_rows(folder, f"early prompting, {arguments.size}", arguments)
    if arguments.baseline:
        rows += automatic_rows(train(dataset, "nnUNetTrainerExt", stock_plans(arguments, dataset), arguments.seconds))
    path = HERE / "results" / f"interactive_{dataset[7:10]}_{arguments.objects}_{arguments.gradients}.csv"
    write_rows(path, COLUMNS, rows, ("nnunet-ext", "nnunetv2", "torch"))


def command(*words: str) -> None:
    print("$", " ".join(words), flush=True)
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)


def prepare(arguments: argparse.Namespace, dataset: str) -> None:
    raw, folder = (arguments.work / name / dataset for name in ("raw", "preprocessed"))
    number = str(int(dataset[7:10]))
    if not raw.exists():
        raw.parent.mkdir(parents=True, exist_ok=True)
        raw.symlink_to(arguments.data.resolve(), target_is_directory=True)
    wanted = [("nnUNetPlannerInteractive", PLANS)] + [("ExperimentPlanner", STOCK)] * arguments.baseline
    for planner, plans in wanted:
        if not (folder / f"{plans}_3d_fullres.finished").is_file():
            flags = ("-pl", planner, "-c", "3d_fullres", "-np", "1", "-npfp", "1")
            command("nnUNetv2_plan_and_preprocess", "-d", number, *flags)
            Path(folder, f"{plans}_3d_fullres.finished").touch()
    if not (folder / "splits_final.json").is_file():
        seen = LOOKED_AT.get(dataset, 0)
        few_validation_cases(folder, seen + arguments.cases)
        splits = read_json(folder / "splits_final.json")
        splits[0]["val"] = splits[0]["val"][seen:]
        write_json(folder / "splits_final.json", splits)


def stock_plans(arguments: argparse.Namespace, dataset: str) -> str:
    """nnU-Net's plans with the batch of the others."""
    folder = arguments.work / "preprocessed" / dataset
    plans = read_json(folder / f"{STOCK}.json")
    plans["plans_name"] = f"{STOCK}Batch{arguments.batch_size}"
    plans["configurations"]["3d_fullres"]["batch_size"] = arguments.batch_size
    write_json(folder / f"{plans['plans_name']}.json", plans)
    return plans["plans_name"]


def train(dataset: str, trainer: str, plans: str, seconds: int) -> Path:
    """In this process, as nnUNetv2_train does; the fold's folder."""
    import torch
    from nnunetv2.run.run_training import get_trainer_from_args, run_training

    from nnunet_ext.discovery import lookup
    from nnunet_ext.trainers.loaders import close_loaders

    lookup.enable()
    torch.set_num_threads(1)
    folder = Path(os.environ["nnUNet_results"], dataset, f"{trainer}__{plans}__3d_fullres", "fold_0")
    if (folder / "cpu_seconds.json").is_file():
        return folder
    tried = get_trainer_from_args(dataset, "3d_fullres", 0, trainer, plans, device=torch.device("cpu"))
    tried.initialize()
    tried.network.train()
    loader, checking = tried.get_dataloaders()
    tried.train_step(next(loader))  # kernels are compiled
    start = time.process_time()
    for _ in range(CALIBRATED_STEPS):
        tried.train_step(next(loader))
    each = (time.process_time() - start) / CALIBRATED_STEPS
    close_loaders(tried)
    del tried, loader, checking
    epochs = max(2, round(seconds / (each * int(os.environ["NNUNET_EXT_ITERATIONS"]))))
    print(f"{trainer}: {each:.2f} CPU seconds per step, so {epochs} epochs", flush=True)
    os.environ["NNUNET_EXT_EPOCHS"] = str(epochs)
    start = time.process_time()
    run_training(dataset, "3d_fullres", 0, trainer, plans, device=torch.device("cpu"))
    # Training and validation.
    write_json(folder / "cpu_seconds.json", {"seconds": round(time.process_time() - start, 1)})
    return folder


def facts(folder: Path) -> dict[str, object]:
    record = read_json(folder / "run.json")
    settings = record["settings"]
    return {
        "parameters": record["parameters"],
        "patch_size": "x".join(map(str, settings["patch_size"])),
        **{name: settings[name] for name in ("batch_size", "epochs", "iterations", "precision")},
        "cpu_seconds": read_json(folder / "cpu_seconds.json")["seconds"],
    }


def clicked_rows(folder: Path, method: str, arguments: argparse.Namespace) -> list[dict[str, object]]:
    summary = read_json(folder / "validation" / "prompted_summary.json")
    common = {"method": method, "objects": arguments.objects, "gradients": arguments.gradients, **facts(folder)}
    return [
        {
            **common,
            "user": f"{user} (sees the reference)",
            "clicks": clicks,
            "dice": found["mean"]["Dice"][str(clicks)],
            "nsd_1mm": found["mean"]["NSD"][str(clicks)],
            "n": found["mean"]["n"],
        }
        for user, found in summary["users"].items()
        for clicks in summary["clicks"]
    ]


def automatic_rows(folder: Path) -> list[dict[str, object]]:
    summary = read_json(folder / "validation" / "summary.json")
    n = len(summary["metric_per_case"]) * len(summary["mean"])
    dice = summary["foreground_mean"]["Dice"]
    return [{"method": "nnU-Net, automatic", "user": "nobody", "clicks": 0, "dice": dice, "n": n, **facts(folder)}]


if __name__ == "__main__":
    main()
