"""Each convention against the library or script it reproduces, or against values computed by hand."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import surface_distance
import torch
from medpy.metric import binary as medpy
from monai.metrics import compute_hausdorff_distance
from nnunetv2.evaluation.evaluate_predictions import compute_metrics_on_folder
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from scipy import ndimage
from surface_distance import lookup_tables as tables

from nnunet_ext.cli.main import main
from nnunet_ext.errors import UserError
from nnunet_ext.evaluation import CONVENTIONS, compare_label_maps, convention, evaluate_folder, labels_from_values
from nnunet_ext.evaluation.lesions import LesionRule, lesion_metrics
from nnunet_ext.evaluation.surfels import surfel_distances

SPACING = (3.0, 0.7, 0.9)


def blobs(seed: int, shape=(14, 20, 18), above: float = 0.03) -> np.ndarray:
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), 1.5)
    return (noise > above).astype(np.uint8)


def values(name: str, reference: np.ndarray, prediction: np.ndarray, spacing=SPACING, tolerance=1.0) -> dict:
    return compare_label_maps(
        reference, prediction, spacing, labels_from_values([1]), tolerance, convention=CONVENTIONS[name]
    )[1]


EMPTY = np.zeros((6, 7, 8), np.uint8)
FULL = EMPTY.copy()
FULL[1:5, 2:6, 3:7] = 1


@pytest.mark.parametrize(
    ("name", "both_empty", "missed"),
    [
        ("default", (math.nan, math.nan), (0, math.inf)),
        ("segmamba", (0, 50), (0, 50)),
        ("unetr++", (1, 0), (0, 0)),
        ("metrics-reloaded", (1, 0), (0, np.linalg.norm(np.multiply(EMPTY.shape, SPACING)))),
        ("surface-distance", (math.nan, math.inf), (0, math.inf)),
        ("brats2023", (1, 0), (0, 374)),
        ("brats2023-men", (1, 0), (0, 374)),
    ],
)
def test_empty_masks_score_what_the_source_says(name, both_empty, missed):
    for reference, prediction, expected in (
        (EMPTY, EMPTY, both_empty),
        (FULL, EMPTY, missed),
        (EMPTY, FULL, missed),
    ):
        found = values(name, reference, prediction)
        assert [found["Dice"], found["HD95"]] == pytest.approx(list(expected), nan_ok=True)


def test_every_convention_is_complete():
    for name, row in CONVENTIONS.items():
        assert row.name == name and row.source and row.averaging
        assert tuple(values(name, FULL, FULL)) == row.columns
        assert {"both_empty", "one_empty", "averaging", "source"} <= set(row.describe())
        assert values(name, FULL, FULL)["Dice"] == 1


@pytest.mark.parametrize("name", ["segmamba", "unetr++"])
def test_pooled_percentile_in_voxels_is_medpys(name):
    for seed in range(4):
        reference, prediction = blobs(seed), blobs(seed + 50)
        found = values(name, reference, prediction)
        assert found["HD95"] == pytest.approx(medpy.hd95(prediction, reference))  # no voxelspacing, as the scripts
        assert found["Dice"] == pytest.approx(medpy.dc(prediction, reference))


@pytest.mark.parametrize("name", ["default", "metrics-reloaded"])
def test_larger_percentile_in_mm_is_monais(name):
    for seed in range(3):
        masks = blobs(seed), blobs(seed + 50)
        one_hot = [torch.from_numpy(m)[None, None] for m in masks]
        expected = compute_hausdorff_distance(
            one_hot[1], one_hot[0], include_background=True, percentile=95, spacing=SPACING
        ).item()
        assert values(name, *masks)["HD95"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), SPACING, (1.0, 1.0), (0.4, 2.0)])
def test_surfels_are_deepminds(spacing):
    shape = (14, 20, 18)[: len(spacing)] if len(spacing) == 3 else (40, 30)
    for seed in range(3):
        reference, prediction = blobs(seed, shape), blobs(seed + 50, shape)
        theirs = surface_distance.compute_surface_distances(reference.astype(bool), prediction.astype(bool), spacing)
        ours = surfel_distances(reference, prediction, spacing)
        assert ours.hd95() == pytest.approx(surface_distance.compute_robust_hausdorff(theirs, 95))
        for tolerance in (0.5, 1.0, 2.5):
            assert ours.nsd(tolerance) == pytest.approx(
                surface_distance.compute_surface_dice_at_tolerance(theirs, tolerance)
            )
        if len(spacing) == 3:
            found = values("surface-distance", reference, prediction, spacing, 1.5)
            assert found["HD95"] == pytest.approx(ours.hd95()) and found["NSD"] == pytest.approx(ours.nsd(1.5))


@pytest.mark.parametrize("spacing", [(1.0, 2.0, 3.0), (0.5, 0.5, 2.0)])
def test_all_surfel_areas_are_deepminds(spacing):
    from nnunet_ext.evaluation.surfels import _areas

    np.testing.assert_allclose(_areas(spacing), tables.create_table_neighbour_code_to_surface_area(spacing), atol=1e-6)
    flat = spacing[:2]
    np.testing.assert_allclose(_areas(flat), tables.create_table_neighbour_code_to_contour_length(flat), atol=1e-12)


def test_surfels_of_a_box_by_hand():
    # A face of a box of n x m voxels has (n - 1)(m - 1) whole surfels; the rim only cuts its edges and corners.
    box = np.zeros((9, 9, 9), np.uint8)
    box[2:7, 2:7, 2:7] = 1
    found = surfel_distances(box, np.roll(box, 1, axis=0), (2.0, 1.0, 1.0))
    edge, corner = math.hypot(0.5, 0.5), 3**0.5 / 8
    unit = surfel_distances(box, box, (1.0, 1.0, 1.0))
    assert unit.reference_areas.sum() == pytest.approx(6 * 16 + 12 * 4 * edge + 8 * corner)
    assert unit.nsd(0) == 1 and unit.hd95() == 0
    assert found.hd95() == 2.0 and found.nsd(1.9) < 1 and found.nsd(2.0) == 1


def lesion_metrics_plain(reference, prediction, spacing, rule):
    """The published procedure on whole volumes, one lesion after the other."""
    eighteen, all_26 = ndimage.generate_binary_structure(3, 2), np.ones((3, 3, 3))
    grown, count = ndimage.label(ndimage.binary_dilation(reference, eighteen, iterations=rule.dilation), all_26)
    predicted, predicted_count = ndimage.label(prediction, all_26)
    dice, hd95, used = [], [], set()
    for number in range(1, count + 1):
        lesion = (grown == number) & (reference > 0)
        around = ndimage.binary_dilation(lesion, eighteen, iterations=rule.dilation)
        partners = set(np.unique(predicted[around])) - {0}
        used |= partners
        if lesion.sum() * np.prod(spacing) <= rule.min_volume_mm3:
            continue
        answer = np.isin(predicted, list(partners))
        dice.append(2 * (lesion & answer).sum() / (lesion.sum() + answer.sum()))
        hd95.append(surfel_distances(lesion, answer, spacing).hd95() if partners else 374)
    false = predicted_count - len(used)
    scored = len(dice) + false
    return (sum(dice) / scored, (sum(hd95) + 374 * false) / scored, false) if scored else (1, 0, 0)


@pytest.mark.parametrize("rule", [LesionRule(3, 50), LesionRule(1, 50), LesionRule(1, 2)])
def test_lesions_equal_the_procedure_written_plainly(rule):
    for seed in range(4):
        reference, prediction = (blobs(s, (40, 36, 30), above=0.13) for s in (seed, seed + 50))
        prediction |= blobs(seed, (40, 36, 30), above=0.16)
        found = lesion_metrics(reference, prediction, (1.0, 1.2, 1.0), rule)
        expected = lesion_metrics_plain(reference, prediction, (1.0, 1.2, 1.0), rule)
        assert (found["Dice"], found["HD95"], found["lesions_false"]) == pytest.approx(expected)


def test_lesions_by_hand():
    reference, prediction = np.zeros((2, 40, 20, 20), np.uint8)
    reference[2:8, 2:8, 2:8] = 1  # found, exactly
    reference[20:25, 2:7, 2:7] = 1  # missed
    reference[34:36, 14:16, 14:16] = 1  # 8 mm³: too small to count
    prediction[2:8, 2:8, 2:8] = 1
    prediction[30, 2, 18] = 1  # invented
    gli, met = (lesion_metrics(reference, prediction, (1, 1, 1), CONVENTIONS[n].lesions)
                for n in ("brats2023", "brats2023-met"))  # fmt: skip
    assert gli == {"Dice": pytest.approx(1 / 3), "HD95": pytest.approx(2 * 374 / 3),
                   "lesions_found": 1, "lesions_missed": 1, "lesions_false": 1}  # fmt: skip
    assert (met["Dice"], met["lesions_missed"]) == (pytest.approx(1 / 4), 2)
    # Nothing but a lesion too small to count is a perfect case.
    reference[:30] = 0
    assert lesion_metrics(reference, prediction * 0, (1, 1, 1), CONVENTIONS["brats2023"].lesions)["Dice"] == 1
    with pytest.raises(ValueError, match="3D"):
        lesion_metrics(reference[0], prediction[0], (1, 1), CONVENTIONS["brats2023"].lesions)


def test_sub_challenges():
    rules = {name[9:]: (row.lesions.dilation, row.lesions.min_volume_mm3)
             for name, row in CONVENTIONS.items() if row.lesions}  # fmt: skip
    assert rules == {"": (3, 50), "-ssa": (3, 50), "-ped": (3, 50), "-men": (1, 50), "-met": (1, 2)}


def test_nnunets_mean_is_undefined_by_an_absent_label(dataset):
    from nnunet_ext.evaluation import labels_from_dataset_json, summarise
    from nnunet_ext.files import write_json

    write_json(dataset / "dataset.json", {"labels": {"background": 0, "a": 1, "b": 2, "c": 3}})
    folders = str(dataset / "references"), str(dataset / "predictions")
    labels = labels_from_dataset_json(dataset / "dataset.json")
    ours = summarise(evaluate_folder(*folders, labels, convention=convention("nnunet")))
    theirs = compute_metrics_on_folder(
        *folders, None, SimpleITKIO(), ".nii.gz", [1, 2, 3], num_processes=1, chill=False
    )
    assert math.isnan(ours["foreground_mean"]["Dice"]) and math.isnan(theirs["foreground_mean"]["Dice"])
    for label in (1, 2):
        for metric in ("Dice", "IoU", "FP", "n_pred"):
            assert ours["mean"][str(label)][metric] == pytest.approx(theirs["mean"][label][metric])


def test_command_says_which_convention_and_keeps_the_usual_values(dataset, capsys):
    folders = ["-r", str(dataset / "references"), "-p", str(dataset / "predictions")]
    assert main(["evaluate", *folders]) == 0
    assert main(["evaluate", *folders, "--convention", "unetr++"]) == 0
    printed = capsys.readouterr()
    assert "HD95 voxels" in printed.out and "published for other classes" in printed.err
    summaries = {
        name: json.loads((dataset / "predictions" / name / "summary.json").read_text())
        for name in ("evaluation", "evaluation_unetr++")
    }
    assert summaries["evaluation"]["settings"]["convention"] == "default"
    found = summaries["evaluation_unetr++"]
    assert found["settings"]["conventions"]["HD95"].startswith("95th percentile of the distances of both directions")
    assert found["mean"]["1"]["HD95"] == pytest.approx(1.0)  # one voxel, whatever its size
    assert "NSD" not in found["mean"]["1"]


def test_classes_of_the_source_need_no_note():
    assert CONVENTIONS["segmamba"].note([(1, 2, 3), (3, 1), 3]) is None
    assert "WT 1+2+3" in CONVENTIONS["segmamba"].note([1, 2])
    assert CONVENTIONS["default"].note([1]) is None


def test_unknown_convention_lists_the_known():
    with pytest.raises(UserError, match=r"'segmumba' is unknown; choose one of default, nnunet"):
        convention("segmumba")
