"""The picture of Dice over clicks."""

from __future__ import annotations

from nnunet_ext.clicks.scores import PromptedScore, summarise
from nnunet_ext.reports.clicks import click_curves, write_click_curves


def test_one_line_per_class_and_metric_at_the_summarys_values(tmp_path):
    scores = [
        PromptedScore("a", name, user, (0.2, 0.4, 0.5, 0.6), (0.1, 0.2, 0.3, 0.4))
        for name in ("liver", "spleen")
        for user in ("uniform", "centre")
    ]
    summary = summarise(scores)
    figure = click_curves(summary, "Dataset")
    assert len(figure.axes) == 2
    for axes in figure.axes:
        lines = {line.get_label(): line for line in axes.lines}
        assert set(lines) == {"liver, Dice", "liver, NSD", "spleen, Dice", "spleen, NSD"}
        assert list(lines["liver, Dice"].get_xdata()) == [1, 3, 5, 10]
        assert list(lines["spleen, NSD"].get_ydata()) == [0.1, 0.2, 0.3, 0.4]
    assert "see the reference" in figure.get_suptitle()
    write_click_curves(summary, tmp_path / "clicks.png")
    assert (tmp_path / "clicks.png").stat().st_size > 10_000
    # A validation in which no case had an object.
    write_click_curves(summarise([]), tmp_path / "empty.png")
