"""From a finished training to another data set: other channels, classes, patch and architecture."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from nnunetv2.run.load_pretrained_weights import load_pretrained_weights
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import nn

from nnunet_ext import models
from nnunet_ext.checkpoints.fine_tuning import fit
from nnunet_ext.cli.main import main
from nnunet_ext.plans.network import arguments_for_patch, network_builder
from nnunet_ext.trainers.segmamba import nnUNetTrainerSegMamba
from nnunet_ext.trainers.unetrpp import nnUNetTrainerUNETRPP

TRAINERS = {t.__name__: t for t in (nnUNetTrainer, nnUNetTrainerSegMamba, nnUNetTrainerUNETRPP)}
LABELS = {"background": 0, "one": 1, "two": 2}


@pytest.fixture
def two(preprocessed, tmp_path, monkeypatch):
    """Folders of the phantoms and of a data set of two channels and two labels, with nnU-Net's and our plans."""
    base = tmp_path / "nnUNet_preprocessed"
    monkeypatch.setenv("nnUNet_preprocessed", str(base))
    for name, channels, labels in (("Dataset990_Phantoms", 1, None), ("Dataset991_Two", 2, LABELS)):
        folder = base / name
        folder.mkdir(parents=True)
        description = json.loads((preprocessed / "dataset.json").read_text())
        plans = json.loads((preprocessed / "nnUNetPlans.json").read_text())
        description["channel_names"] = {str(c): "MR" for c in range(channels)}
        description["labels"] = labels or description["labels"]
        plans["dataset_name"] = name
        for configuration in plans["configurations"].values():  # as wide as a test needs
            described = configuration["architecture"]["arch_kwargs"] if "architecture" in configuration else None
            if described:
                described["features_per_stage"] = [8] * described["n_stages"]
        for configuration in plans["configurations"].values():
            for key in ("normalization_schemes", "use_mask_for_norm"):
                if key in configuration:
                    configuration[key] = configuration[key] * channels
        (folder / "dataset.json").write_text(json.dumps(description))
        (folder / "nnUNetPlans.json").write_text(json.dumps(plans))
        patch = [16, 32, 32] if channels == 1 else [16, 32, 64]
        for model in ("segmamba", "unetrpp"):
            (folder / f"{model}.json").write_text(json.dumps(planned_for(model, plans, patch)))
    return base / "Dataset990_Phantoms", base / "Dataset991_Two"


def planned_for(model: str, plans: dict, patch: list[int]) -> dict:
    """nnU-Net's plans with the tiny network of a model for this patch."""
    plans = copy.deepcopy(plans)
    configuration = plans["configurations"]["3d_fullres"]
    strides = configuration["architecture"]["arch_kwargs"]["strides"]
    arguments = arguments_for_patch(model, "tiny", patch, strides)
    configuration["patch_size"] = patch
    named = {"network_class_name": models.find(model).network, "arch_kwargs": arguments, "_kw_requires_import": []}
    configuration["architecture"] = named
    return plans


def network_of(folder: Path, plans: str, trainer: str) -> nn.Module:
    manager = PlansManager(str(folder / f"{plans}.json"))
    dataset = json.loads((folder / "dataset.json").read_text())
    outputs = manager.get_label_manager(dataset).num_segmentation_heads
    build = network_builder(TRAINERS[trainer], manager, manager.get_configuration("3d_fullres"))
    return build(len(dataset["channel_names"]), outputs, enable_deep_supervision=True)


def trained(folder: Path, plans: str, trainer: str, path: Path) -> nn.Module:
    """A network, and a checkpoint of it as nnU-Net's trainers write theirs."""
    network = network_of(folder, plans, trainer)
    started = {
        "plans": json.loads((folder / f"{plans}.json").read_text()),
        "configuration": "3d_fullres",
        "fold": 0,
        "dataset_json": json.loads((folder / "dataset.json").read_text()),
    }
    torch.save({"network_weights": network.state_dict(), "trainer_name": trainer, "init_args": started}, path)
    return network


@pytest.mark.parametrize(
    ("trainer", "plans", "heads"),
    [
        ("nnUNetTrainer", "nnUNetPlans", "seg_layers"),
        ("nnUNetTrainerSegMamba", "segmamba", "out.conv"),
        ("nnUNetTrainerUNETRPP", "unetrpp", "out"),
    ],
)
def test_any_training_starts_one_on_other_data(two, tmp_path, capsys, trainer, plans, heads):
    first, second = two
    source = trained(first, plans, trainer, tmp_path / "checkpoint_final.pth")
    words = ["import-weights", "-i", str(tmp_path / "checkpoint_final.pth"), "-d", "991", "-p", plans]
    assert main([*words, "-o", str(tmp_path / "start.pth")]) == 0
    said = capsys.readouterr().err
    assert f"-p {plans} -tr {trainer} -pretrained_weights {tmp_path / 'start.pth'}" in said
    network = network_of(second, plans, trainer)
    load_pretrained_weights(network, str(tmp_path / "start.pth"))
    given, taken = source.state_dict(), network.state_dict()
    anew = {line.split(": ")[1] for line in said.splitlines() if line.startswith("left as initialised")}
    adapted = {line.split(": ")[1] for line in said.splitlines() if line.startswith("adapted")}
    assert anew and all(heads in name for name in anew)
    assert all(torch.equal(given[name], taken[name]) for name in given.keys() - anew - adapted)
    # One scan given as both channels is what it was.
    by_channel = [
        name for name in adapted if taken[name].shape[1] == 2 and taken[name][:, :1].shape == given[name].shape
    ]
    assert by_channel
    for name in by_channel:
        torch.testing.assert_close(taken[name].sum(1), given[name].sum(1))


