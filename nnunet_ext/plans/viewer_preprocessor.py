"""Images as viewers' sessions show them to a network; in plans `ViewerPreprocessor`."""

from __future__ import annotations

import numpy as np
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

from nnunet_ext.plans.preprocessor import ExactFastPreprocessor


class ViewerPreprocessor(ExactFastPreprocessor):
    """Neither cropped nor resampled nor turned: the voxels of the file, with one mean and one standard deviation.

    These are of the first channel in the bounding box of all voxels that are not zero, for all channels, as
    nnInteractive's session has it, whatever the modality.
    """

    def run_case_npy(
        self,
        data: np.ndarray,
        seg: np.ndarray | None,
        properties: dict,
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        dataset_json: dict | str,
    ) -> tuple[np.ndarray, np.ndarray, dict]:
        size = data.shape[1:]
        properties["shape_before_cropping"] = properties["shape_after_cropping_and_before_resampling"] = size
        properties["bbox_used_for_cropping"] = [[0, n] for n in size]
        image = normalised(data)
        if seg is None:
            return image, np.zeros((1, *size), dtype=np.int8), properties
        labels = plans_manager.get_label_manager(dataset_json)
        wanted = list(labels.foreground_regions if labels.has_regions else labels.foreground_labels)
        if labels.has_ignore_label:
            wanted.append([-1, *labels.all_labels])
        properties["class_locations"] = self._sample_foreground_locations(seg, wanted, verbose=self.verbose)
        seg = self.modify_seg_fn(np.copy(seg), plans_manager, dataset_json, configuration_manager)
        return image, seg.astype(np.int16 if np.max(seg) > 127 else np.int8), properties


def normalised(image: np.ndarray) -> np.ndarray:
    """(channels, z, y, x) less the mean and by the standard deviation of its first channel where there is anything.

    Returns:
        float32; an image that is the same everywhere becomes zero.
    """
    image = image.astype(np.float32)
    used = (image != 0).any(0)
    box = tuple(slice(*_ends(used.any(axis=tuple(b for b in range(3) if b != a)))) for a in range(3))
    known = image[0][box]
    # With Bessel's correction, as torch has it; `known` is part of what changes below.
    mean, deviation = known.mean(dtype=np.float64), known.std(dtype=np.float64, ddof=min(1, known.size - 1))
    image -= np.float32(mean)
    image /= np.float32(max(deviation, 1e-8))
    return image


def _ends(along: np.ndarray) -> tuple[int, int]:
    used = np.flatnonzero(along)
    return (int(used[0]), int(used[-1]) + 1) if len(used) else (0, len(along))
