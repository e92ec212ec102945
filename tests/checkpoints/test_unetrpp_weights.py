"""UNETR++'s official files: read, loaded strictly, and fitted to another patch, class and channel count."""

from __future__ import annotations

import json
import zipfile

import numpy as np
import pytest
import torch

from nnunet_ext.architectures.unetrpp import UNETRPP
from nnunet_ext.checkpoints import build_from_official, read_checkpoint
from nnunet_ext.checkpoints.unetrpp import transfer
from nnunet_ext.cli.main import main

SIZES = {
    "dims": (8, 16, 16, 32),
    "depths": (1, 1, 1, 1),
    "decoder_depth": 1,
    "feature_size": 4,
    "proj_sizes": (8, 8, 8, 4),
    "decoder_proj_size": 8,
}


def trained(**kwargs) -> UNETRPP:
    torch.manual_seed(0)
    model = UNETRPP(1, 14, **{"patch_size": (16, 32, 32), "variant": "synapse", **SIZES, **kwargs})
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model.eval()


def write_v1(path, state_dict, numpy_name="numpy._core.multiarray"):
    """A file as nnU-Net v1's trainer writes it, with numpy numbers in the loss curves."""
    curve = [np.float64(0.5), np.float32(0.25)]
    content = {
        "epoch": 1000,
        "state_dict": {"module." + key: value for key, value in state_dict.items()},
        "optimizer_state_dict": {"state": {}, "param_groups": [{"lr": 0.01, "params": [0]}]},
        "lr_scheduler_state_dict": None,
        "plot_stuff": (curve, curve, [], curve),
        "best_stuff": (np.float64(0.9), None, None),
    }
    torch.save(content, path.with_suffix(".new"))
    with zipfile.ZipFile(path.with_suffix(".new")) as source, zipfile.ZipFile(path, "w") as target:
        for item in source.infolist():
            target.writestr(item, source.read(item).replace(b"numpy._core.multiarray", numpy_name.encode()))


