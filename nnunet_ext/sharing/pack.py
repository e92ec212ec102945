"""A trained model's folder as one file: what prediction and fine-tuning need, and nothing of the training's data.

The members lie as in the files of `nnUNetv2_export_model_to_zip`, so that nnU-Net's own command installs them, too.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from nnunet_ext import models
from nnunet_ext.errors import UserError
from nnunet_ext.files import atomic_path, json_text, read_json
from nnunet_ext.inference.model_folder import open_model_folder, read_training_checkpoint
from nnunet_ext.inference.predictor import FolderPredictor
from nnunet_ext.sharing.manifest import NAME, Manifest, versions_of
from nnunet_ext.sharing.onnx_export import network_as_onnx, windows_of

# Of a checkpoint, what nnU-Net's and our prediction, and fine-tuning, read.
_KEPT = ("network_weights", "trainer_name", "init_args", "inference_allowed_mirroring_axes", "current_epoch")
# Where a dataset.json may list the cases, whose names can be those of patients.
_CASES = ("training", "validation", "test", "dataset")
DATASET, MODEL = re.compile(r"Dataset\d{3,}_[^/]+"), re.compile(r"\w+?__\w+?__\w+", re.ASCII)


def pack_model(
    folder: Path,
    output: Path,
    *,
    licence: str | None = None,
    training_data: str | None = None,
    folds: Sequence[str] | None = None,
    checkpoint: str = "checkpoint_final.pth",
    with_training_images: bool = False,
    onnx: bool = False,
    case: Sequence[Path] = (),
) -> Manifest:
    """Write a trained model as one file.

    Args:
        folder: of the model, TRAINER__PLANS__CONFIGURATION.
        output: the file.
        licence: under which it is given away; None takes what dataset.json says.
        training_data: what it was trained on; None takes name and reference out of dataset.json.
        folds: numbers or "all"; None takes all there are.
        checkpoint: name of the file in the folder of each fold.
        with_training_images: agree to give away the images that checkpoints carry.
        onnx: put each fold's network beside its checkpoint as an ONNX file.
        case: an image, one file per channel, on which torch and ONNX are compared beside a generated one.

    Returns:
        What the file says of itself.

    Raises:
        UserError: the model cannot be opened; licence or training data are not known; a checkpoint carries images of
            the training data and nobody has agreed to that; or the network cannot be written as ONNX.
    """
    folds = folds or _folds(folder, checkpoint)
    predictor = FolderPredictor(device=torch.device("cpu"), allow_tqdm=False)
    open_model_folder(predictor, folder, folds, checkpoint)
    dataset = {key: value for key, value in predictor.dataset_json.items() if key not in _CASES}
    plans = predictor.plans_manager.plans
    contents = [read_training_checkpoint(folder / f"fold_{fold}" / checkpoint) for fold in folds]
    images = max(map(_training_images, contents))
    if images and not with_training_images:
        raise UserError(
            f"{folder}: its checkpoints carry {images} images of the training data with their labels, which whoever "
            "gets the file can look at; add --with-training-images if you may give them away"
        )
    place = _place(folder, plans, contents[0])
    manifest = Manifest(
        dataset=place[0],
        model=place[1],
        folds=tuple(folds),
        licence=_said(licence, dataset, ("licence", "license"), "--licence", folder),
        training_data=_said(training_data, dataset, ("name", "reference"), "--training-data", folder),
        training_images=images,
        versions=versions_of(predictor.configuration_manager.network_arch_class_name),
    )
    windows = windows_of(predictor, case) if case else []
    with atomic_path(output) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        sums = {}

        def add(name: str, data: bytes, packed: bool = False) -> None:
            # Always the same date: the same model is the same file.
            info = zipfile.ZipInfo(f"{'/'.join(place)}/{name}")
            info.compress_type = zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED
            info.external_attr = 0o644 << 16
            archive.writestr(info, data)
            sums[name] = hashlib.sha256(data).hexdigest()

        add("plans.json", (folder / "plans.json").read_bytes(), packed=True)
        add("dataset.json", json_text(dataset).encode(), packed=True)
        if (folder / "dataset_fingerprint.json").is_file():
            fingerprint = read_json(folder / "dataset_fingerprint.json")
            add("dataset_fingerprint.json", json.dumps(fingerprint).encode(), packed=True)
        for fold, content in zip(folds, contents, strict=True):
            kept = _without_training(content)
            buffer = io.BytesIO()
            torch.save(kept, buffer)
            add(f"fold_{fold}/{checkpoint}", buffer.getvalue())
            if onnx:
                about = {
                    "fold": str(fold),
                    "configuration": content["init_args"]["configuration"],
                    "licence": manifest.licence,
                    "training_data": manifest.training_data,
                    "checkpoint_sha256": sums[f"fold_{fold}/{checkpoint}"],
                    "versions": manifest.versions,
                    "dataset": dataset,
                }
                name = f"fold_{fold}/{Path(checkpoint).stem}.onnx"
                add(name, network_as_onnx(predictor, content["network_weights"], about, windows))
        manifest = replace(manifest, files=sums)
        archive.writestr(
            zipfile.ZipInfo(f"{'/'.join(place)}/{NAME}"), json_text(manifest.content()), zipfile.ZIP_DEFLATED
        )
    return manifest


def _folds(folder: Path, checkpoint: str) -> list[str]:
    found = sorted(path.parent.name.removeprefix("fold_") for path in folder.glob(f"fold_*/{checkpoint}"))
    if not found:
        raise UserError(f"{folder} holds no fold with {checkpoint}; see -chk, or train first")
    return found


def _place(folder: Path, plans: dict[str, Any], checkpoint: Mapping[str, Any]) -> tuple[str, str]:
    """Names of the data set's and of the model's folder, where nnU-Net will look for them."""
    dataset, model = folder.resolve().parent.name, folder.resolve().name
    if not DATASET.fullmatch(dataset):
        dataset = str(plans.get("dataset_name"))
    if not MODEL.fullmatch(model):
        configuration = checkpoint["init_args"]["configuration"]
        model = f"{checkpoint['trainer_name']}__{plans.get('plans_name')}__{configuration}"
    if not DATASET.fullmatch(dataset) or not MODEL.fullmatch(model):
        raise UserError(
            f"{folder} is not named as nnU-Net names models, and plans.json gives no such name; expected a folder such "
            "as Dataset004_Hippocampus/nnUNetTrainer__nnUNetPlans__3d_fullres"
        )
    return dataset, model


def _said(given: str | None, dataset: dict[str, Any], keys: Sequence[str], option: str, folder: Path) -> str:
    known = [value for key in keys if isinstance(value := dataset.get(key), str) and value.strip()]
    words = (given if given is not None else ", ".join(known)).strip()
    if not words:
        raise UserError(f"give {option}; {folder / 'dataset.json'} does not say it ({' or '.join(keys)})")
    return words


def _training_images(checkpoint: Mapping[str, Any]) -> int:
    """How many images of its training data a checkpoint carries."""
    weights = checkpoint["network_weights"]
    carried = [weights.get(row.training_images) for row in models.rows() if row.training_images]
    return sum(len(images) for images in carried if isinstance(images, torch.Tensor))


def _without_training(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """A checkpoint without the state of its optimiser, its curves and the names of its cases."""
    kept = {key: checkpoint[key] for key in _KEPT if key in checkpoint}
    arguments = dict(kept["init_args"])
    if isinstance(arguments.get("dataset_json"), Mapping):
        arguments["dataset_json"] = {k: v for k, v in arguments["dataset_json"].items() if k not in _CASES}
    return {**kept, "init_args": arguments}
