"""SAM-Med3D's files and fine-tuning: read without running code, filled strictly, more channels than published."""

from __future__ import annotations

import json
from argparse import Namespace
from collections import Counter

import numpy as np
import pytest
import torch
from helpers.promptable_stubs import SIZES

from nnunet_ext.architectures.sam_med3d import SAMMed3D
from nnunet_ext.architectures.sam_med3d.promptable import PromptableSAMMed3D
from nnunet_ext.checkpoints import read_checkpoint
from nnunet_ext.checkpoints.sam_med3d import transfer
from nnunet_ext.cli.main import main
from nnunet_ext.errors import UserError


@pytest.fixture
def official(tmp_path):
    """A file with everything the official code saves around small weights."""
    torch.manual_seed(0)
    model = SAMMed3D(1, **SIZES)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    optimizer = torch.optim.AdamW(model.parameters())
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [120, 180])
    assert isinstance(scheduler.state_dict()["milestones"], Counter)
    content = {
        "epoch": 3, "model_state_dict": model.state_dict(), "optimizer_state_dict": optimizer.state_dict(),
        "lr_scheduler_state_dict": scheduler.state_dict(), "losses": [np.float64(1.5)], "dices": [torch.tensor(0.5)],
        "best_loss": 1.5, "best_dice": 0.5, "args": Namespace(lr=8e-4, gpu_ids=[0, 1], multi_click=False),
        "used_datas": ["data/train"],
    }  # fmt: skip
    torch.save(content, tmp_path / "official.pth")
    return model, tmp_path / "official.pth"


class Harmful:
    """Pickled, it would create a file when read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_files_are_read_and_code_in_them_is_not_run(official, tmp_path):
    model, file = official
    weights = read_checkpoint(file)
    assert all(torch.equal(weights[key], value) for key, value in model.state_dict().items())
    torch.save({"model_state_dict": model.state_dict(), "args": Harmful(tmp_path / "made")}, tmp_path / "harmful.pth")
    with pytest.raises(UserError, match=r"holds more than tensors and plain values .*and was not loaded"):
        read_checkpoint(tmp_path / "harmful.pth")
    assert not (tmp_path / "made").exists()


def test_a_scan_given_as_every_channel_is_what_it_was_as_one(official):
    model, file = official
    network = PromptableSAMMed3D(3, 4, sizes=SIZES)
    report = transfer(network, read_checkpoint(file))
    assert report.resized == ("sam.image_encoder.patch_embed.proj.weight",)
    assert report.initial == ("automatic.seg_layers.weight",)
    x = torch.randn(1, 1, 16, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(network.embed(x.expand(-1, 3, -1, -1, -1)), model.image_encoder(x))
    with pytest.raises(ValueError, match="weights do not fit SAMMed3D"):
        transfer(PromptableSAMMed3D(1, 2, sizes={**SIZES, "depth": 2}), read_checkpoint(file))


def opens_in_viewers(folder, model):
    """The untrained weights answer a click of the official session as the official code would, in its (x, y, z)."""
    session = pytest.importorskip("nnInteractive.inference.inference_session").nnInteractiveInferenceSession(
        device=torch.device("cpu"), torch_n_threads=1, do_autozoom=False
    )
    session.initialize_from_trained_model_folder(str(folder))
    assert session.license == "Apache-2.0"
    image = np.random.default_rng(0).normal(50, 9, (1, 16, 16, 16)).astype(np.float32)
    session.set_image(image)
    session.set_target_buffer(np.zeros(image.shape[1:], dtype=np.uint8))
    session.add_point_interaction((8, 8, 8), include_interaction=True, run_prediction=False)
    session.add_point_interaction((8, 4, 11), include_interaction=False, run_prediction=False)
    session.add_point_interaction((8, 8, 8), include_interaction=True)  # decides on the window: the whole image
    turned = torch.from_numpy(image[0].T.copy())
    above = turned[turned > turned.min()]
    x = ((turned - above.mean()) / above.std())[None, None]
    points = torch.tensor([[[8, 8, 8], [11, 4, 8]]])
    with torch.no_grad():
        logits = model(x, points, torch.tensor([[1, 0]]), torch.zeros(1, 1, *(model.mask_size,) * 3))
    expected = (logits[0, 0] > 0).numpy().T
    assert 0 < expected.sum() < expected.size
    assert np.array_equal(session.target_buffer, expected)


def test_import_weights_writes_what_nnunet_starts_from(official, tmp_path, monkeypatch, capsys):
    from helpers.promptable_stubs import trained_folder
    from nnunetv2.run.load_pretrained_weights import load_pretrained_weights

    model, file = official
    folder = tmp_path / "preprocessed" / "Dataset007_Toy"
    folder.mkdir(parents=True)
    trained = trained_folder(tmp_path)
    for name in ("plans.json", "dataset.json"):
        (folder / name).write_text((trained / name).read_text())
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "preprocessed"))
    words = ["import-weights", "--model", "sam_med3d", "-i", str(file), "-d", "7", "-p", "plans"]
    published = tmp_path / "published"
    assert main([*words, "-o", str(tmp_path / "start.pth"), "--model-folder", str(published)]) == 0
    assert "left as initialised: automatic.seg_layers.weight" in capsys.readouterr().err
    # Another class count: the class tokens stay, the rest is taken.
    network = PromptableSAMMed3D(1, 5, sizes=SIZES)
    tokens = network.automatic.seg_layers.weight.clone()
    load_pretrained_weights(network, str(tmp_path / "start.pth"))
    assert torch.equal(network.automatic.seg_layers.weight, tokens)
    assert all(torch.equal(value, network.sam.state_dict()[key]) for key, value in model.state_dict().items())
    opens_in_viewers(published, model)
    assert main([*words, "-o", str(tmp_path / "other.pth"), "--model-folder", str(published)]) == 1
    assert "published exists already; choose another folder" in capsys.readouterr().err
    assert main([*words, "-o", str(tmp_path / "start.pth"), "--weights-patch", "1", "1", "1"]) == 2
    plans = json.loads((folder / "plans.json").read_text())
    del plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]["sizes"]
    (folder / "plans.json").write_text(json.dumps(plans))
    assert main([*words, "-o", str(tmp_path / "other.pth")]) == 1
    assert "official.pth: weights do not fit SAMMed3D" in capsys.readouterr().err
    assert not (tmp_path / "other.pth").exists()
