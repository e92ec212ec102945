"""UNETR++."""

from nnunet_ext.models.model import Model, Paper, Trainer, Weights, WeightsFile

MODEL = Model(
    name="unetrpp",
    title="UNETR++",
    suffix="UNETRPP",
    paper=Paper(
        "Shaker et al., UNETR++: Delving into Efficient and Accurate 3D Medical Image Segmentation, IEEE Transactions "
        "on Medical Imaging 2024",
        "arXiv:2212.04497",
    ),
    axes=(3,),
    trainers=(
        Trainer(
            "nnUNetTrainerUNETRPP",
            "nnunet_ext.trainers.unetrpp",
            network="UNETR++",
            inputs=("3d_fullres", "3d_lowres", "cascade"),
            parameters=42_952_850,
            parameters_of="the paper's Synapse network, patch 64x128x128, 1 channel, 14 classes; grows with the patch",
            remarks="a trained network belongs to one patch size; the paper's single precision is "
            "NNUNET_EXT_PRECISION=fp32",
        ),
    ),
    network="nnunet_ext.architectures.unetrpp.UNETRPP",
    sizes={
        "tiny": {"depths": [1, 1, 1, 1], "decoder_depth": 1, "dims": [16, 32, 64, 128], "feature_size": 8},
        "small": {"depths": [2, 2, 2, 2], "decoder_depth": 2, "dims": [24, 48, 96, 192], "feature_size": 16},
        "base": {"depths": [3, 3, 3, 3], "decoder_depth": 3, "dims": [32, 64, 128, 256], "feature_size": 16},
    },
    from_patch="nnunet_ext.architectures.unetrpp.geometry:from_patch",
    on_gpu="nnunet_ext.architectures.unetrpp.epa:without_attention_maps",
    deep_supervision=True,
    poolings=5,
    weights=Weights(
        source="github.com/Amshaker/unetr_plus_plus",
        licence="Apache-2.0",
        build="nnunet_ext.checkpoints.unetrpp:build",
        files=(
            WeightsFile("model_final_checkpoint.model", "one file per data set: Synapse, ACDC, BRaTs, Decathlon lung"),
        ),
        transfer="nnunet_ext.checkpoints.unetrpp:transfer",
        belongs_to_patch=True,
    ),
)
