"""Result folders as nnU-Net and this package's trainers leave them: twelve cases, two folds, two structures."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np

from nnunet_ext.files import write_json

DATASET = "Dataset001_Toy"
CASES = tuple(f"pat{index // 2}_scan{index % 2}" for index in range(12))
AFFINE = np.diag([0.8, 0.8, 2.0, 1.0])


def reference(index: int) -> np.ndarray:
    """Two boxes, (z, y, x); the eighth case has no tumour."""
    array = np.zeros((8, 20, 22 + index), np.uint8)
    array[2:6, 4:15, 4:15] = 1
    if index != 7:
        array[3:5, 7:10, 6:9] = 2
    return array


def save(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array.T, AFFINE), path)


def make_dataset(base: Path) -> None:
    """`raw` and `preprocessed` with images, references and two folds."""
    generator = np.random.default_rng(0)
    for index, case in enumerate(CASES):
        truth = reference(index)
        save(base / "preprocessed" / DATASET / "gt_segmentations" / f"{case}.nii.gz", truth)
        image = (truth * 100 + generator.normal(0, 10, truth.shape)).astype(np.float32)
        save(base / "raw" / DATASET / "imagesTr" / f"{case}_0000.nii.gz", image)
    splits = [{"train": [], "val": [c for i, c in enumerate(CASES) if i % 2 == fold]} for fold in (0, 1)]
    write_json(base / "preprocessed" / DATASET / "splits_final.json", splits)


def make_run(
    base: Path,
    trainer: str,
    shift: int,
    *,
    plans: str = "nnUNetPlans",
    epochs: int = 3,
    edit=None,
    record: bool = True,
    architecture: dict | None = None,
) -> Path:
    """A finished cross-validation whose predictions are the references, moved by `shift` voxels.

    `edit(case, prediction)` may change a prediction in place; `architecture` is that of the plans.
    """
    folder = base / "results" / DATASET / f"{trainer}__{plans}__3d_fullres"
    for index, case in enumerate(CASES):
        prediction = np.roll(reference(index), shift, axis=2)
        if edit is not None:
            edit(case, prediction)
        save(folder / f"fold_{index % 2}" / "validation" / f"{case}.nii.gz", prediction)
    configuration = {
        "batch_size": 2,
        "patch_size": [8, 16, 16],
        **({"architecture": architecture} if architecture else {}),
    }
    write_json(folder / "plans.json", {"dataset_name": DATASET, "configurations": {"3d_fullres": configuration}})
    write_json(
        folder / "dataset.json",
        {"labels": {"background": 0, "liver": 1, "tumour <small>": 2}, "file_ending": ".nii.gz"},
    )
    for fold in (0, 1):
        path = folder / f"fold_{fold}"
        (path / "training_log_2026_1_1_10_00_00.txt").write_text(training_log(epochs))
        if record:
            write_json(path / "run.json", run_record(epochs, fold))
    return folder


def run_record(epochs: int, fold: int) -> dict:
    return {
        "fold": fold,
        "settings": {
            "epochs": epochs, "iterations": 10, "batch_size": 2, "patch_size": [8, 16, 16], "precision": "bf16",
        },
        "parameters": 1_234_567,
        "gmacs_per_patch": 7.5,
        "software": {"nnunetv2": "2.8.1", "torch": "2.6.0", "nnunet_ext": "0.1.0", "git": "abcdef0123456789"},
        "hardware": {"processor": "Toy CPU", "device": "cpu"},
        "epoch_seconds": [2.0] * epochs,
        "peak_memory_bytes": 3 * 2**30 + fold,
        "validation": {"seconds": 12.0, "cases": 4},
    }  # fmt: skip


def training_log(epochs: int, first: int = 0) -> str:
    lines = ["", "#######", "This is the configuration used by this training:"]
    for epoch in range(first, epochs):
        at = f"2026-01-01 10:{epoch:02d}:"
        lines += [
            f"{at}00.000001: Epoch {epoch} ",
            f"{at}00.000002: Current learning rate: {0.01 / (epoch + 1):.5f} ",
            f"{at}10.000001: train_loss {0.5 - 0.1 * epoch:.4f} ",
            f"{at}10.000002: val_loss {0.4 - 0.1 * epoch:.4f} ",
            f"{at}10.000003: Pseudo dice [np.float32({0.1 * epoch}), np.float32(nan)] ",
            f"{at}10.000004: Epoch time: {2 + epoch}.0 s ",
        ]
    lines += [f"2026-01-01 11:00:0{k}.500000: predicting pat{k} " for k in (0, 3, 5)]
    return "\n".join(lines) + "\n"
