"""Make a small data set, train on it, predict and evaluate, with nnU-Net's own commands as a user would type them.

Without --data, phantoms are drawn: small abdominal scans with four labels, noise, bias field and thick slices. With
--data, a few cases of an nnU-Net raw data set are used, some of them held out; that folder is only read. Every
command is printed before it runs and is also in commands.sh. Needs no GPU.

examples:
  nnunet_ext demo
  nnunet_ext demo --model unetrpp
  nnunet_ext demo -o /tmp/hippocampus --data nnUNet_raw/Dataset004_Hippocampus --epochs 20

In the folder afterwards: overlay.png (worst, median and best case), surfaces.png (the best one in 3D), evaluation
(tables), predictions, logs, and nnUNet_raw, nnUNet_preprocessed, nnUNet_results as nnU-Net left them.
"""

from __future__ import annotations

import argparse
import math
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_ext import __version__
from nnunet_ext.cli.progress import Epochs, stages
from nnunet_ext.cli.running import find_executable, run_logged, stop_on_signals
from nnunet_ext.data.holdout import RawDataset, hold_out, read_raw_dataset
from nnunet_ext.data.phantoms import make_dataset
from nnunet_ext.discovery.table import find
from nnunet_ext.environment import decimal
from nnunet_ext.errors import UserError
from nnunet_ext.evaluation.labels import labels_from_dataset_json
from nnunet_ext.files import read_json, remove_leftovers, resolved, write_json, write_text
from nnunet_ext.machine import available_cores, children_cpu_seconds
from nnunet_ext.models import Model, rows

PHANTOMS = "Dataset900_Phantoms"


@dataclass(frozen=True)
class Step:
    """A command, and what to show of its output."""

    name: str
    command: list[str]
    show: Callable[[str], str | None]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-o", "--output", type=Path, default=Path("nnunet_ext_demo"), metavar="FOLDER",
        help="everything goes here (default: ./nnunet_ext_demo)",
    )  # fmt: skip
    parser.add_argument(
        "--data", type=Path, metavar="PATH", help="an nnU-Net raw data set to use instead of phantoms; only read"
    )
    parser.add_argument(
        "--cases", type=_at_least_six, metavar="N",
        help="use N cases, a quarter of them for testing (default: 16 phantoms, or at most 24 cases of --data)",
    )  # fmt: skip
    shown = demonstrated()
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--model", choices=[model.name for model in shown], metavar="NAME",
        help="one of %(choices)s (default: segmamba)",
    )  # fmt: skip
    which.add_argument(
        "--trainer", default="nnUNetTrainerSegMamba", metavar="NAME",
        choices=[t.name for model in shown for t in model.trainers if t.automatic],
        help="the same by trainer: one of %(choices)s",
    )  # fmt: skip
    parser.add_argument("--epochs", type=_positive, default=13, metavar="N", help="epochs (default: %(default)s)")
    parser.add_argument(
        "--device", default="auto", choices=["auto", "cpu", "cuda"], help="auto takes the GPU when torch finds one"
    )
    parser.add_argument(
        "--seed", type=_seed, default=0, metavar="N",
        help="decides the phantoms, or which cases of --data are used; nnU-Net's training itself has no seed",
    )  # fmt: skip
    parser.add_argument("--overwrite", action="store_true", help="remove what an earlier demo left in the folder")


