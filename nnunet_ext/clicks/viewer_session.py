"""A model folder in the session that viewers run: nnInteractive's own, from PyPI, unmodified.

What somebody gets who clicks in napari, MITK, 3D Slicer or OHIF comes out here, for whichever trainer made the folder.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from torch import Tensor

from nnunet_ext.checkpoints.viewer_folder import INFO, INTERACTIONS
from nnunet_ext.errors import UserError, reason_of
from nnunet_ext.images import Image
from nnunet_ext.inference.model_folder import open_model_folder
from nnunet_ext.prompts.channels import Interaction, point
from nnunet_ext.quiet import quiet_predictor

INSTALL = "pip install 'nnunet-ext[interactive]'"


@dataclass
class SessionModel:
    """A folder opened in a session, which holds one image and one object at a time.

    Attributes:
        session: nnInteractive's.
        kinds: of `nnunet_ext.prompts.channels`, those it understands.
        labels: names and values.
        channels: files per case.
        file_ending: of images and label maps.
        source: the folder.
        fold: whose checkpoint it is.
    """

    session: Any
    kinds: frozenset[str]
    labels: Mapping[str, int]
    channels: int
    file_ending: str
    source: Path
    fold: str

    def prepare(self, image: Image) -> SessionImage:
        """Hand an image to the session, in the place of the one before.

        Raises:
            UserError: it is zero everywhere.
        """
        if not image.data.any():
            raise UserError(f"{image.name} is zero everywhere; nothing in it can be clicked on")
        with _quiet(), _said(image.name):
            self.session.set_image(image.data)
            waiting, self.session.preprocess_future = self.session.preprocess_future, None
            waiting.result()  # it works, speaks and fails in a thread
        return SessionImage(image)

    def begin(self, prepared: SessionImage, start: np.ndarray | None = None) -> SessionObject:
        """A new object in the image prepared last, from nothing or from a mask."""
        return SessionObject(self.session, prepared.image, start)


@dataclass(frozen=True)
class SessionImage:
    """An image as it is: sessions show its own voxels to the network."""

    image: Image

    def to_grid(self, index: Sequence[float]) -> tuple[float, ...]:
        """The voxel itself."""
        return tuple(index)

    def mask_to_grid(self, mask: np.ndarray) -> np.ndarray:
        """The mask itself."""
        return mask

    def to_image(self, logits: Tensor) -> np.ndarray:
        """The same numbers, float32 (z, y, x)."""
        return logits.numpy().astype(np.float32)


class SessionObject:
    """Interactions with one object. The session takes back one; the older ones are replayed.

    Args:
        session: nnInteractive's, with a model and the image.
        image: the same.
        start: bool (z, y, x), a mask to begin with, or None.
    """

    def __init__(self, session: Any, image: Image, start: np.ndarray | None = None):
        self._session, self._image, self._start = session, image, start
        self._drawn: list[Interaction] = []
        self._begin()

    def click(self, index: Sequence[float], positive: bool) -> None:
        """A point at a voxel (z, y, x), rounded."""
        self.add(point([round(i) for i in index], positive))

    def add(self, drawn: Interaction) -> None:
        """One more interaction, and the segmentation anew.

        Raises:
            UserError: the model does not understand it, or its network failed.
        """
        self._show(drawn)
        self._drawn.append(drawn)

    def undo(self) -> bool:
        """Take the last interaction back; False when there is none."""
        if not self._drawn:
            return False
        self._drawn.pop()
        with _quiet():
            undone = self._session.undo()
        if not undone:
            self._begin()
            for drawn in self._drawn:
                self._show(drawn)
        return True

    @property
    def mask(self) -> np.ndarray:
        """The object so far, bool (z, y, x)."""
        return self._session.target_buffer > 0

    def logits(self) -> Tensor:
        """1 inside and -1 outside, (z, y, x): sessions keep the mask alone."""
        return torch.from_numpy(np.where(self.mask, np.float32(1), np.float32(-1)))

    def _begin(self) -> None:
        with _quiet(), _said(self._image.name):
            self._session.set_target_buffer(np.zeros(self._image.shape, dtype=np.uint8))
            if self._start is None:
                self._session.reset_interactions()
            else:
                self._session.add_initial_seg_interaction(self._start.astype(np.uint8))

    def _show(self, drawn: Interaction) -> None:
        session, sign = self._session, drawn.positive
        with _quiet(), _said(self._image.name):
            if drawn.kind == "point":
                middle = [low + n // 2 for low, n in zip(drawn.corner, drawn.values.shape, strict=True)]
                session.add_point_interaction(middle, include_interaction=sign)
            elif drawn.kind == "box":
                session.add_bbox_interaction([list(ends) for ends in drawn.box], include_interaction=sign)
            else:
                add = session.add_scribble_interaction if drawn.kind == "scribble" else session.add_lasso_interaction
                mask = (drawn.values > 0).astype(np.uint8)
                add(mask, include_interaction=sign, interaction_bbox=[list(ends) for ends in drawn.box])


def open_in_session(
    folder: str | os.PathLike[str],
    fold: str | None = None,
    checkpoint: str = "checkpoint_final.pth",
    device: torch.device | str = "cpu",
    *,
    autozoom: bool = True,
    trust: bool = False,
) -> SessionModel:
    """Open one fold of a model folder as a viewer would, after looking at its files as every prediction here does.

    Args:
        folder: of results, with the `inference_info.json` that interactive trainers write.
        fold: such as "0" or "all"; None takes the first there is.
        checkpoint: name of the file in the fold's folder.
        device: where to run.
        autozoom: whether the session looks from farther away where an object leaves the patch.
        trust: read the checkpoint although it holds more than tensors and plain values.

    Raises:
        UserError: nninteractive is not installed, the folder is not of an interactive model, or does not open.
    """
    folder = Path(folder)
    session_class = viewer_session()
    if not (folder / INFO).is_file():
        raise UserError(
            f"{folder} has no {INFO}, so viewers cannot click with it; trainers that write it are "
            "nnUNetTrainerInteractive and nnUNetTrainerSAMMed3D"
        )
    device = torch.device(device)
    with quiet_predictor():
        predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False, perform_everything_on_device=False)
    chosen = _fold(folder, fold, checkpoint)
    open_model_folder(predictor, folder, (chosen,), checkpoint, trust=trust)
    dataset = predictor.dataset_json
    del predictor
    try:
        with _quiet():
            session = session_class(
                device=device, use_torch_compile=False, torch_n_threads=torch.get_num_threads(), do_autozoom=autozoom
            )
            session.initialize_from_trained_model_folder(str(folder), chosen, checkpoint)
    except Exception as error:  # whatever its files say
        raise UserError(
            f"{folder} does not open in nnInteractive's session ({reason_of(error)[:300]}); see {INFO}"
        ) from None
    kinds = frozenset(own for name, own in INTERACTIONS.items() if session.supported_interactions.get(name))
    named = {name: value for name, value in dataset["labels"].items() if name not in ("background", "ignore")}
    labels = dict(zip(named, dataset.get("regions_class_order") or named.values(), strict=False))
    return SessionModel(session, kinds, labels, len(dataset["channel_names"]), dataset["file_ending"], folder, chosen)


def viewer_session() -> Any:
    """The class of nnInteractive's session.

    Raises:
        UserError: it is not installed.
    """
    try:
        with _quiet():
            from nnInteractive.inference.inference_session import nnInteractiveInferenceSession
    except ImportError as error:
        raise UserError(f"the session of viewers needs nninteractive ({reason_of(error)}); {INSTALL}") from None
    return nnInteractiveInferenceSession


def _fold(folder: Path, fold: str | None, checkpoint: str) -> str:
    if fold is not None:
        return str(fold)
    there = sorted(path.parent.name.removeprefix("fold_") for path in folder.glob(f"fold_*/{checkpoint}"))
    if not there:
        raise UserError(f"{folder} holds no fold_*/{checkpoint}; give the folder above the folds")
    return there[0]


@contextlib.contextmanager
def _said(image: str) -> Iterator[None]:
    """What a session, a network or AutoZoom raises, as one line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{image}: nnInteractive's session failed ({reason_of(error)[:300]})") from None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The session tells on stdout whatever it does."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield
