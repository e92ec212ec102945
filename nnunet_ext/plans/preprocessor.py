"""nnU-Net's preprocessing, equal but for rounding, in a tenth of the time; in plans `ExactFastPreprocessor`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.preprocessing.resampling.default_resampling import determine_do_sep_z_and_axis
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

from nnunet_ext.ops.resample import resample_image, resample_labels

# The function of nnU-Net's own plans, whose results are reproduced; what else plans may name is left as it is.
RESAMPLING = "resample_data_or_seg_to_shape"
Resample = Callable[..., np.ndarray]


class ExactFastPreprocessor(DefaultPreprocessor):
    """nnU-Net's DefaultPreprocessor, resampling by `nnunet_ext.ops.resample`.

    Images agree within 2e-6 of the range of their values, which single precision rounds; where one voxel outshines all
    others, that is more of their standard deviation. Label maps agree voxel by voxel except where two labels have
    exactly equal weight, which nnU-Net leaves to rounding.
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
        fast = _FastResampling(configuration_manager.configuration)
        return super().run_case_npy(data, seg, properties, plans_manager, fast, dataset_json)

    @staticmethod
    def _sample_foreground_locations(
        seg: np.ndarray,
        classes_or_regions: Sequence[Any],
        seed: int = 1234,
        verbose: bool = False,
        min_num_samples: int = 10000,
        min_percent_coverage: float = 0.01,
    ) -> dict:
        """nnU-Net's locations, drawn by the same random numbers; only those drawn are turned into coordinates.

        Args:
            seg: (1, z, y, x) label map.
            classes_or_regions: labels, or lists of labels.
            seed, min_num_samples, min_percent_coverage: as nnU-Net's.
            verbose: unused; nnU-Net prints the numbers drawn.

        Returns:
            Label or tuple of labels -> (n, 4) indices into `seg`, or an empty list where it has none.
        """
        random = np.random.RandomState(seed)
        found: dict[int, np.ndarray] = {}
        locations: dict[Any, Any] = {}
        for wanted in classes_or_regions:
            region = isinstance(wanted, (tuple, list))
            labels = tuple(int(label) for label in wanted) if region else (int(wanted),)
            for label in labels:
                if label not in found:
                    found[label] = np.flatnonzero(seg == label)
            present = [found[label] for label in labels if len(found[label])]
            key = labels if region else labels[0]
            total = sum(map(len, present))
            if not total:
                locations[key] = []
                continue
            number = max(min(min_num_samples, total), int(np.ceil(total * min_percent_coverage)))
            drawn = random.choice(total, number, replace=False)
            chosen = present[0][drawn] if len(present) == 1 else np.concatenate(present)[drawn]
            locations[key] = np.stack(np.unravel_index(chosen, seg.shape), axis=1)
        return locations


class _FastResampling(ConfigurationManager):
    """A configuration whose resampling functions are the fast ones, where the plans name nnU-Net's default."""

    @property
    def resampling_fn_data(self) -> Resample:
        arguments = self.configuration["resampling_fn_data_kwargs"]
        if self.configuration["resampling_fn_data"] != RESAMPLING or arguments.get("is_seg"):
            return super().resampling_fn_data

        def resample(image, shape, spacing, new_spacing):
            axis = coarse_axis(arguments, spacing, new_spacing)
            return resample_image(image, shape, arguments.get("order", 3), axis, arguments.get("order_z", 0))

        return resample

    @property
    def resampling_fn_seg(self) -> Resample:
        arguments = self.configuration["resampling_fn_seg_kwargs"]
        if (
            self.configuration["resampling_fn_seg"] != RESAMPLING
            or not arguments.get("is_seg")
            or (arguments.get("order", 3), arguments.get("order_z", 0)) != (1, 0)
        ):
            return super().resampling_fn_seg

        def resample(labels, shape, spacing, new_spacing):
            return resample_labels(labels, shape, coarse_axis(arguments, spacing, new_spacing))

        return resample


def coarse_axis(arguments: dict[str, Any], spacing: Sequence[float], new_spacing: Sequence[float]) -> int | None:
    """The axis nnU-Net would resample for itself, or None.

    Args:
        arguments: of the resampling function, from the plans.
        spacing, new_spacing: mm per axis, before and after.
    """
    separate, axis = determine_do_sep_z_and_axis(arguments.get("force_separate_z", False), spacing, new_spacing)
    return int(axis) if separate and axis is not None else None
