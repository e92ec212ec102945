"""Any network of another package, adapted to nnU-Net: `AdaptedNetwork`, the class that plans name."""

from nnunet_ext.architectures.adapted.model import AdaptedNetwork
from nnunet_ext.architectures.adapted.values import is_network_class, locate, resolve

__all__ = ["AdaptedNetwork", "is_network_class", "locate", "resolve"]
