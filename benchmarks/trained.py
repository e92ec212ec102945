"""Fold 0 of MSD Hippocampus on one CPU core, every trainer until it is good: the runs behind the table of results.

    python benchmarks/trained.py --data .../Dataset004_Hippocampus --work /scratch/trained [--only SegMamba]

preprocesses once and trains one method after the other with nnU-Net's own command: the same folds and plan, in 3d with
patch 40x56x40 and batch 2, in 2d with patch 56x40 and batch 24, each with its own optimiser and schedule, at least
2,500 iterations or one CPU hour, in bf16. It takes hours and may be stopped at any moment: what is finished is not run
again, what is not goes on from its last checkpoint. A finished run is copied to benchmarks/results/hippocampus_fold0/
as `nnunet_ext report` reads it: run.json (versions, seconds per epoch, hardware), training logs, plans and the
predicted label maps of the 52 validation cases.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from hippocampus import DATASET, command, preprocess

from nnunet_ext.files import read_json, write_json, write_text
from nnunet_ext.machine import children_cpu_seconds

KEPT = Path(__file__).parent / "results" / "hippocampus_fold0"
BATCH = {"3d_fullres": 2, "2d": 24}


@dataclass(frozen=True)
class Method:
    """A trainer, the model of `nnunet_ext plan` (None for nnU-Net's own network), and how long it trains."""

    trainer: str
    model: str | None
    epochs: int
    configuration: str = "3d_fullres"
    iterations: int = 50

    @property
    def plans(self) -> str:
        name = "" if self.model is None else f"{self.trainer.removeprefix('nnUNetTrainer')}Tiny"
        return f"nnUNetPlans{name}Batch{BATCH[self.configuration]}"

    @property
    def folder(self) -> str:
        """Of the results."""
        return f"{self.trainer}__{self.plans}__{self.configuration}"


# Iterations where 2,500 take less than an hour: a CPU second and more each for the others.
METHODS = {
    "nnU-Net": Method("nnUNetTrainerExt", None, epochs=50),
    "SegMamba": Method("nnUNetTrainerSegMamba", "segmamba", epochs=50),
    "UNETR++": Method("nnUNetTrainerUNETRPP", "unetrpp", epochs=150),
    "MedSegDiff-V2": Method("nnUNetTrainerMedSegDiffV2", "medsegdiff", epochs=50),
    "MedSegDiff-V2 without diffusion": Method("nnUNetTrainerMedSegDiffV2Direct", "medsegdiff", epochs=90),
    "SAM-Med3D": Method("nnUNetTrainerSAMMed3D", "sam_med3d", epochs=100),
    "nnU-Net 2d": Method("nnUNetTrainerExt", None, epochs=100, configuration="2d"),
    "SegMamba 2d": Method("nnUNetTrainerSegMamba", "segmamba", epochs=100, configuration="2d"),
    "MedSegDiff-V2 2d": Method("nnUNetTrainerMedSegDiffV2", "medsegdiff", epochs=70, configuration="2d"),
    "UniverSeg 2d": Method("nnUNetTrainerUniverSeg", "universeg", epochs=100, configuration="2d"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help=f"the raw folder {DATASET}")
    parser.add_argument("--work", type=Path, required=True, help="nnU-Net's three folders are made here")
    parser.add_argument("--only", nargs="+", choices=METHODS, default=list(METHODS))
    arguments = parser.parse_args()
    os.environ.update({f"nnUNet_{name}": str(arguments.work / name) for name in ("raw", "preprocessed", "results")})
    os.environ.update(
        PATH=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        OMP_NUM_THREADS="1",
        nnUNet_n_proc_DA="1",
        nnUNet_def_n_proc="1",
        NNUNET_EXT_VAL_ITERATIONS="10",
        NNUNET_EXT_PRECISION="bf16",
        PYTHONWARNINGS="ignore",
    )
    preprocess(arguments.data, arguments.work, sorted({METHODS[name].configuration for name in arguments.only}))
    for name in arguments.only:
        train(METHODS[name], arguments.work)


def train(method: Method, work: Path) -> None:
    results = work / "results" / DATASET / method.folder
    if not (results / "fold_0" / "validation" / "summary.json").is_file():
        plan(method, work / "preprocessed" / DATASET)
        os.environ.update(NNUNET_EXT_EPOCHS=str(method.epochs), NNUNET_EXT_ITERATIONS=str(method.iterations))
        which = ("-p", method.plans, "-tr", method.trainer)
        begun = children_cpu_seconds()
        try:
            command("nnUNetv2_train", "4", method.configuration, "0", *which, "-device", "cpu", "--c")
        finally:  # a stopped run goes on later; its seconds count
            spent = results / "fold_0" / "cpu_seconds.json"
            before = read_json(spent) if spent.is_file() else []
            write_json(spent, [*before, round((children_cpu_seconds() or 0) - (begun or 0), 1)])
    keep(results, KEPT / results.name, work)


def plan(method: Method, folder: Path) -> None:
    """Plans with one batch size for all: nnU-Net's own batch of 9 would give it more samples per step."""
    path = folder / f"{method.plans}.json"
    if path.is_file():
        return
    if method.model is None:
        plans = read_json(folder / "nnUNetPlans.json")
        plans["plans_name"] = method.plans
        plans["configurations"][method.configuration]["batch_size"] = BATCH[method.configuration]
        write_json(path, plans)
        return
    size = ("--size", "tiny", "-c", method.configuration, "--batch-size", str(BATCH[method.configuration]))
    command("nnunet_ext", "plan", "-d", "4", "--model", method.model, *size, "-o", method.plans)


def keep(results: Path, kept: Path, work: Path) -> None:
    """Copy what a report needs, without the paths of the machine that trained."""
    fold = results / "fold_0"
    found = [results / "plans.json", results / "dataset.json", fold / "validation" / "summary.json"]
    found += [*fold.glob("run.json"), *fold.glob("cpu_seconds.json"), *fold.glob("training_log_*.txt")]
    for path in found:
        text = path.read_text(encoding="utf-8").replace(str(work.resolve()), "WORK").replace(str(work), "WORK")
        write_text(kept / path.relative_to(results), text)
    for path in (fold / "validation").glob("*.nii.gz"):
        shutil.copyfile(path, kept / "fold_0" / "validation" / path.name)
    print(f"kept: {kept}", flush=True)


if __name__ == "__main__":
    main()
