"""Any network by its path: planned, trained, resumed and predicted; what cannot work gets one line."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from helpers import own_networks

from nnunet_ext.cli.main import main
from nnunet_ext.errors import TrainingError, UserError

networks = own_networks.benchmark()
OWN = "helpers.own_networks."
SMALL = networks.Place(
    "Dataset004_Small", "3d_fullres", (12, 20, 28), (3.0, 1.0, 1.0), (9, 18, 26), {"background": 0, "a": 1, "b": 2}
)
FLAT = dataclasses.replace(SMALL, configuration="2d", patch=(28, 20), spacing=(1.0, 1.0), shape=(1, 24, 22),
                           file_ending=".png")  # fmt: skip


@pytest.fixture
def base(tmp_path, monkeypatch):
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(name, "")  # restored, whatever the test sets
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")  # read when nnU-Net is imported
    return tmp_path


def plan(base, name, settings=(), place=SMALL, *more):
    """The folder of the data set, and the one planned configuration."""
    folder = base / "nnUNet_preprocessed" / place.dataset
    if not folder.is_dir():
        networks.prepare(base, place)
    planned = networks.plan(networks.Network(name if "." in name else OWN + name, tuple(settings)), place, *more)
    return Path(planned["plans"]), planned["configurations"][0]


def found(configuration):
    arguments = configuration["arguments"]
    return arguments, arguments["found"]


# The path through nnU-Net ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "place"),
    [("UNETR", SMALL), ("SegResNetDS", SMALL), ("OddNet", FLAT)],
    ids=["fixed size", "deep supervision", "of one's own, 2d"],
)
def test_plans_trains_resumes_and_predicts(base, name, place):
    network = networks.NETWORKS.get(name) or networks.Network(OWN + name)
    plans, configuration = plan(base, network.path, network.words(len(place.patch)), place)
    arguments, _ = found(configuration)
    assert (name == "UNETR") == (arguments["grid"] is not None)
    assert len(arguments["training"]) == {"UNETR": 1, "SegResNetDS": 3, "OddNet": 2}[name]
    networks.rehearse(plans, base, place.configuration)


@pytest.mark.parametrize("kind", ["regions", "ignore", "cascade"])
def test_labels_of_every_kind(base, kind):
    """What plans say of a network holds for other numbers of channels: the cascade adds some."""
    from nnunet_ext.trainers.adapted import nnUNetTrainerNetwork

    labels = {
        "regions": {"background": 0, "all": [1, 2], "core": [2], "rim": [1]},
        "ignore": {"background": 0, "a": 1, "b": 2, "ignore": 3},
        "cascade": SMALL.labels,
    }[kind]
    more = {"regions_class_order": [1, 2, 1]} if kind == "regions" else {}
    place = dataclasses.replace(SMALL, labels=labels)
    folder = networks.prepare(base, place, **more)
    path, _ = plan(base, "OddNet", (), place)
    plans = {**json.loads(path.read_text()), "continue_training": False}
    name = "3d_fullres"
    if kind == "cascade":
        plans["configurations"]["3d_lowres"] = {**plans["configurations"][name], "next_stage": "3d_cascade_fullres"}
        plans["configurations"]["3d_cascade_fullres"] = {"inherits_from": name, "previous_stage": "3d_lowres"}
        name = "3d_cascade_fullres"
    trainer = nnUNetTrainerNetwork(plans, name, 0, json.loads((folder / "dataset.json").read_text()),
                                   torch.device("cpu"))  # fmt: skip
    trainer.initialize()
    assert trainer.network.input_channels == (3 if kind == "cascade" else 1)
    batch = networks.batch_for(trainer)
    losses = [float(trainer.train_step(batch)["loss"]) for _ in range(30)]
    assert losses[-1] < losses[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["UNet", "BasicUNet", "BasicUNetPlusPlus", "AttentionUnet", "SegResNetVAE", "PlainConvUNet",
     "Unet of segmentation_models_pytorch"],
)  # fmt: skip
def test_networks_nobody_here_wrote(base, name):
    """One small patch each; benchmarks/networks.py has the patches of three data sets, and slower networks."""
    network = networks.NETWORKS[name]
    if name.startswith("Unet of"):
        pytest.importorskip("segmentation_models_pytorch")
    place = SMALL if 3 in network.axes else FLAT
    plans, _ = plan(base, network.path, network.words(len(place.patch)), place)
    networks.rehearse(plans, base, place.configuration, trust=network.trust)


# What is found out -------------------------------------------------------------------------------------------------


def test_plans_say_what_was_found_and_a_dry_run_writes_nothing(base, capsys):
    folder = networks.prepare(base, SMALL)
    before = sorted(folder.iterdir())
    command = ["plan", "-d", "4", "--network", "monai.networks.nets.SegResNet", "--set", "init_filters=8"]
    assert main([*command, "--dry-run"]) == 0
    shown = capsys.readouterr().err
    assert "multiples of 8; the patch 12x20x28 is padded to 16x24x32" in shown and "was not written" in shown
    assert "monai.networks.nets.SegResNet (monai " in shown and sorted(folder.iterdir()) == before
    assert main(command) == 0
    configuration = json.loads((folder / "nnUNetPlansSegResNet.json").read_text())["configurations"]["3d_fullres"]
    assert configuration["architecture"]["network_class_name"] == "nnunet_ext.architectures.adapted.AdaptedNetwork"
    arguments = configuration["architecture"]["arch_kwargs"]
    assert arguments["arguments"] == {
        "spatial_dims": "@axes", "init_filters": 8, "in_channels": "@channels", "out_channels": "@classes"
    }  # fmt: skip
    assert arguments["step"] == [8, 8, 8] and "init_filters=8" in arguments["found"]["called with"]


@pytest.mark.parametrize(
    ("name", "settings", "expected"),
    [
        ("Silent", (), {"step": [4, 4, 4], "grid": None, "least": None}),
        ("Talks", (), {"step": [1, 1, 1]}),  # beside the JSON that is read here
        ("Cube", (), {"step": [8, 8, 8], "grid": [32, 32, 32], "arguments.image_size": "@edge"}),
        ("Takes32", (), {"grid": [32, 32, 32]}),
        ("Stacked", (), {"training": [[0], [1], [2]], "evaluation": [[]], "scales": [[1, 1, 1]] * 3}),
        ("Colours", (), {"image_channels": 3, "arguments.pretrained": False, "evaluation": [[0]]}),
        ("OddNet", ("width=6",), {"training": [["logits"], ["aux"]], "scales": [[1, 1, 1], [0.25] * 3]}),
        ("OddNet", ("ndim=3",), {"arguments.ndim": 3}),
        ("SinglePrecision", (), {"autocast": False}),
        ("monai.networks.nets.UNet", (), {"step": [2, 4, 4], "arguments.channels": [8, 16, 32]}),
    ],
)
def test_what_is_found_out(base, name, settings, expected):
    arguments, _ = found(plan(base, name, settings)[1])
    for key, value in expected.items():
        outer, _, inner = key.partition(".")
        assert (arguments[outer][inner] if inner else arguments[outer]) == value, key


def test_a_memory_target_is_met_and_configurations_without_a_form_are_left_out(base, capsys):
    folder = networks.prepare(base, SMALL)
    plans = json.loads((folder / "nnUNetPlans.json").read_text())
    flat = {**plans["configurations"]["3d_fullres"], "patch_size": [20, 28], "spacing": [1.0, 1.0]}
    flat["architecture"] = {**flat["architecture"], "arch_kwargs": {"strides": [[1, 1], [2, 2], [2, 2]]}}
    plans["configurations"]["2d"] = flat
    (folder / "nnUNetPlans.json").write_text(json.dumps(plans))
    command = ["plan", "-d", "4", "--network", OWN + "Silent", "--gpu-memory-target", "0.9", "--json"]
    assert main(command) == 0
    out, err = capsys.readouterr()
    (planned,) = json.loads(out)["configurations"]
    assert planned["configuration"] == "3d_fullres" and planned["gigabytes"] <= 0.9
    assert f"left out 2d: {OWN}Silent" in err
    assert (folder / "nnUNetPlansSilent0.9GB.json").is_file()
    # What each GPU allows, of a network that prints beside the JSON.
    words = ["plan", "-d", "4", "--network", OWN + "Talks", "-c", "3d_fullres", "--memory", "0.9", "8", "--json"]
    assert main(words) == 0
    assert [offer["fit"]["gigabytes"] <= offer["gpu_gigabytes"] for offer in json.loads(capsys.readouterr().out)] == [
        True, True
    ]  # fmt: skip


# What cannot work --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "settings", "message"),
    [
        ("SegResNet", [], "'SegResNet' is no dotted path"),
        ("no_such_package.Net", [], "there is no no_such_package"),
        ("monai.networks.nets.SegResnet", [], "monai.networks.nets has no SegResnet; it has SegResNet"),
        ("pathlib.Path", [], "pathlib.Path is no torch.nn.Module but Path"),
        (OWN + "NeedsBackbone", [], "needs backbone, which cannot be guessed; add --set backbone=VALUE"),
        (OWN + "Plain", ["width=3"], "has no argument width; its signature is Plain(in_channels, out_channels, "),
        (OWN + "Returns16", [], "ignores the patch: it returns 16x16x16 for 12x20x28"),
        (OWN + "SevenChannels", [], "returns 7 channels for 3 classes"),
        (OWN + "NoGradient", [], "has no gradient"),
        (OWN + "FailsInEval", [], "fails in evaluation mode: RuntimeError: only for training"),
        (OWN + "Probabilities", [], "ends with Softmax, and training expects logits"),
        (OWN + "GrowsLayers", [], "changes its parameters when it runs"),
        (OWN + "Lazy", [], "has lazy layers"),
        (OWN + "Plain", ["in_channels=5"], "fails on images of 1 channels"),
        (OWN + "make_plain", ["note=@nowhere"], "is not understood; expected @channels"),
    ],
)
def test_bad_input_is_one_line(base, capsys, path, settings, message):
    folder = networks.prepare(base, SMALL)
    before = sorted(folder.iterdir())
    assert main(["plan", "-d", "4", "--network", path, *(["--set", *settings] if settings else [])]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line and (path in line or "@nowhere" in line)
    assert sorted(folder.iterdir()) == before


def test_options_that_do_not_belong_are_usage(base, capsys):
    for words, message in (
        (["--model", "segmamba", "--set", "a=1"], "--set belongs to --network"),
        (["--network", OWN + "Plain", "--size", "tiny"], "--size belongs to --model"),
        (["--network", OWN + "Plain", "--set", "width"], "must be name=value"),
    ):
        assert main(["plan", "-d", "4", *words]) == 2
        assert message in capsys.readouterr().err


def test_other_plans_and_a_class_that_has_gone_are_one_line(base):
    from nnunet_ext.trainers.adapted import nnUNetTrainerNetwork

    folder = networks.prepare(base, SMALL)
    path, _ = plan(base, "Plain")
    description = json.loads((folder / "dataset.json").read_text())

    def trainer(name, change=lambda text: text):
        plans = {**json.loads(change((folder / f"{name}.json").read_text())), "continue_training": False}
        return nnUNetTrainerNetwork(plans, "3d_fullres", 0, description, torch.device("cpu"))

    with pytest.raises(TrainingError, match="needs plans of nnunet_ext plan --network"):
        trainer("nnUNetPlans")
    gone = trainer(path.stem, lambda text: text.replace("own_networks.Plain", "own_networks.Plane"))
    with pytest.raises(TrainingError, match="has no Plane; it has Plain"):
        gone.initialize()


def test_plans_of_strangers_call_classes_of_networks_alone(base, capsys):
    """By `nnunet_ext predict`: functions, and what is no layer among the arguments, are called for --trust only."""
    marker = base / "called"
    plans, _ = plan(base, "make_plain", (f"note={marker}",))
    marker.unlink()
    folder = networks.rehearse(plans, base, "3d_fullres", trust=True)
    marker.unlink()
    capsys.readouterr()
    words = ["predict", "-m", folder, "-i", base / "images", "-o", base / "out", "-f", "0", "-device", "cpu"]

    def refused():
        assert main(list(map(str, words))) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert str(folder / "plans.json") in line and not (base / "out").exists() and not marker.exists()
        return line

    assert "make_plain, which is no class of networks" in refused() and "--trust" in refused()
    content = json.loads((folder / "plans.json").read_text())
    arguments = content["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]
    function = dict(arguments)
    arguments["network"] = OWN + "Plain"
    arguments["arguments"] = {"in_channels": "@subprocess.Popen", "out_channels": "@classes"}
    (folder / "plans.json").write_text(json.dumps(content))
    assert "argument in_channels what is no class of layers" in refused()
    # Wrapped in itself, the function would be out of sight.
    arguments["network"], arguments["arguments"] = "nnunet_ext.architectures.adapted.AdaptedNetwork", {
        "input_channels": 1, "num_classes": 3, "network": function["network"], "arguments": function["arguments"],
        "step": [1, 1, 1],
    }  # fmt: skip
    (folder / "plans.json").write_text(json.dumps(content))
    assert "adapts other networks" in refused()


def test_a_patch_larger_than_the_fixed_grid_is_refused():
    from nnunet_ext.architectures.adapted import AdaptedNetwork

    network = AdaptedNetwork(1, 2, network=OWN + "Plain", arguments={"in_channels": "@channels", "out_channels": 2},
                             step=(8, 8, 8), grid=(8, 8, 8))  # fmt: skip
    assert network.eval()(torch.zeros(1, 1, 5, 8, 7)).shape == (1, 2, 5, 8, 7)
    with pytest.raises(ValueError, match="at most"):
        network(torch.zeros(1, 1, 9, 8, 8))
    with pytest.raises(UserError, match="adapts other networks"):
        AdaptedNetwork(1, 2, network="nnunet_ext.architectures.adapted.AdaptedNetwork", arguments={}, step=(1, 1, 1))
