"""Early prompting: interactions as channels beside the image, for models that viewers open."""

from nnunet_ext.models.model import Model, Paper, Trainer

MODEL = Model(
    name="interactive",
    title="early prompting",
    suffix="Interactive",
    paper=Paper(
        "Isensee, Rokuss, Krämer et al., nnInteractive: Redefining 3D Promptable Segmentation, 2025", "arXiv:2503.08373"
    ),
    axes=(3,),
    trainers=(
        Trainer(
            "nnUNetTrainerInteractive",
            "nnunet_ext.trainers.interactive",
            network="nnU-Net's residual encoder, or the network of the plans, with seven interaction channels",
            inputs=("3d_fullres",),
            needs="plans of nnUNetPlannerInteractive; to click: nnunet-ext[interactive] and a viewer",
            remarks="segmentation by points, boxes, scribbles, lassos and masks, in the viewers that nnInteractive has",
            automatic=False,
        ),
    ),
    network="nnunet_ext.architectures.interactive.InteractiveNetwork",
    sizes={
        "tiny": {"features": 8, "blocks": [1, 1, 1, 1, 1, 1]},
        "small": {"features": 16, "blocks": [1, 2, 2, 2, 2, 2]},
        "base": {"features": 32, "blocks": [1, 3, 4, 6, 6, 6]},
    },
    from_patch="nnunet_ext.architectures.interactive.geometry:from_patch",
    step="nnunet_ext.steps.interactive",
    optimiser_slots=2,
    deep_supervision=True,
    configurations=("3d_fullres",),
    planner_class="nnunet_ext.plans.interactive.InteractivePlanner",
    preprocessor="ViewerPreprocessor",
    hint="viewers show volumes; slices can be clicked on as volumes of one slice",
)
