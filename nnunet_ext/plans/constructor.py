"""How the constructor of a network that nobody here knows is called: by its signature and the names people use.

Names stand for the data set's channels and classes, the axes, the image size and nnU-Net's own topology. What the user
sets goes before everything; what cannot be guessed is asked for, with the signature.
"""

from __future__ import annotations

import ast
import difflib
import inspect
import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from nnunetv2.experiment_planning.experiment_planners.network_topology import get_pool_and_conv_props

from nnunet_ext.errors import UsageError, UserError

# Lower case and without underscores.
CHANNELS = frozenset(
    "inchannels inchannel nchannels numchannels channelsin inputchannels numinputchannels inchans inch inputnc nin "
    "innc cin imgchannels imagechannels inputch channelin nin numin nchannelsin nchin".split()
)
CLASSES = frozenset(
    "outchannels outchannel numclasses nclasses nclass classes channelsout outputchannels numoutputchannels outchans "
    "outch outputnc outnc cout nlabels numlabels numclass noutputs nout outputch channelout numout nchannelsout nchout "
    "numsegmentationheads".split()
)
AXES = frozenset("spatialdims spatialdim dimensions ndim ndims numdims spatialdimensions numspatialdims naxes".split())
IMAGE_SIZE = frozenset(
    "imgsize imagesize inputimagesize inputsize imageshape imgshape inputshape insize roisize spatialsize spatialshape "
    "volumesize volumeshape inshape imgdim imgdims".split()
)
# Only where an argument is required: as optional ones they mean other things too.
FEATURES = frozenset("channels filters features featuresperstage featurechannels nfilters encoderchannels".split())
STRIDES = frozenset("strides poolkernels poolsizes downsamplestrides poolopkernelsizes".split())
KERNELS = frozenset("kernelsize kernelsizes convkernelsizes".split())
UP_KERNELS = frozenset("upsamplekernelsize upkernelsize upsamplekernelsizes upsamplestrides".split())
# A network must not be fetched again wherever it is built.
WEIGHTS = re.compile(r"pretrained|(^|_)weights($|_)")


def parse_settings(texts: Sequence[str]) -> dict[str, Any]:
    """{name: value} of texts such as init_filters=16; values are Python's numbers, lists and so on, else text.

    Raises:
        UsageError: not of that form.
    """
    settings: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier():
            raise UsageError(f"--set {text!r} must be name=value, such as init_filters=16")
        try:
            settings[name] = _plain(ast.literal_eval(value))
        except (ValueError, SyntaxError, TypeError):
            settings[name] = {"none": None, "true": True, "false": False}.get(value.lower(), value)
    return settings


def _plain(value: Any) -> Any:
    """With lists for tuples, as JSON has them."""
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise ValueError(value)


def candidates(
    path: str, factory: Callable[..., Any], settings: Mapping[str, Any], unet: Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
    """Arguments to try, most likely first; in values, @channels and so on stand for what nnU-Net knows when it builds.

    Args:
        path: of the network, for messages.
        factory: the class or function.
        settings: the user's.
        unet: arguments of nnU-Net's own network for the same configuration, see `topology`.

    Raises:
        UserError: an argument that is set does not exist, or one that is required cannot be guessed.
    """
    signature = inspect.signature(factory)
    named = {
        name: parameter
        for name, parameter in signature.parameters.items()
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    }
    takes_more = any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())
    for name in settings:
        if name not in named and not takes_more:
            near = difflib.get_close_matches(name, named, 1)
            hint = f"; did you mean {near[0]}" if near else ""
            raise UserError(f"{path} has no argument {name}{hint}; its signature is {_shown(path, signature)}")

    # Per argument, the values to try.
    found: dict[str, list[Any]] = {}
    for name, parameter in named.items():
        if name in settings:
            continue
        if (values := _by_name(name, parameter)) is not None:
            found[name] = values
    required = [n for n, p in named.items() if p.default is p.empty and n not in found and n not in settings]
    if required and all(name in unet for name in required):
        # nnU-Net's own kind of network.
        found |= {name: [unet[name]] for name in named if name in unet and name not in settings and name not in found}
    else:
        for name in required:
            values = _by_topology(name, unet)
            if values is None:
                raise UserError(
                    f"{path} needs {name}, which cannot be guessed; add --set {name}=VALUE (its signature is "
                    f"{_shown(path, signature)})"
                )
            found[name] = values
    order = [name for name in signature.parameters if name in found or name in settings]
    order += [name for name in settings if name not in order]
    for chosen in itertools.product(*([settings[name]] if name in settings else found[name] for name in order)):
        yield dict(zip(order, chosen, strict=True))


