"""Support sets: what a pool knows, how slices are drawn, that nothing leaks, that views are exact, and episodes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from nnunet_ext.support import draw
from nnunet_ext.support.augment import Chances, augment_task, boundary, dilate, erode, sobel, warp
from nnunet_ext.support.episodes import Episodes, Mixture, synthetic_episode
from nnunet_ext.support.pool import Pool, Task, read_pool
from nnunet_ext.support.view import from_view, to_view


class FakeDataset:
    """Cases as nnU-Net's data set object gives them: image (1, Z, H, W), labels (1, Z, H, W)."""

    source_folder = "somewhere"

    def __init__(self, cases: dict[str, tuple[np.ndarray, np.ndarray]]):
        self.cases = cases
        self.identifiers = list(cases)

    def load_case(self, name):
        image, labels = self.cases[name]
        return image, labels, None, {}


def volumes(names="abc", depth=6) -> FakeDataset:
    """Label 1 is a square in slices 1 to 3, label 2 one in slice 4; -1 is nnU-Net's outside; the square is brighter."""
    cases = {}
    for number, name in enumerate(names):
        rng = np.random.default_rng(number)
        labels = np.zeros((1, depth, 20, 16), np.int16)
        labels[0, 1:4, 4:12, 4:12] = 1
        labels[0, 4, 2:9, 3:8] = 2
        labels[0, :, 0] = -1
        image = rng.normal(0, 0.1, labels.shape).astype(np.float32) + (labels > 0)
        cases[name] = (image, labels)
    return FakeDataset(cases)


TASKS = (Task("square", (1,)), Task("both", (1, 2)))


@pytest.fixture
def pool() -> Pool:
    return read_pool(volumes(), TASKS, 16, 20)


def test_pool_knows_which_slice_holds_which_label(pool):
    assert pool.where(0) == {name: [0.2, 0.4, 0.6] for name in "abc"}
    assert pool.where(1) == {name: [0.2, 0.4, 0.6, 0.8] for name in "abc"}
    # Four slices hold a task; of the two others (0 and 5) at most half as many as hold one are kept.
    assert len(pool) == 3 * 6 and pool.images.shape == (18, 1, 16, 16) and pool.masks.shape == (18, 2, 16, 16)
    # 8x8 of a 20-pixel side are 64/400 of the view.
    assert pool.masks[pool.present[:, 0], 0].float().mean() / 255 == pytest.approx(64 / 400, rel=0.02)


def test_empty_slices_are_limited_and_ignored_pixels_leave_out_a_slice():
    dataset = volumes("a", depth=40)
    assert len(read_pool(dataset, TASKS, 16, 20)) == 4 + 2
    assert len(read_pool(dataset, TASKS, 16, 20, every_slice=True)) == 40
    dataset.cases["a"][1][0, 2, 10, 10] = 9
    kept = read_pool(dataset, TASKS, 16, 20, ignore_label=9)
    assert kept.where(0) == {"a": [1 / 39, 3 / 39]}


def test_large_pools_are_thinned_with_a_word(monkeypatch):
    monkeypatch.setattr("nnunet_ext.support.pool._MOST_BYTES", 3 * 3 * 16 * 16 * 3)
    said = []
    assert len(read_pool(volumes(), TASKS, 16, 20, report=said.append)) == 9
    assert said == ["support pool: 9 slices left out, evenly within each case, to stay below 1 GiB"]


def test_a_case_never_supports_itself(pool):
    rng = np.random.default_rng(0)
    look = (pool.thumbnails[0], 0.2)
    for strategy in draw.STRATEGIES:
        for name in "abc":
            chosen = pool.draw(0, 100, rng, strategy=strategy, query=look, without_case=name)
            assert len(chosen) == 6 and name not in {pool.case_names[pool.cases[i]] for i in chosen}
    with pytest.raises(draw.SupportLeak, match="b is in its own support set"):
        draw.refuse_leak(["a", "b"], "b")
    with pytest.raises(ValueError, match="'nearest' must be one of balanced, random, similar, position"):
        pool.draw(0, 3, rng, strategy="nearest")


