"""The one table of classes nnU-Net can ask for by name, with the facts `nnunet_ext models` prints.

To add a class, add one `Entry`. Standard library only: the table is read in every nnU-Net process, workers included.
"""

from __future__ import annotations

from dataclasses import dataclass

# Where nnU-Net looks for each kind of class: the start of the module name it hands to its search.
KINDS = {
    "trainer": "nnunetv2.training",
    "planner": "nnunetv2.experiment_planning",
    "preprocessor": "nnunetv2.preprocessing",
}


@dataclass(frozen=True)
class Model:
    """What a user wants to know before training.

    Attributes:
        network: name of the network.
        paper: authors, title, venue and year.
        link: arXiv or DOI identifier.
        inputs: nnU-Net configurations the trainer accepts; "cascade" stands for `3d_cascade_fullres`.
        needs: what it needs beyond nnU-Net, or what makes it faster.
        parameters: learnable parameters at the default size, or None where the plans decide.
        parameters_of: the configuration that number belongs to, or what decides it.
        remarks: differences from the paper worth knowing.
    """

    network: str
    paper: str
    link: str
    inputs: tuple[str, ...]
    needs: str
    parameters: int | None
    parameters_of: str
    remarks: str = ""


@dataclass(frozen=True)
class Entry:
    """A class nnU-Net may ask for: exact name, module that defines it, kind (a key of `KINDS`)."""

    name: str
    module: str
    kind: str = "trainer"
    model: Model | None = None


ALL_INPUTS = ("2d", "3d_fullres", "3d_lowres", "cascade")

MEDSEGDIFF = "Wu et al., MedSegDiff-V2: Diffusion-Based Medical Image Segmentation with Transformer, AAAI 2024"

