"""What a GPU computes with in training and prediction is what doctor names, whatever is switched on at the first call.

nnU-Net's first forward pass runs on fake tensors in training and in inference mode in prediction. Triton's interpreter
stands in for a GPU (`helpers.triton_as_gpu`); it must be chosen before Triton is imported, in a process of its own.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import triton_as_gpu
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from nnunet_ext.doctor import probes
from nnunet_ext.inference.predictor import FolderPredictor, PredictionCase
from nnunet_ext.trainers.segmamba import nnUNetTrainerSegMamba

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
TRITON = {"scan": "triton", "convolution": "triton"}
pytest.importorskip("triton")
inside = pytest.mark.skipif(not INTERPRETED, reason="runs in the interpreter's process")
outside = pytest.mark.skipif(INTERPRETED, reason="starts the interpreter's process")

if INTERPRETED:

    @pytest.fixture(scope="session")
    def preprocessed() -> Path:
        return Path(os.environ["PREPROCESSED_PHANTOMS"])


@outside
def test_in_the_interpreter(preprocessed):
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-x", "-p", "no:cacheprovider", __file__]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PREPROCESSED_PHANTOMS": str(preprocessed)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and "passed" in done.stdout, done.stdout[-5000:]


@pytest.fixture(scope="module")
def installed():
    triton_as_gpu.install()


@pytest.fixture
def gpu(installed):
    """The stand-in before its first probe."""
    triton_as_gpu.forget()
    return triton_as_gpu


def used(gpu) -> set[tuple[str, str]]:
    noted = set(gpu.used)
    gpu.used.clear()
    return noted


@inside
def test_doctor_names_triton(gpu, monkeypatch):
    first = f"sys.path[:0] = {[p for p in sys.path if p]!r}\nfrom helpers import triton_as_gpu as gpu\ngpu.install()\n"
    monkeypatch.setattr(probes, "_TORCH", first + probes._TORCH)
    found = probes.torch_here()["backends"]["cpu"]
    assert {name: result["chosen"] for name, result in found.items()} == TRITON


@inside
@pytest.mark.parametrize("inference", [True, False])
def test_no_mode_is_taken_for_a_fault_of_the_device(gpu, inference):
    if inference:
        with torch.inference_mode(), torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            assert gpu.chosen() == TRITON
    else:
        with torch.device("meta"), FakeTensorMode(), FlopCounterMode(display=False) as counter:
            assert gpu.chosen() == TRITON
        assert counter.get_total_flops() == 0


@inside
def test_in_forked_and_in_spawned_processes(gpu):
    for kind, choose in (("fork", gpu.chosen), ("spawn", gpu.chosen_after_install)):
        with multiprocessing.get_context(kind).Pool(1) as pool:
            assert pool.apply_async(choose).get(120) == TRITON, kind


@inside
def test_training_validation_and_prediction(gpu, make_trainer, preprocessed, tmp_path, capsys, monkeypatch):
    for name in ("EPOCHS", "ITERATIONS"):
        monkeypatch.setenv(f"NNUNET_EXT_{name}", "1")
    trainer = make_trainer(nnUNetTrainerSegMamba)
    trainer.initialize()
    assert trainer._gmacs() > 0
    used(gpu)
    trainer.run_training()
    assert used(gpu) == set(TRITON.items())
    trainer.inference_allowed_mirroring_axes = None
    trainer.perform_actual_validation()
    assert used(gpu) == set(TRITON.items())
    assert json.loads(Path(trainer.output_folder, "run.json").read_text())["backends"] == TRITON
    assert Path(trainer.log_file).read_text().count("scan by triton, convolution by triton") == 1

    for predictor_class in (nnUNetPredictor, FolderPredictor):
        gpu.forget()
        predictor = predictor_class(device=trainer.device, allow_tqdm=False, use_mirroring=False, tile_step_size=1)
        managers = (trainer.plans_manager, trainer.configuration_manager)
        weights = [trainer.network.state_dict()]
        predictor.manual_initialization(trainer.network, *managers, weights, trainer.dataset_json, "x", None)
        if predictor_class is nnUNetPredictor:
            predictor.predict_logits_from_preprocessed_data(torch.zeros(1, 16, 32, 32))
        else:
            image = next((preprocessed.parent.parent / "nnUNet_raw" / preprocessed.name / "imagesTs").iterdir())
            capsys.readouterr()
            (done,) = predictor.predict_folder([PredictionCase("case", (image,), tmp_path / "case.nii.gz")])
            assert done.failure is None
            assert capsys.readouterr().err.count("nnunet_ext: scan by triton, convolution by triton\n") == 1
        assert used(gpu) == set(TRITON.items()), predictor_class


@inside
def test_a_wish_that_cannot_be_met_ends_the_training_before_it_begins(gpu, make_trainer, monkeypatch):
    monkeypatch.setenv("NNUNET_EXT_SCAN", "mamba_ssm")
    with pytest.raises(SystemExit, match="NNUNET_EXT_SCAN='mamba_ssm' does not run on cpu: needs a CUDA device"):
        make_trainer(nnUNetTrainerSegMamba).initialize()