def test_another_architecture_is_refused_and_can_be_planned(two, tmp_path, capsys):
    first, second = two
    plans = json.loads((first / "nnUNetPlans.json").read_text())
    described = plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]
    strides = [[1, 1, 1], [2, 2, 2], [2, 2, 2]]
    described.update(
        n_stages=3, features_per_stage=[8, 16, 24], kernel_sizes=[[3, 3, 3]] * 3, strides=strides,
        n_conv_per_stage=[1] * 3, n_conv_per_stage_decoder=[1] * 2,
    )  # fmt: skip
    (first / "small.json").write_text(json.dumps(plans))
    trained(first, "small", "nnUNetTrainer", tmp_path / "checkpoint_final.pth")
    words = ["import-weights", "-i", str(tmp_path / "checkpoint_final.pth"), "-d", "991", "-o", str(tmp_path / "o.pth")]
    assert main(words) == 1
    said = capsys.readouterr().err.strip()
    assert "weights do not fit" in said and said.endswith(
        "--write-plans NAME writes plans with the checkpoint's architecture"
    )
    assert "\n" not in said and not (tmp_path / "o.pth").exists()
    # A patch that three stages do not divide.
    plans = json.loads((second / "nnUNetPlans.json").read_text())
    plans["configurations"]["3d_fullres"]["patch_size"] = [13, 32, 47]
    (second / "nnUNetPlans.json").write_text(json.dumps(plans))
    assert main([*words, "--write-plans", "from990"]) == 0
    manager = PlansManager(str(second / "from990.json"))
    assert manager.plans_name == "from990" and manager.available_configurations == ["3d_fullres"]
    settings = manager.get_configuration("3d_fullres")
    assert settings.patch_size == [12, 32, 48] and settings.normalization_schemes == ["ZScoreNormalization"] * 2
    network = network_of(second, "from990", "nnUNetTrainer")
    load_pretrained_weights(network, str(tmp_path / "o.pth"))
    assert network(torch.zeros(1, 2, *settings.patch_size))[0].shape == (1, 3, 12, 32, 48)


def test_heads_stay_only_where_classes_are_the_same():
    class Network(nn.Module):
        def __init__(self, channels, outputs):
            super().__init__()
            self.first = nn.Conv2d(channels, 4, 3)
            self.tokens = nn.Linear(channels, 4)
            self.head = nn.Conv2d(4, outputs, 1)
            self.register_buffer("cases", torch.zeros(outputs - 1))

    source = Network(2, 3)
    for same, anew in ((True, ()), (False, ("head.weight", "head.bias"))):
        network = Network(2, 3)
        report = fit(network, source.state_dict(), Network, 2, 3, same_labels=same)
        assert set(report.initial) == {*anew} | (set() if same else {"cases"})
        assert torch.equal(network.head.weight, source.head.weight) == same
    # Three channels of two: averaged; a layer that is no convolution is drawn anew.
    network = Network(3, 3)
    report = fit(network, source.state_dict(), Network, 3, 3, same_labels=True)
    assert report.resized == ("first.weight",) and report.initial == ("tokens.weight",)
    torch.testing.assert_close(network.first.weight.sum(1), source.first.weight.sum(1))
    before = copy.deepcopy(network.state_dict())
    with pytest.raises(ValueError, match=r"1 missing: first\.bias"):
        weights = {name: value for name, value in source.state_dict().items() if name != "first.bias"}
        fit(network, weights, Network, 3, 3, same_labels=True)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize(
    ("words", "content", "message"),
    [
        ([], {"a": torch.zeros(1)}, "is no checkpoint of nnU-Net: trainer_name is no text"),
        (["-p", "none"], {}, "none.json does not exist; see -p"),
        (["--weights-patch", "8", "8", "8"], {}, "--weights-patch goes with --model"),
        (["--model", "universeg", "--write-plans", "a"], {}, "--write-plans goes with a checkpoint"),
        (["-tr", "nnUNetTrainerNowhere"], None, "was trained by 'nnUNetTrainerNowhere', which is not installed here"),
        (["-c", "2d", "--write-plans", "a"], None, "3 axes and 2d of nnUNetPlans.json has 2; choose another"),
        (["-c", "3d_lowres"], None, "-c 3d_lowres is not in nnUNetPlans.json"),
        (["-c", "3d_lowres", "--write-plans", "a"], None, "-c 3d_lowres is not in nnUNetPlans.json"),
        (["--write-plans", "../a"], None, "plans name '../a' must be the name of a file without folders"),
    ],
)
def test_what_does_not_go_is_said_in_one_line(two, tmp_path, capsys, words, content, message):
    first, second = two
    plans = json.loads((second / "nnUNetPlans.json").read_text())
    flat = copy.deepcopy(plans["configurations"]["3d_fullres"])
    flat["patch_size"], flat["spacing"] = [32, 32], flat["spacing"][1:]
    described = flat["architecture"]["arch_kwargs"]
    described["strides"] = [stride[1:] for stride in described["strides"]]
    plans["configurations"]["2d"] = flat
    (second / "nnUNetPlans.json").write_text(json.dumps(plans))
    path = tmp_path / "checkpoint_final.pth"
    if content is None:
        trained(first, "nnUNetPlans", "nnUNetTrainer", path)
    else:
        torch.save(content, path)
    assert main(["import-weights", "-i", str(path), "-d", "991", "-o", str(tmp_path / "o.pth"), *words]) in (1, 2)
    said = capsys.readouterr().err.strip()
    assert message in said and "\n" not in said and not (tmp_path / "o.pth").exists()