ENTRIES = (
    Entry(
        "nnUNetTrainerExt",
        "nnunet_ext.trainers.plain",
        model=Model(
            network="nnU-Net's own, from the plans",
            paper="Isensee et al., nnU-Net: a self-configuring method for deep learning-based biomedical image "
            "segmentation, Nature Methods 2021",
            link="doi:10.1038/s41592-020-01008-z",
            inputs=ALL_INPUTS,
            needs="nothing beyond nnU-Net",
            parameters=None,
            parameters_of="the plans decide",
            remarks="the baseline: nnU-Net's training with this project's safe checkpoints and environment settings",
        ),
    ),
    Entry(
        "nnUNetTrainerSegMamba",
        "nnunet_ext.trainers.segmamba",
        model=Model(
            network="SegMamba",
            paper="Xing et al., SegMamba: Long-range Sequential Modeling Mamba for 3D Medical Image Segmentation, "
            "MICCAI 2024",
            link="arXiv:2401.13560",
            inputs=ALL_INPUTS,
            needs="nothing beyond nnU-Net; a GPU, or mamba-ssm on a GPU, makes it faster",
            parameters=67_416_196,
            parameters_of="the paper's size with 4 input channels and 4 classes",
            remarks="the paper is 3D only; the 2d form is this project's",
        ),
    ),
    Entry(
        "nnUNetTrainerUNETRPP",
        "nnunet_ext.trainers.unetrpp",
        model=Model(
            network="UNETR++",
            paper="Shaker et al., UNETR++: Delving into Efficient and Accurate 3D Medical Image Segmentation, "
            "IEEE Transactions on Medical Imaging 2024",
            link="arXiv:2212.04497",
            inputs=("3d_fullres", "3d_lowres", "cascade"),
            needs="nothing beyond nnU-Net",
            parameters=42_952_850,
            parameters_of="the paper's Synapse network, patch 64x128x128, 1 channel, 14 classes; grows with the patch",
            remarks="a trained network belongs to one patch size; the paper's single precision is "
            "NNUNET_EXT_PRECISION=fp32",
        ),
    ),
    Entry(
        "nnUNetTrainerSAMMed3D",
        "nnunet_ext.trainers.sam_med3d",
        model=Model(
            network="SAM-Med3D",
            paper="Wang et al., SAM-Med3D: Towards General-purpose Segmentation Models for Volumetric Medical Images, "
            "ECCV 2024 workshops",
            link="arXiv:2310.15161",
            inputs=("3d_fullres", "3d_lowres"),
            needs="nothing beyond nnU-Net; clicks go in with nnunet_ext predict-prompts or -prev_stage_predictions",
            parameters=100_509_232,
            parameters_of="the published network; one token of 384 more per class",
            remarks="segmentation by clicks; without clicks it segments all classes, which is this project's addition",
        ),
    ),
    Entry(
        "nnUNetTrainerMedSegDiffV2",
        "nnunet_ext.trainers.medsegdiff",
        model=Model(
            network="MedSegDiff-V2",
            paper=MEDSEGDIFF,
            link="arXiv:2301.11798",
            inputs=ALL_INPUTS,
            needs="nothing beyond nnU-Net",
            parameters=46_182_465,
            parameters_of="patch 128x128x128, 4 input channels, 4 classes; mean weights not counted",
            remarks="diffusion set up for accuracy per second: predicts the mask, two DDIM steps; 3D is this project's",
        ),
    ),
    Entry(
        "nnUNetTrainerMedSegDiffV2Paper",
        "nnunet_ext.trainers.medsegdiff",
        model=Model(
            network="MedSegDiff-V2, as published",
            paper=MEDSEGDIFF,
            link="arXiv:2301.11798",
            inputs=ALL_INPUTS,
            needs="patience: 100 steps times 10 samples per window",
            parameters=70_401_425,
            parameters_of="patch 128x128x128, 4 input channels, 4 classes; mean weights not counted",
            remarks="noise prediction, STAPLE; the authors' released code lacks both of the paper's conditions",
        ),
    ),
    Entry(
        "nnUNetTrainerMedSegDiffV2Direct",
        "nnunet_ext.trainers.medsegdiff",
        model=Model(
            network="condition model of MedSegDiff-V2",
            paper=MEDSEGDIFF,
            link="arXiv:2301.11798",
            inputs=ALL_INPUTS,
            needs="nothing beyond nnU-Net",
            parameters=31_196_708,
            parameters_of="patch 128x128x128, 4 input channels, 4 classes; mean weights not counted",
            remarks="the control without diffusion that MedSegDiff-V2 has to beat",
        ),
    ),
    Entry("ExactFastPreprocessor", "nnunet_ext.plans.preprocessor", kind="preprocessor"),
    Entry("nnUNetPlannerMedSegDiffV2", "nnunet_ext.plans.planner", kind="planner"),
    Entry("nnUNetPlannerSAMMed3D", "nnunet_ext.plans.planner", kind="planner"),
    Entry("nnUNetPlannerSegMamba", "nnunet_ext.plans.planner", kind="planner"),
    Entry("nnUNetPlannerUNETRPP", "nnunet_ext.plans.planner", kind="planner"),
    Entry("nnUNetPlannerUniverSeg", "nnunet_ext.plans.planner", kind="planner"),
    Entry(
        "nnUNetTrainerUniverSeg",
        "nnunet_ext.trainers.universeg",
        model=Model(
            network="UniverSeg",
            paper="Butoi, Gonzalez Ortiz et al., UniverSeg: Universal Medical Image Segmentation, ICCV 2023",
            link="arXiv:2304.06131",
            inputs=("2d",),
            needs="nothing beyond nnU-Net; one labelled case is enough",
            parameters=1_182_785,
            parameters_of="the published network; it does not depend on channels or labels",
            remarks="few-shot: segments by a support set that checkpoints carry; volumes slice by slice; without "
            "training: nnunet_ext predict-fewshot",
        ),
    ),
)


def find(name: str, kind: str | None = None) -> Entry | None:
    """Return the entry called exactly `name`, of that kind when one is given, or None."""
    for entry in ENTRIES:
        if entry.name == name and kind in (None, entry.kind):
            return entry
    return None


def of_kind(kind: str) -> tuple[Entry, ...]:
    """Return all entries of one kind, in table order."""
    return tuple(entry for entry in ENTRIES if entry.kind == kind)
