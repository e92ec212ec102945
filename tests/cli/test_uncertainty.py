"""`nnunet_ext uncertainty`, as a user runs it, and the files it reads."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from helpers.sampled_maps import sampled_label_maps
from matplotlib.colors import to_rgb
from matplotlib.image import imread

from nnunet_ext.cli.main import main
from nnunet_ext.diffusion.samples_file import write_samples
from nnunet_ext.diffusion.uncertainty import maps_of_probabilities, maps_of_votes
from nnunet_ext.errors import UserError
from nnunet_ext.reports.uncertainty import _REFERENCE as REFERENCE

GRID = (5, 9, 8)


def image_of(array: np.ndarray) -> sitk.Image:
    image = sitk.GetImageFromArray(array)
    if array.ndim == 3:
        image.SetSpacing((0.7, 0.8, 3.0))
        image.SetOrigin((10.0, -20.0, 30.0))
        image.SetDirection((0.0, 1.0, 0.0, -1.0, 0.0, 0.0, 0.0, 0.0, 1.0))
    return image


@pytest.fixture
def scene(tmp_path):
    """Three cases of five samples: a with probabilities, b whose samples agree, c with a label that a and b lack."""
    rng = np.random.default_rng(0)
    maps = {"a": sampled_label_maps(GRID, 5, 3, noise=1.0), "c": sampled_label_maps(GRID, 5, 4, noise=0.5)}
    maps["b"] = np.repeat(maps["a"][:1], 5, axis=0)
    (tmp_path / "images").mkdir()
    (tmp_path / "references").mkdir()
    for case, samples in maps.items():
        image = image_of(rng.random(GRID).astype(np.float32))
        sitk.WriteImage(image, str(tmp_path / "images" / f"{case}_0000.nii.gz"))
        sitk.WriteImage(image_of(samples[0]), str(tmp_path / "references" / f"{case}.nii.gz"))
        probabilities = None
        if case == "a":
            logits = 5 * np.stack([samples == k for k in range(3)], 1) + rng.standard_normal((5, 3, *GRID))
            probabilities = torch.from_numpy(logits).softmax(1)
        path = tmp_path / "images" / f"{case}_0000.nii.gz"
        write_samples(
            tmp_path / "samples", case, samples, path, probabilities=probabilities, settings={"steps": 10, "seed": 3}
        )
        maps[case] = samples, probabilities
    return tmp_path, maps


def command(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "nnunet_ext", "uncertainty", *map(str, words)], capture_output=True, text=True
    )


def test_from_samples_to_maps_and_numbers(scene):
    folder, maps = scene
    done = command("-i", folder / "samples", "-r", folder / "references", "--json")
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    output = folder / "samples" / "uncertainty"
    assert summary == json.loads((output / "summary.json").read_text())
    assert {case: values["from"] for case, values in summary["cases"].items()} == {
        "a": "probabilities", "b": "votes", "c": "votes"
    }  # fmt: skip

    a, b, c = (summary["cases"][case] for case in "abc")
    assert summary["most_uncertain"] == "a" and (output / "most_uncertain.png").stat().st_size > 10_000
    # Five equal samples that are the reference: certain, and right to be.
    assert b["entropy"] == b["variance"] == b["GED2"] == b["ECE"] == b["ECE_foreground"] == 0
    assert b["agreement"] == b["Dice"] == 1 and list(b["labels"]) == ["1", "2"]
    assert 0 < a["agreement"] < 1 and 0 < a["GED2"] < 2 and a["ECE_foreground"] > a["ECE"] > 0
    assert list(c["labels"]) == ["1", "2", "3"]
    assert c["agreement"] == pytest.approx(np.mean([values["agreement"] for values in c["labels"].values()]))
    assert summary["mean"]["GED2"] == pytest.approx(np.mean([a["GED2"], 0, c["GED2"]]))

    expected = {"a": maps_of_probabilities(maps["a"][1]), "c": maps_of_votes(maps["c"][0])}
    for case, found in expected.items():
        for name in ("entropy", "variance", "mutual_information"):
            path = output / f"{case}_{name}.nii.gz"
            if getattr(found, name) is None:
                assert not path.exists()
                continue
            image = sitk.ReadImage(str(path))
            np.testing.assert_allclose(sitk.GetArrayFromImage(image), getattr(found, name), atol=1e-3)
            assert image.GetSpacing() == pytest.approx((0.7, 0.8, 3.0))
            assert image.GetOrigin() == pytest.approx((10.0, -20.0, 30.0))
            assert image.GetDirection() == pytest.approx((0, 1, 0, -1, 0, 0, 0, 0, 1))
    settings = json.loads((folder / "samples" / "a" / "samples.json").read_text())
    assert settings["steps"] == 10 and settings["seed"] == 3 and settings["samples"] == 5


def test_the_picture_has_the_image_and_the_reference(scene, capsys):
    """Drawn on what samples.json or --images names, else without, which is said."""
    folder, _ = scene

    def picture(*words: str) -> tuple[np.ndarray, str]:
        assert main(["uncertainty", "-i", str(folder / "samples"), "-o", str(folder / "out"), "-q", *words]) == 0
        return imread(folder / "out" / "most_uncertain.png")[..., :3], capsys.readouterr().err

    def count(pixels: np.ndarray, colour: str) -> int:
        return int((np.abs(pixels - to_rgb(colour)).max(axis=-1) < 0.02).sum())

    bare, said = picture()
    assert "no image under the picture: samples.json names none; give the folder of the images with --images" in said
    drawn, said = picture("--images", str(folder / "images"), "-r", str(folder / "references"))
    assert said == "" and count(drawn, REFERENCE) > count(bare, REFERENCE) + 200
    settings = folder / "samples" / "a" / "samples.json"
    content = json.loads(settings.read_text())
    settings.write_text(json.dumps({**content, "image": str(folder / "images" / "a_0000.nii.gz")}))
    named, said = picture("-r", str(folder / "references"))
    assert said == "" and np.array_equal(named, drawn)
    sitk.WriteImage(image_of(np.zeros((2, 2, 2), np.float32)), str(folder / "images" / "a_0000.nii.gz"))
    assert "(2, 2, 2) voxels, the samples have (8, 9, 5)" in picture()[1]


def test_without_references_nothing_is_scored(scene, capsys):
    folder, _ = scene
    assert main(["uncertainty", "-i", str(folder / "samples"), "-o", str(folder / "out")]) == 0
    table = capsys.readouterr().out
    assert "agreement" in table and "GED2" not in table and len(table.splitlines()) == 5
    assert not (folder / "samples" / "uncertainty").exists()


def test_regions_ignore_label_and_annotators(scene, capsys):
    """Two annotators; one ignores half of the image, where the samples are then not looked at either."""
    folder, maps = scene
    labels = {"background": 0, "whole": [1, 2], "core": [2], "ignore": 3}
    (folder / "samples" / "dataset.json").write_text(json.dumps({"labels": labels}))
    (folder / "second").mkdir()
    truth = maps["a"][0][1].copy()
    truth[:3] = 3
    sitk.WriteImage(image_of(truth), str(folder / "second" / "a.nii.gz"))
    for case in "bc":
        for path in (folder / "samples" / case).iterdir():
            path.unlink()
    words = ["uncertainty", "-i", str(folder / "samples"), "-r", str(folder / "references"), str(folder / "second")]
    assert main([*words, "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert list(summary["cases"]["a"]["labels"]) == ["(1, 2)", "(2,)"]
    masks = [m[3:] > 0 for m in (*maps["a"][0], maps["a"][0][0], truth)]
    distance = np.array([[1 - (x & y).sum() / (x | y).sum() for y in masks] for x in masks])
    expected = 2 * distance[:5, 5:].mean() - distance[:5, :5].mean() - distance[5:, 5:].mean()
    assert summary["cases"]["a"]["labels"]["(1, 2)"]["GED2"] == pytest.approx(expected)
    assert main([*words, "--json", "--unbiased"]) == 0
    unbiased = json.loads(capsys.readouterr().out)
    assert unbiased["settings"]["GED2"] == "unbiased"
    assert unbiased["cases"]["a"]["GED2"] < summary["cases"]["a"]["GED2"]


def test_two_dimensional_images(tmp_path, capsys):
    samples = sampled_label_maps((16, 12), 4, 2, noise=1.0)
    for folder in ("images", "references"):
        (tmp_path / folder).mkdir()
    sitk.WriteImage(sitk.GetImageFromArray(samples[0]), str(tmp_path / "images" / "x_0000.png"))
    sitk.WriteImage(sitk.GetImageFromArray(samples[0]), str(tmp_path / "references" / "x.png"))
    # nnU-Net keeps an axis of length 1 in front.
    write_samples(tmp_path / "samples", "x", samples[:, None], tmp_path / "images" / "x_0000.png")
    words = ["-i", str(tmp_path / "samples"), "-r", str(tmp_path / "references"), "--json"]
    assert main(["uncertainty", *words]) == 0
    assert json.loads(capsys.readouterr().out)["cases"]["x"]["samples"] == 4
    path = tmp_path / "samples" / "uncertainty" / "x_entropy.nii.gz"
    assert sitk.GetArrayFromImage(sitk.ReadImage(str(path))).shape == (16, 12)
    assert (tmp_path / "samples" / "uncertainty" / "most_uncertain.png").is_file()


def test_samples_are_replaced(tmp_path):
    samples = sampled_label_maps(GRID, 12, 2)
    image = image_of(samples[0])
    write_samples(tmp_path, "a", samples, image)
    write_samples(tmp_path, "a", samples[:3], image)
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == [
        "sample_00.nii.gz", "sample_01.nii.gz", "sample_02.nii.gz", "samples.json"
    ]  # fmt: skip
    with pytest.raises(UserError, match=r"grid \(5, 9, 7\), their image has \(5, 9, 8\)"):
        write_samples(tmp_path, "a", samples[..., :-1], image)
    assert (tmp_path / "a" / "sample_02.nii.gz").is_file()


def test_one_damaged_case_does_not_cost_the_others(scene, capsys):
    folder, _ = scene
    (folder / "samples" / "a" / "probabilities.npz").write_bytes(b"PK\x03\x04 cut short")
    damaged = folder / "samples" / "b" / "sample_01.nii.gz"
    damaged.write_bytes(damaged.read_bytes()[:60])
    assert main(["uncertainty", "-i", str(folder / "samples")]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert any("a left out" in line and "probabilities.npz is damaged" in line for line in lines)
    assert any("b left out" in line and "sample_01.nii.gz is damaged" in line for line in lines)
    summary = json.loads((folder / "samples" / "uncertainty" / "summary.json").read_text())
    assert list(summary["cases"]) == ["c"] and set(summary["failed"]) == {"a", "b"}
    assert summary["mean"]["agreement"] == summary["cases"]["c"]["agreement"]


def test_bad_input_in_one_line(scene, capsys):
    folder, maps = scene
    samples, references = str(folder / "samples"), folder / "references"

    def error(*words: str) -> str:
        assert main(["uncertainty", *words]) == 1
        captured = capsys.readouterr()
        assert not captured.out
        return captured.err.splitlines()[0]

    assert "nowhere is not a folder" in error("-i", str(folder / "nowhere"))
    assert "holds no samples; expected files such as" in error("-i", str(folder / "images"))
    assert "nowhere is not a folder" in error("-i", samples, "-r", str(folder / "nowhere"))
    assert "0 label maps of a; expected one" in error("-i", samples, "-r", str(folder / "images"))
    (folder / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "one": 1}}))
    assert "holds the values [2]; expected only [0, 1]" in error("-i", samples)
    (folder / "dataset.json").unlink()
    for case in "abc":
        sitk.WriteImage(sitk.GetImageFromArray(maps[case][0][0]), str(references / f"{case}.nii.gz"))
    assert "has spacing" in error("-i", samples, "-r", str(references))


def test_a_case_without_foreground(tmp_path, capsys):
    empty = np.zeros((3, *GRID), dtype=np.uint8)
    some = sampled_label_maps(GRID, 3, 2)
    write_samples(tmp_path, "x", empty, image_of(empty[0]))
    write_samples(tmp_path, "y", some, image_of(some[0]))
    assert main(["uncertainty", "-i", str(tmp_path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["cases"]["x"]["entropy"] is None and found["cases"]["x"]["agreement"] is None
    assert found["cases"]["x"]["labels"] == {} and found["most_uncertain"] == "y"
    assert found["mean"]["agreement"] == found["cases"]["y"]["agreement"]
