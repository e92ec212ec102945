"""Networks as ONNX files: equal labels by onnxruntime, and what cannot be written or read says why in one line."""

from __future__ import annotations

import json
import shutil

import numpy as np
import onnx
import pytest
import torch
from helpers.model_folders import plans, write_model
from helpers.scene import volume, write_image
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import nn

from nnunet_ext.architectures.sam_med3d.promptable import PromptableSAMMed3D
from nnunet_ext.architectures.segmamba.mamba import TriOrientedMamba
from nnunet_ext.architectures.universeg import FewShotNetwork
from nnunet_ext.cli.main import main
from nnunet_ext.errors import UserError
from nnunet_ext.image_files import read_values
from nnunet_ext.inference.onnx_model import OnnxNetwork, open_session
from nnunet_ext.inference.predictor import FolderPredictor
from nnunet_ext.sharing import onnx_export
from nnunet_ext.sharing.onnx_norms import translations

NAME, MODEL = "Dataset990_Phantoms", "nnUNetTrainer__nnUNetPlans__3d_fullres"
DATASET = {
    "channel_names": {"0": "CT"}, "labels": {"background": 0, "a": 1, "b": 2}, "file_ending": ".nii.gz",
    "name": "Phantoms", "licence": "CC0 1.0",
}  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """An installed model of two folds with ONNX files, and a folder with an image larger than its window."""
    base = tmp_path_factory.mktemp("onnx")
    write_image(base / "images" / "a_0000.nii.gz", volume(0, (12, 40, 36))[0], (2.2, 2.2, 5.0))
    folder, packed = write_model(base / NAME, DATASET, folds=2), base / "model.zip"
    words = ["-m", str(folder), "-o", str(packed), "--onnx", "--case", str(base / "images" / "a_0000.nii.gz")]
    assert main(["export-model", *words]) == 0
    assert main(["import-model", str(packed), "-o", str(base / "there"), "-q"]) == 0
    return base / "there" / NAME / MODEL, base / "images"


def predict(model, output, *more):
    words = ["predict", "-m", str(model[0]), "-i", str(model[1]), "-o", str(output), "-f", "0", "1", *more]
    return main([*words, "--disable_progress_bar"])


def test_labels_are_those_of_torch(model, tmp_path):
    """Two folds, mirroring, several overlapping windows."""
    assert predict(model, tmp_path / "torch", "-device", "cpu") == 0
    assert predict(model, tmp_path / "onnx", "--runtime", "onnxruntime") == 0
    ours, theirs = (read_values(tmp_path / runtime / "a.nii.gz") for runtime in ("torch", "onnx"))
    assert len(np.unique(ours)) == 3
    # Logits are summed in half precision, where an untrained network's classes are often equal.
    assert (ours != theirs).mean() < 1e-3


def test_files_say_what_they_are(model):
    about = onnx.load(model[0] / "fold_1" / "checkpoint_final.onnx").metadata_props
    (entry,) = [entry for entry in about if entry.key == "nnunet_ext"]
    found = json.loads(entry.value)
    assert found["plans"] == plans() and found["dataset"] == DATASET and found["licence"] == "CC0 1.0"
    assert (found["fold"], found["configuration"], found["trainer"]) == ("1", "3d_fullres", "nnUNetTrainer")
    assert found["mirroring_axes"] == [0, 2] and len(found["checkpoint_sha256"]) == 64
    assert found["parity"]["windows"] == 2 and found["parity"]["logits"] < 1e-4 and found["parity"]["labels"] == 0


def changed_plans(folder):
    described = json.loads((folder / "plans.json").read_text())
    described["configurations"]["3d_fullres"]["spacing"] = [5.0, 2.0, 2.0]
    (folder / "plans.json").write_text(json.dumps(described))


def changed_labels(folder):
    (folder / "dataset.json").write_text(json.dumps({**DATASET, "labels": {"background": 0, "b": 1, "a": 2}}))


def without_metadata(folder):
    found = onnx.load(folder / "fold_0" / "checkpoint_final.onnx")
    del found.metadata_props[:]
    onnx.save(found, folder / "fold_0" / "checkpoint_final.onnx")


def cut(folder):
    path = folder / "fold_0" / "checkpoint_final.onnx"
    path.write_bytes(path.read_bytes()[:5000])


