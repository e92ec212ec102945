"""The support set behind nnU-Net's forward: where labels land, which slices support, what travels in a checkpoint."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers.toy_networks import Copy, MeanLabel

from nnunet_ext.architectures.universeg.few_shot import (
    BUFFERS,
    FewShotNetwork,
    mean_logits,
    similar_sets,
    support_buffers,
)
from nnunet_ext.errors import TrainingError
from nnunet_ext.few_shot.support_curve import support_curve
from nnunet_ext.reports.support_curve import write_curve
from nnunet_ext.support.pool import Pool, Task, to_uint8, unit_intensities
from nnunet_ext.support.view import to_view

WINDOW = torch.tensor([[-2.0, 3.0]])
TASKS = (Task("disc", (1,)), Task("bar", (2,)))
SMALL = {"encoder_blocks": [2, 2], "image_size": 64}


def slices(count: int, grid: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (n, 1, H, W) and masks (n, 2, H, W): a disc and a bar, elsewhere in every slice, brighter."""
    rows, columns = torch.meshgrid(*(torch.linspace(0, 1, n) for n in grid), indexing="ij")
    masks = []
    for i in range(count):
        disc = (rows - 0.3 - 0.03 * i) ** 2 + (columns - 0.6) ** 2 < 0.03
        bar = (rows > 0.75) & (columns > 0.1 * (i % 4)) & (columns < 0.1 * (i % 4) + 0.3)
        masks.append(torch.stack((disc & ~bar, bar)).float())
    masks = torch.stack(masks)
    noise = torch.randn(masks[:, :1].shape, generator=torch.Generator().manual_seed(0))
    return masks[:, :1] * 2 + masks[:, 1:] + 0.2 * noise, masks


def pool_of(images: torch.Tensor, masks: torch.Tensor, side: int = 0, cases=None) -> Pool:
    n = len(images)
    views = unit_intensities(to_view(images, 64, side=side), WINDOW)
    cases = np.arange(n) if cases is None else np.array(cases)
    names = tuple(f"case_{i}" for i in range(n))
    marked = to_uint8(to_view(masks, 64, side=side))
    return Pool(to_uint8(views), marked, cases, np.zeros(n), names, TASKS, WINDOW, side)


def copying(classes: int = 3, core=Copy) -> FewShotNetwork:
    network = FewShotNetwork(1, classes, **SMALL).eval()
    network.core = core()
    return network


@pytest.mark.parametrize("grid", [(40, 40), (37, 52), (63, 31)])
@pytest.mark.parametrize("flip", [(), (2,), (3,), (2, 3)])
def test_a_support_equal_to_the_query_gives_its_label_in_place(grid, flip):
    images, masks = slices(4, grid)
    images, masks = images.flip(flip), masks.flip(flip)
    network = copying()
    network.set_support(pool_of(images, masks, side=66))
    with torch.inference_mode():
        logits = network(images)
    assert logits.shape == (4, 3, *grid)
    labels = logits.argmax(dim=1)
    expected = (masks * torch.tensor([1, 2]).view(1, 2, 1, 1)).amax(dim=1)
    # The side is 66 and the view 64 pixels, so only pixels on an edge may differ.
    wrong = labels != expected
    assert wrong.float().mean() < 0.02
    for value in (1, 2):
        moved = [(x == value).float().nonzero().float().mean(dim=0) for x in (labels, expected)]
        assert (moved[0] - moved[1]).abs().max() < 0.1


def test_regions_have_no_background():
    images, masks = slices(3, (40, 40))
    network = copying(classes=2)
    network.set_support(pool_of(images, masks))
    logits = network(images)
    assert logits.shape[1] == 2
    assert ((logits > 0) == (masks > 0.5)).float().mean() > 0.98


def test_an_excluded_case_does_not_support_and_nothing_left_means_absent():
    images, masks = slices(3, (40, 40))
    network = copying()
    network.set_support(pool_of(images, masks))
    network.support_size = 1
    itself = network(images[:1])
    network.exclude_case("case_0")
    other = network(images[:1])
    assert not torch.equal(itself.argmax(1), other.argmax(1))
    network.exclude_case(None)
    assert torch.equal(network(images[:1]), itself)
    alone = copying()
    alone.set_support(pool_of(images[:1], masks[:1]))
    alone.exclude_case("case_0")
    assert (alone(images[:1]).argmax(dim=1) == 0).all()


def test_the_support_set_travels_with_the_weights(tmp_path):
    images, masks = slices(5, (40, 40))
    network = FewShotNetwork(1, 3, **SMALL).eval()
    before = network.state_dict()
    with pytest.raises(ValueError, match="holds no support set"):
        network(images)
    network.set_support(pool_of(images, masks, side=50), support_size=3)
    fresh = FewShotNetwork(1, 3, **SMALL).eval()
    fresh.load_state_dict(network.state_dict())
    with torch.inference_mode():
        torch.testing.assert_close(fresh(images), network(images), rtol=0, atol=0)
    assert int(fresh.default_size) == 3
    fresh.load_state_dict(before)  # another fold's set replaces it
    with pytest.raises(ValueError, match="holds no support set"):
        fresh(images)


