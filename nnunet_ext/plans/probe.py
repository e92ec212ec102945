"""What a network that nobody here knows takes and returns, found out on tensors without data.

A size is accepted only if the network runs in training and in evaluation and returns logits of the image's own grid:
some networks return another grid without a word. Per axis, sizes are tried from small to large for the step to pad to.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, redirect_stdout
from dataclasses import dataclass, field
from functools import partial
from io import StringIO
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from nnunet_ext.architectures.adapted.model import build
from nnunet_ext.errors import UserError, reason_of
from nnunet_ext.plans.memory import LOOKS_AT_VALUES, sketch

# Steps that networks have: halvings first, then those of patches of 3, 5, 6, 7, 12 or 14 voxels.
STEPS = (1, 2, 4, 8, 16, 32, 64, 128)
RARE_STEPS = (3, 6, 12, 24, 48, 96, 5, 10, 20, 40, 7, 14, 28, 56, 112)
# Of networks that take one size alone, without saying so in their constructor.
EDGES = (32, 48, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384, 448, 512)
# Training must work with the least batch that is planned; prediction has one.
TRAINED, PREDICTED = 2, 1
# The last operation of networks that return probabilities.
PROBABILITIES = ("Softmax", "Sigmoid")

Place = tuple[str | int, ...]


@dataclass(frozen=True)
class Head:
    """Logits among what a network returned: where, and their grid."""

    place: Place
    grid: tuple[int, ...]


@dataclass(frozen=True)
class Outcome:
    """One try: the heads in training and evaluation, finest first, or what went wrong.

    Attributes:
        training, evaluation: empty when something went wrong.
        scalars: numbers among what training returns.
        kind: "" if all is well, "built", "trained", "predicted", "channels", "grid", "nothing", or "values" when fake
            tensors cannot tell.
        reason: in words.
    """

    training: tuple[Head, ...] = ()
    evaluation: tuple[Head, ...] = ()
    scalars: int = 0
    kind: str = ""
    reason: str = ""


@dataclass(frozen=True)
class Findings:
    """How one network is used for one patch: the arguments of `AdaptedNetwork`, in their words, and more.

    Attributes:
        arguments: of its constructor, as in plans.
        step: per axis, the multiples it takes.
        grid: what the patch is padded to.
        fixed: whether the network is built for this grid alone.
        outcome: what it returns there.
        image_channels: as `AdaptedNetwork`'s.
        parameters, idle: learnable parameters, and those among them that get no gradient.
        autocast: None if it runs under autocast on a CPU, else why not.
    """

    arguments: dict[str, Any]
    step: tuple[int, ...]
    grid: tuple[int, ...]
    fixed: bool
    outcome: Outcome
    image_channels: int | None = None
    parameters: int = 0
    idle: int = 0
    autocast: str | None = None

    @property
    def scales(self) -> list[list[float]]:
        """Size of each head in training relative to the grid, finest first."""
        return [[n / size for n, size in zip(head.grid, self.grid, strict=True)] for head in self.outcome.training]


@dataclass
class Probe:
    """Tries a network on fake tensors.

    Attributes:
        path: of the network.
        channels, classes: of the data set.
        axes: of the grid.
        image_channels: as `AdaptedNetwork`'s.
        for_real: compute; set for a network that looks at values, which fake tensors do not have.
    """

    path: str
    channels: int
    classes: int
    axes: int
    image_channels: int | None = None
    for_real: bool = False
    _fakes: FakeTensorMode = field(default_factory=lambda: FakeTensorMode(allow_non_fake_inputs=True))
    _built: dict[str, nn.Module | UserError] = field(default_factory=dict)
    _states: dict[str, dict[str, torch.Size]] = field(default_factory=dict)
    _tried: dict[tuple, Outcome] = field(default_factory=dict)

    def find(self, candidates: Sequence[Mapping[str, Any]], patch: Sequence[int]) -> Findings:
        """How the network is used for a patch.

        Args:
            candidates: arguments to try, see `constructor.candidates`.
            patch: voxels per axis.

        Raises:
            UserError: it cannot be used: it fails, ignores the patch, returns other channels or none that learn.
        """
        tries: list[Outcome] = []
        for arguments, grid, step in self._grids(candidates, patch):
            outcome = self.attempt(arguments, grid)
            if not outcome.kind:
                return self._refined(dict(arguments), tuple(patch), grid, step)
            if outcome.kind == "values":
                self.for_real = True
                return self.find(candidates, patch)
            tries.append(outcome)
        raise self._refusal(tries, patch)

    def _grids(
        self, candidates: Sequence[Mapping[str, Any]], patch: Sequence[int]
    ) -> Iterator[tuple[Mapping[str, Any], tuple[int, ...], int]]:
        """Arguments and grids to try in turn, with the step that led there; 0 for a size of the network's own."""
        seen: set[tuple[str, tuple[int, ...]]] = set()
        steps = [(_rounded(patch, [s] * len(patch)), s) for s in (*STEPS, *RARE_STEPS)]
        own = [((edge,) * len(patch), 0) for edge in EDGES if edge >= max(patch)]
        for grid, step in steps + own:
            for arguments in candidates:
                size = (max(grid),) * len(grid) if "@edge" in arguments.values() else grid
                key = (json.dumps(arguments), size)
                # A network that cannot be built whatever the size is tried once.
                if key not in seen and not isinstance(self._built.get(self._key(arguments, None)), UserError):
                    seen.add(key)
                    yield arguments, size, step

    def _refined(self, arguments: dict[str, Any], patch: tuple[int, ...], grid: tuple[int, ...], step: int) -> Findings:
        """The step of every axis, by sizes a little larger than one that is accepted, and the least padding by it."""
        fixed = of_a_size(arguments)
        cube = "@edge" in arguments.values()
        steps = []
        for axis in range(len(grid)):
            larger = [n for n in (*STEPS, *RARE_STEPS) if n <= max(step or 1, 64)]
            steps.append(
                next((n for n in sorted(larger) if self._accepts(arguments, _longer(grid, axis, n, cube))), None)
            )
        if None in steps:
            found, fixed, least = tuple(grid), True, tuple(grid)
        else:
            found = tuple(int(n) for n in steps if n is not None)
            least = tuple(grid)
            rounded = _rounded(patch, found)
            if self._accepts(arguments, rounded):
                least = rounded
            else:
                for axis, n in enumerate(rounded):
                    shorter = (*least[:axis], n, *least[axis + 1 :])
                    least = shorter if self._accepts(arguments, shorter) else least
        return self._checked(Findings(arguments, found, least, fixed, self.attempt(arguments, least)))

    def _accepts(self, arguments: Mapping[str, Any], grid: tuple[int, ...]) -> bool:
        return not self.attempt(arguments, grid).kind

    def attempt(self, arguments: Mapping[str, Any], grid: tuple[int, ...]) -> Outcome:
        """Run the network on a grid, in training and in evaluation."""
        key = (json.dumps(arguments), grid, self.image_channels, self.for_real)
        if key not in self._tried:
            with _quiet(), self._mode(), torch.no_grad():
                self._tried[key] = self._attempt(arguments, grid)
        return self._tried[key]

    def _attempt(self, arguments: Mapping[str, Any], grid: tuple[int, ...]) -> Outcome:
        try:
            network = self._network(arguments, grid)
        except UserError as error:
            return Outcome(kind="built", reason=str(error))
        found: dict[bool, list[Head]] = {}
        scalars = 0
        for training in (True, False):
            try:
                output = network.train(training)(self._image(TRAINED if training else PREDICTED, grid))
            except LOOKS_AT_VALUES as error:
                return Outcome(kind="trained" if self.for_real else "values", reason=reason_of(error)[:300])
            except Exception as error:  # somebody else's code
                return Outcome(kind="trained" if training else "predicted", reason=reason_of(error)[:300])
            tensors = list(_tensors(output))
            scalars = scalars or sum(tensor.dim() == 0 for _, tensor in tensors)
            heads = [head for place, tensor in tensors for head in self._heads(place, tensor)]
            heads.sort(key=lambda head: -math.prod(head.grid))
            if not heads or heads[0].grid != grid:
                return self._misfit(tensors, heads, grid)
            found[training] = heads
        return Outcome(tuple(found[True]), tuple(found[False]), scalars)

    def _heads(self, place: Place, tensor: Tensor) -> list[Head]:
        shape = tuple(map(int, tensor.shape))
        if len(shape) == 2 + self.axes and shape[1] == self.classes:
            return [Head(place, shape[2:])]
        if len(shape) == 3 + self.axes and shape[2] == self.classes:
            return [Head((*place, i), shape[3:]) for i in range(shape[1])]
        return []

    def _misfit(self, tensors: list[tuple[Place, Tensor]], heads: list[Head], grid: tuple[int, ...]) -> Outcome:
        if heads:
            return Outcome(kind="grid", reason=f"returns {_by(heads[0].grid)} for {_by(grid)}")
        images = [tuple(map(int, t.shape)) for _, t in tensors if t.dim() == 2 + self.axes]
        if images:
            shape = max(images, key=lambda s: math.prod(s[2:]))
            words = f"returns {shape[1]} channels for {self.classes} classes"
            return Outcome(kind="channels", reason=words)
        shapes = ", ".join(str(tuple(map(int, t.shape))) for _, t in tensors[:3]) or "no tensor"
        return Outcome(kind="nothing", reason=f"returns {shapes}")

    def _network(self, arguments: Mapping[str, Any], grid: tuple[int, ...]) -> nn.Module:
        key = self._key(arguments, grid)
        if key not in self._built:
            fixed = grid if of_a_size(arguments) else None
            try:
                make = partial(build, self.path, arguments, self.channels, self.classes, (1,) * self.axes, fixed)
                self._built[key] = network = make() if self.for_real else sketch(make)
                self._states[key] = _state(network)
            except UserError as error:
                self._built[key] = error
        network = self._built[key]
        if isinstance(network, UserError):
            raise network
        return network

    def _key(self, arguments: Mapping[str, Any], grid: tuple[int, ...] | None) -> str:
        return json.dumps([arguments, grid if of_a_size(arguments) else None, self.for_real])

    def _mode(self) -> AbstractContextManager[Any]:
        return nullcontext() if self.for_real else self._fakes

    def _image(self, batch: int, grid: tuple[int, ...]) -> Tensor:
        return torch.empty(batch, self.image_channels or self.channels, *grid)

    def _checked(self, findings: Findings) -> Findings:
        """With what one training step shows: parameters, gradients, probabilities, autocast."""
        arguments, grid = findings.arguments, findings.grid
        with _quiet(), self._mode():
            network = self._network(arguments, grid).train()
            trained = [p for p in network.parameters() if p.requires_grad]
            output = network(self._image(TRAINED, grid))
            heads = [_at(output, head.place) for head in findings.outcome.training]
            last = getattr(heads[0].grad_fn, "name", lambda: "")()
            if any(word in last for word in PROBABILITIES):
                raise UserError(
                    f"{self.path} ends with {last.removesuffix('0').removesuffix('Backward')}, and training expects "
                    "logits; switch it off with --set, or take it out of the network"
                )
            if not any(head.requires_grad for head in heads):
                raise UserError(f"{self.path} has no gradient: nothing that it returns depends on a trained parameter")
            torch.stack([head.float().mean() for head in heads if head.requires_grad]).sum().backward()
            idle = sum(p.numel() for p in trained if p.grad is None)
            for parameter in trained:
                parameter.grad = None
            if _state(network) != self._states[self._key(arguments, grid)]:
                raise UserError(
                    f"{self.path} changes its parameters when it runs, so that no checkpoint fits it; make them in "
                    "__init__"
                )
            autocast = self._under_autocast(network, grid)
        return Findings(
            arguments,
            findings.step,
            grid,
            findings.fixed,
            findings.outcome,
            self.image_channels,
            sum(p.numel() for p in trained),
            idle,
            autocast,
        )

    def _under_autocast(self, network: nn.Module, grid: tuple[int, ...]) -> str | None:
        try:
            with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
                network(self._image(TRAINED, grid))
        except Exception as error:  # somebody else's code
            return reason_of(error)[:200]
        return None

    def _refusal(self, tries: Sequence[Outcome], patch: Sequence[int]) -> UserError:
        """Why no size was accepted; of several reasons, the one that is the least about size."""
        for kind, words in (
            ("predicted", "trains but fails in evaluation mode: {}; mend what it does after eval()"),
            ("channels", "{}; say with --set which argument is the number of classes: NAME=@classes"),
            ("grid", "ignores the patch: it {}; a network must return the grid of its image, or name its own size: "
                     "--patch-size"),
            ("nothing", f"{{}}; expected logits (batch, {self.classes}, {', '.join(map(str, patch))}), alone or in a "
                        "list, tuple or dictionary"),
        ):  # fmt: skip
            if failed := next((t for t in tries if t.kind == kind), None):
                return UserError(f"{self.path} {words.format(failed.reason)}")
        # The larger sizes say what is wrong beside the size.
        if failed := next((t for t in reversed(tries) if t.kind == "trained"), None):
            return UserError(
                f"{self.path} fails on images of {self.image_channels or self.channels} channels at every size tried "
                f"from {_by(patch)} on: {failed.reason}; change its arguments with --set"
            )
        return UserError(tries[-1].reason)


