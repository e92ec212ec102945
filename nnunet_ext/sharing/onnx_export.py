"""The network of a trained model as an ONNX file, compared with torch before anybody gets it.

The file holds one window's way through the network: (1, channels, *patch) -> logits (1, classes, *patch). Everything
around it, from resampling to the mean over windows, is `nnunet_ext predict --runtime onnxruntime`.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from torch import Tensor, nn

from nnunet_ext import models
from nnunet_ext.errors import UserError, reason_of
from nnunet_ext.inference.onnx_model import FORMAT, METADATA, OnnxNetwork, open_session
from nnunet_ext.sharing.onnx_norms import translations

# Of logits, relative to the largest one, or to 1 where that is smaller.
TOLERANCE = 1e-4
# Voxels whose two largest logits are equal but for rounding may fall to either side.
_TIES = 1e-5


def network_as_onnx(
    predictor: nnUNetPredictor, weights: Mapping[str, Any], about: dict[str, Any], windows: Sequence[Tensor] = ()
) -> bytes:
    """The ONNX file of one fold.

    Args:
        predictor: with the model opened.
        weights: of the fold.
        about: written into the file: fold, configuration, licence, training data, versions, dataset.
        windows: (channels, *patch) preprocessed, on which both are compared beside a generated one.

    Raises:
        UserError: the packages are missing, the network cannot be written so, or logits or labels differ.
    """
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(f"--onnx needs {error.name}; pip install 'nnunet-ext[onnx]'") from None
    network = predictor.network
    name = type(network).__name__
    for row in models.rows():
        if row.no_onnx and row.network and isinstance(network, models.load(row.network)):
            raise UserError(f"{row.title} cannot be written as ONNX: {row.no_onnx}")
    network.load_state_dict(weights)
    network.cpu().eval()
    settings = predictor.configuration_manager
    channels = determine_num_input_channels(predictor.plans_manager, settings, predictor.dataset_json)
    generated = _generated((channels, *settings.patch_size))
    try:
        with _quietly(), torch.no_grad():
            program = torch.onnx.export(
                network,
                (generated[None],),
                dynamo=True,
                input_names=["image"],
                output_names=["logits"],
                verbose=False,
                custom_translation_table=translations(),
            )
            assert program is not None
            proto = program.model_proto
    except Exception as error:  # the exporter's, and whatever a network raises while it is traced
        cause = error.__cause__ or error
        raise UserError(f"{name} cannot be written as ONNX ({reason_of(cause)[:300]})") from None
    parity = _compare(network, proto.SerializeToString(), [generated, *windows])
    content = {
        "format": FORMAT,
        **about,
        "trainer": predictor.trainer_name,
        "mirroring_axes": predictor.allowed_mirroring_axes,
        "plans": predictor.plans_manager.plans,
        "parity": parity,
    }
    entry = proto.metadata_props.add()
    entry.key, entry.value = METADATA, json.dumps(content, sort_keys=True)
    try:
        return proto.SerializeToString()
    except ValueError:  # of protobuf, for 2 GiB and more
        raise UserError(f"{name} is too large for one ONNX file, which holds at most 2 GiB") from None


def windows_of(predictor: Any, images: Sequence[Path]) -> list[Tensor]:
    """The middle window of a case, (channels, *patch), preprocessed as for prediction.

    Args:
        predictor: a `FolderPredictor` with the model opened.
        images: one file per channel.

    Raises:
        UserError: an image is damaged or of other channels.
    """
    from nnunet_ext.inference.predictor import PredictionCase

    settings = predictor.configuration_manager
    if settings.previous_stage_name:
        raise UserError("--case: the second stage of a cascade needs label maps, too; leave it out")
    try:
        data, _ = predictor.prepare(PredictionCase("case", tuple(images), Path("case")))
    except UserError:
        raise
    except Exception as error:  # nnU-Net's readers
        raise UserError(f"--case {images[0]} cannot be read ({reason_of(error)})") from None
    if len(data) != predictor.channels:
        raise UserError(f"--case needs {predictor.channels} files, one per channel, not {len(images)}")
    patch = list(settings.patch_size)
    if len(patch) == 2:
        data = data[:, data.shape[1] // 2]
    lacking = [max(0, n - there) for n, there in zip(patch, data.shape[1:], strict=True)]
    data = torch.nn.functional.pad(data, [side for n in reversed(lacking) for side in (n // 2, n - n // 2)])
    for axis, (n, there) in enumerate(zip(patch, data.shape[1:], strict=True), start=1):
        data = data.narrow(axis, (there - n) // 2, n)
    return [data.contiguous()]


def _compare(network: nn.Module, model: bytes, windows: Sequence[Tensor]) -> dict[str, Any]:
    """How torch and onnxruntime differ; refuses more than rounding."""
    exported = OnnxNetwork([open_session(model)])
    worst = largest = 0.0
    voxels = differing = 0
    for window in windows:
        with torch.no_grad():
            ours, theirs = network(window[None]), exported(window[None])
        worst = max(worst, float((ours - theirs).abs().max()))
        largest = max(largest, float(ours.abs().max()))
        differing += int((ours.argmax(1) != theirs.argmax(1)).sum())
        voxels += ours[:, 0].numel()
    if not worst <= TOLERANCE * max(1.0, largest) or differing > _TIES * voxels:
        raise UserError(
            f"the ONNX file of {type(network).__name__} is not what torch computes: logits of up to {largest:.3g} "
            f"differ by {worst:.3g}, labels in {differing} of {voxels} voxels; nothing was written"
        )
    return {"logits": worst, "largest_logit": largest, "labels": differing, "voxels": voxels, "windows": len(windows)}


def _generated(shape: Sequence[int]) -> Tensor:
    """Noise with blobs in it, of the scale that normalisation gives images."""
    rng = np.random.default_rng(0)
    noise = rng.normal(size=shape).astype(np.float32)
    for axis in range(1, len(shape)):
        noise = noise + np.roll(noise, 1, axis) + np.roll(noise, 2, axis)
    return torch.from_numpy((noise / noise.std()).astype(np.float32))


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Without what the exporter says on the way; what goes wrong is raised."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
