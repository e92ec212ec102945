"""SAM-Med3D."""

from typing import Any

from nnunet_ext.models.model import Model, Paper, Trainer, Weights, WeightsFile

# `sizes` are those of `SAMMed3D`; the smaller two have no padding in attention, and `tiny` a finer mask (32 voxels for
# 64, not for 128). `rounds` are the prompts per training step; the published training has 11.
SIZES: dict[str, dict[str, Any]] = {
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
}

MODEL = Model(
    name="sam_med3d",
    title="SAM-Med3D",
    suffix="SAMMed3D",
    paper=Paper(
        "Wang et al., SAM-Med3D: Towards General-purpose Segmentation Models for Volumetric Medical Images, ECCV 2024 "
        "workshops",
        "arXiv:2310.15161",
    ),
    axes=(3,),
    trainers=(
        Trainer(
            "nnUNetTrainerSAMMed3D",
            "nnunet_ext.trainers.sam_med3d",
            network="SAM-Med3D",
            inputs=("3d_fullres", "3d_lowres"),
            parameters=100_509_232,
            parameters_of="the published network; one token of 384 more per class",
            needs="nothing beyond nnU-Net; clicks go in with nnunet_ext predict-prompts or -prev_stage_predictions",
            remarks="segmentation by clicks; without clicks it segments all classes, which is this project's addition",
        ),
    ),
    network="nnunet_ext.architectures.sam_med3d.PromptableSAMMed3D",
    sizes=SIZES,
    step="nnunet_ext.steps.sam_med3d",
    optimiser_slots=2,
    resized_to={size: arguments["sizes"]["img_size"] for size, arguments in SIZES.items()},
    # As the published weights were trained.
    spacing_mm=(1.5, 1.5, 1.5),
    patch_size=(128, 128, 128),
    configurations=("3d_fullres",),
    hint="a trained one refines the result of any other with nnUNetv2_predict -prev_stage_predictions",
    weights=Weights(
        source="github.com/uni-medical/SAM-Med3D",
        licence="Apache-2.0",
        build="nnunet_ext.checkpoints.sam_med3d:build",
        files=(WeightsFile("sam_med3d_turbo.pth", "the authors' collection of public data sets"),),
        transfer="nnunet_ext.checkpoints.sam_med3d:transfer",
    ),
    no_onnx="it segments in rounds of clicks, each of which depends on the last answer",
)
