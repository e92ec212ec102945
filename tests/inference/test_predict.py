"""`nnunet_ext predict` writes what nnU-Net would, and loses no case to another."""

from __future__ import annotations

import json
import os
import shutil

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from helpers.model_folders import write_model
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from skimage.io import imread, imsave

from nnunet_ext.cli.main import main
from nnunet_ext.data.phantoms import make_dataset


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """An untrained network in the folder of a trained one, and three images."""
    base = tmp_path_factory.mktemp("model")
    raw = make_dataset(base / "Dataset990_Phantoms", num_training=1, num_test=3)
    dataset = json.loads((raw / "dataset.json").read_text())
    model = write_model(base, dataset)
    return model, raw / "imagesTs"


def predict(model, images, output, *more):
    return main(["predict", "-m", str(model), "-i", str(images), "-o", str(output), "-f", "0", "-device", "cpu", *more])


def arrays(folder):
    return {path.name: sitk.GetArrayFromImage(sitk.ReadImage(str(path))) for path in sorted(folder.glob("*.nii.gz"))}


@pytest.fixture(scope="module")
def expected(trained, tmp_path_factory):
    """What nnU-Net's own predictor writes."""
    model, images = trained
    folder = tmp_path_factory.mktemp("nnunet")
    predictor = nnUNetPredictor(device=torch.device("cpu"), perform_everything_on_device=False, allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(model), (0,), "checkpoint_final.pth")
    predictor.predict_from_files_sequential(str(images), str(folder))
    return arrays(folder)


def test_labels_and_geometry_are_nnunets(trained, expected, tmp_path):
    model, images = trained
    assert predict(model, images, tmp_path, "-npp", "2", "-nps", "1") == 0
    found = arrays(tmp_path)
    assert found.keys() == expected.keys() and len(found) == 3
    for name, labels in found.items():
        assert labels.dtype == expected[name].dtype and len(np.unique(labels)) > 1
        assert (labels != expected[name]).mean() < 2e-3  # an untrained network's classes lie close together
        image = sitk.ReadImage(str(images / name.replace(".nii.gz", "_0000.nii.gz")))
        written = sitk.ReadImage(str(tmp_path / name))
        assert written.GetOrigin() == pytest.approx(image.GetOrigin())
        assert written.GetDirection() == pytest.approx(image.GetDirection())
    assert {"dataset.json", "plans.json", "predict_from_raw_data_args.json"} <= {p.name for p in tmp_path.iterdir()}
    assert not list(tmp_path.glob(".writing*"))


def test_bf16_is_close_and_probabilities_are_written(trained, expected, tmp_path):
    model, images = trained
    assert predict(model, images, tmp_path, "--precision", "bf16", "--save_probabilities") == 0
    for name, labels in arrays(tmp_path).items():
        assert 0 < (labels != expected[name]).mean() < 0.1
        probabilities = np.load(tmp_path / name.replace(".nii.gz", ".npz"))["probabilities"]
        assert (probabilities.argmax(0) == labels).mean() > 0.999