def test_draws(pool):
    rng = np.random.default_rng(1)
    cases = [pool.case_names[pool.cases[i]] for i in pool.draw(0, 6, rng)]
    assert sorted(cases[:3]) == sorted(cases[3:]) == ["a", "b", "c"]
    near = pool.draw(1, 3, rng, strategy="position", query=(pool.thumbnails[0], 0.81))
    assert set(pool.positions[near]) == {0.8}
    query = int(np.flatnonzero(pool.present[:, 0])[0])
    alike = pool.draw(1, 9, rng, strategy="similar", query=(pool.thumbnails[query], 0.0))
    assert alike[0] == query and set(pool.positions[alike]) == {0.2, 0.4, 0.6}  # the square, not the rectangle
    for with_label in (True, False):
        drawn = pool.draw(0, 100, rng, strategy="random", with_label=with_label)
        assert (pool.present[drawn, 0] == with_label).all() and len(set(drawn)) == 9


@pytest.mark.parametrize("grid", [(33, 50), (64, 64), (51, 37), (20, 300), (16, 16)])
@pytest.mark.parametrize("side", [0, 71])
def test_there_and_back_is_exact_on_any_grid(grid, side):
    rows, columns = torch.meshgrid(*(torch.linspace(-1, 1, n) for n in grid), indexing="ij")
    mask = ((rows - 0.2) ** 2 + (columns + 0.3) ** 2 < 0.3).float()[None, None]
    for flip in ((), (2,), (3,)):
        flipped = mask.flip(flip)
        back = from_view(to_view(flipped, 128, side=side), grid, side=side)
        assert back.shape == mask.shape
        wrong = (back > 0.5) != (flipped > 0.5)
        assert wrong.sum() <= (0.02 * mask.sum() if max(*grid, side) <= 128 else 0.12 * mask.sum())
        centre = [(values[0, 0] > 0.5).nonzero().float().mean(dim=0) for values in (back, flipped)]
        assert (centre[0] - centre[1]).abs().max() < 0.06 * max(1, max(*grid, side) / 128)


def test_view_is_square_in_millimetres():
    x = torch.ones(1, 1, 10, 30)
    view = to_view(x, 32, spacing=(3.0, 1.0))  # 30 mm by 30 mm
    assert view.min() > 0.99
    view = to_view(x, 32, spacing=(1.0, 1.0))  # 10 mm by 30 mm
    assert view.mean() == pytest.approx(1 / 3, abs=0.02)
    assert from_view(view, (10, 30), spacing=(1.0, 1.0)).shape == (1, 1, 10, 30)


def episodes(pool, seed=0, **changes):
    settings = {
        "batch_size": 4, "support_sizes": (1, 5), "chances": Chances(), "mixture": Mixture(), "seed": seed,
        "device": torch.device("cpu"),
    }  # fmt: skip
    return Episodes([pool], [pool], **{**settings, **changes})


def test_episodes_are_seeded_and_well_formed(pool):
    first, again, other = (episodes(pool, seed) for seed in (0, 0, 1))
    sizes = set()
    for _ in range(40):
        batch, same, different = next(first), next(again), next(other)
        assert torch.equal(batch.target, same.target) and torch.equal(batch.support_labels, same.support_labels)
        assert batch.support_images.shape != different.support_images.shape or not torch.equal(
            batch.support_images, different.support_images
        )
        size = batch.support_images.shape[1]
        sizes.add(size)
        assert batch.support_images.shape == batch.support_labels.shape == (4, size, 1, 16, 16)
        assert batch.target.shape == batch.target_label.shape == (4, 1, 16, 16)
        for x in (batch.target, batch.target_label, batch.support_images, batch.support_labels):
            assert x.isfinite().all() and x.min() >= 0 and x.max() <= 1
    assert sizes == {1, 2, 3, 4, 5}


