"""The row."""

from nnunet_ext.models import Model, Paper, Trainer

MODEL = Model(
    name="toy",
    title="Toy",
    suffix="Toy",
    paper=Paper("Nobody et al., Two Convolutions, 2026", "doi:10.0000/toy"),
    axes=(2, 3),
    trainers=(Trainer("nnUNetTrainerToy", "toy_model.trainer", network="two convolutions"),),
    network="toy_model.network.ToyNet",
    sizes={"tiny": {"width": 4}, "base": {"width": 16}},
    from_patch="toy_model.network:from_patch",
)
