"""Clicks and masks drawn into label maps."""

from __future__ import annotations

import numpy as np

from nnunet_ext.prompts.raster import draw_ball, read_channel


def test_balls_are_read_back_as_clicks_and_large_components_as_a_mask():
    drawn = np.zeros((24, 40, 40), dtype=np.uint8)
    draw_ball(drawn, (3, 8, 9), 1, 3.0, (3.0, 1.0, 1.0))
    draw_ball(drawn, (0, 39, 0), 1, 2.0, (3.0, 1.0, 1.0))  # cut off by the border
    drawn[10:20, 10:20, 10:20] = 1
    found = read_channel(drawn == 1)
    assert found.clicks[0] == (3, 8, 9) or found.clicks[1] == (3, 8, 9)
    assert len(found.clicks) == 2
    assert found.mask.sum() == 1000 and found.mask[10:20, 10:20, 10:20].all()


def test_nothing_drawn_is_no_prompt():
    assert not read_channel(np.zeros((4, 4, 4), dtype=bool))


def test_a_ball_smaller_than_a_voxel_is_its_voxel():
    drawn = np.zeros((5, 5, 5), dtype=np.uint8)
    draw_ball(drawn, (2, 2, 2), 3, 0.1, (5.0, 5.0, 5.0))
    assert drawn[2, 2, 2] == 3 and drawn.sum() == 3