def test_queries_and_supports_come_from_different_cases(pool):
    constant = pool.subset(np.arange(len(pool)))
    for number in range(3):  # every case one grey value
        constant.images[pool.cases == number] = 60 * (number + 1)
    source = episodes(constant, chances=None, mixture=Mixture(synthetic=0))
    seen = set()
    for _ in range(30):
        batch = next(source)
        for i, key in enumerate(batch.keys):
            # A sum of 256 equal numbers in single precision may round the same way 256 times.
            assert float(batch.target[i].mean()) == pytest.approx(60 * (1 + "abc".index(key)) / 255, rel=256 * 2**-24)
            assert not torch.isclose(batch.support_images[i], batch.target[i, 0, 0, 0]).any()
            seen.add(key)
    assert seen == set("abc")


def test_one_case_supports_by_its_other_slices():
    single = read_pool(volumes("a"), TASKS[:1], 16, 20)
    source = episodes(single, chances=None, mixture=Mixture(synthetic=0, empty_queries=0))
    for _ in range(10):
        batch = next(source)
        same = (batch.support_images == batch.target[:, None]).flatten(2).all(dim=2)
        assert batch.support_images.shape[1] == 1 or not same.any()


def test_no_task_with_query_and_support_is_refused(pool):
    nothing = pool.subset(np.flatnonzero(~pool.present.any(axis=1)))
    with pytest.raises(ValueError, match="no task has both a query and a support"):
        Episodes(
            [pool], [nothing], batch_size=1, support_sizes=(1, 2), chances=None, mixture=Mixture(), seed=0,
            device=torch.device("cpu"),
        )  # fmt: skip


def test_mask_changes_have_known_areas():
    mask = torch.zeros(1, 1, 20, 20)
    mask[..., 5:15, 5:15] = 1
    assert (dilate(mask).sum(), erode(mask).sum(), boundary(mask).sum()) == (144, 64, 80)
    ramp = torch.arange(20.0).expand(1, 1, 20, 20)
    torch.testing.assert_close(sobel(ramp)[..., 1:-1, 1:-1], torch.full((1, 1, 18, 18), 2.0))


def test_task_augmentation_is_the_same_for_all_entries():
    rng = torch.Generator().manual_seed(3)
    images = torch.rand(1, 1, 32, 32, generator=rng).repeat(5, 1, 1, 1)
    masks = (images > 0.5).float()
    certain = Chances(1, 1, 1, 1, 1, 1, task_intensity=0, task_warp=1)
    changed = False
    for seed in range(4):
        new_images, new_masks = augment_task(images, masks, certain, torch.Generator().manual_seed(seed))
        # Kernels may round the last entries of a batch otherwise than the first; another change would show in the first
        # digit.
        for x in (new_images, new_masks):
            torch.testing.assert_close(x, x[:1].expand_as(x), rtol=0, atol=1e-4)
        changed |= not torch.equal(new_masks, masks)
    assert changed


def test_warp_moves_image_and_mask_together_and_nothing_when_it_is_not_to():
    images = torch.rand(3, 1, 24, 24, generator=torch.Generator().manual_seed(0))
    still = warp(images, images, 3, 0.0, torch.Generator().manual_seed(1))
    for x in still:
        torch.testing.assert_close(x, images, rtol=0, atol=1e-5)
    moved = warp(images, images, 3, 1.0, torch.Generator().manual_seed(1))
    torch.testing.assert_close(moved[0], moved[1])
    assert ((moved[0] - images).abs().mean(dim=(1, 2, 3)) > 0.05).all()


def test_erosion_that_leaves_nothing_is_not_made():
    masks = torch.zeros(3, 1, 16, 16)
    masks[:, :, 4, 4] = 1
    only_erode = Chances(0, 0, 0, 0, 1, 0, task_intensity=0, task_warp=0)
    areas = {
        float(augment_task(masks, masks, only_erode, torch.Generator().manual_seed(seed))[1].sum())
        for seed in range(12)
    }
    assert areas == {3.0, 27.0}


def test_synthetic_episodes_have_a_shape_in_every_entry():
    for seed in range(5):
        images, masks = synthetic_episode(4, 32, torch.Generator().manual_seed(seed), torch.device("cpu"))
        assert images.shape == masks.shape == (4, 1, 32, 32)
        assert (masks.sum(dim=(1, 2, 3)) > 0).all()
        assert not torch.equal(masks[0], masks[1])
