"""A model as one file: what is in it, that it predicts the same elsewhere, and what is refused."""

from __future__ import annotations

import json
import re
import shutil
import stat
import zipfile

import numpy as np
import pytest
import torch
from helpers.model_folders import plans, write_model
from helpers.mutate import Payload
from helpers.scene import slices, volume, write_image
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.model_sharing.model_export import export_pretrained_model
from nnunetv2.model_sharing.model_import import install_model_from_zip_file

from nnunet_ext.architectures.universeg import FewShotNetwork
from nnunet_ext.cli.main import main
from nnunet_ext.image_files import read_values

NAME = "Dataset990_Phantoms"
MODEL = "nnUNetTrainer__nnUNetPlans__3d_fullres"
DATASET = {
    "channel_names": {"0": "CT"}, "labels": {"background": 0, "a": 1, "b": 2}, "file_ending": ".nii.gz",
    "name": "Phantoms", "licence": "CC0 1.0", "training": [{"image": "imagesTr/doe_jane.nii.gz"}],
}  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A model of two folds as training leaves it, below a folder of results, and an image."""
    base = tmp_path_factory.mktemp("trained")
    folder = write_model(base / "results" / NAME, DATASET, folds=2)
    (folder / "dataset_fingerprint.json").write_text(json.dumps({"spacings": [[5.0, 2.2, 2.2]]}))
    for fold in range(2):
        path = folder / f"fold_{fold}" / "checkpoint_final.pth"
        content = torch.load(path, weights_only=True)
        content["init_args"] |= {"plans": plans(), "dataset_json": DATASET, "fold": fold}
        torch.save({**content, "optimizer_state": {"momentum": torch.zeros(1000)}, "logging": {"loss": [1.0]}}, path)
        (path.parent / "validation").mkdir()
        (path.parent / "validation" / "summary.json").write_text("{}")
        (path.parent / "progress.png").write_bytes(b"")
    crossval = folder / "crossval_results_folds_0_1"
    crossval.mkdir()
    (crossval / "postprocessing.pkl").write_bytes(b"\x80\x04}.")
    write_image(base / "images" / "a_0000.nii.gz", volume(0, (8, 16, 16))[0], (2.2, 2.2, 5.0))
    return folder, base / "images"


@pytest.fixture(scope="module")
def packed(trained, tmp_path_factory):
    """The file of that model."""
    path = tmp_path_factory.mktemp("packed") / "model.zip"
    assert main(["export-model", "-m", str(trained[0]), "-o", str(path)]) == 0
    return path


def nnunets_labels(folder, images, output):
    """What nnU-Net's own predictor makes of all folds."""
    predictor = nnUNetPredictor(device=torch.device("cpu"), perform_everything_on_device=False, allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(folder), (0, 1), "checkpoint_final.pth")
    output.mkdir()
    predictor.predict_from_files_sequential(str(images), str(output))
    return read_values(output / "a.nii.gz")


def test_an_installed_model_predicts_equal_labels(trained, packed, tmp_path, capsys):
    folder, images = trained
    assert main(["import-model", str(packed), "-o", str(tmp_path / "there")]) == 0
    installed = tmp_path / "there" / NAME / MODEL
    assert capsys.readouterr().out.strip() == str(installed)
    before, after = (nnunets_labels(one, images, tmp_path / str(n)) for n, one in enumerate((folder, installed)))
    assert len(np.unique(before)) > 1 and np.array_equal(before, after)
    words = ["-m", str(installed), "-i", str(images), "-o", str(tmp_path / "ours"), "-f", "0", "1", "-device", "cpu"]
    assert main(["predict", *words]) == 0
    assert (read_values(tmp_path / "ours" / "a.nii.gz") != before).mean() < 2e-3  # equal but for ties