def run(arguments: argparse.Namespace) -> int:
    started = time.monotonic()
    if arguments.model is not None:
        arguments.trainer = next(model for model in demonstrated() if model.name == arguments.model).trainers[0].name
    # Whatever can be wrong is found before anything is written.
    source = None if arguments.data is None else read_raw_dataset(arguments.data)
    for name in ("nnUNetv2_plan_and_preprocess", "nnUNetv2_train", "nnUNetv2_predict", "nnunet_ext"):
        find_executable(name)
    device = _device(arguments.device)
    folder = arguments.output.absolute()
    _make_room(folder, arguments.overwrite, source)
    settings = {
        "written_by": f"nnunet_ext {__version__}",
        "data": None if source is None else str(source.folder),
        **{name: getattr(arguments, name) for name in ("trainer", "epochs", "seed", "cases")},
        "device": device,
    }
    try:
        write_json(folder / "demo.json", {"settings": settings})
        (folder / "logs").mkdir()
        dataset = _make_data(folder / "nnUNet_raw", source, arguments.cases, arguments.seed)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise

    variables = _variables(folder, arguments.epochs, device)
    script = [f"cd {shlex.quote(str(folder))}"]
    binaries = find_executable("nnunet_ext").parent
    if Path(shutil.which("nnunet_ext") or ".").parent != binaries:
        script.append(f"export PATH={shlex.quote(str(binaries))}:$PATH")  # the environment is not activated
    script += [f"export {name}={shlex.quote(value)}" for name, value in variables.items()]
    print("\n" + "\n".join(f"$ {line}" for line in script))
    seconds = {}
    with stop_on_signals():
        for number, step in enumerate(_steps(dataset, folder, arguments, device, source is None), start=1):
            script.append(shlex.join(step.command))
            write_text(folder / "commands.sh", "\n".join(script) + "\n")
            begun, cpu = time.monotonic(), children_cpu_seconds()
            run_logged(step.command, folder / "logs" / f"{number}_{step.name}.log", folder, variables, step.show)
            seconds[step.name] = {
                "wall": round(time.monotonic() - begun, 1),
                "cpu": _seconds_since(cpu),
            }
            print(f"  done in {seconds[step.name]['wall']:.0f} s")
        results = _results(folder)
        _draw(folder, dataset, results)
    children = children_cpu_seconds()
    write_json(
        folder / "demo.json",
        {
            "settings": settings,
            "mean_foreground_dice": results["mean_foreground_dice"],
            "mean_foreground_hd95_mm": results["mean_foreground_hd95_mm"],
            "missed_or_false_structures": results["missed"],
            "seconds": seconds,
            "total_seconds": round(time.monotonic() - started, 1),
            "total_cpu_seconds": None if children is None else round(children + time.process_time(), 1),
        },
    )
    _say_what_next(folder, dataset, arguments.trainer, results, time.monotonic() - started)
    return 0


def demonstrated() -> list[Model]:
    """Models with a trainer that segments by itself, on plans that this command can write."""
    return [
        model for model in rows() if any(t.automatic for t in model.trainers) and (model.network is None or model.sizes)
    ]


def _make_room(folder: Path, overwrite: bool, source: RawDataset | None) -> None:
    """Leave `folder` missing or empty; remove only what an earlier demo made."""
    if folder.is_dir():
        remove_leftovers(folder / "demo.json")  # of a demo that was killed at its very beginning
    if folder.is_dir() and any(folder.iterdir()):
        if not (folder / "demo.json").is_file():
            raise UserError(f"{folder} is not empty and not from an earlier demo; choose another folder with -o")
        if not overwrite:
            raise UserError(f"{folder} holds an earlier demo; add --overwrite to remove it, or choose another with -o")
        if source is not None and resolved(folder) in resolved(source.folder).parents:
            raise UserError(f"{source.folder} lies in {folder}, which --overwrite removes; choose another with -o")
        try:
            shutil.rmtree(folder)
        except OSError as error:
            raise UserError(f"cannot remove {folder}: {error.strerror}; choose another with -o") from None
    elif folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; choose another folder with -o")