def _by_name(name: str, parameter: inspect.Parameter) -> list[Any] | None:
    short = name.lower().replace("_", "")
    for names, values in ((CHANNELS, ["@channels"]), (CLASSES, ["@classes"]), (AXES, ["@axes"])):
        if short in names:
            return values
    if short in IMAGE_SIZE:
        one_number = isinstance(parameter.default, int) or parameter.annotation in (int, "int")
        return ["@edge"] if one_number else ["@grid", "@edge"]
    if WEIGHTS.search(name.lower()) and parameter.default not in (parameter.empty, None, False):
        return [False if parameter.default is True else None]
    return None


def _by_topology(name: str, unet: Mapping[str, Any]) -> list[Any] | None:
    short = name.lower().replace("_", "")
    if short in FEATURES:
        return [unet["features_per_stage"]]
    if short in STRIDES:
        return [unet["strides"][1:], unet["strides"]]
    if short in KERNELS:
        return [unet["kernel_sizes"]]
    if short in UP_KERNELS:
        return [unet["strides"][1:]]
    return None


def topology(
    architecture: Mapping[str, Any],
    spacing: Sequence[float],
    patch_size: Sequence[int],
    strides: Sequence[Sequence[int]],
) -> dict[str, Any]:
    """Arguments of nnU-Net's own network for a patch: the plans' where its strides are theirs, else by nnU-Net's rules.

    Args:
        architecture: of a configuration of nnU-Net's plans.
        spacing: of that configuration.
        patch_size: voxels per axis.
        strides: nnU-Net's for this patch, the first of them 1.
    """
    planned = dict(architecture.get("arch_kwargs") or {})
    for name in architecture.get("_kw_requires_import") or ():
        if planned.get(name) is not None:
            planned[name] = f"@{planned[name]}"
    strides = [list(map(int, stride)) for stride in strides]
    if planned.get("strides") == strides and {"features_per_stage", "kernel_sizes"} <= planned.keys():
        return planned
    stages = len(strides)
    _, _, kernels, _, _ = get_pool_and_conv_props(list(spacing), list(patch_size), 4, 999999)
    rules = {
        "n_stages": stages,
        "features_per_stage": [min(512 if len(patch_size) == 2 else 320, 32 * 2**i) for i in range(stages)],
        "strides": strides,
        "kernel_sizes": [[int(k) for k in kernel] for kernel in kernels][:stages],
    }
    for name, length in (("n_conv_per_stage", stages), ("n_conv_per_stage_decoder", stages - 1)):
        if name in planned:
            rules[name] = [2] * length
    return planned | rules


def _shown(path: str, signature: inspect.Signature) -> str:
    """A signature in short: names, and the defaults that are plain."""
    words = []
    for name, parameter in signature.parameters.items():
        if parameter.kind is parameter.VAR_POSITIONAL:
            words.append(f"*{name}")
        elif parameter.kind is parameter.VAR_KEYWORD:
            words.append(f"**{name}")
        elif parameter.default is parameter.empty:
            words.append(name)
        else:
            text = repr(parameter.default)
            words.append(f"{name}={text if len(text) <= 24 else '…'}")
    return f"{path.rpartition('.')[2]}({', '.join(words)})"
