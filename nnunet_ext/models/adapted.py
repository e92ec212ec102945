"""Any network, named by its path: `nnunet_ext plan --network PATH` finds out the rest."""

from nnunet_ext.models.model import Model, Paper, Trainer

MODEL = Model(
    name="adapted",
    title="a network named by its path",
    suffix="Network",
    paper=Paper(
        "Isensee et al., nnU-Net: a self-configuring method for deep learning-based biomedical image segmentation, "
        "Nature Methods 2021",
        "doi:10.1038/s41592-020-01008-z",
    ),
    axes=(2, 3),
    trainers=(
        Trainer(
            "nnUNetTrainerNetwork",
            "nnunet_ext.trainers.adapted",
            network="any nn.Module, from plans of nnunet_ext plan --network",
            needs="the package of the network; plans of nnunet_ext plan --network",
            remarks="AdamW with nnU-Net's polynomial decay, which convolutions and transformers both take",
        ),
    ),
    network="nnunet_ext.architectures.adapted.AdaptedNetwork",
    optimiser_slots=2,
)
