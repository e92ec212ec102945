"""One object segmented by clicks in a volume of any size: a window around the first click, more where they are needed.

The network sees windows. The first is centred on the first click, never on a reference. A click outside all windows
opens one around itself. Where the object reaches the border of a window that is not the border of the volume, windows
half a window further on follow, as the paper describes for its inference; the official code does not have this step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from nnunet_ext.architectures.sam_med3d.promptable import PromptableSAMMed3D
from nnunet_ext.prompts.simulate import innermost
from nnunet_ext.prompts.types import Points

Start = tuple[int, int, int]
# Logit of voxels no window has looked at, and the largest a window gives to its neighbours as their mask.
OUTSIDE, LARGEST = -20.0, 20.0
# Windows one object may take; a wrong click on background may flood a whole scan otherwise.
MAX_WINDOWS = 27


@dataclass
class PreparedVolume:
    """A volume on the network's grid, with the image embeddings of the windows looked at so far.

    Attributes:
        data: (channels, *grid) float32.
        window: voxels per axis of what the network sees at once.
        spacing_mm: voxel size per axis of the grid.
        normalise: applied to each window (1, channels, *window) before the network.
        embeddings: window -> its image embedding: the encoder runs once per window, whatever is clicked.
    """

    data: Tensor
    window: Start
    spacing_mm: tuple[float, ...]
    normalise: Callable[[Tensor], Tensor] = lambda x: x
    embeddings: dict[Start, Tensor] = field(default_factory=dict)

    @property
    def grid(self) -> Start:
        """Voxels per axis."""
        return tuple(self.data.shape[1:])  # type: ignore[return-value]

    def around(self, index: Sequence[float]) -> Start:
        """First voxel of the window centred on `index`, moved to lie in the volume; negative where it is larger."""
        return tuple(
            min(max(round(i) - w // 2, 0), n - w) if n > w else -((w - n) // 2)
            for i, w, n in zip(index, self.window, self.grid, strict=True)
        )  # type: ignore[return-value]

    def inner(self, start: Start) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
        """The part of a window that lies in the volume: as slices of the volume and of the window."""
        ends = [min(s + w, n) for s, w, n in zip(start, self.window, self.grid, strict=True)]
        of_volume = tuple(slice(max(s, 0), e) for s, e in zip(start, ends, strict=True))
        return of_volume, tuple(slice(v.start - s, v.stop - s) for v, s in zip(of_volume, start, strict=True))

    def cut(self, volume: Tensor, start: Start) -> Tensor:
        """A window (channels, *window) of a volume (channels, *grid), zeros outside it."""
        of_volume, of_window = self.inner(start)
        out = volume.new_zeros(len(volume), *self.window)
        for channel, source in zip(out, volume, strict=True):
            channel[of_window] = source[of_volume]
        return out

    def embedding(self, network: PromptableSAMMed3D, start: Start) -> Tensor:
        """The image embedding of a window, made when first asked for."""
        if start not in self.embeddings:
            device = next(network.parameters()).device
            window = self.cut(self.data, start)[None].to(device)
            self.embeddings[start] = network.embed(self.normalise(window))
        return self.embeddings[start]


@dataclass(frozen=True)
class _State:
    """What an undo brings back."""

    clicks: tuple[tuple[tuple[float, ...], bool], ...]
    windows: dict[Start, Tensor]  # window -> low-resolution logits


class PromptedObject:
    """The clicks on one object and what follows from them.

    Args:
        network: in evaluation mode.
        volume: where the object lies.
        mask: bool (*grid), a segmentation to start from, or None.

    Example:
        found = PromptedObject(network, volume)
        found.click((40, 61, 35), positive=True)
        found.logits() > 0
    """

    def __init__(self, network: PromptableSAMMed3D, volume: PreparedVolume, mask: np.ndarray | None = None):
        self.network, self.volume = network, volume
        self._weights = _centre_weights(volume.window)
        self._states = [_State((), {})]
        if mask is not None and mask.any():
            self._states = [self._from_mask(torch.from_numpy(mask))]

    @property
    def clicks(self) -> tuple[tuple[tuple[float, ...], bool], ...]:
        """All clicks (index, positive) in order."""
        return self._states[-1].clicks

    @torch.inference_mode()
    def click(self, index: Sequence[float], positive: bool) -> None:
        """Add a click at a voxel of the grid (fractions allowed) and segment anew where it matters.

        Raises:
            ValueError: outside the grid.
        """
        if any(not -0.5 <= i <= n - 0.5 for i, n in zip(index, self.volume.grid, strict=True)):
            raise ValueError(f"click {tuple(index)} lies outside the grid {self.volume.grid}")
        before = self._states[-1]
        clicks = (*before.clicks, (tuple(float(i) for i in index), positive))
        windows = dict(before.windows)
        inside = [start for start in windows if self._contains(start, index)]
        if not inside:
            inside = [self.volume.around(index)]
            windows[inside[0]] = self._mask_from(windows, inside[0])
        for start in inside:
            windows[start] = self._segment(start, clicks, windows[start])
        self._extend(windows, clicks)
        self._states.append(_State(clicks, windows))

    def undo(self) -> bool:
        """Take the last click back; False when there is none."""
        if len(self._states) == 1:
            return False
        self._states.pop()
        return True

    @torch.inference_mode()
    def logits(self) -> Tensor:
        """Logits (*grid) on the CPU, `OUTSIDE` where no window has looked."""
        return self._merge(self._states[-1].windows)

    def _from_mask(self, mask: Tensor) -> _State:
        """Windows that cover a given mask, each segmented from its part of the mask alone."""
        with torch.inference_mode():
            centre = innermost(mask.numpy(), self.volume.spacing_mm)
            as_logits = torch.where(mask, LARGEST, -LARGEST)
            windows: dict[Start, Tensor] = {}
            waiting = [self.volume.around(centre.tolist())]
            while waiting and len(windows) < MAX_WINDOWS:
                start = waiting.pop(0)
                given = self.volume.cut(mask[None].float(), start)[None]
                windows[start] = self._segment(start, (), self.network.mask_prompt(given).to(self._device))
                waiting += [s for s in self._neighbours(start, as_logits) if s not in windows and s not in waiting]
            return _State((), windows)

    @property
    def _device(self) -> torch.device:
        return next(self.network.parameters()).device

    def _contains(self, start: Start, index: Sequence[float]) -> bool:
        return all(s <= round(i) < s + w for i, s, w in zip(index, start, self.volume.window, strict=True))

    def _segment(self, start: Start, clicks: Sequence, low_res: Tensor) -> Tensor:
        """New low-resolution logits of a window from all clicks in it."""
        local = [
            ([i - s for i, s in zip(index, start, strict=True)], positive)
            for index, positive in clicks
            if self._contains(start, index)
        ]
        points = None
        if local:
            points = Points(
                torch.tensor([[index for index, _ in local]], device=self._device),
                torch.tensor([[int(positive) for _, positive in local]], device=self._device),
            )
        embedding = self.volume.embedding(self.network, start)
        return self.network.segment(embedding, points, low_res, torch.Size(self.volume.window))

    def _mask_from(self, windows: dict[Start, Tensor], start: Start) -> Tensor:
        """Low-resolution logits for a new window from those of its neighbours; 0 where there are none."""
        empty = self.network.no_mask(1, self._device)
        if not windows:
            return empty
        known = self._merge(windows, unknown=0.0)
        cut = self.volume.cut(known[None], start)[None].to(self._device)
        return torch.nn.functional.interpolate(cut, empty.shape[2:], mode="area")

    def _extend(self, windows: dict[Start, Tensor], clicks: Sequence) -> None:
        """Follow the object over the borders of the windows, in place."""
        waiting = list(windows)
        while waiting:
            logits = self._merge(windows)
            for start in self._neighbours(waiting.pop(0), logits):
                if start in windows or len(windows) >= MAX_WINDOWS:
                    continue
                low_res = self._mask_from(windows, start)
                # Without a click of its own, a window gets one in the middle of what is known of the object in it.
                shown = [c for c in clicks if self._contains(start, c[0])]
                if not any(positive for _, positive in shown):
                    of_volume, _ = self.volume.inner(start)
                    seen = logits[of_volume].numpy() > 0
                    middle = innermost(seen, self.volume.spacing_mm) + [s.start for s in of_volume]
                    shown.insert(0, (tuple(middle.tolist()), True))
                windows[start] = self._segment(start, shown, low_res)
                waiting.append(start)

    def _neighbours(self, start: Start, logits: Tensor) -> list[Start]:
        """Windows half a window further on, past each face of this one that the object reaches."""
        of_volume, _ = self.volume.inner(start)
        part = logits[of_volume]
        found = []
        for axis, (w, n) in enumerate(zip(self.volume.window, self.volume.grid, strict=True)):
            for last, at_border in ((0, of_volume[axis].start == 0), (-1, of_volume[axis].stop == n)):
                if at_border or not bool((part.select(axis, last) > 0).any()):
                    continue
                moved = list(start)
                moved[axis] = min(max(start[axis] + (w // 2 if last else -(w // 2)), 0), n - w)
                found.append(tuple(moved))
        return found  # type: ignore[return-value]

    def _merge(self, windows: dict[Start, Tensor], unknown: float = OUTSIDE) -> Tensor:
        """All windows on the grid, weighted towards their centres where they overlap."""
        total, weight = torch.zeros(self.volume.grid), torch.zeros(self.volume.grid)
        for start, low_res in windows.items():
            of_volume, of_window = self.volume.inner(start)
            logits = self.network.upscale(low_res, torch.Size(self.volume.window))[0, 0].cpu()
            logits = logits.clamp(-LARGEST, LARGEST)
            total[of_volume] += (logits * self._weights)[of_window]
            weight[of_volume] += self._weights[of_window]
        return torch.where(weight > 0, total / weight.clamp(min=1e-12), unknown)


def _centre_weights(window: Sequence[int]) -> Tensor:
    """Largest in the middle of a window, falling to almost nothing at its faces; (*window)."""
    weights = torch.ones(tuple(window))
    for axis, n in enumerate(window):
        line = torch.minimum(torch.arange(n), torch.arange(n).flip(0)).float() + 0.5
        weights *= line.reshape([-1 if a == axis else 1 for a in range(len(window))])
    return weights / weights.max()
