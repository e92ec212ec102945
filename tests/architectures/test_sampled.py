"""MedSegDiff-V2 behind nnU-Net's interface: what repeats, what runs once, and what the environment may change."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from nnunet_ext.architectures.medsegdiff.sampled import DirectControl, SampledMedSegDiffV2
from nnunet_ext.diffusion.sampling import Place, Sampling, draw_noise
from nnunet_ext.errors import TrainingError
from nnunet_ext.inference.predictor import FolderPredictor

SIZES = {
    "strides": [[1, 1], [2, 2], [2, 2]], "kernel_sizes": [[3, 3]] * 3, "width": 8, "max_width": 16,
    "denoiser_width": 4, "embedding_dim": 8, "semantic_dim": 6, "semantic_blocks": 1, "filter_channels": 4,
}  # fmt: skip


def network(**arguments) -> SampledMedSegDiffV2:
    model = SampledMedSegDiffV2(1, 3, **{**SIZES, **arguments})
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


IMAGE = torch.randn(1, 1, 16, 24, generator=torch.Generator().manual_seed(1))


def predict(model: SampledMedSegDiffV2, **sampling) -> torch.Tensor:
    model.sampling = replace(model.sampling, **sampling)
    with torch.inference_mode():
        return model(IMAGE)


@pytest.mark.parametrize("prediction", ["x0", "noise", "v"])
@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "dpm-solver++"])
def test_same_seed_same_result(prediction, sampler):
    model = network(prediction=prediction)
    settings = {"sampler": sampler, "steps": 3, "samples": 2}
    first = predict(model, **settings)
    assert first.shape == (1, 3, 16, 24)
    assert predict(model, **settings).equal(first)
    assert not predict(model, **settings, seed=1).equal(first)


def test_samples_drawn_together_are_those_drawn_alone():
    model = network()
    samples = []
    for model.first_sample in range(7):
        samples.append(predict(model, steps=2, samples=1).exp())
    model.first_sample = 0
    together = predict(model, steps=2, samples=7).exp()
    # Batches of another size may take kernels that round otherwise; a sample left out moves the mean by 0.05.
    assert (together - torch.stack(samples).mean(0)).abs().max() < 1e-3


def test_no_steps_is_the_condition_model_and_what_the_image_says_is_said_once():
    model = network()
    calls: Counter[str] = Counter()
    for name in ("condition_model", "anchor", "ss_former.patchify_condition", "denoiser.stem_image", "denoiser"):
        module = model.average.get_submodule(name)
        module.register_forward_hook(lambda *_, name=name: calls.update([name]))
    filters = model.average.ss_former.attentions[0].filter
    filters.register_forward_hook(lambda *_: calls.update(["filter"]))
    assert predict(model, steps=0).equal(model.average.condition(IMAGE).logits)
    calls.clear()
    predict(model, steps=4, samples=12)
    assert calls.pop("denoiser") == 4 * 3, "five samples at once"
    assert calls.pop("filter") == 4
    assert set(calls.values()) == {1}, calls


@pytest.mark.parametrize("fusion", ["majority", "staple"])
@pytest.mark.parametrize("regions", [False, True])
def test_labels_can_be_fused(fusion, regions):
    model = network()
    model.has_regions.fill_(regions)
    each = []
    for model.first_sample in range(5):
        each.append(predict(model, steps=2, samples=1)[0])
    model.first_sample = 0
    marked = torch.stack(
        [logits > 0 if regions else torch.nn.functional.one_hot(logits.argmax(0), 3).movedim(-1, 0) for logits in each]
    )
    agreed = (marked.float().mean(0) - 0.5).abs() == 0.5
    fused = predict(model, steps=2, samples=5, fusion=fusion)[0]
    found = fused > 0 if regions else torch.nn.functional.one_hot(fused.argmax(0), 3).movedim(-1, 0)
    assert 0 < agreed.float().mean() and (found == marked[0])[agreed].all()


def test_any_patch_is_padded_inside_and_cropped():
    model = network()
    with torch.inference_mode():
        assert model(torch.randn(2, 1, 13, 18)).shape == (2, 3, 13, 18)
    control = DirectControl(1, 3, **SIZES)
    assert control(torch.randn(2, 1, 13, 18)).shape == (2, 3, 13, 18)
    assert {k for k, _ in control.trained.named_parameters()} == {
        k for k, _ in model.trained.condition_model.named_parameters()
    }


# Noise ----------------------------------------------------------------------------------------------------------------


def test_windows_agree_where_they_overlap():
    volume = (10, 20, 30)
    whole = draw_noise((0, 1, 999), 2, volume, Place((0, 0, 0), volume))
    assert abs(whole.mean()) < 0.05 and abs(whole.std() - 1) < 0.05
    window = draw_noise((0, 1, 999), 2, (4, 8, 8), Place((3, 5, 20), volume))
    assert window.equal(whole[:, 3:7, 5:13, 20:28])
    mirrored = draw_noise((0, 1, 999), 2, (4, 8, 8), Place((3, 5, 20), volume, (0, 2)))
    assert mirrored.flip(1, 3).equal(window)
    plane = draw_noise((0, 1, 999), 2, (8, 8), Place((3, 5, 20), volume, (1,)))
    assert plane.flip(2).equal(whole[:, 3, 5:13, 20:28])
    other = draw_noise((0, 2, 999), 2, (4, 8, 8), Place((3, 5, 20), volume))
    assert abs((other * window).mean()) < 0.2


class _NoiseAsLogits(SampledMedSegDiffV2):
    """Answers with the noise it would start from."""

    def forward(self, x, x0=None):
        return self._noise(0, 999, x.shape[2:])[None]


@pytest.mark.parametrize("patch", [(4, 8, 8), (8, 8)])
def test_every_window_gets_the_noise_of_its_place(patch):
    predictor = FolderPredictor(device=torch.device("cpu"), use_gaussian=False, allow_tqdm=False)
    predictor.network = _NoiseAsLogits(1, 3, **SIZES)
    predictor.configuration_manager = SimpleNamespace(patch_size=patch)
    predictor.label_manager = SimpleNamespace(num_segmentation_heads=3)
    predictor.allowed_mirroring_axes = tuple(range(len(patch)))
    volume = (6, 13, 18)
    stitched = predictor.predict_sliding_window_return_logits(torch.zeros(1, *volume)).float()
    field = draw_noise((0, 0, 999), 3, volume, Place((0, 0, 0), volume))
    assert (stitched - field).abs().max() < 0.01, "half precision sums"
    assert predictor.network.place is None


# Settings -------------------------------------------------------------------------------------------------------------


def test_environment_changes_the_settings():
    default = Sampling("ddim", steps=2, samples=1, fusion="mean")
    environment = {
        "NNUNET_EXT_SAMPLER": "dpm-solver++", "NNUNET_EXT_SAMPLING_STEPS": "20", "NNUNET_EXT_SAMPLES": "10",
        "NNUNET_EXT_FUSION": "staple", "NNUNET_EXT_SAMPLING_SEED": "7",
    }  # fmt: skip
    assert default.changed(1000, environment) == Sampling("dpm-solver++", 20, 10, "staple", 7)
    assert default.changed(1000, {}) == default
    wrong = {
        "NNUNET_EXT_SAMPLER": ("euler", "one of ddim, ddpm"), "NNUNET_EXT_SAMPLING_STEPS": ("1001", "from 0"),
        "NNUNET_EXT_SAMPLES": ("0", "at least 1"), "NNUNET_EXT_FUSION": ("max", "one of mean"),
        "NNUNET_EXT_SAMPLING_SEED": ("-1", "from 0"),
    }  # fmt: skip
    for name, (value, expected) in wrong.items():
        with pytest.raises(TrainingError, match=rf"{name}='{value}' must be .*{expected}"):
            default.changed(1000, {name: value})


# Training -------------------------------------------------------------------------------------------------------------


def test_mean_weights_follow_and_predict():
    model = network()
    with torch.no_grad():
        for parameter in model.trained.parameters():
            parameter.fill_(1.0)
        for parameter in model.average.parameters():
            parameter.zero_()
    model.update_average(0.999)
    assert all(torch.allclose(p, torch.tensor(1 - 2 / 11)) for p in model.average.parameters())
    assert not any(p.requires_grad for p in model.average.parameters())
    model = network()
    before = predict(model, steps=1)
    with torch.no_grad():
        for parameter in model.trained.parameters():
            parameter.zero_()
    assert predict(model, steps=1).equal(before)


def test_recycled_mask_is_the_models_own():
    model = network(recycle=1.0)
    x0 = torch.ones(1, 3, 16, 24)
    x0[..., 0] = 0  # nobody knows
    condition = model.trained.condition(IMAGE)
    guess = model._first_guess(x0, condition)
    assert guess[..., 0].eq(0).all() and guess[..., 1:].abs().max() < 1 and not guess[..., 1:].eq(1).any()
    with pytest.raises(ValueError, match="recycle needs prediction='x0', not 'noise'"):
        network(recycle=0.5, prediction="noise")
