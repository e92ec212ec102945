"""The overlay picture: the right cases, the right slices, true proportions, contours that can be seen."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import SimpleITK as sitk
from matplotlib.colors import to_rgb
from matplotlib.image import imread
from matplotlib.text import Text

from nnunet_ext.errors import UserError
from nnunet_ext.reports.figures import COLOURS, OverlayCase, overlay_figure, read_case, worst_median_best, write_overlay
from nnunet_ext.reports.side_by_side import Row, side_by_side_figure
from nnunet_ext.reports.surfaces import body, write_surfaces

LABELS = {"organ": (1,), "lesion": (2,), "organ with lesion": (1, 2)}


def a_case(shape=(12, 40, 30), spacing_mm=(3.0, 1.0, 2.0)) -> OverlayCase:
    image = np.random.default_rng(0).normal(100, 10, size=shape)
    reference = np.zeros(shape, np.uint8)
    reference[3:9, 8:30, 8:20] = 1
    prediction = reference.copy()
    prediction[5, 10:20, 12] = 2  # the only error: axial slice 6, columns of sagittal slice 13
    return OverlayCase("case_7", image, reference, prediction, spacing_mm, dice=0.5, hd95_mm=float("inf"))


@pytest.mark.parametrize(
    ("dice", "expected"),
    [
        ({}, {}),
        ({"a": float("nan")}, {}),
        ({"a": 0.5}, {"only": "a"}),
        ({"a": 0.9, "b": 0.1}, {"worst": "b", "best": "a"}),
        ({"a": 0.9, "b": 0.1, "c": 0.5, "d": float("nan")}, {"worst": "b", "median": "c", "best": "a"}),
        ({"a": 0.9, "b": 0.1, "c": 0.5, "d": 0.6}, {"worst": "b", "median": "c", "best": "a"}),
    ],
)
def test_cases_are_chosen_by_rank(dice, expected):
    assert worst_median_best(dice) == expected


def test_each_plane_shows_the_slice_with_most_errors_in_millimetres():
    figure = overlay_figure({"worst": a_case()}, LABELS)
    planes = figure.axes
    assert [axes.get_xlabel() for axes in planes] == ["slice 6 of 12", "slice 11 of 40", "slice 13 of 30"]
    # Width and height of each picture in mm: the voxels of the cropped plane times their spacing.
    for axes, (height_mm, width_mm) in zip(planes, ((1.0, 2.0), (3.0, 2.0), (3.0, 1.0)), strict=True):
        (picture,) = axes.get_images()
        rows, columns = picture.get_array().shape
        left, right, bottom, top = picture.get_extent()
        assert (right - left, top - bottom) == pytest.approx((columns * width_mm, rows * height_mm))
        assert axes.get_aspect() == 1
    assert planes[0].yaxis_inverted() and not planes[1].yaxis_inverted()  # front of the body on top, head on top
    caption = figure.subfigs[0].get_suptitle()
    assert "worst: case_7" in caption and "infinite" in caption


def test_captions_of_flat_cases_do_not_run_into_each_other():
    name = "a_patient_with_a_very_long_name_2026_01_31"
    flat = a_case(shape=(9, 40, 120), spacing_mm=(1.0, 0.5, 3.0))
    cases = {role: OverlayCase(**{**vars(flat), "name": name}) for role in ("worst", "median", "best")}
    figure = overlay_figure(cases, LABELS)
    figure.canvas.draw()
    renderer = figure.canvas.get_renderer()
    texts = [text for text in figure.findobj(Text) if name in text.get_text()]
    boxes = [text.get_window_extent(renderer) for text in texts]
    planes = [axes.get_tightbbox(renderer) for axes in figure.axes]
    assert len(boxes) == 3 and all(figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1 for box in boxes)
    for i, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in [*boxes[:i], *planes])


def test_contours_lie_on_the_border_of_the_mask():
    axes = overlay_figure({"only": a_case()}, {"organ": (1,)}).axes[0]
    reference, prediction = axes.collections
    vertices = np.concatenate([path.vertices for path in reference.get_paths()])
    # The crop starts 12 mm before the organ or at the image's border: column 2 (spacing 2 mm) and row 0 (1 mm).
    np.testing.assert_allclose(vertices.min(axis=0), [(7.5 - 2) * 2, 7.5])
    np.testing.assert_allclose(vertices.max(axis=0), [(19.5 - 2) * 2, 29.5])
    assert reference.get_linewidth()[0] > 2 * prediction.get_linewidth()[0]


def test_png_has_both_contours_and_no_leftovers(tmp_path):
    def pixels(case):
        write_overlay({"worst": case, "best": case}, {"organ": (1,)}, tmp_path / "overlay.png")
        picture = imread(tmp_path / "overlay.png")[..., :3]
        assert picture.shape[0] > 1000 and picture.shape[1] > 1500
        line = np.array(to_rgb(COLOURS[0]))
        band = 0.45 + 0.55 * line
        return [int((np.abs(picture - colour).max(axis=-1) < 0.03).sum()) for colour in (line, band)]

    case = a_case()
    line, band = pixels(case)
    empty = OverlayCase(**{**vars(case), "prediction": np.zeros_like(case.prediction)})
    line_without_prediction, band_without_prediction = pixels(empty)
    assert line > line_without_prediction + 1000  # what remains is the legend
    assert band > 1000 and band_without_prediction > 1000
    assert [path.name for path in tmp_path.iterdir()] == ["overlay.png"]


def write(array, path, direction=(1, 0, 0, 0, 1, 0, 0, 0, 1)):
    image = sitk.GetImageFromArray(array)
    image.SetSpacing((1.0, 2.0, 3.0))
    image.SetDirection(direction)
    sitk.WriteImage(image, str(path))
    return path


def test_read_case_turns_volumes_upright(tmp_path):
    array = np.zeros((4, 5, 6), np.uint8)
    array[0, 0, 0] = 1
    # Stored from left to right and from head to feet, and with x and y exchanged.
    path = write(array, tmp_path / "a.nii.gz", direction=(0, -1, 0, 1, 0, 0, 0, 0, -1))
    case = read_case("a", path, path, path, dice=1.0, hd95_mm=0.0)
    assert case.image.shape == (4, 6, 5) and case.spacing_mm == pytest.approx((3.0, 1.0, 2.0))
    assert np.argwhere(case.reference).tolist() == [[3, 0, 4]]


def test_read_case_names_the_file_at_fault(tmp_path):
    good = write(np.zeros((4, 5, 6), np.uint8), tmp_path / "good.nii.gz")
    other = write(np.zeros((4, 5, 7), np.uint8), tmp_path / "other.nii.gz")
    colours = tmp_path / "colours.nii.gz"
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((4, 5, 6, 3), np.uint8), isVector=True), str(colours))
    broken = tmp_path / "broken.nii.gz"
    broken.write_bytes(good.read_bytes()[:40])
    for path, reason in (
        (other, "same grid"),
        (colours, "no 2D image and no 3D volume with one channel"),
        (broken, "damaged or cut short"),
        ("no.nii.gz", "does not exist"),
    ):
        with pytest.raises(UserError, match=reason) as raised:
            read_case("a", good, path, good, dice=1.0, hd95_mm=0.0)
        assert str(path) in str(raised.value)


def test_an_image_of_two_axes_is_one_plane_as_it_was_stored(tmp_path):
    grey, colour, mask = (tmp_path / f"{name}.png" for name in ("grey", "colour", "mask"))
    picture = np.zeros((30, 40), np.uint8)
    picture[2:5, 30:38] = 200
    sitk.WriteImage(sitk.GetImageFromArray(picture), str(grey))
    sitk.WriteImage(sitk.GetImageFromArray(np.stack([picture] * 3, -1), isVector=True), str(colour))
    sitk.WriteImage(sitk.GetImageFromArray((picture > 0).astype(np.uint8)), str(mask))
    for image in (grey, colour):
        case = read_case("a", image, mask, mask, dice=1.0, hd95_mm=0.0)
        assert case.image.shape == (1, 30, 40) and case.image[0, 2, 30] == 200
        (axes,) = overlay_figure({"only": case}, {"head": (1,)}).axes
        assert axes.yaxis_inverted() and axes.get_title() == "image"
    with pytest.raises(UserError, match=r"colour.png has 3 channels; a label map has one"):
        read_case("a", grey, colour, mask, dice=1.0, hd95_mm=0.0)


def test_methods_side_by_side_share_slice_and_colours():
    reference = np.array([[1, 1, 0], [2, 0, 0]])
    found = {"ours": (np.array([[1, 0, 0], [2, 0, 0]]), 0.8), "theirs": (np.zeros((2, 3), int), 0.0)}
    row = Row("worst: a", np.arange(6).reshape(2, 3), reference, found, aspect=2.0)
    figure = side_by_side_figure([row, row], {"organ": (1,), "lesion": (2,)})
    first = figure.axes[:4]
    assert [axes.get_title() for axes in first] == ["image", "reference", "ours", "theirs"]
    assert [axes.get_xlabel() for axes in first] == ["worst: a", "", "Dice 0.800", "Dice 0.000"]
    assert {axes.get_aspect() for axes in figure.axes} == {2.0}
    plain, of_reference, of_ours, of_theirs = (axes.get_images()[0].get_array() for axes in first)
    assert ((plain != of_reference).any(-1) == (reference > 0)).all()
    assert ((plain != of_ours).any(-1) == (found["ours"][0] > 0)).all() and (plain == of_theirs).all()
    # The hue of a label is the same for all.
    np.testing.assert_array_equal(of_reference[0, 0], of_ours[0, 0])
    np.testing.assert_allclose(of_ours[1, 0], 0.45 * plain[1, 0] + 0.55 * np.array(to_rgb(COLOURS[1])))


def test_surfaces_have_the_place_and_size_of_the_mask():
    mask = np.zeros((20, 30, 40), bool)
    mask[5:15, 10:20, 8:28] = True
    corners, triangles = body(mask, (2.0, 1.0, 0.5))
    middle, extent = (corners.max(0) + corners.min(0)) / 2, np.ptp(corners, axis=0)
    np.testing.assert_allclose(middle, np.array([9.5, 14.5, 17.5]) * (2.0, 1.0, 0.5), atol=1e-3)
    np.testing.assert_allclose(extent, np.array([10, 10, 20]) * (2.0, 1.0, 0.5), atol=0.5)
    assert triangles.max() == len(corners) - 1
    assert body(np.zeros((4, 4, 4), bool), (1, 1, 1)) is None
    single = np.zeros((4, 4, 4), bool)
    single[1, 1, 1] = True
    assert body(single, (1, 1, 1)) is not None  # no structure is too small to be drawn


def test_both_maps_are_drawn_as_bodies(tmp_path):
    write_surfaces(a_case(), LABELS, tmp_path / "surfaces.png")
    picture = imread(tmp_path / "surfaces.png")[..., :3]
    coloured = np.ptp(picture, axis=-1) > 0.15
    left, right = np.array_split(coloured[100:480], 2, axis=1)
    assert left.sum() > 2000 and right.sum() > 2000


def test_pyplot_is_left_alone():
    code = "import sys, nnunet_ext.reports.figures; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
