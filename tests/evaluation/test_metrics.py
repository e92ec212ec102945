"""Metrics of one pair of label maps: definitions, empty masks, regions, ignore label."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from nnunetv2.evaluation.evaluate_predictions import compute_tp_fp_fn_tn, region_or_label_to_mask
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from nnunet_ext.errors import UserError
from nnunet_ext.evaluation import METRICS, compare_label_maps, labels_from_dataset_json, labels_from_values
from nnunet_ext.evaluation.surface import surface_distances, surface_distances_plain
from nnunet_ext.files import write_json

SPACING = (2.0, 1.0, 0.5)


def cubes(shift: int = 2) -> tuple[np.ndarray, np.ndarray]:
    reference = np.zeros((12, 12, 12), np.uint8)
    reference[2:8, 2:8, 2:8] = 1
    reference[2:8, 2:8, 8:10] = 2
    return reference, np.roll(reference, shift, axis=1)


def test_known_values():
    reference, prediction = (np.where(m == 1, 1, 0) for m in cubes())
    found = compare_label_maps(reference, prediction, SPACING, labels_from_values([1]))[1]
    assert tuple(found) == METRICS
    assert {k: found[k] for k in ("TP", "FP", "FN", "TN", "n_ref", "n_pred")} == {
        "TP": 6 * 4 * 6, "FP": 6 * 2 * 6, "FN": 6 * 2 * 6, "TN": 12**3 - 6 * 8 * 6, "n_ref": 6**3, "n_pred": 6**3,
    }  # fmt: skip
    assert found["Dice"] == pytest.approx(4 / 6)
    assert found["IoU"] == pytest.approx(4 / 8)
    assert found["volume_ref_ml"] == pytest.approx(6**3 * 2.0 * 1.0 * 0.5 / 1000)
    assert found["HD95"] == pytest.approx(2.0)  # more than 5 % of the border is a whole face, 2 voxels of 1 mm away


def test_nsd_tolerance_includes_its_bound_in_spite_of_float32_spacing():
    reference = np.zeros((10, 10), np.uint8)
    reference[4, 2:8] = 1
    prediction = np.roll(reference, 2, axis=0)
    spacing = (float(np.float32(0.1)), 1.0)  # slightly more than 0.1
    for tolerance, expected in ((0.2, 1.0), (0.199, 0.0)):
        found = compare_label_maps(reference, prediction, spacing, labels_from_values([1]), tolerance)[1]
        assert found["NSD"] == expected


def test_assd_is_the_mean_over_both_borders():
    reference, prediction = np.zeros((2, 1, 30), np.uint8)
    reference[0, [2, 20]] = 1
    prediction[0, 4] = 1
    found = compare_label_maps(reference, prediction, (1.0, 1.0), labels_from_values([1]))[1]
    assert found["ASSD"] == pytest.approx((2 + 16 + 2) / 3)
    assert found["HD95"] == pytest.approx(2 + 0.95 * (16 - 2))  # linear between the two order statistics
    assert np.isnan(found["volume_ref_ml"])  # an area has no volume


def test_one_slice_is_measured_in_its_plane():
    reference = np.zeros((1, 12, 12), np.uint8)
    reference[0, 2:8, 2:8] = 1
    prediction = np.roll(reference, 1, axis=2)
    flat = compare_label_maps(reference, prediction, (10.0, 1.0, 2.0), labels_from_values([1]))[1]
    plane = compare_label_maps(reference[0], prediction[0], (1.0, 2.0), labels_from_values([1]))[1]
    assert {k: flat[k] for k in ("HD95", "ASSD", "NSD", "Dice")} == {
        k: plane[k] for k in ("HD95", "ASSD", "NSD", "Dice")
    }
    assert flat["volume_ref_ml"] == pytest.approx(36 * 20 / 1000)


def test_empty_masks_are_never_perfect_and_never_dropped():
    reference, prediction = np.zeros((2, 6, 6, 6), np.uint8)
    reference[2, 2, 2] = 1  # missed
    prediction[4, 4, 4] = 2  # false alarm
    found = compare_label_maps(reference, prediction, SPACING, labels_from_values([1, 2, 3]))
    for label in (1, 2):
        assert (found[label]["Dice"], found[label]["IoU"], found[label]["NSD"]) == (0, 0, 0)
        assert found[label]["HD95"] == found[label]["ASSD"] == np.inf
    assert all(np.isnan(found[3][m]) for m in ("Dice", "IoU", "HD95", "ASSD", "NSD"))
    assert found[3]["TN"] == 6**3
    blank = np.zeros((3, 3, 3), np.uint8)
    assert np.isnan(compare_label_maps(blank, blank, SPACING, labels_from_values([1]))[1]["Dice"])


def test_regions_equal_their_union_as_a_label():
    reference, prediction = cubes()
    labels = labels_from_values([(1, 2), 2, (2, 1, 3), 1])
    found = compare_label_maps(reference, prediction, SPACING, labels)
    assert list(found) == [(1, 2), 2, (2, 1, 3), 1]
    union = compare_label_maps(1 * (reference > 0), 1 * (prediction > 0), SPACING, labels_from_values([1]))[1]
    assert found[(1, 2)] == union == found[(2, 1, 3)]
    assert found[2] == compare_label_maps(reference, prediction, SPACING, labels_from_values([1, 2]))[2]


def test_voxels_that_the_reference_ignores_count_nowhere():
    reference, prediction = cubes(shift=0)
    prediction[:, :, 0:2] = 1  # wrong, but only where the reference ignores
    reference[:, :, 0:2] = 3
    found = compare_label_maps(reference, prediction, SPACING, labels_from_values([1, 2], ignore=3))
    for label in (1, 2):
        assert (found[label]["Dice"], found[label]["HD95"], found[label]["NSD"]) == (1, 0, 1)
        assert found[label]["TP"] + found[label]["TN"] == 12 * 12 * 10
    assert reference.max() == 3 and prediction[0, 0, 0] == 1  # the caller's arrays stay as they are


def test_counts_equal_nnunet():
    rng = np.random.default_rng(3)
    reference, prediction = rng.integers(0, 6, (2, 30, 50, 60))  # more voxels than are counted in one step
    targets = [1, 2, (1, 3), (2, 3, 4)]
    found = compare_label_maps(reference, prediction, SPACING, labels_from_values(targets, ignore=5))
    ignored = reference == 5
    for target in targets:
        masks = [region_or_label_to_mask(m, target) for m in (reference, prediction)]
        tp, fp, fn, tn = compute_tp_fp_fn_tn(*masks, ignored)
        assert [found[target][k] for k in ("TP", "FP", "FN", "TN")] == [tp, fp, fn, tn]


@pytest.mark.parametrize(("value", "known"), [(9, "0-2"), (-1, "0-2"), (3, "0-2, 5")])
def test_unknown_values_are_refused(value, known):
    reference = np.zeros((4, 4, 4), np.int16)
    prediction = reference.copy()
    prediction[1, 1, 1] = value
    labels = labels_from_values([1, 2] if known == "0-2" else [1, 2, 5])
    with pytest.raises(UserError, match=f"the prediction holds the value {value}; expected only {known}"):
        compare_label_maps(reference, prediction, SPACING, labels)


def dataset_json(folder, labels, **more):
    write_json(folder / "dataset.json", {"labels": labels, "file_ending": ".nii.gz", **more})
    return folder / "dataset.json"


def test_labels_of_dataset_json_are_those_that_nnunet_evaluates(tmp_path):
    for labels, order in (
        ({"background": 0, "a": 1, "b": 2, "ignore": 3}, None),
        ({"background": 0, "a": [1], "b": 2}, None),
        ({"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": 3}, [1, 2, 3]),
        ({"background": 0, "whole": [1, 2], "core": [2], "ignore": 3}, [1, 2]),
    ):
        manager = LabelManager(labels, order)
        expected = manager.foreground_regions if manager.has_regions else manager.foreground_labels
        found = labels_from_dataset_json(dataset_json(tmp_path, labels))
        assert list(found.targets) == list(expected)
        assert found.ignore == manager.ignore_label
        assert list(found.names) == [name for name in labels if name not in ("background", "ignore")]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({"background": 0}, "at least one"),
        ({"background": 0, "a": "x"}, "label 'a' is 'x'"),
        ({"background": 0, "a": [1, 2], "b": [0, 1]}, "cannot be evaluated"),
        (None, "no 'labels' dictionary"),
    ],
)
def test_bad_dataset_json(tmp_path, labels, message):
    with pytest.raises(UserError, match=message):
        labels_from_dataset_json(dataset_json(tmp_path, labels))


def test_selected_labels_must_be_in_dataset_json(tmp_path):
    path = dataset_json(tmp_path, {"background": 0, "a": 1, "b": 2})
    chosen = labels_from_dataset_json(path, only=[2, (1, 2)])
    assert (chosen.targets, chosen.names, chosen.values) == ((2, (1, 2)), ("b", "(1, 2)"), (0, 1, 2))
    with pytest.raises(UserError, match="not all in"):
        labels_from_dataset_json(path, only=[4])


@pytest.mark.parametrize("kind", [np.int64, np.uint32, np.uint64])
def test_a_large_label_needs_no_large_table(kind):
    small, large = np.random.default_rng(0).integers(0, 4, (2, 9, 10, 11)), 2**31 - 1
    values = np.array([0, 1, 2, large], dtype=kind)
    tracemalloc.start()
    found = compare_label_maps(*values[small], (1, 1, 1), labels_from_values([1, 2, large, (1, large)]))
    with pytest.raises(UserError, match="holds the value 2147483650; expected only 0-2, 2147483647"):
        compare_label_maps(*np.where(small == 3, kind(2**31 + 2), small.astype(kind)), (1, 1, 1),
                           labels_from_values([1, 2, large]))  # fmt: skip
    with pytest.raises(UserError, match="holds the value 3; expected only 0-2, 2147483647"):
        compare_label_maps(*small.astype(kind), (1, 1, 1), labels_from_values([1, 2, large]))
    assert tracemalloc.get_traced_memory()[1] < 20e6
    tracemalloc.stop()
    plain = compare_label_maps(*small, (1, 1, 1), labels_from_values([1, 2, 3, (1, 3)]))
    assert list(found.values()) == list(plain.values())
    distances = surface_distances(*values[small], (1, 1, 1), [large, 1])
    expected = surface_distances_plain(*small, (1, 1, 1), [3, 1])
    for ours, theirs in ((large, 3), (1, 1)):
        np.testing.assert_allclose(distances[ours].reference_to_prediction, expected[theirs].reference_to_prediction)


def test_labels_that_no_map_can_hold_are_refused():
    for values in ([2**63], range(1, 5000)):
        with pytest.raises(UserError, match="cannot be evaluated"):
            labels_from_values(values)