def gone(folder):
    (folder / "fold_1" / "checkpoint_final.onnx").unlink()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (changed_plans, "is of other plans (nnUNetPlans, 3d_fullres) than"),
        (changed_labels, "is of other labels or channels than"),
        (without_metadata, "was not written by export-model"),
        (cut, "is no ONNX file, or damaged"),
        (gone, "fold_1/checkpoint_final.onnx does not exist"),
    ],
)
def test_files_that_do_not_belong_to_the_model(model, tmp_path, capsys, change, words):
    folder = shutil.copytree(model[0], tmp_path / "model")
    change(folder)
    assert predict((folder, model[1]), tmp_path / "out", "--runtime", "onnxruntime") == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line and str(folder) in line and not (tmp_path / "out").exists()


def test_options_that_do_not_go_together(model, tmp_path, capsys):
    out = tmp_path / "out"
    assert predict(model, out, "--provider", "CPUExecutionProvider") == 2
    assert predict(model, out, "--runtime", "onnxruntime", "--precision", "bf16") == 2
    assert predict(model, out, "--runtime", "onnxruntime", "--provider", "TPU") == 1
    *_, line = capsys.readouterr().err.splitlines()
    assert "--provider TPU is not in this onnxruntime, which has" in line and "CPUExecutionProvider" in line


class Wrong(nn.Module):
    """Answers otherwise in the exported graph."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv3d(1, 3, 1)

    def forward(self, x):
        return self.layer(x) * (1.001 if torch.compiler.is_exporting() else 1.0)


class Branching(nn.Module):
    """Looks at its values."""

    def forward(self, x):
        return x.expand(-1, 3, -1, -1, -1) if float(x.sum()) > 0 else -x


@pytest.mark.parametrize(
    ("network", "words"),
    [
        pytest.param(Wrong(), "the ONNX file of Wrong is not what torch computes: .* nothing", marks=pytest.mark.slow),
        pytest.param(Branching(), r"Branching cannot be written as ONNX \(", marks=pytest.mark.slow),
        (FewShotNetwork(1, 3, encoder_blocks=[4, 4], image_size=32), "UniverSeg cannot be written as ONNX: it chooses"),
        (PromptableSAMMed3D.__new__(PromptableSAMMed3D), "SAM-Med3D cannot be written as ONNX: it segments in rounds"),
    ],
    ids=["other numbers", "not traceable", "UniverSeg", "SAM-Med3D"],
)
def test_what_cannot_be_written_says_why(network, words):
    predictor = FolderPredictor(device=torch.device("cpu"), allow_tqdm=False)
    manager = PlansManager(plans())
    settings = manager.get_configuration("3d_fullres")
    predictor.manual_initialization(network, manager, settings, None, DATASET, "nnUNetTrainer", (0,))
    weights = network.state_dict() if isinstance(network, (Wrong, Branching)) else {}
    with pytest.raises(UserError, match=words):
        onnx_export.network_as_onnx(predictor, weights, {})


@pytest.mark.slow
@pytest.mark.parametrize(
    "norm",
    [nn.InstanceNorm3d(4, affine=True), nn.InstanceNorm3d(4), nn.GroupNorm(2, 4)],
    ids=["affine", "plain", "group"],
)
def test_normalisation_over_a_large_window_is_exact(norm):
    """onnxruntime's own is off by 3e-5 here, torch's by 4e-7."""
    torch.manual_seed(0)
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    x = torch.randn(1, 4, 12, 224, 224) * 0.3 + 1.5
    with torch.no_grad(), onnx_export._quietly():
        program = torch.onnx.export(norm, (x,), dynamo=True, verbose=False, custom_translation_table=translations())
        exact = norm.double()(x.double())
    found = OnnxNetwork([open_session(program.model_proto.SerializeToString())])(x)
    assert (found - exact).abs().max() < 3e-6


@pytest.mark.slow
def test_segmambas_scan_is_exported_as_loops():
    """One layer in all three orders; its length is no multiple of a chunk."""
    torch.manual_seed(0)
    layer, tokens = TriOrientedMamba(8).eval(), torch.randn(2, 105, 8)
    with torch.no_grad(), onnx_export._quietly():
        expected = layer(tokens, 5)
        program = torch.onnx.export(layer, (tokens, 5), dynamo=True, verbose=False)
    proto = program.model_proto
    assert len(proto.graph.node) < 500 and any(node.op_type == "Scan" for node in proto.graph.node)
    found = OnnxNetwork([open_session(proto.SerializeToString())])(tokens)
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max()
