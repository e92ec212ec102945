"""Any network, named by its path: `nnunet_ext plan --network PATH` finds out the rest."""

from nnunet_ext.models.model import Model, Trainer
from nnunet_ext.models.nnunet import MODEL as NNUNET

MODEL = Model(
    name="adapted",
    title="a network named by its path",
    suffix="Network",
    paper=NNUNET.paper,
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
