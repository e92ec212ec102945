"""Sizes of each network: what `nnunet_ext plan --size` writes into plans, each combination written once.

`base` is the published network. Values that follow from the patch (strides, token counts) are not here; they come
from the configuration, see `nnunet_ext.plans.network`.
"""

from __future__ import annotations

from typing import Any

# Model name -> class path written into the plans as `network_class_name`.
NETWORKS = {
    "segmamba": "nnunet_ext.architectures.segmamba.SegMamba",
}

# Model name -> the name used in plans files and trainers.
TITLES = {
    "segmamba": "SegMamba",
}

PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "segmamba": {
        "tiny": {"depths": [1, 1, 1, 1], "dims": [16, 32, 64, 128], "hidden_size": 128},
        "small": {"depths": [2, 2, 2, 2], "dims": [24, 48, 96, 192], "hidden_size": 384},
        "base": {"depths": [2, 2, 2, 2], "dims": [48, 96, 192, 384], "hidden_size": 768},
    },
}
