"""Prompt files: every kind read, every fault named, and the way from millimetres to voxels on awkward images."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_ext.errors import UserError
from nnunet_ext.images import read_image, read_mask, write_mask
from nnunet_ext.prompts.files import find_prompts, read_prompts, write_prompts
from nnunet_ext.prompts.locate import locate, position_of
from nnunet_ext.prompts.types import CasePrompts, ObjectPrompts, PointPrompt

LABELS = {"liver": 1, "spleen": 2}
OWN = {
    "version": 1, "space": "voxel",
    "objects": [{"label": 1, "name": "liver", "points": [{"xyz": [1, 2, 3], "positive": True}]}],
}  # fmt: skip


def awkward(kind: str, folder: Path):
    """An image of 7x9x11 voxels (x, y, z) that is flipped, rotated or anisotropic."""
    angle = {"rotated": 0.4}.get(kind, 0.0)
    direction = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    if kind == "flipped":
        direction = direction @ np.diag([-1, 1, -1])
    if kind == "sagittal":
        direction = np.array([[0, 0, 1], [1, 0, 0], [0, -1, 0]])
    volume = sitk.GetImageFromArray(np.arange(7 * 9 * 11, dtype=np.float32).reshape(11, 9, 7))
    volume.SetSpacing((0.8, 1.3, 6.0) if kind == "anisotropic" else (1.0, 1.0, 2.0))
    volume.SetOrigin((-31.0, 12.5, 104.0))
    volume.SetDirection(direction.ravel().tolist())
    sitk.WriteImage(volume, str(folder / "case_0000.nii.gz"))
    return volume


@pytest.mark.parametrize("kind", ["plain", "flipped", "rotated", "sagittal", "anisotropic"])
@pytest.mark.parametrize("space", ["LPS", "RAS", "voxel"])
def test_round_trip_on_awkward_images(kind, space, tmp_path):
    volume = awkward(kind, tmp_path)
    image = read_image(tmp_path / "case_0000.nii.gz")
    points = []
    for voxel in [(0, 0, 0), (6, 8, 10), (2, 5, 7)]:
        # SimpleITK itself says where a voxel lies.
        lps = volume.TransformIndexToPhysicalPoint(voxel)
        xyz = {"LPS": lps, "RAS": (-lps[0], -lps[1], lps[2]), "voxel": voxel}[space]
        np.testing.assert_allclose(position_of(voxel, space, image.affine), xyz, atol=1e-3)
        points.append(PointPrompt(tuple(float(v) for v in xyz), voxel[0] != 6, ""))
    file = tmp_path / "case.prompts.json"
    write_prompts(CasePrompts(file, space, (ObjectPrompts(2, "spleen", tuple(points)),)), file)
    (found,) = locate(read_prompts(file), image.affine, image.shape, image.name, LABELS)
    assert found.label == 2
    np.testing.assert_allclose([index for index, _ in found.clicks], [(0, 0, 0), (10, 8, 6), (7, 5, 2)], atol=1e-3)
    assert [positive for _, positive in found.clicks] == [True, False, True]


def test_masks_keep_the_geometry_of_the_image(tmp_path):
    awkward("sagittal", tmp_path)
    image = read_image(tmp_path / "case_0000.nii.gz")
    mask = (image.data[0] > 300).astype(np.uint8)
    write_mask(mask, image, tmp_path / "mask.nii.gz")
    assert np.array_equal(read_mask(tmp_path / "mask.nii.gz", image), mask)
    written = sitk.ReadImage(str(tmp_path / "mask.nii.gz"))
    np.testing.assert_allclose(written.GetDirection(), awkward("sagittal", tmp_path).GetDirection(), atol=1e-6)


def slicer(*points: dict, system: str = "LPS") -> dict:
    return {"markups": [{"type": "Fiducial", "coordinateSystem": system, "controlPoints": list(points)}]}


def test_slicer_markups(tmp_path):
    file = tmp_path / "case.mrk.json"
    file.write_text(
        json.dumps(
            slicer(
                {"label": "liver-1", "position": [1, 2, 3], "positionStatus": "defined"},
                {"label": "-liver-2", "position": [4, 5, 6]},
                {"label": "spleen", "description": "negative", "position": [7, 8, 9]},
                {"label": "neg", "position": [0, 0, 1]},
                {"label": "liver-3", "position": [0, 0, 0], "positionStatus": "undefined"},
                system="RAS",
            )
        )
    )
    prompts = read_prompts(file)
    assert prompts.space == "LPS"
    assert [(o.name, [(p.xyz, p.positive) for p in o.points]) for o in prompts.objects] == [
        ("liver", [((-1, -2, 3), True), ((-4, -5, 6), False), ((0, 0, 1), False)]),
        ("spleen", [((-7, -8, 9), False), ((0, 0, 1), False)]),
    ]


def test_grand_challenge_points(tmp_path):
    file = tmp_path / "case.json"
    points = [{"name": "liver", "point": [1, 2, 3]}, {"name": "background", "point": [4, 5, 6]}]
    file.write_text(json.dumps({"type": "Multiple points", "points": points, "version": {"major": 1, "minor": 0}}))
    with pytest.raises(UserError, match=r"case.json does not say its space; add --space"):
        read_prompts(file)
    (found,) = read_prompts(file, "voxel").objects
    assert [(p.xyz, p.positive) for p in found.points] == [((1, 2, 3), True), ((4, 5, 6), False)]


def test_napari_points_are_array_indices(tmp_path):
    file = tmp_path / "case.csv"
    file.write_text("index,axis-0,axis-1,axis-2,label,positive\n0,3.0,2.0,1.0,1,True\n1,6.0,5.0,4.0,1,0\n")
    prompts = read_prompts(file)
    (found,) = prompts.objects
    assert (prompts.space, found.label) == ("voxel", 1)
    assert [(p.xyz, p.positive) for p in found.points] == [((1, 2, 3), True), ((4, 5, 6), False)]


def changed(**entries: object) -> dict:
    return {**OWN, **entries}


def first_object(**entries: object) -> dict:
    return changed(objects=[{**OWN["objects"][0], **entries}])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("c.prompts.json", "{", "c.prompts.json is not valid JSON"),
        ("c.prompts.json", [1], 'must be a JSON object with "version": 1'),
        ("c.prompts.json", changed(space=None), '"space" is None; expected LPS, RAS, voxel'),
        ("c.prompts.json", changed(unit="mm"), "\"unit\" is 'mm' where space voxel is in voxel"),
        ("c.prompts.json", first_object(label=0), "object 1 has label 0; expected a whole number from 1"),
        ("c.prompts.json", first_object(points=[]), "object 1 has neither points nor a mask"),
        (
            "c.prompts.json",
            first_object(points=[{"xyz": [1, 2, 3]}]),
            'object 1, point 1 must have "xyz" and "positive"',
        ),
        (
            "c.prompts.json",
            first_object(points=[{"xyz": [1, "a", 3], "positive": True}]),
            "object 1, point 1 has position [1, 'a', 3]; expected three numbers",
        ),
        ("c.mrk.json", {}, 'is no 3D Slicer markups file: it has no list "markups"'),
        ("c.mrk.json", slicer({"label": "a", "position": [1, 2]}), "markup 1, point 1 has position [1, 2]"),
        ("c.mrk.json", slicer({"label": "", "position": [1, 2, 3]}), "markup 1, point 1 has no name"),
        ("c.mrk.json", slicer({"label": "neg", "position": [1, 2, 3]}), "has no point that names an object"),
        ("c.json", {"a": 1}, "is no prompt file: expected grand-challenge's"),
        ("c.csv", "axis-0,axis-1,axis-2\n1,2,3\n", "must have the columns axis-0, axis-1, axis-2"),
        ("c.txt", "", "its name must end with .prompts.json, .mrk.json, .json, .csv"),
    ],
)
def test_faults_are_named(name, content, message, tmp_path):
    file = tmp_path / name
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(UserError) as caught:
        read_prompts(file, "voxel")
    assert message in str(caught.value) and str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            first_object(points=[{"xyz": [1, 2, 3], "positive": True}, {"xyz": [1, 12, 3], "positive": True}]),
            "object 1, point 2 at (1, 12, 3) lies outside scan.nii.gz, whose voxels (x, y, z) go from 0 to (6, 8, 10)",
        ),
        (
            changed(space="LPS", objects=[{"label": 1, "points": [{"xyz": [99, 0, 0], "positive": True}]}]),
            "object 1, point 1 at (99, 0, 0) mm LPS, voxel (-99.0, 0.0, 0.0), lies outside",
        ),
        (first_object(label=7), "object 1, point 1 is of label 7; there are 1 (liver), 2 (spleen)"),
        (
            first_object(label=None, name="tumour"),
            "is of 'tumour'; there are liver, spleen. Rename it, or add --labels",
        ),
    ],
)
def test_points_that_cannot_be_placed_are_named(content, message, tmp_path):
    file = tmp_path / "c.prompts.json"
    file.write_text(json.dumps(content))
    with pytest.raises(UserError) as caught:
        locate(read_prompts(file), np.eye(4), (11, 9, 7), "scan.nii.gz", LABELS)
    assert message in str(caught.value) and str(file) in str(caught.value)


def test_one_prompt_file_per_case(tmp_path):
    for name in ("a.prompts.json", "b.csv", "notes.txt"):
        (tmp_path / name).write_text("")
    assert {case: path.name for case, path in find_prompts(tmp_path).items()} == {"a": "a.prompts.json", "b": "b.csv"}
    (tmp_path / "a.mrk.json").write_text("")
    with pytest.raises(UserError, match="two prompt files of case a"):
        find_prompts(tmp_path)
