"""Surface distances weighted by surface area: DeepMind's definition of NSD and of HD95.

Counting border voxels weighs a slanted surface less than a flat one. Here the surface runs where the marching cubes
of Lorensen and Cline put it between 2 x 2 x 2 voxels (2 x 2 in the plane), one surface element ("surfel") per block
that holds both foreground and background. Distances run between the centres of these blocks, and each counts with the
area of its surfel. Defined in Nikolov et al., "Clinically applicable segmentation of head and neck anatomy for
radiotherapy", J Med Internet Res 2021; 23(7):e26151, https://doi.org/10.2196/26151, and in the package
surface-distance (https://github.com/google-deepmind/surface-distance), whose numbers these are.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.spatial import cKDTree

from nnunet_ext.evaluation.surface import foreground_box


@dataclass(frozen=True)
class SurfelDistances:
    """Distances in mm from every surfel of one mask to the nearest surfel of the other, and the surfels' areas.

    Attributes:
        reference_to_prediction: float64; infinite when the prediction is empty.
        prediction_to_reference: the other direction.
        reference_areas: area in mm² (length in mm for 2D masks) of the reference's surfels, in the same order.
        prediction_areas: those of the prediction.
    """

    reference_to_prediction: np.ndarray
    prediction_to_reference: np.ndarray
    reference_areas: np.ndarray
    prediction_areas: np.ndarray

    def hd95(self) -> float:
        """Larger of the two directed 95th percentiles by area, mm; infinite when a mask is empty."""
        return max(
            _weighted_percentile(self.reference_to_prediction, self.reference_areas, 0.95),
            _weighted_percentile(self.prediction_to_reference, self.prediction_areas, 0.95),
        )

    def nsd(self, tolerance_mm: float) -> float:
        """Share of the area of both surfaces within the tolerance of the other; NaN when both masks are empty."""
        total = self.reference_areas.sum() + self.prediction_areas.sum()
        if total == 0:
            return float("nan")
        # Spacings are stored as float32; a surface at exactly the tolerance is within it.
        limit = tolerance_mm * (1 + 1e-5)
        within = self.reference_areas[self.reference_to_prediction <= limit].sum()
        return float((within + self.prediction_areas[self.prediction_to_reference <= limit].sum()) / total)


def surfel_distances(reference: np.ndarray, prediction: np.ndarray, spacing_mm: Sequence[float]) -> SurfelDistances:
    """Distances between the surfaces of two masks.

    Args:
        reference: 2D or 3D; every value but 0 is foreground.
        prediction: the same shape.
        spacing_mm: voxel size per axis of the arrays.

    Raises:
        ValueError: the shapes or the number of axes do not fit.
    """
    if reference.shape != prediction.shape or reference.ndim not in (2, 3) or len(spacing_mm) != reference.ndim:
        raise ValueError(
            f"masks of shapes {reference.shape} and {prediction.shape} with spacing {tuple(spacing_mm)}; "
            "expected two 2D or two 3D masks of one shape and one spacing per axis"
        )
    box = foreground_box(reference, prediction)
    codes = [_neighbour_codes(mask[box] != 0) for mask in (reference, prediction)]
    full = 2 ** (2**reference.ndim) - 1
    borders = [(code != 0) & (code != full) for code in codes]
    areas = _areas(tuple(float(s) for s in spacing_mm))
    return SurfelDistances(
        _nearest(borders[0], borders[1], spacing_mm),
        _nearest(borders[1], borders[0], spacing_mm),
        areas[codes[0][borders[0]]],
        areas[codes[1][borders[1]]],
    )


def _nearest(own: np.ndarray, other: np.ndarray, spacing_mm: Sequence[float]) -> np.ndarray:
    distances: np.ndarray = np.zeros(np.count_nonzero(own))
    apart = ~other[own]  # the rest lies on the other surface
    if not other.any():
        distances[:] = np.inf
    elif apart.any():
        tree = cKDTree(np.argwhere(other) * spacing_mm)
        distances[apart] = tree.query(np.argwhere(own & ~other) * spacing_mm)[0]
    return distances


def _weighted_percentile(distances: np.ndarray, areas: np.ndarray, share: float) -> float:
    """The smallest distance up to which at least `share` of the area lies."""
    if len(distances) == 0:
        return float("inf")
    order = np.argsort(distances, kind="stable")
    cumulative = np.cumsum(areas[order]) / areas.sum()
    return float(distances[order[min(np.searchsorted(cumulative, share), len(order) - 1)]])


def _neighbour_codes(mask: np.ndarray) -> np.ndarray:
    """For each block of 2 voxels per axis a number with one bit per voxel, the first voxel's highest."""
    padded = np.pad(mask, 1)
    shape = tuple(n - 1 for n in padded.shape)
    codes: np.ndarray = np.zeros(shape, dtype=np.uint8)
    for offset in itertools.product((0, 1), repeat=mask.ndim):
        codes <<= 1
        codes |= padded[tuple(slice(o, o + n) for o, n in zip(offset, shape, strict=True))].astype(np.uint8)
    return codes


def _areas(spacing_mm: tuple[float, ...]) -> np.ndarray:
    """Area of the surfel of every neighbour code."""
    if len(spacing_mm) == 2:
        return _contour_lengths(*spacing_mm)
    a, b, c = spacing_mm
    scale = np.array([b * c, a * c, a * b])
    return np.array([sum(float(np.linalg.norm(n * scale)) for n in normals) for normals in _normals()])


def _contour_lengths(vertical: float, horizontal: float) -> np.ndarray:
    corner = 0.5 * float(np.hypot(vertical, horizontal))
    lengths = np.zeros(16)
    for code in range(1, 15):
        upper, left = ((code >> 3) & 1) + ((code >> 2) & 1), ((code >> 3) & 1) + ((code >> 1) & 1)
        if code.bit_count() != 2:
            lengths[code] = corner
        elif upper != 1:
            lengths[code] = horizontal  # a row of foreground
        else:
            lengths[code] = vertical if left != 1 else 2 * corner
    return lengths


@functools.cache
def _normals() -> list[np.ndarray]:
    """Area vectors of the triangles of each of the 256 neighbour codes, for voxels of size 1: [(triangles, 3)]."""
    from skimage.measure import marching_cubes  # one of nnU-Net's own dependencies

    table = []
    for code in range(256):
        # More than four foreground corners are triangulated like their complement, so that a mask and its
        # complement have the same surface.
        corners = code if code.bit_count() <= 4 else 255 - code
        if corners == 0:
            table.append(np.zeros((0, 3)))
            continue
        bits = np.array([(corners >> k) & 1 for k in range(7, -1, -1)], dtype=np.float32).reshape(2, 2, 2)
        vertices, faces, *_ = marching_cubes(bits, 0.5, method="lorensen")
        a, b, c = vertices[faces].transpose(1, 0, 2).astype(float)
        table.append(np.cross(b - a, c - a) / 2)
    return table
