"""UniverSeg (arXiv:2304.06131), and the network nnU-Net trains and runs: UniverSeg with a support set inside."""

from nnunet_ext.architectures.universeg.few_shot import FewShotNetwork
from nnunet_ext.architectures.universeg.model import UniverSeg

__all__ = ["FewShotNetwork", "UniverSeg"]