def test_nothing_of_the_trainings_data_is_in_the_file(trained, packed):
    folder, _ = trained
    with zipfile.ZipFile(packed) as archive:
        names = {name.removeprefix(f"{NAME}/{MODEL}/") for name in archive.namelist()}
        assert b"doe_jane" not in b"".join(map(archive.read, archive.namelist()))
        about = json.loads(archive.read(f"{NAME}/{MODEL}/nnunet_ext_model.json"))
        with archive.open(f"{NAME}/{MODEL}/fold_1/checkpoint_final.pth") as file:
            content = torch.load(file, weights_only=True)
    assert names == {
        "plans.json", "dataset.json", "dataset_fingerprint.json", "nnunet_ext_model.json",
        "fold_0/checkpoint_final.pth", "fold_1/checkpoint_final.pth",
    }  # fmt: skip
    assert set(content) == {"network_weights", "trainer_name", "init_args", "inference_allowed_mirroring_axes"}
    assert content["init_args"]["plans"] == plans() and "training" not in content["init_args"]["dataset_json"]
    before = torch.load(folder / "fold_1" / "checkpoint_final.pth", weights_only=True)["network_weights"]
    assert all(torch.equal(before[key], value) for key, value in content["network_weights"].items())
    assert (about["licence"], about["training_data"], about["folds"]) == ("CC0 1.0", "Phantoms", ["0", "1"])
    assert about["versions"].keys() >= {"nnunet-ext", "nnunetv2", "torch", "python"}
    assert len(about["files"]) == len(names) - 1


def test_files_go_to_nnunets_own_commands_and_come_from_them(trained, packed, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "stock"))
    install_model_from_zip_file(str(packed))
    assert (tmp_path / "stock" / NAME / MODEL / "fold_1" / "checkpoint_final.pth").is_file()
    monkeypatch.setenv("nnUNet_results", str(trained[0].parent.parent))
    theirs = tmp_path / "theirs.zip"
    export_pretrained_model(NAME, str(theirs), ("3d_fullres",), folds=(0, 1))
    assert main(["import-model", str(theirs), "-o", str(tmp_path / "ours"), "-q"]) == 0
    printed = capsys.readouterr()
    installed = tmp_path / "ours" / NAME / MODEL
    assert printed.out.splitlines()[-1] == str(installed) and "left out: " in printed.err
    assert "postprocessing.pkl" in printed.err and not list(installed.rglob("*.pkl"))
    for name in ("plans.json", "fold_0/checkpoint_final.pth"):
        assert (installed / name).read_bytes() == (trained[0] / name).read_bytes()


def test_images_of_the_training_data_need_consent(tmp_path, capsys):
    described = plans()
    described["configurations"] = {"2d": slices(described["configurations"]["3d_fullres"])}
    folder = tmp_path / NAME / "nnUNetTrainerUniverSeg__nnUNetPlans__2d"
    (folder / "fold_0").mkdir(parents=True)
    (folder / "plans.json").write_text(json.dumps(described))
    (folder / "dataset.json").write_text(json.dumps({k: v for k, v in DATASET.items() if k != "licence"}))
    network = FewShotNetwork(1, 3, encoder_blocks=[4, 4], image_size=32)
    network.support_images = torch.zeros(7, 1, 32, 32, dtype=torch.uint8)
    network.support_masks = torch.zeros(7, 3, 32, 32, dtype=torch.uint8)
    network.support_cases = torch.zeros(7, dtype=torch.int64)
    content = {"network_weights": network.state_dict(), "trainer_name": "nnUNetTrainerUniverSeg"}
    torch.save({**content, "init_args": {"configuration": "2d"}}, folder / "fold_0" / "checkpoint_final.pth")
    words = ["export-model", "-m", str(folder), "-o", str(tmp_path / "m.zip")]
    assert main(words) == 1
    assert "carry 7 images of the training data" in capsys.readouterr().err
    assert main([*words, "--with-training-images"]) == 1
    assert "give --licence" in capsys.readouterr().err and not (tmp_path / "m.zip").exists()
    assert main([*words, "--with-training-images", "--licence", "none"]) == 0
    assert "WARNING: the file carries 7 IMAGES OF THE TRAINING DATA" in capsys.readouterr().err
    assert main(["import-model", str(tmp_path / "m.zip"), "-o", str(tmp_path / "there")]) == 0
    assert "it carries 7 images of its training data" in capsys.readouterr().err


def rewritten(packed, path, change):
    """A copy of a file whose members went through `change(name, data) -> data or None`."""
    with zipfile.ZipFile(packed) as archive, zipfile.ZipFile(path, "w") as new:
        for member in archive.infolist():
            data = change(member.filename.split("/", 2)[-1], archive.read(member))
            if data is not None:
                new.writestr(member.filename, data)
    return path


