"""A model folder whose networks are ONNX files, run by onnxruntime; all around the network stays the predictor's.

The sliding window, mirroring, Gaussian weights and the mean over folds are nnU-Net's; they meet a module whose
`forward` asks onnxruntime, and whose `load_state_dict` chooses the fold.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from torch import Tensor, nn

from nnunet_ext.discovery import lookup
from nnunet_ext.errors import UserError, reason_of
from nnunet_ext.inference.model_files import channels_of, read_dataset_json, read_plans
from nnunet_ext.json_object import JsonObject, shown

# Of the metadata of an ONNX file: the entry with everything prediction needs beside the graph, as JSON.
METADATA = "nnunet_ext"
# Raised when an older package would misread it.
FORMAT = 1
CPU = "CPUExecutionProvider"
_REMEDY = "export the model again with export-model --onnx"
# What of dataset.json decides what a prediction means.
_MEANING = ("labels", "channel_names", "modality", "file_ending", "regions_class_order")


class OnnxNetwork(nn.Module):
    """One onnxruntime session per fold, as a network of which one fold is active."""

    def __init__(self, sessions: Sequence[Any]):
        super().__init__()
        self.sessions, self.active = list(sessions), 0

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Choose the fold that `states` names."""
        self.active = int(state_dict["fold"])

    def states(self) -> list[dict[str, Tensor]]:
        """What stands for the folds' weights in nnU-Net's predictor."""
        return [{"fold": torch.tensor(fold)} for fold in range(len(self.sessions))]

    def forward(self, x: Tensor) -> Tensor:
        """Logits (1, classes, *patch) of one window (1, channels, *patch), float32."""
        session = self.sessions[self.active]
        (logits,) = session.run(None, {session.get_inputs()[0].name: np.ascontiguousarray(x.float().cpu().numpy())})
        return torch.from_numpy(logits).to(x.device)


def open_onnx_folder(
    predictor: nnUNetPredictor,
    folder: Path,
    folds: Sequence[str | int],
    name: str = "checkpoint_final.onnx",
    provider: str = CPU,
) -> None:
    """Initialise a predictor with the ONNX files of a model folder; no checkpoint is read.

    Args:
        predictor: nnU-Net's or a subclass.
        folder: holds plans.json, dataset.json and the folders of the folds.
        folds: numbers or "all", whose predictions are averaged.
        name: of the file in the folder of each fold.
        provider: of onnxruntime.

    Raises:
        UserError: onnxruntime or the provider is missing; a file is missing, damaged, not written by export-model, or
            of other plans or labels than the folder's.
    """
    lookup.enable()
    dataset = read_dataset_json(folder)
    paths = [folder / f"fold_{fold}" / name for fold in folds]
    sessions = [open_session(path, provider) for path in paths]
    found = [read_onnx_metadata(path, session) for path, session in zip(paths, sessions, strict=True)]
    first = found[0]
    manager, settings = read_plans(folder, first.text("configuration"), dataset)
    shape = [1, channels_of(dataset), *settings.patch_size]
    if settings.previous_stage_name:
        shape[1] += len(manager.get_label_manager(dataset).foreground_labels)
    outputs = manager.get_label_manager(dataset).num_segmentation_heads
    for path, session, about in zip(paths, sessions, found, strict=True):
        if _canonical(about.object("plans").content) != _canonical(manager.plans):
            theirs = f"{about.object('plans').content.get('plans_name')}, {about.text('configuration')}"
            raise UserError(f"{path} is of other plans ({theirs}) than {folder / 'plans.json'}; {_REMEDY}")
        if _canonical(_meaning(about.object("dataset").content)) != _canonical(_meaning(dataset)):
            raise UserError(f"{path} is of other labels or channels than {folder / 'dataset.json'}; {_REMEDY}")
        for what, ends, expected in (
            ("takes", session.get_inputs(), shape),
            ("gives", session.get_outputs(), [1, outputs, *settings.patch_size]),
        ):
            if [list(end.shape) for end in ends] != [expected] or ends[0].type != "tensor(float)":
                shapes = ", ".join(f"{end.type} {list(end.shape)}" for end in ends)
                raise UserError(f"{path} {what} {shapes}; expected one tensor(float) {expected}; {_REMEDY}")
        if about.text("configuration") != first.text("configuration"):
            raise UserError(f"{path} and {paths[0]} are of two configurations; {_REMEDY}")
    axes = first.optional_numbers("mirroring_axes", whole=True)
    if axes is not None and not all(axis < len(settings.patch_size) for axis in axes):
        raise UserError(f"{paths[0]} allows mirroring along the axes {shown(axes)}, which its patch does not have")
    network = OnnxNetwork(sessions)
    trainer = first.text("trainer")
    allowed = None if axes is None else tuple(axes)
    predictor.manual_initialization(network, manager, settings, network.states(), dataset, trainer, allowed)


def open_session(model: Path | bytes, provider: str = CPU) -> Any:
    """An onnxruntime session with as many threads as torch has.

    Raises:
        UserError: onnxruntime or the provider is missing, or the file is missing or damaged.
    """
    try:
        import onnxruntime
    except ImportError:
        raise UserError("onnxruntime is not installed; pip install 'nnunet-ext[onnx]'") from None
    there = onnxruntime.get_available_providers()
    if provider not in there:
        raise UserError(f"--provider {provider} is not in this onnxruntime, which has {', '.join(there)}")
    if isinstance(model, Path) and not model.is_file():
        raise UserError(f"{model} does not exist; export the model with export-model --onnx, and import it here")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 4  # what is wrong is raised, too
    # As bytes, so that nothing in the file can name another one.
    data = model.read_bytes() if isinstance(model, Path) else model
    try:
        return onnxruntime.InferenceSession(data, options, providers=[provider])
    except Exception as error:  # onnxruntime has classes of its own for each kind of damage
        named = model if isinstance(model, Path) else "the network"
        raise UserError(f"{named} is no ONNX file, or damaged ({reason_of(error)[:200]}); {_REMEDY}") from None


def read_onnx_metadata(path: Path, session: Any) -> JsonObject:
    """What export-model wrote into an ONNX file.

    Raises:
        UserError: there is nothing of that, it is damaged, or it is of a newer package.
    """
    try:
        text = session.get_modelmeta().custom_metadata_map.get(METADATA)
    except ValueError:  # text that is no UTF-8
        text = "damaged"
    if text is None:
        raise UserError(f"{path} was not written by export-model: it says nothing about plans and labels; {_REMEDY}")
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise UserError(f"{path}: its metadata are damaged; {_REMEDY}")
    about = JsonObject(path, content, remedy=_REMEDY)
    if about.whole("format") > FORMAT:
        raise UserError(f"{path} is of a newer nnunet-ext; pip install -U nnunet-ext")
    return about


def _meaning(dataset: Mapping[str, Any]) -> dict[str, Any]:
    return {key: dataset.get(key) for key in _MEANING}


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True)
