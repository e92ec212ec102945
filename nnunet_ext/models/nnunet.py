"""nnU-Net's own network, the baseline: its facts are nnU-Net's."""

from nnunet_ext.models.model import Model, Paper, Trainer

MODEL = Model(
    name="nnunet",
    title="nnU-Net",
    suffix="Ext",
    paper=Paper(
        "Isensee et al., nnU-Net: a self-configuring method for deep learning-based biomedical image segmentation, "
        "Nature Methods 2021",
        "doi:10.1038/s41592-020-01008-z",
    ),
    axes=(2, 3),
    trainers=(
        Trainer(
            "nnUNetTrainerExt",
            "nnunet_ext.trainers.plain",
            network="nnU-Net's own, from the plans",
            remarks="the baseline: nnU-Net's training with this project's safe checkpoints and environment settings",
        ),
    ),
)
