"""Published ways to turn masks into numbers, one row each: `nnunet_ext evaluate --convention NAME`.

The same masks score a mean HD95 from 4 mm to infinity depending on which percentile, unit and rule for empty masks a
paper's script used, so a published value can only be compared with one that the same rules gave. A row says what its
source computes, faults included; `default` is what this package recommends.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from nnunet_ext.errors import UserError
from nnunet_ext.evaluation.labels import Target
from nnunet_ext.evaluation.lesions import PENALTY_MM, LesionRule, lesion_metrics
from nnunet_ext.evaluation.surface import SurfaceDistances
from nnunet_ext.evaluation.surfels import surfel_distances

COUNTS = ("volume_ref_ml", "volume_pred_ml", "TP", "FP", "FN", "TN", "n_ref", "n_pred")
# Spacings are stored as float32 and come back as 1.0000001; a border exactly at the tolerance is within it.
_ROUND_OFF = 1 + 1e-5
_NAN, _INF = math.nan, math.inf
_BRATS: dict[str, Target] = {"WT": (1, 2, 3), "TC": (1, 3), "ET": 3}


@dataclass(frozen=True)
class Convention:
    """How one source computes its table.

    Attributes:
        name: as on the command line.
        source: the script, package or paper whose numbers these are.
        metrics: the values it defines; counts and volumes come with each.
        surface: `voxels` (border voxel centres), `surfels` (marching cubes, weighted by area) or None.
        percentile: `larger` of the two directed 95th percentiles, `pooled` distances of both directions, or None.
        unit: of distances, `mm`, or `voxels` where the source leaves out the voxel size.
        both_empty: values where neither mask has the structure; what is not named follows from the definition.
        one_empty: values where only one mask has it; infinity as HD95 is charged by `mean_penalised`.
        diagonal: charge the image diagonal in mm instead of an infinite HD95 already in the case.
        averaging: how its source gets from cases to the number in the table.
        classes: what its source evaluates, by data set; the labels of dataset.json are used all the same.
        lesions: rule of the lesion-wise scores, or None.
        undefined_mean: a label that occurs nowhere makes the mean over labels undefined.
    """

    name: str
    source: str
    metrics: tuple[str, ...]
    surface: str | None
    percentile: str | None
    unit: str
    both_empty: Mapping[str, float]
    one_empty: Mapping[str, float]
    averaging: str
    diagonal: bool = False
    classes: Mapping[str, Mapping[str, Target]] = field(default_factory=dict)
    lesions: LesionRule | None = None
    undefined_mean: bool = False

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of all values of a case."""
        return self.metrics + COUNTS

    def describe(self) -> dict[str, str]:
        """What a reader of the results must know, in words."""
        border = {"voxels": "border voxel centres", "surfels": "surface elements weighted by area"}
        words = {"name": self.name, "source": self.source}
        if self.surface and self.percentile:
            rule = {
                "larger": "larger of the two directed 95th percentiles",
                "pooled": "95th percentile of the distances of both directions together",
            }[self.percentile]
            step = "linear interpolation" if self.surface == "voxels" else "first distance that covers 95 % of the area"
            words["HD95"] = f"{rule}, {self.unit}, {border[self.surface]}, {step}"
        if self.lesions:
            words["lesions"] = (
                f"Dice and HD95 are means over lesions, joined by {self.lesions.dilation} dilation(s), larger than "
                f"{self.lesions.min_volume_mm3:g} mm³; a missed or invented lesion costs Dice 0 and HD95 {PENALTY_MM:g}"
            )
        if "NSD" in self.metrics:
            words["NSD"] = f"share of {border[str(self.surface)]} within the tolerance"
        if "ASSD" in self.metrics:
            words["ASSD"] = "mean over the border voxels of both, mm"
        words["both_empty"] = _in_words(self.both_empty)
        words["one_empty"] = _in_words(self.one_empty) + (
            " (the image diagonal in mm as HD95)" if self.diagonal else ""
        )
        words["averaging"] = self.averaging
        if self.classes:
            words["classes"] = self._published_classes()
        return words

    def note(self, targets: Sequence[Target]) -> str | None:
        """What to say when other classes are evaluated than the source publishes; None when they agree."""
        published = [set(map(_as_set, classes.values())) for classes in self.classes.values()]
        if not published or set(map(_as_set, targets)) in published:
            return None
        classes = self._published_classes()
        return f"convention {self.name} is published for other classes than those evaluated here ({classes})"

    def _published_classes(self) -> str:
        return "; ".join(
            f"{data}: " + ", ".join(f"{name} {_short(target)}" for name, target in classes.items())
            for data, classes in self.classes.items()
        )


