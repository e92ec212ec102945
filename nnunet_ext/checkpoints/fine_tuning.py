"""Start a network for another data set from weights of the same architecture, whatever network it is.

Which tensors belong to classes and which to image channels is not listed anywhere: the network is built again with one
more of each, and those of another shape are they.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor, nn

from nnunet_ext.checkpoints.load import Transfer, for_channels, load_strict

# nnU-Net starts these anew from any weights.
_ALWAYS_ANEW = ".seg_layers."


def fit(
    network: nn.Module,
    weights: Mapping[str, Tensor],
    build: Callable[[int, int], nn.Module],
    channels: int,
    outputs: int,
    *,
    same_labels: bool,
) -> Transfer:
    """Fill a network with weights that were trained on other images or for other classes.

    Heads stay as initialised unless the classes are the same. Convolutions of the image are averaged over its channels
    and divided by the number of new ones, so that one scan given as every channel is what it was. Buffers of another
    shape, which hold data and not what was learnt, stay too. All else must match in name and shape.

    Args:
        network: for the new data set, filled in place.
        weights: the trained network's state_dict.
        build: makes a network like the new one from its numbers of input channels and of outputs.
        channels: of the new data set's images.
        outputs: of the new network, one per class or region.
        same_labels: whether they mean what they meant.

    Returns:
        What was copied, adapted and left.

    Raises:
        ValueError: names or shapes differ elsewhere; nothing is changed then.
    """
    own = network.state_dict()
    parameters = {name for name, _ in network.named_parameters()}
    of_classes = _differing(own, build(channels, outputs + 1))
    of_channels = _differing(own, build(channels + 1, outputs))
    filled: dict[str, Tensor] = {}
    adapted, initial = [], []
    for name, wanted in own.items():
        value = weights.get(name)
        differs = value is None or value.shape != wanted.shape
        if _ALWAYS_ANEW in name or (name in of_classes and (differs or not same_labels)):
            initial.append(name)
        elif value is None or not differs:
            continue  # copied, or refused below
        elif name in of_channels and _is_kernel_for(value, wanted):
            filled[name] = for_channels(value, wanted.shape[1])
            adapted.append(name)
        elif name in of_channels or name not in parameters:
            initial.append(name)
    filled.update({name: own[name] for name in initial})
    kept = {name: value for name, value in weights.items() if name in own or _ALWAYS_ANEW not in name}
    load_strict(network, {**kept, **filled})
    return Transfer(tuple(name for name in own if name not in filled), tuple(adapted), tuple(initial))


def _differing(own: Mapping[str, Tensor], other: nn.Module) -> set[str]:
    shapes = {name: tensor.shape for name, tensor in other.state_dict().items()}
    return {name for name, tensor in own.items() if shapes.get(name) != tensor.shape}


def _is_kernel_for(value: Tensor, wanted: Tensor) -> bool:
    """Whether these are kernels of convolutions that differ in their input channels alone."""
    return value.dim() > 2 and value.shape[:1] + value.shape[2:] == wanted.shape[:1] + wanted.shape[2:]
