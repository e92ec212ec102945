"""A row for a network that no row describes: what the others have in writing is found out by a probe.

row, left_out = row_of_network("4", "monai.networks.nets.SegResNet", {"init_filters": 16})
write_plans("4", row, "", configurations=…)
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nnunet_ext import models
from nnunet_ext.architectures.adapted import is_network_class, locate
from nnunet_ext.errors import UserError
from nnunet_ext.plans.constructor import candidates, topology
from nnunet_ext.plans.files import channels_of, num_outputs
from nnunet_ext.plans.fit import strides_for
from nnunet_ext.plans.probe import Findings, Probe, of_a_size
from nnunet_ext.plans.write import preprocessed_folder, read_base_plans, read_description

MODEL = models.find("adapted")
# What a network without a word for channels was made for: colour images.
COLOURS = 3


@dataclass(frozen=True)
class Planned:
    """A configuration of nnU-Net's plans: what a network for it may depend on."""

    patch_size: tuple[int, ...]
    spacing: tuple[float, ...]
    architecture: Mapping[str, Any]

    @property
    def strides(self) -> list[list[int]]:
        return self.architecture["arch_kwargs"]["strides"]


class Adapter:
    """Finds out how a network is used, once per number of axes and strides.

    Args:
        path: of the network.
        settings: arguments the user sets.
        channels, classes: of the data set.
        configurations: of nnU-Net's plans, with patches of their own.

    Raises:
        UserError: there is no such network.
    """

    def __init__(
        self, path: str, settings: Mapping[str, Any], channels: int, classes: int, configurations: Sequence[Planned]
    ):
        self.path, self.settings = path, dict(settings)
        self.channels, self.classes = channels, classes
        self.configurations = configurations
        self.factory = locate(path)
        if not callable(self.factory) or (isinstance(self.factory, type) and not is_network_class(self.factory)):
            kind = self.factory.__name__ if isinstance(self.factory, type) else type(self.factory).__name__
            raise UserError(f"{path} is no torch.nn.Module but {kind}; name a class of networks")
        self._found: dict[str, Findings] = {}
        self._probes: dict[int, Probe] = {}

    def findings(self, patch: Sequence[int], strides: Sequence[Sequence[int]]) -> Findings:
        """How the network is used for a patch.

        Args:
            patch: voxels per axis.
            strides: nnU-Net's for it.

        Raises:
            UserError: it cannot be used there.
        """
        base = next(c for c in self.configurations if len(c.patch_size) == len(patch))
        base = next((c for c in self.configurations if c.strides == strides), base)
        unet = topology(base.architecture, base.spacing, patch, strides)
        tries = list(candidates(self.path, self.factory, self.settings, unet))
        key = json.dumps([len(patch), tries])
        known = self._found.get(key)
        if known is not None:
            moved = self._moved(known, patch)
            if moved is not None:
                return moved
        found = self._probed(tries, patch)
        self._found[key] = found
        return found

    def _probed(self, tries: list[dict[str, Any]], patch: Sequence[int]) -> Findings:
        probe = self._probe(len(patch))
        try:
            return probe.find(tries, patch)
        except UserError:
            # Without a word for channels it may have been made for colour images.
            told = any("@channels" in str(value) for arguments in tries for value in arguments.values())
            if told or self.channels != 1 or probe.image_channels:
                raise
            colours = Probe(self.path, self.channels, self.classes, len(patch), COLOURS)
            try:
                found = colours.find(tries, patch)
            except UserError:
                pass
            else:
                self._probes[len(patch)] = colours
                return found
            raise

    def _moved(self, known: Findings, patch: Sequence[int]) -> Findings | None:
        """What is known of one patch for another; None where it has to be probed."""
        grid = tuple(n + -n % step for n, step in zip(patch, known.step, strict=True))
        if grid == known.grid:
            return known
        outcome = self._probe(len(patch)).attempt(known.arguments, grid)
        if outcome.kind or (known.fixed and not of_a_size(known.arguments)):
            return None
        return dataclasses.replace(known, grid=grid, outcome=outcome)

    def _probe(self, axes: int) -> Probe:
        return self._probes.setdefault(axes, Probe(self.path, self.channels, self.classes, axes))

    def arguments(self, patch: Sequence[int], strides: Sequence[Sequence[int]]) -> dict[str, Any]:
        """Keyword arguments of `AdaptedNetwork` for a patch: what a row's `from_patch` gives."""
        found = self.findings(patch, strides)
        padded = tuple(n + -n % step for n, step in zip(patch, found.step, strict=True))
        arguments: dict[str, Any] = {
            "network": self.path,
            "arguments": found.arguments,
            "step": list(found.step),
            "least": None if found.fixed or padded == found.grid else list(found.grid),
            "grid": list(found.grid) if found.fixed else None,
            "training": [list(head.place) for head in found.outcome.training],
            "evaluation": [list(head.place) for head in found.outcome.evaluation],
            "scales": found.scales,
            "image_channels": found.image_channels,
            "autocast": found.autocast is None,
            "idle": found.idle,
        }
        return {**arguments, "found": self.in_words(found, patch)}

    def in_words(self, found: Findings, patch: Sequence[int]) -> dict[str, str]:
        """What was found out, for readers of plans and of a table."""
        settings = ", ".join(f"{name}={value}" for name, value in found.arguments.items())
        return {
            "network": self.path + (f" ({package})" if (package := package_of(self.path)) else ""),
            "called with": settings.replace("@", "") or "nothing",
            "image channels": _channels(found, self.channels),
            "sizes": _sizes(found, patch),
            "training returns": _returned(found, training=True),
            "evaluation returns": _returned(found, training=False),
            "parameters": _parameters(found),
            "autocast": "safe" if found.autocast is None else f"fails ({found.autocast}): runs in single precision",
        }