_SCRIPT: dict[str, Any] = {"surface": "voxels", "percentile": "pooled", "unit": "voxels", "metrics": ("Dice", "HD95")}
_LESION_WISE: dict[str, Any] = {
    "metrics": ("Dice", "HD95", "lesions_found", "lesions_missed", "lesions_false"),
    "surface": "surfels",
    "percentile": "larger",
    "unit": "mm",
    "both_empty": {"Dice": 1.0, "HD95": 0.0},
    "one_empty": {"Dice": 0.0, "HD95": PENALTY_MM},
    "averaging": "mean over lesions within a case, then over cases, per region",
    "classes": {"BraTS 2023": _BRATS},
}
_BRATS_SOURCE = "github.com/rachitsaluja/BraTS-2023-Metrics (brats_metrics.py), challenge "

CONVENTIONS: dict[str, Convention] = {
    row.name: row
    for row in (
        Convention(
            name="default",
            source="nnunet_ext, docs/metrics.md; HD95 as MONAI's compute_hausdorff_distance",
            metrics=("Dice", "IoU", "HD95", "NSD", "ASSD"),
            surface="voxels",
            percentile="larger",
            unit="mm",
            both_empty={"Dice": _NAN, "IoU": _NAN, "HD95": _NAN, "NSD": _NAN, "ASSD": _NAN},
            one_empty={"Dice": 0.0, "IoU": 0.0, "HD95": _INF, "NSD": 0.0, "ASSD": _INF},
            averaging="mean over cases with a finite value; mean_penalised charges the image diagonal in mm",
        ),
        Convention(
            name="nnunet",
            source="nnU-Net 2.8.1, nnunetv2/evaluation/evaluate_predictions.py",
            metrics=("Dice", "IoU"),
            surface=None,
            percentile=None,
            unit="mm",
            both_empty={"Dice": _NAN, "IoU": _NAN},
            one_empty={"Dice": 0.0, "IoU": 0.0},
            averaging="nanmean over cases per label, then mean over labels, undefined if one label occurs nowhere",
            undefined_mean=True,
        ),
        Convention(
            name="segmamba",
            source="github.com/ge-xing/SegMamba, 5_compute_metrics.py (medpy hd95, spacing fixed to 1)",
            both_empty={"Dice": 0.0, "HD95": 50.0},
            one_empty={"Dice": 0.0, "HD95": 50.0},
            averaging="mean over all cases per region",
            classes={"BraTS 2023": _BRATS},
            **_SCRIPT,
        ),
        Convention(
            name="unetr++",
            source="github.com/Amshaker/unetr_plus_plus, unetr_pp/inference_synapse.py, _acdc.py, _tumor.py "
            "(medpy hd95 without voxelspacing)",
            both_empty={"Dice": 1.0, "HD95": 0.0},
            one_empty={"Dice": 0.0, "HD95": 0.0},
            averaging="mean over all cases per class, then over classes",
            classes={
                "Synapse": {
                    "spleen": 1, "right kidney": 2, "left kidney": 3, "gallbladder": 4,
                    "liver": 6, "stomach": 7, "aorta": 8, "pancreas": 11,
                },
                "ACDC": {"RV": 1, "MYO": 2, "LV": 3},
                "Decathlon brain tumours": {"ET": 3, "TC": (2, 3), "WT": (1, 2, 3), "ED": 1, "NET": 2},
            },
            **_SCRIPT,
        ),
        Convention(
            name="metrics-reloaded",
            source="MetricsReloaded (MONAI), pairwise_measures.py; Maier-Hein et al., Nat Methods 2024, "
            "doi:10.1038/s41592-023-02151-z: the worst value for a missed structure",
            metrics=("Dice", "HD95", "NSD"),
            surface="voxels",
            percentile="larger",
            unit="mm",
            both_empty={"Dice": 1.0, "HD95": 0.0, "NSD": _NAN},
            one_empty={"Dice": 0.0, "HD95": _INF, "NSD": 0.0},
            averaging="mean over all cases per label",
            diagonal=True,
        ),
        Convention(
            name="surface-distance",
            source="DeepMind's surface-distance 0.1, compute_robust_hausdorff and compute_surface_dice_at_tolerance",
            metrics=("Dice", "HD95", "NSD"),
            surface="surfels",
            percentile="larger",
            unit="mm",
            both_empty={"Dice": _NAN, "HD95": _INF, "NSD": _NAN},
            one_empty={"Dice": 0.0, "HD95": _INF, "NSD": 0.0},
            averaging="the package stops at the case; averaged here as by default",
        ),
        Convention(name="brats2023", source=_BRATS_SOURCE + "BraTS-GLI", lesions=LesionRule(3, 50), **_LESION_WISE),
        Convention(name="brats2023-ssa", source=_BRATS_SOURCE + "BraTS-SSA", lesions=LesionRule(3, 50), **_LESION_WISE),
        Convention(name="brats2023-ped", source=_BRATS_SOURCE + "BraTS-PED", lesions=LesionRule(3, 50), **_LESION_WISE),
        Convention(name="brats2023-men", source=_BRATS_SOURCE + "BraTS-MEN", lesions=LesionRule(1, 50), **_LESION_WISE),
        Convention(name="brats2023-met", source=_BRATS_SOURCE + "BraTS-MET", lesions=LesionRule(1, 2), **_LESION_WISE),
    )
}  # fmt: skip
DEFAULT = CONVENTIONS["default"]


