"""Images to the network's grid and back: nnU-Net's plans and the official preprocessing, on awkward geometries."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from helpers.promptable_stubs import trained_folder

from nnunet_ext.clicks.model import load_trained
from nnunet_ext.clicks.prepared import OfficialImage
from nnunet_ext.images import Image, affine_of

SPACING = (3.0, 1.5, 1.5)  # (x, y, z) mm
DIRECTIONS = {
    "plain": np.eye(3),
    "flipped": np.diag([-1.0, 1.0, -1.0]),
    "sagittal": np.array([[0.0, 0, 1], [1, 0, 0], [0, -1, 0]]),
}


def blob(direction: np.ndarray) -> tuple[Image, np.ndarray, tuple[int, int, int]]:
    """An image with one bright ball off its centre; also its mask and the voxel (z, y, x) in its middle."""
    z, y, x = np.meshgrid(*[np.arange(n) for n in (30, 26, 14)], indexing="ij")
    inside = ((z - 20) * SPACING[2]) ** 2 + ((y - 8) * SPACING[1]) ** 2 + ((x - 5) * SPACING[0]) ** 2 < 9.5**2
    volume = sitk.GetImageFromArray(inside.astype(np.float32))
    volume.SetSpacing(SPACING)
    volume.SetOrigin((10.0, -20.0, 5.0))
    volume.SetDirection(direction.ravel().tolist())
    return Image(100 + 900 * inside[None].astype(np.float32), SPACING[::-1], affine_of(volume)), inside, (20, 8, 5)


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * (a & b).sum() / (a.sum() + b.sum())


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load_trained(trained_folder(tmp_path_factory.mktemp("model")))


@pytest.mark.parametrize("kind", DIRECTIONS)
@pytest.mark.parametrize("way", ["plans", "official"])
def test_points_masks_and_logits_find_the_same_place(way, kind, model):
    image, inside, centre = blob(DIRECTIONS[kind])
    prepared = model.prepare(image) if way == "plans" else OfficialImage(image, 32)
    data = prepared.volume.data[0]
    bright = (data > 550).numpy()
    at = tuple(round(i) for i in prepared.to_grid(centre))
    middle = np.argwhere(bright).mean(0)
    np.testing.assert_allclose(at, middle, atol=1.0)
    assert dice(prepared.mask_to_grid(inside), bright) > 0.85
    logits = prepared.to_image(torch.from_numpy(np.where(bright, 5.0, -5.0).astype(np.float32)))
    assert logits.shape == image.shape
    assert dice(logits > 0, inside) > 0.85


def test_plans_crop_what_is_zero_and_put_it_back(model):
    image, _, _ = blob(np.eye(3))
    image.data[:, :10] = 0
    image.data[:, :, :, 12:] = 0
    prepared = model.prepare(image)
    logits = prepared.to_image(torch.full(prepared.volume.grid, 5.0))
    assert (logits[:10] < 0).all() and (logits[..., 12:] < 0).all() and (logits[10:, :, :12] > 0).all()
    assert all(0 <= i < n for i, n in zip(prepared.to_grid((0, 0, 13)), prepared.volume.grid, strict=True))


def test_official_images_are_in_ras_order_at_one_and_a_half_millimetres():
    """A ball to the right, front and top of the patient lies at high x, high y and high z, whatever was stored."""
    grids = []
    for kind in DIRECTIONS:
        image, _, _ = blob(DIRECTIONS[kind])
        prepared = OfficialImage(image, 32)
        middle = np.argwhere((prepared.volume.data[0] > 550).numpy()).mean(0)
        voxel = np.append(np.array([5, 8, 20.0]), 1)  # (x, y, z)
        corner = np.array([[x, y, z, 1] for x in (0, 13) for y in (0, 25) for z in (0, 29)]) @ image.affine.T
        expected = ((image.affine @ voxel)[:3] - corner[:, :3].min(0)) / 1.5
        np.testing.assert_allclose(middle, expected, atol=1.0)
        grids.append(sorted(prepared.volume.grid))
    assert all(grid == grids[0] == [26, 28, 30] for grid in grids)


def test_windows_are_normalised_over_the_voxels_above_zero():
    image, _, _ = blob(np.eye(3))
    prepared = OfficialImage(image, 64)
    window = prepared.volume.cut(prepared.volume.data, prepared.volume.around((14, 13, 15)))[None]
    normalised = prepared.volume.normalise(window)
    inside = window > 0
    assert not inside.all()  # padding with zeros, which statistics leave out
    assert normalised[inside].mean().abs() < 1e-4 and (normalised[inside].std() - 1).abs() < 1e-3
