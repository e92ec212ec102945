"""SegMamba."""

from nnunet_ext.models.model import Model, Paper, Trainer, Weights

MODEL = Model(
    name="segmamba",
    title="SegMamba",
    suffix="SegMamba",
    paper=Paper(
        "Xing et al., SegMamba: Long-range Sequential Modeling Mamba for 3D Medical Image Segmentation, MICCAI 2024",
        "arXiv:2401.13560",
    ),
    axes=(2, 3),
    trainers=(
        Trainer(
            "nnUNetTrainerSegMamba",
            "nnunet_ext.trainers.segmamba",
            network="SegMamba",
            parameters=67_416_196,
            parameters_of="the paper's size with 4 input channels and 4 classes",
            needs="nothing beyond nnU-Net; a GPU, or mamba-ssm on a GPU, makes it faster",
            remarks="the paper is 3D only; the 2d form is this project's",
        ),
    ),
    network="nnunet_ext.architectures.segmamba.SegMamba",
    sizes={
        "tiny": {"depths": [1, 1, 1, 1], "dims": [16, 32, 64, 128], "hidden_size": 128},
        "small": {"depths": [2, 2, 2, 2], "dims": [24, 48, 96, 192], "hidden_size": 384},
        "base": {"depths": [2, 2, 2, 2], "dims": [48, 96, 192, 384], "hidden_size": 768},
    },
    from_patch="nnunet_ext.architectures.segmamba.geometry:from_patch",
    poolings=4,
    accelerators=("mamba-ssm", "causal-conv1d"),
    weights=Weights(
        source="github.com/ge-xing/SegMamba; its authors had published no weights by 2026-11",
        licence="none stated",
        build="nnunet_ext.checkpoints.segmamba:build",
    ),
)