def convention(name: str) -> Convention:
    """The row of that name.

    Raises:
        UserError: there is none; the message lists all.
    """
    if name not in CONVENTIONS:
        raise UserError(f"convention {name!r} is unknown; choose one of {', '.join(CONVENTIONS)}")
    return CONVENTIONS[name]


def apply(
    row: Convention,
    overlap: Mapping[str, float],
    distances: SurfaceDistances | None,
    masks: tuple[np.ndarray, np.ndarray],
    spacing_mm: Sequence[float],
    nsd_tolerance_mm: float,
    diagonal_mm: float,
) -> dict[str, float]:
    """The values `row.columns` of one label in one case.

    Args:
        row: the convention.
        overlap: Dice, IoU (NaN when both masks are empty), counts and volumes.
        distances: border distances in `row.unit`, where `row.surface` is `voxels`.
        masks: reference and prediction; not 0 is foreground.
        spacing_mm: voxel size per axis of the masks.
        nsd_tolerance_mm: tolerance of NSD.
        diagonal_mm: length of the image diagonal.

    Raises:
        ValueError: lesions are asked for in images that are not 3D.
    """
    values = dict(overlap)
    if row.lesions:  # knows empty masks by itself: a lesion may be too small to be missed
        values.update(lesion_metrics(*masks, spacing_mm, row.lesions))
    elif not (overlap["n_ref"] and overlap["n_pred"]):
        values.update(row.one_empty if overlap["n_ref"] or overlap["n_pred"] else row.both_empty)
        if row.diagonal and values["HD95"] == _INF:
            values["HD95"] = diagonal_mm
    elif row.surface == "surfels":
        surfels = surfel_distances(*masks, spacing_mm)
        values.update(HD95=surfels.hd95(), NSD=surfels.nsd(nsd_tolerance_mm))
    elif distances is not None:
        values.update(surface_metrics(distances, nsd_tolerance_mm, pooled=row.percentile == "pooled"))
    return {name: values[name] for name in row.columns}


def surface_metrics(
    distances: SurfaceDistances, nsd_tolerance_mm: float = 1.0, *, pooled: bool = False
) -> dict[str, float]:
    """HD95, NSD and ASSD of one label; percentiles interpolate linearly between order statistics.

    Args:
        distances: of both borders.
        nsd_tolerance_mm: tolerance of NSD.
        pooled: HD95 as medpy's, over the distances of both directions together; else the larger of the two.
    """
    both = (distances.reference_to_prediction, distances.prediction_to_reference)
    count = len(both[0]) + len(both[1])
    if count == 0:
        return {"HD95": _NAN, "NSD": _NAN, "ASSD": _NAN}
    if len(both[0]) == 0 or len(both[1]) == 0:
        return {"HD95": _INF, "NSD": 0.0, "ASSD": _INF}
    within = sum(int(np.count_nonzero(d <= nsd_tolerance_mm * _ROUND_OFF)) for d in both)
    return {
        "HD95": float(np.percentile(np.concatenate(both), 95))
        if pooled
        else max(float(np.percentile(d, 95)) for d in both),
        "NSD": within / count,
        "ASSD": float(sum(d.sum() for d in both)) / count,
    }


def _in_words(values: Mapping[str, float]) -> str:
    words = {"nan": "undefined (null), left out of every mean", "inf": "infinite (null in JSON, inf in CSV)"}
    return "; ".join(f"{name} {words.get(str(value), f'{value:g}')}" for name, value in values.items())


def _as_set(target: Target) -> frozenset[int]:
    return frozenset(target if isinstance(target, tuple) else (target,))


def _short(target: Target) -> str:
    return "+".join(map(str, target)) if isinstance(target, tuple) else str(target)
