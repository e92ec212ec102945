"""UniverSeg behind nnU-Net's `forward(x) -> logits`: a support set that travels with the weights.

nnU-Net's predictor builds a network, loads a checkpoint strictly and hands it one padded slice after another, without
case or position. So the support set is a set of buffers, chosen by the trainer from its training cases, and the entries
that support a slice are those that look like it.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nnunet_ext.architectures.universeg.model import UniverSeg
from nnunet_ext.environment import whole_number
from nnunet_ext.errors import TrainingError
from nnunet_ext.support import draw
from nnunet_ext.support.pool import Pool, present, unit_intensities
from nnunet_ext.support.view import from_view, to_view

# Names of the buffers; a support file holds exactly these.
BUFFERS = ("support_images", "support_masks", "support_cases", "window", "side")
# The logit where no support is left: surely not there.
_ABSENT = -20.0


class FewShotNetwork(nn.Module):
    """UniverSeg with its support set.

    In evaluation `forward(x)` segments by the stored supports, one pass per label and channel: background 0 and each
    label's logit, so that the largest one wins and a label needs more than one half; for regions the logits alone.

    Args:
        input_channels: channels of the image; each is segmented on its own and the logits are averaged.
        num_classes: channels of the output.
        deep_supervision: accepted for nnU-Net, has no form here.
        encoder_blocks, decoder_blocks: see `UniverSeg`.
        image_size: pixels of the square in which slices are segmented.
    """

    support_images: Tensor
    support_masks: Tensor
    support_cases: Tensor
    window: Tensor
    side: Tensor
    default_size: Tensor

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        deep_supervision: bool = False,
        *,
        encoder_blocks: Sequence[int | Sequence[int]] = (64, 64, 64, 64),
        decoder_blocks: Sequence[int | Sequence[int]] | None = None,
        image_size: int = 128,
    ):
        super().__init__()
        self.deep_supervision = False
        self.core = UniverSeg(encoder_blocks, decoder_blocks)
        if image_size < 8 or image_size % self.core.multiple:
            raise ValueError(f"image_size must be a multiple of {self.core.multiple}, not {image_size}")
        self.num_classes, self.image_size = num_classes, image_size
        empty = {"dtype": torch.uint8}
        self.register_buffer("support_images", torch.zeros(0, input_channels, image_size, image_size, **empty))
        self.register_buffer("support_masks", torch.zeros(0, num_classes, image_size, image_size, **empty))
        self.register_buffer("support_cases", torch.zeros(0, dtype=torch.int64))
        self.register_buffer("window", torch.tensor([[0.0, 1.0]] * input_channels))
        self.register_buffer("side", torch.tensor(0))
        self.register_buffer("default_size", torch.tensor(16))
        self.support_size = whole_number(os.environ, "NNUNET_EXT_SUPPORT_SIZE")
        self.draws = whole_number(os.environ, "NNUNET_EXT_SUPPORT_DRAWS") or 1
        self.support_file = os.environ.get("NNUNET_EXT_SUPPORT", "").strip()
        self._excluded: int | None = None
        self._read: Path | None = None
        self._looks: tuple[np.ndarray, np.ndarray] | None = None

    # The support set -------------------------------------------------------------------------------------------

    def set_support(self, pool: Pool, support_size: int | None = None) -> None:
        """Take these slices as the support set."""
        device = self.window.device
        for name, value in support_buffers(pool).items():
            setattr(self, name, value.to(device))
        if support_size is not None:
            self.default_size = torch.tensor(support_size, device=device)
        self._looks = None

    def exclude_case(self, name: str | None) -> None:
        """From now on no slice of this case supports anything; None lifts it."""
        self._excluded = None if name is None else case_number(name)

    def read_support_file(self) -> None:
        """Replace the support set by that of the file NNUNET_EXT_SUPPORT names, if it names one.

        Raises:
            TrainingError: the file is missing, or is made for another network or data set.
        """
        path = Path(self.support_file)
        if not self.support_file or self._read == path:
            return
        try:
            content = torch.load(path, map_location=self.window.device, weights_only=True)
        except FileNotFoundError:
            raise TrainingError(f"NNUNET_EXT_SUPPORT={path} does not exist; make it with nnunet_ext support") from None
        except Exception:  # torch's reader raises anything, and advises to read the file unsafely
            raise TrainingError(
                f"NNUNET_EXT_SUPPORT={path} is no support file, or damaged; make it with nnunet_ext support"
            ) from None
        images, masks = self.support_images, self.support_masks
        named = isinstance(content, Mapping) and set(content) == set(BUFFERS)
        if not named or not all(map(self._like, content.items())):
            raise TrainingError(f"NNUNET_EXT_SUPPORT={path} is no support file; make it with nnunet_ext support")
        if len({len(content[name]) for name in BUFFERS if name.startswith("support_")}) > 1:
            raise TrainingError(f"NNUNET_EXT_SUPPORT={path} is damaged; make it again with nnunet_ext support")
        expected = (*images.shape[1:], *masks.shape[1:])
        found = (*content["support_images"].shape[1:], *content["support_masks"].shape[1:])
        if found != expected:
            raise TrainingError(
                f"NNUNET_EXT_SUPPORT={path} has images and masks of {found} and this network needs {expected}; make it "
                "again from this model's folder"
            )
        for name in BUFFERS:
            setattr(self, name, content[name])
        self._read, self._looks = path, None

    def _like(self, stored: tuple[str, Any]) -> bool:
        """Whether (name, value) is a tensor of as many axes, and of such numbers, as the buffer of that name."""
        name, value = stored
        own = getattr(self, name)
        return (
            isinstance(value, Tensor)
            and value.ndim == own.ndim
            and value.is_floating_point() == own.is_floating_point()
        )

    def _load_from_state_dict(self, state_dict: Mapping[str, Tensor], prefix: str, *args: Any) -> None:
        # The size of the stored support set is the file's, and every fold has its own.
        for name in BUFFERS:
            stored = state_dict.get(prefix + name)
            if stored is not None:
                setattr(self, name, stored.clone().to(self.window.device))
        self._read = self._looks = None
        super()._load_from_state_dict(state_dict, prefix, *args)  # type: ignore[arg-type]

    # Segmentation ----------------------------------------------------------------------------------------------

    def forward(self, x: Tensor, support_images: Tensor | None = None, support_labels: Tensor | None = None) -> Tensor:
        """Segment slices by the stored support set, or, in training, targets by the given ones.

        Args:
            x: (B, input_channels, H, W), preprocessed; with supports (B, 1, s, s) in [0, 1].
            support_images, support_labels: (B, S, 1, s, s), see `UniverSeg.forward`.

        Returns:
            Logits (B, num_classes, H, W); with supports (B, 1, s, s).

        Raises:
            ValueError: there is no stored support set.
        """
        if support_images is not None and support_labels is not None:
            return self.core(x, support_images, support_labels)
        self.read_support_file()
        if not len(self.support_images):
            raise ValueError(
                "this checkpoint holds no support set, as before the end of training; name one by NNUNET_EXT_SUPPORT"
            )
        view = to_view(x.float(), self.image_size, side=int(self.side))
        view = unit_intensities(view, self.window)
        logits = torch.stack([self._segment(image) for image in view])
        logits = from_view(logits, x.shape[2:], side=int(self.side))
        if logits.shape[1] == self.num_classes:  # regions
            return logits
        return torch.cat((torch.zeros_like(logits[:, :1]), logits), dim=1)

    def _segment(self, image: Tensor) -> Tensor:
        """(C, s, s) in [0, 1] -> logits (T, s, s)."""
        holds, looks = self._facts()
        allowed: np.ndarray = np.ones(len(holds), bool)
        if self._excluded is not None:
            allowed = (self.support_cases != self._excluded).cpu().numpy()
        query = draw.thumbnails(image[None].mul(255).cpu().numpy())[0]
        distances = -(looks @ query)
        size = self.support_size or int(self.default_size)
        logits = []
        for task in range(holds.shape[1]):
            if not (holds[:, task] & allowed).any():
                logits.append(image.new_full(image.shape[1:], _ABSENT))
                continue
            sets = similar_sets(distances, holds[:, task], allowed, size, self.draws)
            probabilities = [self._pass(image, task, chosen) for chosen in sets]
            logits.append(mean_logits(torch.stack(probabilities)))
        return torch.stack(logits)

    def _facts(self) -> tuple[np.ndarray, np.ndarray]:
        """Of the support set: which slice holds which task, and thumbnails."""
        if self._looks is None:
            self._looks = present(self.support_masks.cpu()), draw.thumbnails(self.support_images.cpu().numpy())
        return self._looks

    def _pass(self, image: Tensor, task: int, chosen: np.ndarray) -> Tensor:
        """Logits (s, s) of one support set, the mean over the channels."""
        rows = torch.as_tensor(chosen, device=self.support_images.device)
        images = self.support_images[rows].transpose(0, 1)[:, :, None].float() / 255  # (C, S, 1, s, s)
        labels = self.support_masks[rows, task][None, :, None].float() / 255
        return segment(self.core, image[:, None], images, labels.expand_as(images))


def support_buffers(pool: Pool) -> dict[str, Tensor]:
    """The buffers of a network that these slices support; cases are numbers, see `case_number`."""
    cases = torch.tensor([case_number(pool.case_names[i]) for i in pool.cases])
    return dict(zip(BUFFERS, (pool.images, pool.masks, cases, pool.window, torch.tensor(pool.side)), strict=True))


def segment(core: UniverSeg, target: Tensor, support_images: Tensor, support_labels: Tensor) -> Tensor:
    """Channels (C, 1, s, s) with supports (C, S, 1, s, s), one after another -> mean logits (s, s)."""
    passes = zip(target, support_images, support_labels, strict=True)
    return torch.stack([core(x[None], i[None], m[None])[0, 0].float() for x, i, m in passes]).mean(dim=0)


def similar_sets(
    distances: np.ndarray, holds: np.ndarray, allowed: np.ndarray, size: int, draws: int
) -> list[np.ndarray]:
    """Support sets for one query: the nearest slices that hold the label, and a fifth that do not.

    With several draws each set is a random part of the nearest slices, twice as many as it needs.

    Args:
        distances: (n,) of all slices to the query.
        holds: (n,) bool, which slices hold the label.
        allowed: (n,) bool, which may be used.
        size: entries per set.
        draws: number of sets.
    """
    rng = np.random.default_rng(0)  # the same slice gets the same answer
    empty = empty_share(size)
    reach = 1 if draws == 1 else 2
    near = draw.nearest(np.flatnonzero(holds & allowed), distances, (size - empty) * reach)
    others = draw.nearest(np.flatnonzero(~holds & allowed), distances, empty * reach)
    if draws == 1:
        return [np.concatenate((near, others))]
    parts = ((rng.permutation(near)[: size - empty], rng.permutation(others)[:empty]) for _ in range(draws))
    return [np.concatenate(part) for part in parts]


def empty_share(size: int) -> int:
    """How many entries of a support set do not hold the label: most slices of a volume do not."""
    return size // 5


def mean_logits(logits: Tensor) -> Tensor:
    """(K, ...) logits of K support sets -> logits of their mean probability."""
    if len(logits) == 1:
        return logits[0]
    return logits.sigmoid().mean(dim=0).clamp(1e-7, 1 - 1e-7).logit()


def case_number(name: str) -> int:
    """A number that stands for a case, so that checkpoints carry no case names."""
    return zlib.crc32(name.encode())
