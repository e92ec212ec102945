"""SAM-Med3D's official weights: the parameter names are ours, so no renaming is needed.

Source: github.com/uni-medical/SAM-Med3D (Apache-2.0); files such as `sam_med3d_turbo.pth` are published by the authors
and hold training state around the weights, which `read_checkpoint` reads without running anything.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from nnunet_ext.architectures.sam_med3d import VARIANTS, SAMMed3D
from nnunet_ext.checkpoints.load import Transfer, for_channels, load_strict
from nnunet_ext.checkpoints.viewer_folder import inference_info

# How viewers show clicks to it: none is fainter than another, and close ones stay apart.
INTERACTIONS = {**inference_info(("points",)), "interaction_decay": 1.0, "point_radius": 2}
_PATCH_EMBEDDING = "image_encoder.patch_embed.proj.weight"


def build(
    *,
    variant: str | None = None,
    in_channels: int = 1,
    img_size: int | None = None,
    patch_size: int | None = None,
    embed_dim: int | None = None,
    depth: int | None = None,
    num_heads: int | None = None,
    out_channels: int | None = None,
    window_size: int | None = None,
    global_attention: Sequence[int] | None = None,
    iou_hidden: int | None = None,
) -> SAMMed3D:
    """The official network of a variant (`vit_b_ori`), or of explicit sizes, which override the variant's.

    Raises:
        ValueError: an unknown variant.
    """
    if variant is not None and variant not in VARIANTS:
        raise ValueError(f"no SAM-Med3D variant {variant!r} with published weights; known: {', '.join(VARIANTS)}")
    given: dict[str, Any] = {
        "img_size": img_size,
        "patch_size": patch_size,
        "embed_dim": embed_dim,
        "depth": depth,
        "num_heads": num_heads,
        "out_channels": out_channels,
        "window_size": window_size,
        "global_attention": global_attention,
        "iou_hidden": iou_hidden,
    }
    sizes = {**VARIANTS[variant or "vit_b_ori"], **{key: value for key, value in given.items() if value is not None}}
    return SAMMed3D(in_channels, **sizes)


def transfer(model: nn.Module, state_dict: Mapping[str, Tensor]) -> Transfer:
    """Start a promptable network of the published sizes from published weights.

    A patch embedding for several channels gets each kernel divided by their number, so that a scan given n times
    is what it was given once. The tokens of the automatic segmentation stay as initialised.

    Args:
        model: a `PromptableSAMMed3D`, filled in place.
        state_dict: the official weights.

    Returns:
        What was copied, resized and left.

    Raises:
        ValueError: names or sizes differ; nothing is changed then.
    """
    network = model.sam
    assert isinstance(network, SAMMed3D)
    own, weights, resized = network.state_dict(), dict(state_dict), []
    kernel, wanted = weights.get(_PATCH_EMBEDDING), own[_PATCH_EMBEDDING]
    if kernel is not None and kernel.dim() == wanted.dim() and kernel.shape[1] != wanted.shape[1]:
        weights[_PATCH_EMBEDDING] = for_channels(kernel, wanted.shape[1])
        resized.append("sam." + _PATCH_EMBEDDING)
    load_strict(network, weights)
    copied = tuple(name for name in (f"sam.{key}" for key in own) if name not in resized)
    return Transfer(copied, tuple(resized), ("automatic.seg_layers.weight",))
