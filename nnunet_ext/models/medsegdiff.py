"""MedSegDiff-V2."""

from nnunet_ext.models.model import Model, Paper, Trainer

_PARAMETERS_OF = "patch 128x128x128, 4 input channels, 4 classes; mean weights not counted"

MODEL = Model(
    name="medsegdiff",
    title="MedSegDiff-V2",
    suffix="MedSegDiffV2",
    paper=Paper(
        "Wu et al., MedSegDiff-V2: Diffusion-Based Medical Image Segmentation with Transformer, AAAI 2024",
        "arXiv:2301.11798",
    ),
    axes=(2, 3),
    trainers=(
        Trainer(
            "nnUNetTrainerMedSegDiffV2",
            "nnunet_ext.trainers.medsegdiff",
            network="MedSegDiff-V2",
            parameters=46_182_465,
            parameters_of=_PARAMETERS_OF,
            remarks="diffusion set up for accuracy per second: predicts the mask, two DDIM steps; 3D is this project's",
        ),
        Trainer(
            "nnUNetTrainerMedSegDiffV2Paper",
            "nnunet_ext.trainers.medsegdiff",
            network="MedSegDiff-V2, as published",
            parameters=70_401_425,
            parameters_of=_PARAMETERS_OF,
            needs="patience: 100 steps times 10 samples per window",
            remarks="noise prediction, STAPLE; the authors' released code lacks both of the paper's conditions",
        ),
        Trainer(
            "nnUNetTrainerMedSegDiffV2Direct",
            "nnunet_ext.trainers.medsegdiff",
            network="condition model of MedSegDiff-V2",
            parameters=31_196_708,
            parameters_of=_PARAMETERS_OF,
            remarks="the control without diffusion that MedSegDiff-V2 has to beat",
        ),
    ),
    network="nnunet_ext.architectures.medsegdiff.SampledMedSegDiffV2",
    # The condition model of `base` is nnU-Net's U-Net; the diffusion model has half its width, a quarter of its work.
    sizes={
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
    from_patch="nnunet_ext.architectures.medsegdiff.geometry:from_patch",
    step="nnunet_ext.steps.medsegdiff",
    optimiser_slots=2,
    no_onnx="a label map is the end of a loop of noise and denoising, of which a graph holds one step",
)
