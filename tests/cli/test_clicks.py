"""`nnunet_ext clicks` on a folder of SAM-Med3D: results, what an interruption leaves, and a section of the report."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
import SimpleITK as sitk
from helpers.promptable_stubs import trained_folder

from nnunet_ext.checkpoints.sam_med3d import INTERACTIONS
from nnunet_ext.checkpoints.viewer_folder import write_viewer_folder
from nnunet_ext.cli.main import main
from nnunet_ext.errors import UserError
from nnunet_ext.reports.interaction_curves import interactions_section, read_interaction_curves


@pytest.fixture
def model(tmp_path, monkeypatch):
    """A model, and the data set it was trained on with three cases, of which fold 0 holds out two."""
    pytest.importorskip("nnInteractive.inference.inference_session")
    folder = trained_folder(tmp_path)
    write_viewer_folder(folder, {}, INTERACTIONS)
    raw, preprocessed = tmp_path / "raw" / "Dataset007_Toy", tmp_path / "preprocessed" / "Dataset007_Toy"
    preprocessed.mkdir(parents=True)
    for sub in ("imagesTr", "labelsTr"):
        (raw / sub).mkdir(parents=True)
    for number, case in enumerate("abc"):
        truth = np.zeros((18, 16, 17), dtype=np.uint8)
        truth[5:12, 4:11, 6:12] = 1
        image = np.random.default_rng(number).normal(50, 9, truth.shape).astype(np.float32) + 40 * truth
        sitk.WriteImage(sitk.GetImageFromArray(image), str(raw / "imagesTr" / f"{case}_0000.nii.gz"))
        sitk.WriteImage(sitk.GetImageFromArray(truth), str(raw / "labelsTr" / f"{case}.nii.gz"))
    (raw / "dataset.json").write_text((folder / "dataset.json").read_text())
    (preprocessed / "splits_final.json").write_text(json.dumps([{"train": ["a"], "val": ["b", "c"]}]))
    monkeypatch.setenv("nnUNet_raw", str(raw.parent))
    monkeypatch.setenv("nnUNet_preprocessed", str(preprocessed.parent))
    return folder


def test_held_out_cases_by_every_user_a_model_understands(model, tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"
    words = ["clicks", "-m", f"one={model}", f"two={model}", "-d", "7", "-o", str(out), "-device", "cpu"]
    words.append("--no-autozoom")
    assert main(words) == 0
    shown = capsys.readouterr()
    assert "every one sees the reference" in shown.err and shown.out == ""
    with (out / "clicks.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(r["model"], r["user"], r["label"]) for r in rows] == [
        (m, u, label) for m in ("one", "two") for u in ("centre", "uniform") for label in ("liver", "mean")
    ]
    assert all(row["objects"] == "2" and row["note"] == "the simulated user sees the reference" for row in rows)
    assert all(0 <= float(row["Dice 10"]) <= 1 and float(row["seconds each"]) > 0 for row in rows)
    with (out / "clicks_objects.csv").open() as file:
        objects = list(csv.DictReader(file))
    assert {row["case"] for row in objects} == {"b", "c"} and len(objects) == 2 * 2 * 2 * 10
    assert (out / "clicks.png").stat().st_size > 5000
    summary = json.loads((out / "clicks.json").read_text())
    assert summary["cases"] == ["b", "c"] and summary["interactions"] == [1, 2, 3, 5, 10]
    section = interactions_section(read_interaction_curves(out / "clicks.json"))
    assert "sees the reference" in section and "Dataset007_Toy, validation cases of fold 0, 2 cases" in section

    # What is there is not run again; what is damaged, or of other settings, is.
    ran = []

    def counted(model, case, *others):
        ran.append(case)
        raise UserError("stopped")

    monkeypatch.setattr("nnunet_ext.clicks.curve_folder.curves_of_case", counted)
    (out / "parts" / "two" / "c.json").write_text("{")
    assert main([*words, "-q"]) == 1 and ran == ["c"]
    assert "two: c: stopped" in capsys.readouterr().err
    assert json.loads((out / "clicks.json").read_text())["cases"] == ["b"]
    assert main([*words, "-q", "--components"]) == 1 and ran == ["c", "b", "c", "b", "c"]
    assert "no case was clicked through by every model" in capsys.readouterr().err


def test_what_is_refused_is_said_in_one_line(model, tmp_path, capsys):
    def refused(status, *words):
        assert main(["clicks", "-m", str(model), "-o", str(tmp_path / "out"), "-device", "cpu", "-q", *words]) == status
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and not (tmp_path / "out").exists()
        return error

    assert "give -d, or -i and -l" in refused(2)
    assert "-i and -l go together" in refused(2, "-i", str(tmp_path))
    assert "understands none of box, lasso; see its inference_info.json" in refused(
        1, "-d", "7", "--users", "box", "lasso"
    )
    assert "holds no fold_3/checkpoint_final.pth" in refused(1, "-d", "7", "-f", "3")
    assert "expected one folder Dataset008_*" in refused(1, "-d", "8")
    assert "-m has x twice; give them names with NAME=FOLDER" in refused(2, "-m", f"x={model}", f"x={model}", "-d", "7")
    raw = tmp_path / "raw" / "Dataset007_Toy"
    flat = tmp_path / "flat"
    flat.mkdir()
    sitk.WriteImage(sitk.GetImageFromArray(np.ones((8, 8), dtype=np.float32)), str(flat / "a_0000.nii.gz"))
    words = ["clicks", "-m", str(model), "-o", str(tmp_path / "out"), "-device", "cpu", "-q", "-i", str(flat), "-l"]
    assert main([*words, str(raw / "labelsTr")]) == 1
    assert "a_0000.nii.gz is no 3D volume of one channel" in capsys.readouterr().err
    (tmp_path / "preprocessed" / "Dataset007_Toy" / "splits_final.json").unlink()
    assert "nothing says which cases are held out; give -i and -l" in refused(1, "-d", "7")
    (model / "inference_info.json").unlink()
    assert "has no inference_info.json, so viewers cannot click with it" in refused(1, "-d", "7")


def test_another_file_is_no_section(tmp_path):
    for content in ("[]", "{}", '{"models": {"a": {}}, "users": {"centre": ""}, "interactions": [1]}'):
        (tmp_path / "clicks.json").write_text(content)
        with pytest.raises(UserError, match=r"clicks.json holds no curves of interactions; give the clicks.json that"):
            read_interaction_curves(tmp_path / "clicks.json")
