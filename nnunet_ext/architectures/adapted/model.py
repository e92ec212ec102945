"""A network of another package behind the interface nnU-Net expects: any patch, logits, heads finest first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parameter import is_lazy

from nnunet_ext.architectures.adapted.values import calls_something, is_network_class, locate, resolve
from nnunet_ext.architectures.blocks import crop_to
from nnunet_ext.errors import UserError, reason_of

# Where a tensor is in what a network returns: keys and positions, one after the other. A position in a tensor counts
# heads stacked in its second axis.
Place = Sequence[str | int]


class AdaptedNetwork(nn.Module):
    """A network named by its path. Written into plans by `nnunet_ext plan --network`, which finds the arguments out.

    Args:
        input_channels: channels of the image.
        num_classes: channels of the output.
        deep_supervision: return a list of logits, finest first, where the network has several heads.
        network: dotted path of a class, or of a function that returns a network.
        arguments: of it, by name; see `values` for texts that begin with @.
        step: per axis, the multiples the network takes; images are padded with zeros at the end, logits cropped.
        least: per axis, the smallest size it takes.
        grid: per axis, the only size it takes, instead of `step` and `least`.
        training: places of the heads in what it returns in training, finest first.
        evaluation: places of the logits in what it returns in evaluation.
        scales: per head in training, its size relative to the grid, per axis.
        image_channels: an image of one channel is repeated for a network that takes so many.
        autocast: whether it works under autocast; else it runs in single precision.
        idle: learnable parameters that get no gradient.
        found: what was found out, in words, for readers of the plans.

    Raises:
        UserError: no such network, or it refuses the arguments.
    """

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        deep_supervision: bool = False,
        *,
        network: str,
        arguments: Mapping[str, Any],
        step: Sequence[int],
        least: Sequence[int] | None = None,
        grid: Sequence[int] | None = None,
        training: Sequence[Place] = ((),),
        evaluation: Sequence[Place] = ((),),
        scales: Sequence[Sequence[float]] | None = None,
        image_channels: int | None = None,
        autocast: bool = True,
        idle: int = 0,
        found: Mapping[str, str] | None = None,
    ):
        super().__init__()
        self.name = network
        self.input_channels = input_channels
        self.step, self.least, self.grid = tuple(step), least and tuple(least), grid and tuple(grid)
        self.training_places, self.evaluation_places = list(training), list(evaluation)
        self.deep_supervision_scales = [list(s) for s in scales or [[1.0] * len(self.step)]]
        self.deep_supervision = deep_supervision and len(self.training_places) > 1
        self.image_channels = image_channels
        self.autocast = autocast
        self.network = build(network, arguments, input_channels, num_classes, self.step, self.grid)

    @staticmethod
    def why_untrusted(arguments: Mapping[str, Any]) -> str | None:
        """What a stranger's plans must not make this class call; None where all they name are classes of networks.

        A function could be any function.

        Raises:
            UserError: what they name is not installed.
        """
        path = str(arguments.get("network"))
        if not is_network_class(locate(path)):
            return f"{path}, which is no class of networks and would be called"
        calling = [key for key, value in dict(arguments.get("arguments") or {}).items() if calls_something(value)]
        return f"in {path}'s argument {calling[0]} what is no class of layers and may be called" if calling else None

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Segment a batch.

        Args:
            x: (batch, input_channels, *patch).

        Returns:
            Logits (batch, num_classes, *patch); with deep supervision a list, finest first, of the sizes nnU-Net gives
            its targets: the patch times `deep_supervision_scales`, rounded. A network that has one output in
            evaluation gives a list of one then.

        Raises:
            ValueError: wrong number of axes or channels, or a patch larger than the fixed grid.
        """
        if x.dim() != 2 + len(self.step) or x.shape[1] != self.input_channels:
            raise ValueError(
                f"{self.name} was built for images of {self.input_channels} channels and {len(self.step)} axes, not "
                f"{tuple(x.shape)}"
            )
        patch = x.shape[2:]
        x = self._padded(x)
        if self.image_channels:
            x = x.expand(-1, self.image_channels, *(-1 for _ in patch))
        with nullcontext() if self.autocast else torch.autocast(x.device.type, enabled=False):
            output = self.network(x if self.autocast else x.float())
        places = self.training_places if self.training else self.evaluation_places
        if not self.deep_supervision:
            return crop_to(_at(output, places[0]), patch)
        return [
            crop_to(_at(output, place), [round(n * s) for n, s in zip(patch, scale, strict=True)])
            for place, scale in zip(places, self.deep_supervision_scales, strict=False)
        ]

    def _padded(self, x: Tensor) -> Tensor:
        patch = tuple(x.shape[2:])
        wanted = self.grid or tuple(
            max(n + -n % step, least) for n, step, least in zip(patch, self.step, self.least or self.step, strict=True)
        )
        if any(n > size for n, size in zip(patch, wanted, strict=True)):
            raise ValueError(f"{self.name} was built for patches of at most {wanted}, not {patch}")
        missing = [size - n for n, size in zip(patch, wanted, strict=True)]
        return F.pad(x, [n for size in reversed(missing) for n in (0, size)]) if any(missing) else x


def build(
    path: str,
    arguments: Mapping[str, Any],
    channels: int,
    classes: int,
    step: Sequence[int],
    grid: Sequence[int] | None,
) -> nn.Module:
    """The network itself; arguments as `AdaptedNetwork`'s.

    Raises:
        UserError: no such network, or it refuses the arguments.
    """
    known: dict[str, Any] = {"channels": channels, "classes": classes, "axes": len(step)}
    if grid:
        known |= {"grid": tuple(grid), "edge": max(grid)}
    factory = locate(path)
    if not callable(factory) or (isinstance(factory, type) and not is_network_class(factory)):
        raise UserError(f"{path} is no torch.nn.Module but {_kind(factory)}; name a class of networks")
    if isinstance(factory, type) and issubclass(factory, AdaptedNetwork):
        raise UserError(f"{path} adapts other networks; name the network itself")
    values = resolve(dict(arguments), known)
    try:
        made = factory(**values)
    except Exception as error:  # somebody else's code
        raise UserError(f"{path} cannot be built ({reason_of(error)[:300]}); change its arguments") from error
    if not isinstance(made, nn.Module):
        raise UserError(f"{path} returns no torch.nn.Module but {_kind(made)}; name a class of networks")
    if any(map(is_lazy, (*made.parameters(), *made.buffers()))):
        raise UserError(f"{path} has lazy layers, whose weights nnU-Net cannot load; give their sizes")
    return made


def _kind(found: Any) -> str:
    return f"the class {found.__name__}" if isinstance(found, type) else f"of type {type(found).__name__}"


def _at(output: Any, place: Place) -> Tensor:
    """The tensor at a place of what a network returned."""
    for key in place:
        output = output[:, key] if isinstance(output, Tensor) else output[key]
    return output
