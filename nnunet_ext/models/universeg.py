"""UniverSeg."""

from nnunet_ext.models.model import Model, Paper, Trainer, Weights, WeightsFile

MODEL = Model(
    name="universeg",
    title="UniverSeg",
    suffix="UniverSeg",
    paper=Paper(
        "Butoi, Gonzalez Ortiz et al., UniverSeg: Universal Medical Image Segmentation, ICCV 2023", "arXiv:2304.06131"
    ),
    axes=(2,),
    trainers=(
        Trainer(
            "nnUNetTrainerUniverSeg",
            "nnunet_ext.trainers.universeg",
            network="UniverSeg",
            inputs=("2d",),
            parameters=1_182_785,
            parameters_of="the published network; it does not depend on channels or labels",
            needs="nothing beyond nnU-Net; one labelled case is enough",
            remarks="few-shot: segments by a support set that checkpoints carry; volumes slice by slice; without "
            "training: nnunet_ext predict-fewshot",
        ),
    ),
    network="nnunet_ext.architectures.universeg.FewShotNetwork",
    sizes={
        "tiny": {"encoder_blocks": [16, 16, 16, 16], "image_size": 64},
        "small": {"encoder_blocks": [32, 32, 32, 32], "image_size": 128},
        "base": {"encoder_blocks": [64, 64, 64, 64], "image_size": 128},
    },
    step="nnunet_ext.steps.universeg",
    loss="nnunet_ext.losses:episode_loss",
    optimiser_slots=2,
    batch_size=8,  # episodes
    hint="2d takes volumes slice by slice",
    weights=Weights(
        source="github.com/JJGO/UniverSeg, release `weights`",
        licence="OpenRAIL++-M, for research only",
        build="nnunet_ext.checkpoints.universeg:build",
        files=(WeightsFile("universeg_v1_nf64_ss64_STA.pt", "MegaMedical, the authors' collection"),),
        transfer="nnunet_ext.checkpoints.universeg:transfer",
    ),
    training_images="support_images",
    no_onnx="it chooses the images that support a slice by looking at the slice",
)
