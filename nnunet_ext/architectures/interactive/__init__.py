"""Early prompting: any segmentation network with interaction channels beside the image's."""

from nnunet_ext.architectures.interactive.model import InteractiveNetwork

__all__ = ["InteractiveNetwork"]