def test_a_support_file_replaces_the_stored_set_for_every_fold(tmp_path, monkeypatch):
    images, masks = slices(4, (40, 40))
    stored, wanted = pool_of(images[:1], masks[:1]), pool_of(images[1:], masks[1:])
    path = tmp_path / "mine.pt"
    torch.save(support_buffers(wanted), path)
    expected = copying()
    expected.set_support(wanted)
    network = copying()
    network.set_support(stored)
    fold = network.state_dict()
    assert not torch.equal(network(images), expected(images))
    monkeypatch.setenv("NNUNET_EXT_SUPPORT", str(path))
    network = copying()
    for _ in range(2):
        network.load_state_dict(fold)
        assert torch.equal(network(images), expected(images))

    torch.save({"support_images": wanted.images}, path)
    network = copying()
    network.load_state_dict(fold)
    with pytest.raises(TrainingError, match=r"NNUNET_EXT_SUPPORT=.*mine\.pt is no support file"):
        network(images)
    torch.save({**support_buffers(wanted), "support_masks": wanted.masks[:, :1]}, path)
    with pytest.raises(TrainingError, match=r"has images and masks of \(1, 64, 64, 1, 64, 64\) and this network needs"):
        network(images)
    path.unlink()
    with pytest.raises(TrainingError, match=r"mine\.pt does not exist; make it with nnunet_ext support"):
        network(images)


@pytest.mark.parametrize("name", ["NNUNET_EXT_SUPPORT_SIZE", "NNUNET_EXT_SUPPORT_DRAWS"])
def test_settings_are_read_and_checked(name, monkeypatch):
    monkeypatch.setenv(name, "5")
    network = FewShotNetwork(1, 3, **SMALL)
    assert 5 in (network.support_size, network.draws)
    monkeypatch.setenv(name, "none")
    with pytest.raises(TrainingError, match=f"{name}='none' must be a whole number"):
        FewShotNetwork(1, 3, **SMALL)


def test_support_sets_are_the_nearest_and_a_fifth_without_the_label():
    distances = np.arange(40.0)
    holds = np.arange(40) % 2 == 0
    allowed = np.arange(40) >= 4
    (only,) = similar_sets(distances, holds, allowed, 10, 1)
    assert only.tolist() == [4, 6, 8, 10, 12, 14, 16, 18, 5, 7]
    drawn = similar_sets(distances, holds, allowed, 10, 4)
    assert len({tuple(chosen) for chosen in drawn}) == 4
    for chosen in drawn:
        assert holds[chosen].sum() == 8 and chosen.min() >= 4 and chosen.max() <= 34
    again = similar_sets(distances, holds, allowed, 10, 4)
    assert all(np.array_equal(a, b) for a, b in zip(drawn, again, strict=True))


def test_several_supports_are_averaged_as_probabilities():
    p = torch.tensor([[0.9, 0.5], [0.2, 0.5]])
    torch.testing.assert_close(mean_logits(p.logit()).sigmoid(), torch.tensor([0.55, 0.5]))
    images, masks = slices(6, (64, 64))
    network = copying(core=MeanLabel)
    network.set_support(pool_of(images, masks))
    network.support_size, network.draws = 2, 8
    averaged = network(images[:1])[0, 1].sigmoid()
    assert len(averaged.unique()) > 3  # more shades than two supports have


def test_curve_uses_no_support_of_the_same_case_and_rises_for_a_network_that_averages(tmp_path):
    images, masks = slices(24, (64, 64))
    masks = (masks + 0.9 * torch.rand(masks.shape, generator=torch.Generator().manual_seed(1)) > 0.8).float()
    supports = pool_of(images, masks, cases=range(24))
    clean = pool_of(images, slices(24, (64, 64))[1], cases=range(24))
    queries = clean.subset(np.arange(4))
    points = support_curve(MeanLabel(), queries, supports, sizes=(1, 2, 4, 8, 16, 32), device=torch.device("cpu"))
    sizes = sorted({point.support_size for point in points})
    assert sizes == [1, 2, 4, 8, 16], "23 supports are not 32"
    mean = {point.support_size: point.dice_mean for point in points if point.label == "mean"}
    assert mean[16] > mean[1] + 0.05
    copied = support_curve(Copy(), queries, clean, sizes=(16,), device=torch.device("cpu"))
    assert all(point.dice_mean < 0.999 for point in copied), "a case supported itself"
    write_curve(points, tmp_path, "toy")
    assert (tmp_path / "support_curve.csv").read_text().splitlines()[0] == "support_size,label,dice_mean,dice_sd,cases"
    assert (tmp_path / "support_curve.png").read_bytes().startswith(b"\x89PNG")


def test_buffers_have_the_names_of_a_support_file():
    images, masks = slices(2, (40, 40))
    assert tuple(support_buffers(pool_of(images, masks))) == BUFFERS
    assert set(BUFFERS) < set(FewShotNetwork(1, 3, **SMALL).state_dict())
