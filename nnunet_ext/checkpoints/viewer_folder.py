"""What the viewers' session (nninteractive on PyPI) reads from a model folder besides nnU-Net's own files.

`inference_info.json` says which interactions a network understands and in which channels; `LICENSE` begins with the
line that viewers show. With these two, a folder of results opens in the unmodified session and in
`nninteractive-server`, and so in napari, MITK, 3D Slicer and OHIF.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from nnunet_ext.files import write_json, write_text
from nnunet_ext.prompts.channels import CHANNELS, CHANNELS_OF, DECAY, POINT_RADIUS, PREVIOUS, SCRIBBLE_THICKNESS

INFO, LICENCE = "inference_info.json", "LICENSE"
VARIABLE = "NNUNET_EXT_LICENCE"
NOT_STATED = "not stated"
# The session's name of each interaction -> ours.
INTERACTIONS = {"points": "point", "bbox2d": "box", "bbox3d": "box", "scribble": "scribble", "lasso": "lasso"}
# All but boxes in three axes.
EARLY_PROMPTING = ("points", "bbox2d", "scribble", "lasso")


def inference_info(
    supported: Collection[str] = EARLY_PROMPTING, *, initial_mask: bool = True, refines_mask_alone: bool = True
) -> dict[str, Any]:
    """The content of `inference_info.json`.

    Args:
        supported: keys of `INTERACTIONS` that the network understands.
        initial_mask: whether it may begin with a mask.
        refines_mask_alone: whether it may better a mask without any interaction.

    Raises:
        ValueError: there is no such interaction.
    """
    unknown = sorted(set(supported) - INTERACTIONS.keys())
    if unknown:
        raise ValueError(f"no interaction {unknown[0]!r}; known: {', '.join(INTERACTIONS)}")
    pairs = {name: list(CHANNELS_OF[own]) for name, own in INTERACTIONS.items()}
    return {
        "supported_interactions": {name: name in supported for name in INTERACTIONS},
        "supports_initial_label": initial_mask,
        "supports_zero_shot_label_refinement": refines_mask_alone,
        "interaction_channels": CHANNELS - 1,  # without the previous segmentation
        "channel_mapping": {"prev_seg": PREVIOUS, **pairs},
        "point_radius": POINT_RADIUS,
        "preferred_scribble_thickness": [SCRIBBLE_THICKNESS] * 3,
        "interaction_decay": DECAY,
        "pad_mode_image": "constant",
        "inference_class": "nnInteractiveInferenceSession",
        "inference_class_min_version": "2.6.0",
    }


def write_viewer_folder(
    folder: str | os.PathLike[str],
    dataset_json: Mapping[str, Any],
    info: Mapping[str, Any] | None = None,
    environment: Mapping[str, str] = os.environ,
) -> None:
    """Write `inference_info.json` and `LICENSE` beside the `plans.json` of a model folder.

    A licence somebody put there stays, unless NNUNET_EXT_LICENCE names another.

    Args:
        folder: `nnUNet_results/DATASET/TRAINER__PLANS__CONFIGURATION`.
        dataset_json: of the data set, whose licence is that of the model where nothing else is said.
        info: None for that of early prompting.
        environment: variables.
    """
    folder = Path(folder)
    write_json(folder / INFO, dict(inference_info() if info is None else info))
    path, asked = folder / LICENCE, environment.get(VARIABLE, "").strip()
    if asked or not path.exists():
        write_text(path, f"{asked or licence_of(dataset_json)}\n")


def licence_of(dataset_json: Mapping[str, Any]) -> str:
    """The licence that a dataset.json states, under either spelling; else "not stated"."""
    for key in ("licence", "license"):
        stated = dataset_json.get(key)
        if isinstance(stated, str) and stated.strip():
            return " ".join(stated.split())
    return NOT_STATED
