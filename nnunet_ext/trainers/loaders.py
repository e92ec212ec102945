"""Batches for a trainer from threads, as many and as far ahead as nnU-Net has from its processes."""

from __future__ import annotations

import functools
import secrets
from typing import Any

import torch
import torch.distributed as dist
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA

from nnunet_ext.augmentation.batches import Batches
from nnunet_ext.augmentation.threads import ThreadLoader

Loader = ThreadLoader[dict[str, Any]]


def draw_seed() -> int:
    """A seed for a run that is given none."""
    return secrets.randbits(32)


def threaded_loaders(trainer: Any) -> tuple[Loader, Loader]:
    """Loaders of the training and of the validation within epochs: `nnUNetTrainer.get_dataloaders` with threads.

    The trainer's own methods say what is drawn and how it is transformed. The same seed gives the same batches,
    however many threads make them, and after a restart those of the epoch that is next.

    Args:
        trainer: an initialised `SharedTrainer`. Its `seed` becomes that of the first rank, so that one number stands
            for the run; ranks draw differently with the same.
    """
    if trainer.is_ddp:
        shared = torch.tensor(trainer.seed, device=trainer.device)
        dist.broadcast(shared, src=0)
        trainer.seed = int(shared)
    if trainer.dataset_class is None:
        trainer.dataset_class = infer_dataset_class(trainer.preprocessed_dataset_folder)
    configuration, labels = trainer.configuration_manager, trainer.label_manager
    patch_size, scales = configuration.patch_size, trainer._get_deep_supervision_scales()
    rotation, dummy_2d, initial_patch_size, mirror_axes = (
        trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
    )
    about_labels = {
        "is_cascaded": trainer.is_cascaded,
        "foreground_labels": labels.foreground_labels,
        "regions": labels.foreground_regions if labels.has_regions else None,
        "ignore_label": labels.ignore_label,
    }
    training = trainer.get_training_transforms(
        patch_size, rotation, scales, mirror_axes, dummy_2d, use_mask_for_norm=configuration.use_mask_for_norm,
        **about_labels,
    )  # fmt: skip
    validation = trainer.get_validation_transforms(scales, **about_labels)
    datasets = trainer.get_tr_and_val_datasets()

    def batches(number: int, size: Any, transforms: Any) -> Batches:
        loader = nnUNetDataLoader(
            datasets[number], trainer.batch_size, size, patch_size, labels,
            oversample_foreground_percent=trainer.oversample_foreground_percent, sampling_probabilities=None,
            pad_sides=patch_size if trainer.patches_reach_out else None, transforms=transforms,
            probabilistic_oversampling=trainer.probabilistic_oversampling,
        )  # fmt: skip
        return trainer.batches(loader, trainer.seed, (trainer.local_rank, number), pinned=_feeds_a_gpu(trainer.device))

    threads, epoch = get_allowed_n_proc_DA(), trainer.current_epoch
    checking = max(1, threads // 2) if threads else 0
    prepare = functools.partial(_use_device, trainer.device)
    of_training, of_validation = batches(0, initial_patch_size, training), batches(1, patch_size, validation)
    # nnU-Net has a queue of finished batches in the workers' process and one in the training's, and one in each hand.
    loaders = (
        ThreadLoader(
            of_training.make, threads, 2 * max(6, threads // 2) + threads, epoch * trainer.num_iterations_per_epoch,
            prepare,
        ),
        ThreadLoader(
            of_validation.make, checking, 2 * max(3, threads // 4) + checking,
            epoch * trainer.num_val_iterations_per_epoch, prepare,
        ),
    )  # fmt: skip
    if of_training.unchanged:
        names = ", ".join(sorted(set(of_training.unchanged)))
        trainer.print_to_log_file(f"nnunet_ext: used as they are, with random numbers that no seed repeats: {names}")
    return loaders


def close_loaders(trainer: Any) -> None:
    """End the threads of a trainer's loaders; nnU-Net ends its own processes."""
    for name in ("dataloader_train", "dataloader_val"):
        loader = getattr(trainer, name, None)
        if isinstance(loader, ThreadLoader):
            loader.close()


def _feeds_a_gpu(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.is_available()


def _use_device(device: torch.device) -> None:
    # A thread begins on the first GPU; memory that a GPU reads by itself would be registered there.
    if _feeds_a_gpu(device):
        torch.cuda.set_device(device)