def row_of_network(
    dataset: str,
    path: str,
    settings: Mapping[str, Any],
    *,
    base_plans: str = "nnUNetPlans",
    configurations: Sequence[str] | None = None,
    patch_size: Sequence[int] | None = None,
) -> tuple[models.Model, dict[str, str]]:
    """A row of a network named by its path, for `write_plans` and the others that take a model.

    Args:
        dataset: name or number of a data set that nnU-Net has planned.
        path: dotted, of the class.
        settings: arguments the user sets.
        base_plans: of nnU-Net.
        configurations: those it must be usable for; None for whichever it can be used for.
        patch_size: of configurations of that many axes, instead of nnU-Net's.

    Returns:
        The row, and why the network cannot be used for some configurations, by their name.

    Raises:
        UserError: there is no such network, or it cannot be used.
    """
    folder = preprocessed_folder(dataset)
    plans, description = read_base_plans(folder, base_plans, dataset), read_description(folder)
    channels, outputs = channels_of(description), num_outputs(folder / "dataset.json", description)
    own = {name: c for name, c in plans["configurations"].items() if "architecture" in c}
    if not all("strides" in c["architecture"].get("arch_kwargs", {}) for c in own.values()):
        raise UserError(f"{base_plans}.json has no plans of nnU-Net's own network; choose such with -p")
    every = {
        name: Planned(tuple(c["patch_size"]), tuple(c["spacing"]), c["architecture"])
        for name, c in own.items()
        if configurations is None or name in configurations
    }
    adapter = Adapter(path, settings, channels, outputs, list(every.values()))
    refusals: dict[int, UserError] = {}
    most_heads = 1
    # Volumes first, whose refusal says more when nothing works.
    for planned in sorted(every.values(), key=lambda c: -len(c.patch_size)):
        axes = len(planned.patch_size)
        if axes in refusals:
            continue
        try:
            patch, strides = planned.patch_size, planned.strides
            if patch_size is not None and len(patch_size) == axes:
                patch = tuple(patch_size)
                strides = [list(stride) for stride in strides_for(planned.spacing, patch)]
            heads = adapter.findings(patch, strides).outcome.training
            most_heads = max(most_heads, len(heads))
        except UserError as error:
            if configurations is not None:
                raise
            refusals[axes] = error
    usable = {len(planned.patch_size) for planned in every.values()} - refusals.keys()
    if refusals and not usable:
        raise next(iter(refusals.values()))
    name = path.rpartition(".")[2]
    row = dataclasses.replace(
        MODEL,
        title=name,
        suffix=re.sub("_+", "_", name).strip("_"),
        axes=tuple(sorted(usable)),
        sizes={"": {}},
        from_patch=adapter.arguments,
        deep_supervision=most_heads > 1,
    )
    left_out = {name: str(refusals[len(c.patch_size)]) for name, c in every.items() if len(c.patch_size) in refusals}
    return row, left_out


def package_of(path: str) -> str | None:
    """Distribution and version that a dotted path belongs to, such as `monai 1.6.1`; None outside of any."""
    names = importlib.metadata.packages_distributions().get(path.partition(".")[0])
    return f"{names[0]} {importlib.metadata.version(names[0])}" if names else None


def _channels(found: Findings, channels: int) -> str:
    repeated = f"{channels}, repeated {found.image_channels} times: the constructor has no argument for it"
    return repeated if found.image_channels else str(channels)


def _sizes(found: Findings, patch: Sequence[int]) -> str:
    shown, grid = ("x".join(map(str, size)) for size in (patch, found.grid))
    padding = f"the patch {shown}" + (f" is padded to {grid}" if tuple(patch) != found.grid else " fits")
    if found.fixed:
        return f"built for {grid} alone, which belongs to the plans; {padding}"
    steps = sorted(set(found.step))
    taken = "any" if steps == [1] else f"multiples of {'x'.join(map(str, found.step)) if len(steps) > 1 else steps[0]}"
    return f"{taken}; {padding}"


def _returned(found: Findings, training: bool) -> str:
    heads = found.outcome.training if training else found.outcome.evaluation
    place = "".join(f"[{key!r}]" for key in heads[0].place)
    text = f"logits as output{place}" if place else "logits"
    if training and len(heads) > 1:
        scales = ", ".join("x".join(f"{s:.3g}" for s in dict.fromkeys(scale)) for scale in found.scales)
        text = f"{len(heads)} heads, all of them supervised, of {scales} of the size; the first is output{place}"
    elif len(heads) > 1:
        text += f", the first of {len(heads)} heads"
    if training and found.outcome.scalars:
        text += "; a number besides, a loss of its own perhaps, is not used"
    return text


def _parameters(found: Findings) -> str:
    text = f"{found.parameters / 1e6:.2f} M"
    return f"{text}, {found.idle} of them without a gradient (one GPU only)" if found.idle else text
