"""Segmenting by clicks from Python: what a viewer's plug-in or a notebook calls.

    from nnunet_ext.clicks.model import load_trained
    from nnunet_ext.clicks.session import PromptSession

    session = PromptSession(load_trained("nnUNet_results/Dataset004_Hippocampus/nnUNetTrainerSAMMed3D__…"))
    session.set_image("case_0000.nii.gz")
    session.add_point((-12.5, 33.0, 80.0), positive=True, space="LPS")
    mask = session.predict()          # bool (z, y, x), on the image's own voxels
    session.undo()

The image encoder runs once per window, at its first click; every further click runs the small decoder only.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_ext.clicks.model import PromptModel
from nnunet_ext.clicks.viewer_session import SessionModel
from nnunet_ext.errors import UserError
from nnunet_ext.images import Image, read_image
from nnunet_ext.prompts.files import SPACES, write_prompts
from nnunet_ext.prompts.locate import position_of, to_voxel
from nnunet_ext.prompts.types import CasePrompts, ObjectPrompts, PointPrompt


class PromptSession:
    """One image and one object at a time.

    Args:
        model: see `nnunet_ext.clicks.model`.
    """

    def __init__(self, model: PromptModel | SessionModel):
        self.model = model
        self._image: Image | None = None
        self._prepared: Any = None
        self._object: Any = None
        self._points: list[PointPrompt] = []  # voxel (x, y, z)

    def set_image(self, image: Image | str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> None:
        """Take a new image, or the files of its channels; forgets clicks and embeddings.

        Raises:
            UserError: unreadable, or another number of channels than the model's.
        """
        if not isinstance(image, Image):
            image = read_image(image)
        if len(image.data) != self.model.channels:
            raise UserError(
                f"{image.name} comes with {len(image.data)} channels; the model takes {self.model.channels}"
            )
        self._image, self._prepared = image, self.model.prepare(image)
        self.reset()

    def reset(self, mask: np.ndarray | None = None) -> None:
        """Begin another object on the same image, from nothing or from a mask (z, y, x). Embeddings are kept.

        Raises:
            UserError: no image yet, or a mask of another shape.
        """
        image, prepared = self._ready()
        if mask is not None and mask.shape != image.shape:
            raise UserError(f"the mask has shape {mask.shape}; {image.name} has {image.shape} (z, y, x)")
        start = None if mask is None else prepared.mask_to_grid(mask > 0)
        self._object = self.model.begin(prepared, start)
        self._points = []

    def add_point(self, xyz: Sequence[float], positive: bool = True, space: str = "voxel") -> None:
        """Click, and segment anew.

        Args:
            xyz: position, x first.
            positive: whether it belongs to the object.
            space: "voxel" (indices of the image), "LPS" or "RAS" (mm).

        Raises:
            UserError: no image yet, unknown space, or a point outside the image.
        """
        image, prepared = self._ready()
        if space not in SPACES:
            raise UserError(f"space {space!r} must be one of {', '.join(SPACES)}")
        if len(xyz) != 3:
            raise UserError(f"a point has three coordinates, not {len(xyz)}: {tuple(xyz)}")
        point = PointPrompt((float(xyz[0]), float(xyz[1]), float(xyz[2])), positive, f"point {len(self._points) + 1}")
        clicks = CasePrompts(Path("session"), space, ())
        index = to_voxel(clicks, point, image.affine, image.shape, image.name)
        self._object_of_now().click(prepared.to_grid(index), positive)
        z, y, x = index
        self._points.append(PointPrompt((x, y, z), positive, point.where))

    def undo(self) -> bool:
        """Take the last point back; False when there is none."""
        undone = self._object_of_now().undo()
        del self._points[len(self._points) - undone :]
        return undone

    def logits(self) -> np.ndarray:
        """Logits on the image's own voxels, float32 (z, y, x); above 0 means inside.

        Of models that run in the session of viewers 1 and -1: it keeps the mask alone.
        """
        _, prepared = self._ready()
        return prepared.to_image(self._object_of_now().logits())

    def predict(self) -> np.ndarray:
        """The object, bool (z, y, x), on the image's own voxels; empty before the first point."""
        return self.logits() > 0

    def save_prompts(self, path: str | os.PathLike[str], label: int = 1, name: str | None = None) -> None:
        """Write the points so far as a prompt file in LPS mm, which `nnunet_ext predict-prompts` reads."""
        image, _ = self._ready()
        points = []
        for point in self._points:
            x, y, z = position_of(point.xyz, "LPS", image.affine)
            points.append(PointPrompt((float(x), float(y), float(z)), point.positive, point.where))
        write_prompts(CasePrompts(Path(path), "LPS", (ObjectPrompts(label, name, tuple(points)),)), path)

    def _ready(self) -> tuple[Image, Any]:
        if self._image is None or self._prepared is None:
            raise UserError("the session has no image yet; call set_image first")
        return self._image, self._prepared

    def _object_of_now(self) -> Any:
        self._ready()
        assert self._object is not None
        return self._object
