"""Another support set for a trained model: labelled images, preprocessed as nnU-Net does it, in a file of their own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from nnunet_ext.architectures.universeg.few_shot import support_buffers
from nnunet_ext.errors import UserError
from nnunet_ext.few_shot.folder import find_images
from nnunet_ext.files import atomic_path, resolved
from nnunet_ext.image_files import check_whole, read_values, whole_numbers
from nnunet_ext.json_object import shown
from nnunet_ext.quiet import quiet_libraries

# Pixels along a slice; UniverSeg was published for 128.
_LARGEST_SIZE = 4096


class _Preprocessed:
    """Cases in memory, as nnU-Net's data set object gives them."""

    def __init__(self, folder: Path, cases: dict[str, tuple[np.ndarray, np.ndarray]]):
        self.source_folder = str(folder)
        self.identifiers = list(cases)
        self._cases = cases

    def load_case(self, name: str):
        return (*self._cases[name], None, {})


def write_support_file(model: Path, images: Path, labels: Path, output: Path) -> dict[str, dict[str, list[float]]]:
    """Preprocess labelled images for a model and write them as a support file, which holds tensors only.

    Args:
        model: nnU-Net's result folder of nnUNetTrainerUniverSeg, the one above the folds.
        images: named as in nnU-Net, `case_0000` with the data set's ending.
        labels: `case` with the data set's ending.
        output: file to write.

    Returns:
        Task -> case -> positions of the slices that hold it.

    Raises:
        UserError: no such model, a missing or damaged file, a label map with fractions or NaN, or nothing labelled.
    """
    from nnunet_ext.inference.model_files import read_dataset_json, read_plans
    from nnunet_ext.plans.network import network_arguments
    from nnunet_ext.support.pool import read_pool, tasks_of

    name, _, configuration = resolved(model).name.rpartition("__")
    if not configuration or not name.startswith("nnUNetTrainerUniverSeg__"):
        raise UserError(f"{model} is no result folder such as nnUNetTrainerUniverSeg__nnUNetPlans__2d")
    dataset_json = read_dataset_json(model)
    manager, settings = read_plans(model, configuration, dataset_json)
    label_manager = manager.get_label_manager(dataset_json)
    size = network_arguments("universeg", settings).get("image_size")
    if not isinstance(size, int) or not 1 <= size <= _LARGEST_SIZE:
        raise UserError(f"{model / 'plans.json'} has image_size {shown(size)}; expected 1 to {_LARGEST_SIZE}")
    preprocessor = settings.preprocessor_class(verbose=False)
    cases = {}
    for case, files in find_images(images).items():
        label_file = labels / f"{case}{dataset_json['file_ending']}"
        if not label_file.is_file():
            raise UserError(f"{files[0]} has no label map {label_file}")
        for path in (*files, label_file):
            check_whole(path)
        whole_numbers(label_file, read_values(label_file))
        with quiet_libraries():
            case_files = list(map(str, files)), str(label_file)
            data, seg, _ = preprocessor.run_case(*case_files, manager, settings, dataset_json)
        cases[case] = data, seg
    pool = read_pool(
        _Preprocessed(images, cases),
        tasks_of(label_manager.has_regions, dataset_json),
        size,
        settings.patch_size[0],
        ignore_label=label_manager.ignore_label,
    )
    with atomic_path(output) as temporary:
        torch.save(support_buffers(pool), temporary)
    return {task.name: pool.where(number) for number, task in enumerate(pool.tasks)}
