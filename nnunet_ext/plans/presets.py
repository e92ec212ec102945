"""Sizes of each network: what `nnunet_ext plan --size` writes into plans, each combination written once.

`base` is the published network. Values that follow from the patch (strides, token counts) are not here; they come
from the configuration, see `nnunet_ext.plans.network`.
"""

from __future__ import annotations

from typing import Any

# Model name -> class path written into the plans as `network_class_name`.
NETWORKS = {
    "segmamba": "nnunet_ext.architectures.segmamba.SegMamba",
    "unetrpp": "nnunet_ext.architectures.unetrpp.UNETRPP",
}

# Model name -> the name used in plans files and trainers.
TITLES = {
    "segmamba": "SegMamba",
    "unetrpp": "UNETRPP",
}

# Model name -> numbers of axes it has a form for.
AXES = {
    "segmamba": (2, 3),
    "unetrpp": (3,),
}

PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "segmamba": {
        "tiny": {"depths": [1, 1, 1, 1], "dims": [16, 32, 64, 128], "hidden_size": 128},
        "small": {"depths": [2, 2, 2, 2], "dims": [24, 48, 96, 192], "hidden_size": 384},
        "base": {"depths": [2, 2, 2, 2], "dims": [48, 96, 192, 384], "hidden_size": 768},
    },
    "unetrpp": {
        "tiny": {"depths": [1, 1, 1, 1], "decoder_depth": 1, "dims": [16, 32, 64, 128], "feature_size": 8},
        "small": {"depths": [2, 2, 2, 2], "decoder_depth": 2, "dims": [24, 48, 96, 192], "feature_size": 16},
        "base": {"depths": [3, 3, 3, 3], "decoder_depth": 3, "dims": [32, 64, 128, 256], "feature_size": 16},
    },
}