def test_a_damaged_image_costs_only_itself_and_continuing_repairs(trained, tmp_path, capsys):
    model, images = trained
    copied, output = tmp_path / "images", tmp_path / "out"
    shutil.copytree(images, copied)
    first = sorted(copied.iterdir())[0]
    whole = first.read_bytes()
    first.write_bytes(whole[: len(whole) // 2])
    assert predict(model, copied, output) == 1
    error = capsys.readouterr().err
    assert f"{first} is damaged or cut short" in error and "1 of 3 cases could not be predicted" in error
    assert len(arrays(output)) == 2
    # A result cut short by a full disk counts as missing, one that is whole stays.
    first.write_bytes(whole)
    done, cut = sorted(output.glob("*.nii.gz"))
    untouched = done.stat().st_mtime_ns
    cut.write_bytes(cut.read_bytes()[:-20])
    assert predict(model, copied, output, "--continue_prediction") == 0
    assert "1 of 3 cases are there already" in capsys.readouterr().err
    assert len(arrays(output)) == 3 and done.stat().st_mtime_ns == untouched


def test_a_result_that_was_not_written_whole_never_appears(trained, tmp_path, monkeypatch, capsys):
    """What SimpleITK does on a full disk: it writes a part, and says nothing."""
    model, images = trained
    write = SimpleITKIO.write_seg

    def write_a_part(self, segmentation, path, properties):
        write(self, segmentation, path, properties)
        os.truncate(path, os.path.getsize(path) // 2)

    name = sorted(path.name.replace("_0000", "") for path in images.iterdir())[0]
    (tmp_path / name).write_text("old")
    monkeypatch.setattr(SimpleITKIO, "write_seg", write_a_part)
    assert predict(model, images, tmp_path) == 1
    error = capsys.readouterr().err
    assert f"cannot write {tmp_path / name}: what was written is not whole" in error and "3 of 3 cases" in error
    assert [path.name for path in tmp_path.glob("*.nii.gz")] == [name] and (tmp_path / name).read_text() == "old"


@pytest.mark.parametrize("more", [[], ["--save_probabilities"]], ids=["labels", "probabilities"])
def test_output_that_is_not_finite_is_no_label_map(trained, tmp_path, capsys, more):
    model, images = trained
    shutil.copytree(model, tmp_path / "model")
    path = tmp_path / "model" / "fold_0" / "checkpoint_final.pth"
    checkpoint = torch.load(path, weights_only=False)
    for name, weights in checkpoint["network_weights"].items():
        if "seg_layers" in name:
            weights.fill_(float("nan"))
    torch.save(checkpoint, path)
    assert predict(tmp_path / "model", images, tmp_path / "out", *more) == 1
    error = capsys.readouterr().err
    assert "3 of 3 cases could not be predicted" in error and "output is not finite" in error
    assert not arrays(tmp_path / "out") and not list((tmp_path / "out").glob("*.np*"))


@pytest.mark.parametrize(
    ("options", "status", "message"),
    [
        (["-f", "1"], 1, "folds with checkpoint_final.pth: 0"),
        (["-step_size", "0"], 2, "-step_size 0.0 must be above 0"),
        (["-part_id", "2", "-num_parts", "2"], 2, "-part_id 2 must be from 0 to 1"),
        (["--precision", "fp16"], 1, "fp16 needs a CUDA device"),
        (["-i", "nowhere"], 1, "nowhere is no folder"),
    ],
)
def test_wrong_options(trained, tmp_path, capsys, options, status, message):
    model, images = trained
    assert predict(model, images, tmp_path, *options) == status
    assert message in capsys.readouterr().err


def test_a_model_that_was_not_trained_names_those_that_were(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("nnUNet_results", str(tmp_path))
    for name in ("nnUNetTrainerExt__nnUNetPlans__3d_fullres", "nnUNetTrainerExt__nnUNetPlansOther__2d", "T__P__begun"):
        fold = tmp_path / "Dataset990_Phantoms" / name / "fold_0"
        fold.mkdir(parents=True)
        if "begun" not in name:
            (fold / "checkpoint_final.pth").touch()
    wanted = ["-d", "990", "-tr", "nnUNetTrainerExt", "-p", "nnUNetPlansX", "-c", "2d", "-device", "cpu"]
    assert main(["predict", "-i", str(tmp_path), "-o", str(tmp_path / "out"), *wanted]) == 1
    assert (
        capsys.readouterr()
        .err.strip()
        .endswith(
            "the models of Dataset990_Phantoms that are trained: -tr nnUNetTrainerExt -p nnUNetPlansOther -c 2d; "
            "-tr nnUNetTrainerExt -p nnUNetPlans -c 3d_fullres"
        )
    )


def test_a_missing_channel_is_named(trained, tmp_path, capsys):
    model, images = trained
    copied = tmp_path / "images"
    shutil.copytree(images, copied)
    path = sorted(copied.iterdir())[0]
    path.rename(path.with_name(path.name.replace("_0000", "_0001")))
    assert predict(model, copied, tmp_path / "out") == 1
    assert f"lacks {path.name}" in capsys.readouterr().err


@pytest.fixture(scope="module")
def trained_on_colours(trained, tmp_path_factory):
    """The same in 2D, for nnU-Net's layout of natural images: three channels in one file."""
    base = tmp_path_factory.mktemp("colours")
    plans = json.loads((trained[0] / "plans.json").read_text().replace("Conv3d", "Conv2d").replace("Norm3d", "Norm2d"))
    (configuration,) = plans["configurations"].values()
    arguments = configuration["architecture"]["arch_kwargs"]
    arguments |= {"kernel_sizes": [[3, 3], [3, 3]], "strides": [[1, 1], [2, 2]]}
    configuration |= {"patch_size": [32, 32], "spacing": [1.0, 1.0], "batch_size": 2}
    configuration |= {"normalization_schemes": ["ZScoreNormalization"] * 3, "use_mask_for_norm": [False] * 3}
    plans |= {"configurations": {"2d": configuration}, "image_reader_writer": "NaturalImage2DIO"}
    plans["foreground_intensity_properties_per_channel"] = {str(channel): {} for channel in range(3)}
    dataset = {"channel_names": {"0": "R", "1": "G", "2": "B"}, "labels": {"background": 0, "a": 1, "b": 2}}
    dataset |= {"numTraining": 1, "file_ending": ".png"}
    model = base / "nnUNetTrainer__nnUNetPlans__2d"
    (model / "fold_0").mkdir(parents=True)
    (model / "plans.json").write_text(json.dumps(plans))
    (model / "dataset.json").write_text(json.dumps(dataset))
    torch.manual_seed(0)
    manager = PlansManager(plans)
    network = nnUNetTrainer.build_network_architecture(manager, manager.get_configuration("2d"), 3, 3, False)
    checkpoint = {
        "network_weights": network.state_dict(),
        "trainer_name": "nnUNetTrainer",
        "init_args": {"configuration": "2d"},
        "inference_allowed_mirroring_axes": (0, 1),
    }
    torch.save(checkpoint, model / "fold_0" / "checkpoint_final.pth")
    (base / "images").mkdir()
    rng = np.random.default_rng(0)
    for name in ("one_file", "other"):
        imsave(base / "images" / f"{name}_0000.png", rng.integers(0, 255, (40, 48, 3)).astype(np.uint8))
    return model, base / "images"


def test_colour_images_hold_the_channels(trained_on_colours, tmp_path, capsys):
    model, images = trained_on_colours
    (tmp_path / "nnunet").mkdir()
    predictor = nnUNetPredictor(device=torch.device("cpu"), perform_everything_on_device=False, allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(model), (0,), "checkpoint_final.pth")
    predictor.predict_from_files_sequential(str(images), str(tmp_path / "nnunet"))
    assert predict(model, images, tmp_path / "out") == 0
    for name in ("one_file", "other"):
        found, expected = (imread(tmp_path / folder / f"{name}.png") for folder in ("out", "nnunet"))
        assert found.shape == (40, 48) and (found != expected).mean() < 2e-2

    copied = tmp_path / "images"
    shutil.copytree(images, copied)
    # Three grey files are three channels, too; one is too few.
    colours = imread(copied / "other_0000.png")
    for channel in range(3):
        imsave(copied / f"other_{channel:04d}.png", colours[..., channel], check_contrast=False)
    imsave(copied / "one_file_0000.png", colours[..., 0])
    assert predict(model, copied, tmp_path / "again") == 1
    assert "one_file_0000.png holds 1 channel(s); this model takes 3" in capsys.readouterr().err
    imsave(copied / "one_file_0000.png", np.concatenate([colours, colours[..., :1]], axis=-1))
    assert predict(model, copied, tmp_path / "again") == 1
    assert "one_file_0000.png holds 4 channel(s); this model takes 3" in capsys.readouterr().err
    assert (imread(tmp_path / "again" / "other.png") == imread(tmp_path / "out" / "other.png")).all()
