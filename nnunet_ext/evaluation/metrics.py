"""Overlap and surface metrics of one pair of label maps. Definitions and the policy for empty masks: docs/metrics.md.

For a label or region with reference mask R and prediction mask P, and the border distances of `surface.py`:

    Dice = 2 TP / (2 TP + FP + FN)          IoU = TP / (TP + FP + FN)
    HD95 = max of the 95th percentiles of the distances R -> P and of P -> R         [mm]
    ASSD = mean of all distances of both directions                                  [mm]
    NSD  = share of the border voxels of R and P that lie within the tolerance of the other border

    R and P empty: Dice, IoU, HD95, ASSD and NSD are NaN.   One of them empty: Dice = IoU = NSD = 0, HD95 = ASSD = inf.

These are the rules of the default convention; `conventions.py` has those of others.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nnunet_ext.errors import UserError
from nnunet_ext.evaluation.conventions import DEFAULT, Convention, apply
from nnunet_ext.evaluation.conventions import surface_metrics as surface_metrics  # distances in, metrics out
from nnunet_ext.evaluation.labels import Labels, Target
from nnunet_ext.evaluation.surface import SurfaceDistances, distances_of_codes, foreground_box, look_up, places_of

METRICS = DEFAULT.columns
_CHUNK = 1 << 16


def compare_label_maps(
    reference: np.ndarray,
    prediction: np.ndarray,
    spacing_mm: Sequence[float],
    labels: Labels,
    nsd_tolerance_mm: float = 1.0,
    names: tuple[str, str] = ("the reference", "the prediction"),
    convention: Convention = DEFAULT,
) -> dict[Target, dict[str, float]]:
    """All metrics of every label and region of `labels`.

    Args:
        reference: integer label map, 2D or 3D.
        prediction: integer label map of the same shape.
        spacing_mm: voxel size per axis of the arrays.
        labels: what to evaluate, and which values may occur.
        nsd_tolerance_mm: tolerance of NSD.
        names: what error messages call the two maps, e.g. their files.
        convention: rules of the metrics.

    Returns:
        {target: {metric: value}} with the keys `convention.columns` (`METRICS` by default). Volumes are NaN for 2D.

    Raises:
        UserError: a map holds a value that `labels` does not know.
        ValueError: the shapes differ.
    """
    if reference.shape != prediction.shape:
        raise ValueError(f"reference has shape {reference.shape}, prediction {prediction.shape}; they must agree")
    size = reference.size
    box = foreground_box(reference, prediction)
    ref = _codes(reference[box], labels.values, names[0])
    pred = _codes(prediction[box], labels.values, names[1])
    counts = _confusion(ref, pred, len(labels.values))
    counts[0, 0] += size - ref.size
    code_of = {value: code for code, value in enumerate(labels.values)}
    if labels.ignore is not None:
        ignored = code_of[labels.ignore]
        counts[ignored] = 0
        excluded = ref == ignored
        ref, pred = np.where(excluded, 0, ref), np.where(excluded, 0, pred)

    targets = {t: [code_of[v] for v in (t if isinstance(t, tuple) else (t,))] for t in labels.targets}
    voxel_ml = float(np.prod(spacing_mm)) / 1000 if reference.ndim == 3 else float("nan")
    axes = [axis for axis, n in enumerate(reference.shape) if n > 1] or [0]
    in_plane = [float(spacing_mm[axis]) for axis in axes]
    diagonal_mm = float(np.linalg.norm(np.multiply(reference.shape, spacing_mm)))
    flat_ref, flat_pred = (m.reshape([m.shape[axis] for axis in axes]) for m in (ref, pred))
    result: dict[Target, dict[str, float]] = {}
    for group in _disjoint(targets):
        table: np.ndarray = np.zeros(len(labels.values), dtype=ref.dtype)
        for number, target in enumerate(group, start=1):
            table[targets[target]] = number
        coded = look_up(table, flat_ref), look_up(table, flat_pred)
        found: list[SurfaceDistances] | list[None] = [None] * len(group)
        if convention.surface == "voxels":
            step = in_plane if convention.unit == "mm" else [1.0] * len(in_plane)
            found = distances_of_codes(*coded, step, len(group))
        for number, (target, distances) in enumerate(zip(group, found, strict=True), start=1):
            overlap = _overlap(counts, targets[target], voxel_ml)
            masks = (coded[0] == number, coded[1] == number) if convention.surface == "surfels" else coded
            result[target] = apply(convention, overlap, distances, masks, in_plane, nsd_tolerance_mm, diagonal_mm)
    return {target: result[target] for target in targets}


def _overlap(counts: np.ndarray, codes: list[int], voxel_ml: float) -> dict[str, float]:
    """Counts of voxels, Dice, IoU and volumes from the confusion matrix (reference, prediction)."""
    n_ref, n_pred = int(counts[codes].sum()), int(counts[:, codes].sum())
    tp = int(counts[np.ix_(codes, codes)].sum())
    fp, fn = n_pred - tp, n_ref - tp
    union = tp + fp + fn
    return {
        "Dice": 2 * tp / (n_ref + n_pred) if union else float("nan"),
        "IoU": tp / union if union else float("nan"),
        "TP": tp,
        "FP": fp,
        "FN": fn,
        "TN": int(counts.sum()) - union,
        "n_ref": n_ref,
        "n_pred": n_pred,
        "volume_ref_ml": n_ref * voxel_ml,
        "volume_pred_ml": n_pred * voxel_ml,
    }


def _disjoint(targets: dict[Target, list[int]]) -> list[list[Target]]:
    """Targets in groups without shared values, so that each group fits in one label map."""
    groups: list[tuple[list[Target], set[int]]] = []
    for target, codes in targets.items():
        for members, used in groups:
            if used.isdisjoint(codes):
                members.append(target)
                used.update(codes)
                break
        else:
            groups.append(([target], set(codes)))
    return [members for members, _ in groups]


def _codes(array: np.ndarray, values: Sequence[int], whose: str) -> np.ndarray:
    """Replace every label value by its place in `values` (0 stays 0)."""
    smallest, largest = (int(array.min()), int(array.max())) if array.size else (0, 0)
    unknown = smallest if smallest < 0 else largest if largest > values[-1] else None
    if unknown is None:
        codes = places_of(values, array)
        if not array.size or int(codes.max()) < len(values):
            return codes
        unknown = int(array[codes == len(values)][0])
    raise UserError(f"{whose} holds the value {unknown}; expected only {_ranges(values)}")


def _ranges(values: Sequence[int]) -> str:
    """`0 1 2 3 7` as `0-3, 7`."""
    runs: list[list[int]] = []
    for value in values:
        if runs and value == runs[-1][1] + 1:
            runs[-1][1] = value
        else:
            runs.append([value, value])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


def _confusion(reference: np.ndarray, prediction: np.ndarray, n: int) -> np.ndarray:
    """Counts of voxels by (reference code, prediction code), (n, n) int64, in one pass."""
    counts: np.ndarray = np.zeros(n * n, dtype=np.int64)
    pair = np.uint8 if n * n <= 256 else np.uint16 if n * n <= 65536 else np.int64
    ref, pred = reference.reshape(-1), prediction.reshape(-1)
    for start in range(0, ref.size, _CHUNK):
        pairs: np.ndarray = ref[start : start + _CHUNK].astype(pair)
        pairs *= pair(n)
        pairs += pred[start : start + _CHUNK].astype(pair)
        counts += np.bincount(pairs, minlength=n * n)
    return counts.reshape(n, n)