def added(name, data=b"x", **facts):
    """Appends a member to a copy of the file."""

    def change(packed, path):
        shutil.copyfile(packed, path)
        info = zipfile.ZipInfo(name)
        for key, value in facts.items():
            setattr(info, key, value)
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr(info, data)

    return change


def member(which, new):
    return lambda packed, path: rewritten(packed, path, lambda name, data: new(data) if name == which else data)


def newer(data):
    about = json.loads(data)
    return json.dumps({**about, "format": 2, "versions": {**about["versions"], "nnunet-ext": "9.1"}}).encode()


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (added("../../escaped.json"), "leads out of the folder"),
        (added("/tmp/escaped.json"), "leads out of the folder"),
        (added(f"{NAME}/{MODEL}/..\\escaped.json"), "leads out of the folder"),
        (added(f"{NAME}/{MODEL}/plans.json"), "is there twice"),
        (added(f"{NAME}/{MODEL}/PLANS.json"), "is there twice"),
        (added(f"{NAME}/{MODEL}/plans.json/x.json"), "is a file and a folder"),
        (added(f"{NAME}/{MODEL}/l.json", b"/etc/passwd", external_attr=(stat.S_IFLNK | 0o777) << 16), "is a link"),
        (added("zeros.json", bytes(60 << 20), compress_type=zipfile.ZIP_DEFLATED), "which no model does"),
        (added(f"{NAME}/{MODEL}/more.json", b"{}"), "another checksum than nnunet_ext_model.json says"),
        (member("dataset.json", lambda data: data + b" "), "dataset.json has another checksum"),
        (member("fold_1/checkpoint_final.pth", lambda data: None), "fold_1/checkpoint_final.pth is missing"),
        (member("nnunet_ext_model.json", newer), "written by nnunet-ext 9.1; 0.* here knows 1; pip install -U"),
        (lambda packed, path: path.write_bytes(packed.read_bytes()[:9000]), "no ZIP file, or damaged"),
        (lambda packed, path: path.write_bytes(packed.read_bytes().replace(b"CC0 1.0", b"CC0 9.0")), "damaged"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_file_is_one_line_and_nothing_is_installed(packed, tmp_path, capsys, change, words):
    path = tmp_path / "model.zip"
    change(packed, path)
    assert main(["import-model", str(path), "-o", str(tmp_path / "there" / "deep"), "-q"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert str(path) in line and re.search(words, line), line
    assert not [found for found in tmp_path.rglob("*") if found.is_file() and found != path]
    assert not list(tmp_path.parent.rglob("escaped.json"))


def test_weights_are_never_executed(trained, tmp_path, capsys):
    marker, theirs = tmp_path / "executed", tmp_path / "theirs.zip"
    folder = tmp_path / "results" / NAME / MODEL
    shutil.copytree(trained[0], folder)
    checkpoint = folder / "fold_0" / "checkpoint_final.pth"
    torch.save({**torch.load(checkpoint, weights_only=True), "more": Payload(marker)}, checkpoint)
    with zipfile.ZipFile(theirs, "w") as archive:
        for path in folder.rglob("*.*"):
            archive.write(path, path.relative_to(folder.parent.parent))
    assert main(["import-model", str(theirs), "-o", str(tmp_path / "there"), "-q"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "holds more than tensors and plain values" in line and f"{theirs}: {NAME}/{MODEL}/fold_0" in line
    assert not marker.exists() and not (tmp_path / "there" / NAME).exists()


def test_no_model_is_replaced_and_no_number_is_used_twice(packed, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "results"))
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "raw"))
    (tmp_path / "raw" / "Dataset990_Other").mkdir(parents=True)
    assert main(["import-model", str(packed), "-q"]) == 1
    assert "has the same number; give the model another with -d" in capsys.readouterr().err
    assert main(["import-model", str(packed), "-q", "-d", "Dataset991_Mine"]) == 0
    plans_file = tmp_path / "results" / "Dataset991_Mine" / MODEL / "plans.json"
    plans_file.write_text("mine")
    capsys.readouterr()
    assert main(["import-model", str(packed), "-q", "-d", "Dataset991_Mine"]) == 1
    assert "exists already" in capsys.readouterr().err and plans_file.read_text() == "mine"
    assert main(["import-model", str(packed), "-d", "991"]) == 2
