"""UNETR++'s official weights: the parameter names are ours; sizes that differ are resized for fine-tuning.

Source: github.com/Amshaker/unetr_plus_plus (Apache-2.0). Its authors publish nnU-Net v1 files (`*.model`), which
`read_checkpoint` reads. In the `synapse` files E and F are one layer under two names; where their values differ, F's
are the ones that count, here as there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch.nn.functional as F
from torch import Tensor

from nnunet_ext.architectures.unetrpp import UNETRPP
from nnunet_ext.architectures.unetrpp.geometry import Geometry, fit_geometry, given_geometry
from nnunet_ext.checkpoints.load import Transfer, for_channels, load_strict

# Where the tokens of a module lie: start of its name -> stage.
_STAGES = {
    **{f"unetr_pp_encoder.stages.{stage}.": stage for stage in range(4)},
    "decoder5.": 2,
    "decoder4.": 1,
    "decoder3.": 0,
}
_HEADS = ("out1.", "out2.", "out3.")
_IMAGE_CONVOLUTIONS = (
    "unetr_pp_encoder.downsample_layers.0.0.conv.weight",
    "encoder1.conv1.conv.weight",
    "encoder1.conv3.conv.weight",
)


def build(
    *,
    in_channels: int,
    num_classes: int,
    patch_size: Sequence[int],
    variant: str,
    dims: Sequence[int] = (32, 64, 128, 256),
    depths: Sequence[int] = (3, 3, 3, 3),
    decoder_depth: int = 3,
    num_heads: int = 4,
    feature_size: int = 16,
    proj_sizes: Sequence[int] = (64, 64, 64, 32),
    decoder_proj_size: int = 64,
    strides: Sequence[Sequence[int]] | None = None,
) -> UNETRPP:
    """The official network of a variant: `synapse`, `acdc`, `lung` or `tumor`; see `UNETRPP` for the arguments."""
    return UNETRPP(
        in_channels,
        num_classes,
        patch_size=patch_size,
        variant=variant,
        strides=strides,
        dims=dims,
        depths=depths,
        decoder_depth=decoder_depth,
        num_heads=num_heads,
        feature_size=feature_size,
        proj_sizes=proj_sizes,
        decoder_proj_size=decoder_proj_size,
    )


def transfer(
    model: UNETRPP, state_dict: Mapping[str, Tensor], *, patch_size: Sequence[int], strides: Sequence | None = None
) -> Transfer:
    """Start a network for another patch size, class or channel count from trained weights of the same variant.

    Positions, projections and the kernels whose stride changes are interpolated linearly; projections are scaled so
    that a constant volume keeps its sum, which makes a starting point, not an equivalent network. Heads of another
    class count stay as initialised; first convolutions of another channel count are averaged.

    Args:
        model: the network to fill, in place.
        state_dict: the trained weights.
        patch_size: of the trained network.
        strides: of the trained network, if not those of its patch.

    Returns:
        What was copied, resized and left.

    Raises:
        ValueError: names or widths differ, as between variants; nothing is changed then.
    """
    source = fit_geometry(patch_size) if strides is None else given_geometry(patch_size, strides)
    own = model.state_dict()
    filled: dict[str, Tensor] = {}
    resized, initial = [], []
    for key, wanted in own.items():
        value = state_dict.get(key)
        if value is None or value.shape == wanted.shape:
            continue
        if key.startswith(_HEADS):
            filled[key] = wanted
            initial.append(key)
            continue
        if key in _IMAGE_CONVOLUTIONS:
            value = for_channels(value, wanted.shape[1])
        new = value if value.shape == wanted.shape else _resize(key, value, wanted, source, model.geometry)
        if new is not None and new.shape == wanted.shape:
            filled[key] = new
            resized.append(key)
    load_strict(model, {**state_dict, **filled})
    return Transfer(tuple(key for key in own if key not in filled), tuple(resized), tuple(initial))


def _resize(key: str, value: Tensor, wanted: Tensor, source: Geometry, target: Geometry) -> Tensor | None:
    """The tensor for the target's grid or kernel, or None if it is no such tensor."""
    stage = next((stage for prefix, stage in _STAGES.items() if key.startswith(prefix)), None)
    if key.endswith((".pos_embed", ".E.weight", ".F.weight", ".EF")) and stage is not None:
        old, new = source.grids[stage], target.grids[stage]
        # Tokens last, as (1, features, D, H, W): positions are (1, N, C), E and F (P, N), EF (N, P).
        tokens_first = key.endswith((".pos_embed", ".EF"))
        features = value.flatten(0, -2).T if tokens_first else value
        if features.shape[1] != math.prod(old):
            return None
        features = _interpolate(features.reshape(1, -1, *old), new).flatten(2)[0]
        if not key.endswith(".pos_embed"):
            features = features * (math.prod(old) / math.prod(new))
        return (features.T if tokens_first else features).reshape(wanted.shape)
    if value.dim() == 5 and value.shape[:2] == wanted.shape[:2]:
        kernel = _interpolate(value, wanted.shape[2:])
        # A convolution sums over its kernel, a transposed one with kernel = stride does not.
        return kernel if ".transp_conv." in key else kernel * (value[0, 0].numel() / wanted[0, 0].numel())
    return None


def _interpolate(x: Tensor, grid: Sequence[int]) -> Tensor:
    return F.interpolate(x.float(), size=tuple(grid), mode="trilinear", align_corners=False)