@pytest.mark.parametrize("numpy_name", ["numpy.core.multiarray", "numpy._core.multiarray"], ids=["numpy 1", "numpy 2"])
def test_v1_file_to_network(tmp_path, numpy_name):
    original = trained()
    write_v1(tmp_path / "model_final_checkpoint.model", original.state_dict(), numpy_name)
    accepted = set(torch.serialization.get_safe_globals())
    weights = read_checkpoint(tmp_path / "model_final_checkpoint.model")
    assert set(torch.serialization.get_safe_globals()) == accepted
    config = {"in_channels": 1, "num_classes": 14, "patch_size": (16, 32, 32), "variant": "synapse", **SIZES}
    model = build_from_official("unetrpp", weights, **config)
    x = torch.randn(1, 1, 16, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(model(x), original(x), rtol=0, atol=0)


def test_the_second_name_of_a_shared_projection_counts():
    weights = dict(trained().state_dict())
    name = "decoder3.decoder_block.0.0.epa_block."
    weights[name + "E.weight"] = torch.zeros_like(weights[name + "E.weight"])
    config = {"in_channels": 1, "num_classes": 14, "patch_size": (16, 32, 32), "variant": "synapse", **SIZES}
    model = build_from_official("unetrpp", weights, **config)
    assert torch.equal(model.state_dict()[name + "E.weight"], weights[name + "F.weight"])


def test_mismatch_is_reported_and_nothing_loaded():
    weights = trained().state_dict()
    config = {"in_channels": 1, "num_classes": 14, "patch_size": (16, 32, 32), **SIZES}
    with pytest.raises(ValueError, match=r"UNETRPP .*missing: .*conv52"):
        build_from_official("unetrpp", weights, variant="acdc", **config)
    with pytest.raises(ValueError, match=r"of another shape: .*pos_embed \(file .* network"):
        build_from_official("unetrpp", weights, variant="synapse", **{**config, "patch_size": (16, 32, 64)})


def test_transfer_to_the_same_sizes_copies_all():
    original = trained()
    model = UNETRPP(1, 14, patch_size=(16, 32, 32), variant="synapse", **SIZES)
    report = transfer(model, original.state_dict(), patch_size=(16, 32, 32))
    assert (report.resized, report.initial) == ((), ())
    assert list(report.copied) == list(original.state_dict())


@pytest.mark.parametrize("variant", ["synapse", "acdc", "tumor"])
def test_transfer_to_another_patch_class_and_channel_count(variant):
    original = trained(variant=variant)
    # One token is constant over the grid, and one attends to all tokens alike.
    key, projection = "unetr_pp_encoder.stages.0.0.pos_embed", "unetr_pp_encoder.stages.0.0.epa_block."
    weights = {name: tensor.clone() for name, tensor in original.state_dict().items()}
    weights[key][..., 0] = 3.0
    projection += "EF" if variant == "tumor" else "F.weight"
    model = UNETRPP(2, 3, patch_size=(12, 40, 40), variant=variant, **SIZES).eval()
    report = transfer(model, weights, patch_size=(16, 32, 32))
    new = model.state_dict()
    assert set(report.initial) == {f"out{n}.conv.conv.{kind}" for n in (1, 2, 3) for kind in ("weight", "bias")}
    assert {key, projection} <= set(report.resized)
    assert sorted(report.copied + report.resized + report.initial) == sorted(new)
    torch.testing.assert_close(new[key][..., 0], torch.full_like(new[key][..., 0], 3.0))
    tokens = 0 if variant == "tumor" else 1
    # A constant volume keeps its projection up to what interpolation does at the border.
    old_sum, new_sum = (tensor[projection].sum(tokens) for tensor in (weights, new))
    assert (old_sum - new_sum).abs().max() < 0.3 * old_sum.abs().max()
    assert torch.isfinite(model(torch.randn(1, 2, 12, 40, 40))).all()


def test_transfer_between_variants_is_refused_without_change():
    model = UNETRPP(1, 14, patch_size=(16, 32, 32), variant="acdc", **SIZES)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=r"missing: .*conv52"):
        transfer(model, trained().state_dict(), patch_size=(16, 32, 32))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_command_writes_what_nnunet_loads(tmp_path, monkeypatch, capsys):
    from nnunetv2.run.load_pretrained_weights import load_pretrained_weights

    folder = tmp_path / "Dataset007_Toy"
    folder.mkdir()
    arguments = {"patch_size": [12, 40, 40], **{k: list(v) if isinstance(v, tuple) else v for k, v in SIZES.items()}}
    architecture = {
        "network_class_name": "nnunet_ext.architectures.unetrpp.UNETRPP",
        "arch_kwargs": arguments,
        "_kw_requires_import": [],
    }
    plans = {
        "dataset_name": folder.name,
        "plans_name": "mine",
        "label_manager": "LabelManager",
        "configurations": {
            "3d_fullres": {"patch_size": [12, 40, 40], "spacing": [1, 1, 1], "architecture": architecture},
            "2d": {"patch_size": [40, 40], "spacing": [1, 1], "architecture": architecture},
        },
    }
    (folder / "mine.json").write_text(json.dumps(plans))
    description = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "heart": 1}}
    (folder / "dataset.json").write_text(json.dumps(description))
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path))
    write_v1(tmp_path / "official.model", trained().state_dict())
    command = ["import-weights", "--model", "unetrpp", "-i", str(tmp_path / "official.model"), "-d", "7", "-p", "mine"]
    output = tmp_path / "start.pth"
    assert main([*command, "--weights-patch", "16", "32", "32", "-o", str(output)]) == 0
    shown = capsys.readouterr().err
    assert "left as initialised: out1.conv.conv.weight" in shown and f"-pretrained_weights {output}" in shown
    network = UNETRPP(1, 2, **arguments)
    load_pretrained_weights(network, str(output))
    stem = "unetr_pp_encoder.downsample_layers.1.0.conv.weight"
    assert torch.equal(network.state_dict()[stem], trained().state_dict()[stem])

    output.unlink()
    # Another patch than that of the weights.
    assert main([*command, "--weights-patch", "16", "64", "64", "-o", str(output)]) == 1
    assert "official.model: weights do not fit" in capsys.readouterr().err
    assert main([*command, "--weights-patch", "16", "32", "32", "-o", str(output), "-c", "2d"]) == 1
    assert "choose 3d_fullres" in capsys.readouterr().err
    assert not output.exists()