def _state(network: nn.Module) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in network.state_dict().items()}


def of_a_size(arguments: Mapping[str, Any]) -> bool:
    """Whether a network with these arguments is built for one size."""
    return any(value in ("@grid", "@edge") for value in arguments.values() if isinstance(value, str))


def _tensors(output: Any, place: Place = ()) -> Iterator[tuple[Place, Tensor]]:
    """The tensors within what a network returned, with their places."""
    if isinstance(output, Tensor):
        yield place, output
    elif isinstance(output, Mapping):
        for key, value in output.items():
            yield from _tensors(value, (*place, key))
    elif isinstance(output, (list, tuple)):
        for key, value in enumerate(output):
            yield from _tensors(value, (*place, key))


def _at(output: Any, place: Place) -> Tensor:
    for key in place:
        output = output[:, key] if isinstance(output, Tensor) else output[key]
    return output


def _rounded(patch: Sequence[int], steps: Sequence[int]) -> tuple[int, ...]:
    return tuple(n + -n % step for n, step in zip(patch, steps, strict=True))


def _longer(grid: tuple[int, ...], axis: int, by: int, cube: bool) -> tuple[int, ...]:
    return tuple(n + by if cube or i == axis else n for i, n in enumerate(grid))


def _by(grid: Sequence[int]) -> str:
    return "x".join(map(str, grid))


@contextmanager
def _quiet() -> Iterator[None]:
    """Without torch's log of operations that fail on fake tensors, which is what a probe is for, and without what a
    network prints, again at every try."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with redirect_stdout(StringIO()):
            yield
    finally:
        logger.setLevel(level)
