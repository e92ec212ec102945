"""The plots of the report as inline SVG: crisp at any size, a few kilobytes each, coloured by the page's style sheet.

Text and lines take their colours from the page (`currentColor`, the variables `--m0`, `--m1` ... of the methods), so
one drawing serves light and dark. Coordinates are pixels of the viewBox.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from matplotlib.ticker import LogLocator, MaxNLocator

from nnunet_ext.evaluation.compare import describe
from nnunet_ext.reports.comparison import Metric

_HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 240, 38, 10, 8, 34
# More dots than this in one cloud hide each other; the extremes and every k-th by rank are drawn.
MOST_DOTS = 400


@dataclass(frozen=True)
class _Scale:
    """Data to pixels along one axis."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high, at = map(math.log10, (self.low, self.high, value)) if self.log else (self.low, self.high, value)
        return self.start + (at - low) / ((high - low) or 1) * (self.end - self.start)

    def ticks(self) -> list[float]:
        subs = (1, 2, 5) if self.log and self.high < 100 * self.low else (1,)
        locator = LogLocator(subs=subs, numticks=9) if self.log else MaxNLocator(5, steps=[1, 2, 2.5, 5, 10])
        margin = 1e-9 * (self.high - self.low)
        inside = [t for t in locator.tick_values(self.low, self.high) if self.low - margin <= t <= self.high + margin]
        return [float(t) for t in inside]


def box_plot(
    title: str, values: Sequence[tuple[int, str, np.ndarray]], metric: Metric, most_dots: int = MOST_DOTS
) -> str:
    """Box (median, quartiles, whiskers to 1.5 IQR), all points, and the mean with its 95 % interval.

    Args:
        title: shown above, e.g. the label.
        values: (number of the method's colour, method, one value per case or patient).
        metric: of the vertical axis.
        most_dots: of one method; the extremes and every k-th by rank are drawn.
    """
    width = max(_LEFT + 74 * len(values) + _RIGHT, 330)
    column = (width - _LEFT - _RIGHT) / len(values)
    every = np.concatenate([v for *_, v in values])
    y = _vertical(every, unit_interval=metric.higher_is_better)
    parts = _y_axis(y, width)
    for i, (colour, method, own) in enumerate(values):
        centre = _LEFT + column * (i + 0.5)
        parts.append(f'<text class="tick" x="{centre:.1f}" y="{_HEIGHT - 18}" text-anchor="middle">'
                     f"{escape(_shortened(method))}</text>")  # fmt: skip
        if len(own) == 0:
            continue
        shown = _thinned(own, most_dots)
        # The golden ratio spreads neighbours in rank without randomness.
        jitter = (np.arange(len(shown)) * 0.618034 % 1 - 0.5) * 24
        parts.append(_dots(((centre - 14 + j, y(v)) for j, v in zip(jitter, shown, strict=True)), colour))
        q25, median, q75 = np.percentile(own, [25, 50, 75])
        reach = 1.5 * (q75 - q25)
        inner = own[(own >= q25 - reach) & (own <= q75 + reach)]
        box = centre + 8
        parts.append(
            f'<g class="box c{colour}"><path d="M{box} {y(inner.min()):.1f}V{y(q25):.1f}M{box} {y(q75):.1f}'
            f'V{y(inner.max()):.1f}"/><rect x="{box - 7}" y="{y(q75):.1f}" width="14" '
            f'height="{max(y(q25) - y(q75), 0.5):.1f}"/><path d="M{box - 7} {y(median):.1f}h14"/></g>'
        )
        own_mean = describe(own)
        if not math.isnan(own_mean.low):
            at = centre + 24
            parts.append(f'<path class="ci" d="M{at} {y(own_mean.low):.1f}V{y(own_mean.high):.1f}"/>'
                         f'<circle class="mean" cx="{at}" cy="{y(own_mean.mean):.1f}" r="2.6"/>')  # fmt: skip
    parts.append(_text(width / 2, _HEIGHT - 3, "points · box · ● mean with 95 % interval", "hint"))
    return _svg(title, width, parts)


def difference_plot(title: str, difference: np.ndarray, colour: int, unit: str) -> str:
    """Differences of all cases in order, their mean and its 95 % interval; up is always the larger value."""
    width = 330
    ordered = np.sort(difference)
    y = _vertical(np.append(ordered, 0.0), margin=0.05)
    x = _Scale(0, len(ordered), _LEFT, width - _RIGHT)
    parts = _y_axis(y, width)
    steps = _thinned(ordered)
    edges = np.linspace(0, len(ordered), len(steps) + 1)
    outline = "".join(f"H{x(start):.1f}V{y(v):.1f}" for start, v in zip(edges, steps, strict=False))
    area = f"M{_LEFT} {y(0):.1f}{outline}H{x(edges[-1]):.1f}V{y(0):.1f}Z"
    own = describe(difference)
    if not math.isnan(own.low):
        parts.append(f'<rect class="band" x="{_LEFT}" y="{y(own.high):.1f}" width="{width - _LEFT - _RIGHT}" '
                     f'height="{max(y(own.low) - y(own.high), 1):.1f}"/>')  # fmt: skip
    # Over the band, which would hide them.
    parts.append(f'<path class="stem c{colour}" d="{area}"/>')
    parts.append(f'<path class="ci" d="M{_LEFT} {y(own.mean):.1f}H{width - _RIGHT}"/>')
    parts.append(f'<path class="zero" d="M{_LEFT} {y(0):.1f}H{width - _RIGHT}"/>')
    parts.append(_text(width / 2, _HEIGHT - 3, f"{unit} in order · line and band: mean, 95 % interval", "hint"))
    return _svg(title, width, parts)


