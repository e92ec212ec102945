"""Sizes of each network: what `nnunet_ext plan --size` writes into plans, each combination written once.

`base` is the published network. Values that follow from the patch (strides, token counts) are not here; they come
from the configuration, see `nnunet_ext.plans.network`.
"""

from __future__ import annotations

from typing import Any

# Model name -> class path written into the plans as `network_class_name`.
NETWORKS = {
    "medsegdiff": "nnunet_ext.inference.sampled.SampledMedSegDiffV2",
    "sam_med3d": "nnunet_ext.inference.promptable.PromptableSAMMed3D",
    "segmamba": "nnunet_ext.architectures.segmamba.SegMamba",
    "unetrpp": "nnunet_ext.architectures.unetrpp.UNETRPP",
    "universeg": "nnunet_ext.inference.few_shot.FewShotNetwork",
}

# Model name -> the name used in plans files and trainers.
TITLES = {
    "medsegdiff": "MedSegDiffV2",
    "sam_med3d": "SAMMed3D",
    "segmamba": "SegMamba",
    "unetrpp": "UNETRPP",
    "universeg": "UniverSeg",
}

# Model name -> numbers of axes it has a form for.
AXES = {
    "medsegdiff": (2, 3),
    "sam_med3d": (3,),
    "segmamba": (2, 3),
    "unetrpp": (3,),
    "universeg": (2,),
}

# Samples per step where nnU-Net's own number means nothing to the network: for UniverSeg, episodes.
BATCH_SIZES = {
    "universeg": 8,
}

PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    # The condition model of `base` is nnU-Net's U-Net; the diffusion model has half its width, a quarter of its work.
    "medsegdiff": {
        "tiny": {
            "width": 16,
            "max_width": 128,
            "denoiser_width": 8,
            "embedding_dim": 32,
            "semantic_dim": 64,
            "semantic_blocks": 2,
            "filter_channels": 8,
        },
        "small": {
            "width": 16,
            "max_width": 160,
            "denoiser_width": 8,
            "embedding_dim": 64,
            "semantic_dim": 128,
            "semantic_blocks": 4,
            "filter_channels": 16,
        },
        "base": {
            "width": 32,
            "max_width": 320,
            "denoiser_width": 16,
            "embedding_dim": 128,
            "semantic_dim": 320,
            "semantic_blocks": 4,
            "filter_channels": 32,
        },
    },
    # `sizes` are those of `SAMMed3D`; the smaller two have no padding in attention, and `tiny` a finer mask (32 voxels
    # for 64, not for 128). `rounds` are the prompts per training step; the published training has 11.
    "sam_med3d": {
        "tiny": {
            "sizes": {
                "img_size": 64,
                "patch_size": 8,
                "embed_dim": 192,
                "depth": 4,
                "num_heads": 4,
                "out_channels": 96,
                "window_size": 0,
                "global_attention": [],
                "relative_positions": "decomposed",
                "grid_positions": "aligned",
                "decoder_heads": 2,
                "iou_hidden": 64,
            },
            "rounds": 6,
        },
        "small": {
            "sizes": {
                "img_size": 128,
                "patch_size": 16,
                "embed_dim": 384,
                "depth": 6,
                "num_heads": 6,
                "out_channels": 192,
                "window_size": 0,
                "global_attention": [],
                "relative_positions": "decomposed",
                "grid_positions": "aligned",
                "decoder_heads": 4,
                "iou_hidden": 128,
            },
            "rounds": 8,
        },
        "base": {
            "sizes": {
                "img_size": 128,
                "patch_size": 16,
                "embed_dim": 768,
                "depth": 12,
                "num_heads": 12,
                "out_channels": 384,
                "window_size": 14,
                "global_attention": [2, 5, 8, 11],
            },
            "rounds": 11,
        },
    },
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
    "universeg": {
        "tiny": {"encoder_blocks": [16, 16, 16, 16], "image_size": 64},
        "small": {"encoder_blocks": [32, 32, 32, 32], "image_size": 128},
        "base": {"encoder_blocks": [64, 64, 64, 64], "image_size": 128},
    },
}