def _make_data(raw: Path, source: RawDataset | None, cases: int | None, seed: int) -> Path:
    if source is None:
        cases = cases or 16
        print(f"Drawing {cases} phantoms (seed {seed}), {cases // 4} of them held out ...", flush=True)
        return make_dataset(raw / PHANTOMS, cases - cases // 4, cases // 4, seed, progress=True)
    cases = min(cases or 24, len(source.cases))
    print(f"Choosing {cases} of the {len(source.cases)} cases in {source.folder} (seed {seed}) ...", flush=True)
    return hold_out(source, raw / source.folder.name, cases - cases // 4, cases // 4, seed, progress=True)


def _variables(folder: Path, epochs: int, device: str) -> dict[str, str]:
    """What the commands find in their environment; nothing else is changed."""
    variables = {name: str(folder / name) for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}
    # A short schedule: nnU-Net's own is 1000 epochs of 250 iterations.
    variables |= {"NNUNET_EXT_EPOCHS": str(epochs), "NNUNET_EXT_ITERATIONS": "20", "NNUNET_EXT_VAL_ITERATIONS": "2"}
    if device == "cpu":
        # Starting a worker costs more than it saves on small data, and two cores are soon busy.
        variables |= {"nnUNet_n_proc_DA": "1", "nnUNet_def_n_proc": "1"}
    return variables | {"PYTHONUNBUFFERED": "1", "PYTHONWARNINGS": "ignore"}


def _steps(dataset: Path, folder: Path, arguments: argparse.Namespace, device: str, phantoms: bool) -> Iterator[Step]:
    """The commands in order; each is decided when the one before it has run."""
    number, trainer, plans = str(int(dataset.name[7:10])), arguments.trainer, "nnUNetPlans"
    model, configuration = _model(trainer), _configuration(trainer)
    processes = "1" if phantoms else str(min(4, available_cores()))
    preprocess = ["nnUNetv2_plan_and_preprocess", "-d", number, "-c", configuration, "-np", processes]
    yield Step("plan_and_preprocess", [*preprocess, "-npfp", processes, "--verify_dataset_integrity"], stages)

    if model.network is not None:  # nnU-Net's own network has nnU-Net's plans
        smallest = next(iter(model.sizes))
        plan = ["nnunet_ext", "plan", "-d", number, "--model", model.name, "--size", smallest, "-c", configuration]
        if device == "cpu":
            planned = read_json(folder / "nnUNet_preprocessed" / dataset.name / "nnUNetPlans.json")
            patch = _small_patch(planned["configurations"][configuration]["patch_size"])
            plan += ["--patch-size", *map(str, patch), "--batch-size", "2"]
        plans = "nnUNetPlansDemo"
        yield Step("plan", [*plan, "-o", plans], _indented)

    train = ["nnUNetv2_train", number, configuration, "0", "-tr", trainer, "-p", plans, "-device", device]
    yield Step("train", train, Epochs(arguments.epochs))

    predict = ["nnUNetv2_predict", "-d", number, "-i", f"nnUNet_raw/{dataset.name}/imagesTs", "-o", "predictions"]
    predict += ["-c", configuration, "-f", "0", "-tr", trainer, "-p", plans, "-device", device]
    if device == "cpu":
        predict += ["-npp", "0", "-nps", "0", "--disable_tta"]
    yield Step("predict", predict, stages)

    evaluate = ["nnunet_ext", "evaluate", "-r", f"nnUNet_raw/{dataset.name}/labelsTs", "-p", "predictions"]
    yield Step("evaluate", [*evaluate, "-o", "evaluation"], _indented)


def _model(trainer: str) -> Model:
    entry = find(trainer, "trainer")
    assert entry is not None and entry.model is not None  # argparse knows no other
    return entry.model


def _configuration(trainer: str) -> str:
    return "3d_fullres" if 3 in _model(trainer).axes else "2d"


def _indented(line: str) -> str | None:
    return f"  {line}" if line else None


def _small_patch(patch: list[int], voxels: int = 50_000) -> list[int]:
    """The planned patch, scaled down to about `voxels` for training on a CPU; multiples of 8 then."""
    factor = (voxels / math.prod(patch)) ** (1 / len(patch))
    if factor >= 1:
        return patch
    return [min(size, max(8, round(size * factor / 8) * 8)) for size in patch]


def _results(folder: Path) -> dict[str, Any]:
    """Per case and overall: mean Dice and HD95 over the foreground labels, from summary.json."""
    summary = read_json(folder / "evaluation" / "summary.json")
    cases = {}
    for entry in summary["metric_per_case"]:
        metrics = entry["metrics"].values()
        dice = [values["Dice"] for values in metrics if values["Dice"] is not None]
        hd95 = [values["HD95"] for values in metrics if values["HD95"] is not None]
        missed = {"missed", "false_alarm"} & set(entry["status"].values())
        cases[entry["case"]] = {
            "dice": sum(dice) / len(dice) if dice else math.nan,
            "hd95_mm": math.inf if missed else sum(hd95) / len(hd95) if hd95 else math.nan,
        }
    overall = summary["foreground_mean"]
    return {
        "cases": cases,
        "mean_foreground_dice": overall["Dice"],
        "mean_foreground_hd95_mm": overall["HD95"],
        "missed": sum(counts["missed"] + counts["false_alarms"] for counts in summary["counts"].values()),
    }


def _draw(folder: Path, dataset: Path, results: dict[str, Any]) -> None:
    # matplotlib takes a second to import; errors in the arguments should not wait for it.
    from nnunet_ext.reports.figures import read_case, worst_median_best, write_overlay

    labels = labels_from_dataset_json(dataset / "dataset.json")
    values = [target if isinstance(target, tuple) else (target,) for target in labels.targets]
    cases = {}
    for role, name in worst_median_best({name: case["dice"] for name, case in results["cases"].items()}).items():
        cases[role] = read_case(
            name,
            dataset / "imagesTs" / f"{name}_0000{labels.file_ending}",
            dataset / "labelsTs" / f"{name}{labels.file_ending}",
            folder / "predictions" / f"{name}{labels.file_ending}",
            **results["cases"][name],
        )
    if not cases:
        return
    members = dict(zip(labels.names, values, strict=True))
    write_overlay(cases, members, folder / "overlay.png")
    best = cases.get("best") or next(iter(cases.values()))
    if len(best.planes) > 1:  # a slice has no surface
        from nnunet_ext.reports.surfaces import write_surfaces

        write_surfaces(best, members, folder / "surfaces.png")


def _say_what_next(folder: Path, dataset: Path, trainer: str, results: dict[str, Any], seconds: float) -> None:
    dice, hd95 = results["mean_foreground_dice"], results["mean_foreground_hd95_mm"]
    print(f"\nMean foreground Dice {dice:.3f}" if dice is not None else "\nNo Dice: no label occurs", end="")
    print(f", HD95 {hd95:.2f} mm" if hd95 is not None else "", end="")
    print(f" (without {results['missed']} missed or false structures)" if results["missed"] else "", end="")
    print(f" on {len(results['cases'])} held-out cases, after {int(seconds) // 60}:{int(seconds) % 60:02d} min.\n")
    for name in ("overlay.png", "surfaces.png"):
        if (folder / name).is_file():
            print(f"  picture      {folder / name}")
    print(f"  tables       {folder / 'evaluation'}")
    print(f"  predictions  {folder / 'predictions'}")
    print(f"  commands     {folder / 'commands.sh'}, their output in {folder / 'logs'}")
    number = 4 if dataset.name == PHANTOMS else int(dataset.name[7:10])
    print(
        "\nThis was a short schedule with a tiny network. For results, set nnU-Net's three folders and run all folds\n"
        f"of your data set, here number {number}:\n"
        f"  nnUNetv2_plan_and_preprocess -d {number} --verify_dataset_integrity\n"
        f"  nnUNetv2_train {number} {_configuration(trainer)} 0 -tr {trainer}     # and folds 1 to 4"
    )


def _device(wanted: str) -> str:
    if wanted == "cpu":
        return wanted
    # In a process of its own, because torch would stay in this one's memory while the commands need it.
    question = "import sys, torch; sys.exit(0 if torch.cuda.is_available() else 3)"
    answer = subprocess.run([sys.executable, "-c", question], capture_output=True, text=True)
    if answer.returncode not in (0, 3):
        raise UserError(f"torch cannot be imported ({answer.stderr.strip().splitlines()[-1:]}); run nnunet_ext doctor")
    if wanted == "cuda" and answer.returncode:
        raise UserError("torch finds no CUDA device; use --device cpu, or see nnunet_ext doctor")
    return "cuda" if answer.returncode == 0 else "cpu"


def _seconds_since(before: float | None) -> float | None:
    """CPU seconds that the commands took since; None where the system does not say."""
    now = children_cpu_seconds()
    return None if now is None or before is None else round(now - before, 1)


def _positive(text: str) -> int:
    return _at_least(text, 1)


def _at_least_six(text: str) -> int:
    return _at_least(text, 6)


def _seed(text: str) -> int:
    return _at_least(text, 0)


def _at_least(text: str, least: int) -> int:
    number = decimal(text)
    if number is None or number < least:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from {least}")
    return number
