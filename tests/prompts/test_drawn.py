"""Simulated users who draw: where their marks lie, and that they are functions of a seed."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from nnunet_ext.prompts import channels
from nnunet_ext.prompts.channels import CHANNELS_OF, PREVIOUS, point, scribble, zoomed_out
from nnunet_ext.prompts.drawn import STYLES, draw_box, draw_lasso, draw_point, draw_scribble
from nnunet_ext.prompts.early import begin, correct, roughened
from nnunet_ext.prompts.objects import choose_object

SHAPE = (18, 26, 22)


def ellipsoid(centre=(9, 13, 11), radii=(6.0, 9.0, 7.0)) -> np.ndarray:
    at = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"))
    middle, size = (np.array(n).reshape(3, 1, 1, 1) for n in (centre, radii))
    return (((at - middle) / size) ** 2).sum(0) <= 1


def marked(interaction) -> np.ndarray:
    """What is drawn, in the grid of `SHAPE`; everything drawn by hand lies in it."""
    whole = np.zeros(SHAPE)
    whole[tuple(slice(*ends) for ends in interaction.box)] = interaction.values
    return whole > 0


def rngs(number=30):
    return [np.random.default_rng(seed) for seed in range(number)]


@pytest.mark.parametrize("centred", (True, False))
def test_points_lie_inside_and_some_users_prefer_the_middle(centred):
    thing = ellipsoid()
    clicks = [draw_point(thing, True, rng, centred=centred) for rng in rngs(80)]
    index = np.array([click.corner for click in clicks]) + channels.POINT_RADIUS
    assert thing[tuple(index.T)].all()
    deep = ellipsoid(radii=(3.6, 5.4, 4.2))[tuple(index.T)].mean()  # 22 % of the voxels
    assert deep > 0.5 if centred else deep < 0.4


def test_boxes_fit_the_object_in_their_slice_but_for_jitter():
    thing = ellipsoid()
    axes = set()
    for rng in rngs():
        box = draw_box(thing, True, rng)
        flat = [axis for axis, n in enumerate(box.values.shape) if n == 1]
        axes.update(flat)
        inside = marked(box)
        plane = thing & np.isin(np.arange(SHAPE[flat[0]]), box.corner[flat[0]]).reshape(
            [-1 if a == flat[0] else 1 for a in range(3)]
        )
        assert plane.any() and box.kind == "box" and box.values.all()
        assert (plane & inside).sum() > 0.5 * plane.sum() and inside.sum() < 3 * plane.sum()
    assert axes == {0, 1, 2}


@pytest.mark.parametrize("style", STYLES)
def test_scribbles_lie_inside_in_one_slice(style):
    thing = ellipsoid()
    for rng in rngs():
        line = draw_scribble(thing, False, rng, style=style)
        assert 1 in line.values.shape and line.values.any() and not (marked(line) & ~thing).any()
        assert line.channel == CHANNELS_OF["scribble"][1]
    thin, thick = (
        draw_scribble(thing, True, np.random.default_rng(3), style=style, thickness=n).values.sum() for n in (1, 3)
    )
    assert thin < thick


def test_lassos_go_around_the_object_in_one_slice():
    thing = ellipsoid()
    for rng in rngs():
        drawn = draw_lasso(thing, True, rng)
        inside = marked(drawn)
        axis = drawn.values.shape.index(1)
        plane = np.zeros(SHAPE, dtype=bool)
        at = (slice(None),) * axis + (drawn.corner[axis],)
        plane[at] = thing[at]
        assert 2 * (inside & plane).sum() / (inside.sum() + plane.sum()) > 0.6


def test_a_single_voxel_can_be_drawn_by_every_user():
    voxel = np.ones((1, 1, 1), dtype=bool)
    for rng in rngs(20):
        drawn = [draw_point(voxel, True, rng, centred=True), draw_box(voxel, True, rng), draw_lasso(voxel, True, rng)]
        drawn += [draw_scribble(voxel, True, rng, style=style) for style in STYLES]
        assert all(mark.values.any() for mark in drawn)


def test_an_interaction_begins_with_the_object_and_goes_on_where_it_is_wrong():
    thing, counted = ellipsoid(), np.ones(SHAPE, dtype=bool)
    counted[:4] = False
    found = {"point": 0, "box": 0, "scribble": 0, "lasso": 0}
    alone = 0
    for rng in rngs(120):
        beginning = begin(thing, counted, rng)
        alone += not beginning.interactions
        assert beginning.interactions or beginning.previous is not None
        for interaction in beginning.interactions:
            found[interaction.kind] += 1
            assert interaction.positive
        wrong = ellipsoid(centre=(9, 16, 11))
        after = correct(thing, wrong, counted, rng)
        assert after is not None
        low, high = np.array(after.box).T
        middle = tuple(((low + high) // 2).clip(0, np.array(SHAPE) - 1))
        if after.kind == "point":
            assert counted[middle] and (thing != wrong)[middle] and thing[middle] == after.positive
    assert all(found.values()) and 0 < alone < 40
    assert correct(thing, thing, counted, np.random.default_rng(0)) is None
    # Nothing to find: the user has nothing to mark, at most something to unmark.
    nothing = [begin(np.zeros(SHAPE, dtype=bool), counted, rng) for rng in rngs(60)]
    assert not any(i.positive for b in nothing for i in b.interactions) and any(b.interactions for b in nothing)
    assert any(b.previous is None and not b.interactions for b in nothing)


def test_the_same_seed_does_the_same():
    thing, counted = ellipsoid(), np.ones(SHAPE, dtype=bool)

    def shown(seed):
        rng = np.random.default_rng(seed)
        first = begin(thing, counted, rng)
        again = correct(thing, roughened(thing, rng), counted, rng)
        return channels.encode([*first.interactions, *([again] if again else [])], SHAPE, first.previous)

    assert all(torch.equal(shown(seed), shown(seed)) for seed in range(8))
    assert len({float(shown(seed).float().sum()) for seed in range(8)}) > 4


def test_components_and_regions_are_chosen_with_equal_chance():
    labels = np.zeros(SHAPE, dtype=np.int16)
    labels[1:4, 1:4, 1:4], labels[8:17, 8:25, 8:20], labels[15, 2, 2] = 1, 1, 2
    chosen = [choose_object(labels, [(1,), (2, 7), (9,)], rng) for rng in rngs(60)]
    assert {int(thing.sum()) for thing in chosen} == {27 + 9 * 17 * 12, 1}
    parts = [choose_object(labels, [(1,)], rng, component=True).sum() for rng in rngs(60)]
    assert set(parts) == {27, 9 * 17 * 12} and 15 < parts.count(27) < 45
    assert not choose_object(labels, [(1,)], np.random.default_rng(0), empty=1.0).any()
    assert not choose_object(np.full(SHAPE, -1), [(1,)], np.random.default_rng(0)).any()


@pytest.mark.parametrize("zoom", (1.5, 2.25, 4.0))
def test_from_afar_marks_look_about_as_the_session_makes_them(zoom):
    """Drawn on the small grid, against drawn at full size and made smaller: as much of it, about as large."""
    patch = (20, 20, 20)
    large = tuple(round(n * zoom) for n in patch)
    middle = [n // 2 for n in large]
    line = np.zeros(large, dtype=bool)
    line[middle[0], middle[1] - 12 : middle[1] + 12, middle[2] : middle[2] + 2] = True
    for kind, exact in (("point", point(middle)), ("scribble", scribble(line))):
        full_size = channels.encode([exact], large, dtype=torch.float32)
        _, theirs = zoomed_out(torch.zeros(1, *large), full_size, patch, zoom)
        small = np.zeros(patch, dtype=bool)
        if kind == "point":
            small[10, 10, 10] = True
            ours = draw_point(small, True, np.random.default_rng(0), centred=False, zoom=zoom)
        else:
            length = round(24 / zoom)
            small[10, 10 - length // 2 : 10 + length // 2, 8:13] = True
            # The whole middle line, in the slice that it lies in.
            lines = [draw_scribble(small, True, rng, style="centre", zoom=zoom) for rng in rngs(60)]
            ours = max((line for line in lines if line.values.shape[0] == 3), key=lambda line: line.values.sum())
        shown = channels.encode([ours], patch, dtype=torch.float32)
        channel = ours.channel
        assert channel != PREVIOUS
        ratio = float(shown[channel].sum() / theirs[channel].sum())
        assert 0.5 < ratio < 2, (kind, ratio)