def volume_plot(
    title: str, clouds: Sequence[tuple[int, np.ndarray, np.ndarray]], metric: Metric, most_dots: int = MOST_DOTS
) -> str:
    """A metric against the reference's volume in ml, logarithmic; clouds are (colour, volumes, values)."""
    width = 330
    volumes = np.concatenate([v for _, v, _ in clouds])
    y = _vertical(np.concatenate([v for *_, v in clouds]), unit_interval=metric.higher_is_better)
    x = _Scale(volumes.min() * 0.9, volumes.max() * 1.1, _LEFT, width - _RIGHT, log=True)
    parts = _y_axis(y, width) + _x_axis(x, "reference volume [ml]", width)
    for colour, own, values in clouds:
        order = np.argsort(values)
        kept = order[_kept(len(order), most_dots)]
        parts.append(_dots(((x(a), y(b)) for a, b in zip(own[kept], values[kept], strict=True)), colour))
    return _svg(title, width, parts)


def curve_plot(title: str, curves: Sequence[tuple[int, list[dict[int, float]]]]) -> str:
    """One line per method, the mean over its folds, with their range as a band; curves are {epoch: value} per fold."""
    width = 330
    every = np.array([v for _, folds in curves for fold in folds for v in fold.values()])
    last = max(epoch for _, folds in curves for fold in folds for epoch in fold)
    y, x = _vertical(every, margin=0.05), _Scale(0, max(last, 1), _LEFT, width - _RIGHT)
    parts = _y_axis(y, width) + _x_axis(x, "epoch", width)
    for colour, folds in curves:
        epochs = sorted({epoch for fold in folds for epoch in fold})
        # A thousand epochs need no thousand points on 330 pixels.
        epochs = epochs[:: max(len(epochs) // 200, 1)]
        values = [[fold[epoch] for fold in folds if epoch in fold] for epoch in epochs]
        upper = [f"{x(e):.1f} {y(max(v)):.1f}" for e, v in zip(epochs, values, strict=True)]
        lower = [f"{x(e):.1f} {y(min(v)):.1f}" for e, v in zip(epochs, values, strict=True)]
        middle = [f"{x(e):.1f} {y(sum(v) / len(v)):.1f}" for e, v in zip(epochs, values, strict=True)]
        parts.append(f'<path class="range c{colour}" d="M{"L".join(upper + lower[::-1])}Z"/>')
        parts.append(f'<path class="line c{colour}" d="M{"L".join(middle)}"/>')
    return _svg(title, width, parts)


def bar_plot(title: str, bars: Sequence[tuple[int, str, float, str]]) -> str:
    """Horizontal bars; (colour, method, value, text at its end)."""
    width, row = 330, 26
    longest = max(value for *_, value, _ in bars) or 1.0
    parts = []
    for i, (colour, method, value, text) in enumerate(bars):
        top = 4 + i * row
        length = value / longest * 140
        parts.append(_text(92, top + 14, _shortened(method), "tick", "end"))
        parts.append(f'<rect class="bar c{colour}" x="98" y="{top}" width="{max(length, 1):.1f}" height="18" rx="2"/>')
        parts.append(_text(104 + length, top + 14, text, "tick", "start"))
    return _svg(title, width, parts, height=8 + row * len(bars))


def _vertical(values: np.ndarray, *, unit_interval: bool = False, margin: float = 0.03) -> _Scale:
    if unit_interval:
        # From the tenth below the lowest value: an axis from 0 would leave good scores a sliver of it.
        low, high = min(math.floor(10 * float(values.min(initial=1))) / 10, 0.9), 1.0
    else:
        low, high = float(values.min(initial=0)), float(values.max(initial=0))
    spread = (high - low) or 1.0
    return _Scale(low - margin * spread, high + margin * spread, _HEIGHT - _BOTTOM, _TOP)


def _y_axis(scale: _Scale, width: float) -> list[str]:
    """Lines and numbers; what they are stands in the title of the plot."""
    parts = []
    for tick in scale.ticks():
        parts.append(f'<path class="grid" d="M{_LEFT} {scale(tick):.1f}H{width - _RIGHT}"/>')
        parts.append(_text(_LEFT - 4, scale(tick) + 3.5, _tick(tick), "tick", "end"))
    return parts


def _x_axis(scale: _Scale, title: str, width: float) -> list[str]:
    parts = [_text((_LEFT + width - _RIGHT) / 2, _HEIGHT - 3, title, "axis")]
    parts += [_text(scale(tick), _HEIGHT - 18, _tick(tick), "tick") for tick in scale.ticks()]
    return parts


def _dots(points: Iterable[tuple[float, float]], colour: int) -> str:
    """All dots as one path of zero-length strokes with round ends: a dozen bytes each."""
    return f'<path class="dots c{colour}" d="{"".join(f"M{x:.1f} {y:.1f}h0" for x, y in points)}"/>'


def _kept(count: int, most: int = MOST_DOTS) -> np.ndarray:
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(int)) if count else np.zeros(0, int)


def _thinned(values: np.ndarray, most: int = MOST_DOTS) -> np.ndarray:
    ordered = np.sort(values)
    return ordered[_kept(len(ordered), most)]


def _text(x: float, y: float, text: str, style: str, anchor: str = "middle") -> str:
    return f'<text class="{style}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _tick(value: float) -> str:
    return f"{value:g}".replace("-", "−")


def _shortened(name: str, longest: int = 13) -> str:
    return name if len(name) <= longest else name[: longest - 1] + "…"


def _svg(title: str, width: float, parts: Sequence[str], height: float = _HEIGHT) -> str:
    return (
        f'<figure class="plot"><figcaption>{escape(title)}</figcaption><svg viewBox="0 0 {width:g} {height:g}" '
        f'role="img" aria-label="{escape(title, quote=True)}">'
        f"{''.join(parts)}</svg></figure>"
    )
