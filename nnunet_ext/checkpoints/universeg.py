"""UniverSeg's official weights: the parameter names are ours, so no renaming is needed.

Source: github.com/JJGO/UniverSeg (code Apache-2.0). The file `universeg_v1_nf64_ss64_STA.pt` of its release `weights`
is a plain state_dict under the licence OpenRAIL++-M, for research only; users fetch it there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from nnunet_ext.architectures.universeg import FewShotNetwork, UniverSeg
from nnunet_ext.checkpoints.load import Transfer, load_strict

_Blocks = Sequence[int | Sequence[int]]


def build(*, encoder_blocks: _Blocks = (64, 64, 64, 64), decoder_blocks: _Blocks | None = None) -> UniverSeg:
    """The official network; the defaults are those of the published weights."""
    return UniverSeg(encoder_blocks, decoder_blocks)


def transfer(model: FewShotNetwork, weights: Mapping[str, Tensor]) -> Transfer:
    """Start a network from the official weights, or from those of a checkpoint of this project.

    Args:
        model: the network whose core is filled, in place; it must have the widths of the weights.
        weights: see `read_checkpoint`.

    Returns:
        What was copied: all of it.

    Raises:
        ValueError: names or widths differ; nothing is changed then.
    """
    kept = core_weights(weights)
    load_strict(model.core, kept)
    return Transfer(tuple(kept), (), ())


def core_weights(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The network's own weights: a checkpoint of `FewShotNetwork` has them under `core.`, beside its support set."""
    own = {key.removeprefix("core."): value for key, value in weights.items() if key.startswith("core.")}
    return own or dict(weights)


def sizes(state_dict: Mapping[str, Tensor]) -> dict[str, list[tuple[int, int]]]:
    """The arguments of `build` that these weights need.

    Raises:
        ValueError: they are not UniverSeg's.
    """
    found = {}
    for stream, name in (("enc_blocks", "encoder_blocks"), ("dec_blocks", "decoder_blocks")):
        blocks: list[tuple[int, int]] = []
        while (cross := state_dict.get(f"{stream}.{len(blocks)}.cross.cross_conv.weight")) is not None:
            conv = state_dict.get(f"{stream}.{len(blocks)}.target.vmapped.conv.weight")
            blocks.append((cross.shape[0], cross.shape[0] if conv is None else conv.shape[0]))
        found[name] = blocks
    if len(found["encoder_blocks"]) < 2 or len(found["decoder_blocks"]) != len(found["encoder_blocks"]) - 1:
        raise ValueError(
            "these are no weights of UniverSeg: expected names such as enc_blocks.0.cross.cross_conv.weight, "
            f"found {', '.join(list(state_dict)[:3])}"
        )
    return found
