"""A model's file, ours or that of nnUNetv2_export_model_to_zip, as the folders that prediction opens.

Nothing in the file is executed, no file that is there is replaced, and a model that does not work here is not
installed: its network is built and given every fold's weights before the folder appears.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from packaging.version import InvalidVersion, Version  # matplotlib, a dependency, brings it

from nnunet_ext import __version__
from nnunet_ext.errors import UserError
from nnunet_ext.files import atomic_folder
from nnunet_ext.inference.model_folder import open_model_folder
from nnunet_ext.quiet import quiet_predictor
from nnunet_ext.sharing.archive import names_of, opened, unpack
from nnunet_ext.sharing.manifest import NAME, Manifest, read_manifest
from nnunet_ext.sharing.pack import DATASET, MODEL

_KINDS = (".json", ".pth", ".onnx", ".png", ".pdf", ".txt", ".md", ".nii.gz", ".nii", ".nrrd", ".mha", ".tif")


@dataclass(frozen=True)
class Installed:
    """A model that prediction can open.

    Attributes:
        folder: of the model.
        folds: numbers or "all".
        manifest: what its file says of itself; None for one of nnU-Net's own.
    """

    folder: Path
    folds: tuple[str, ...]
    manifest: Manifest | None


def install_models(
    path: Path, results: Path, dataset: str | None = None, progress: Callable[[int], object] = lambda size: None
) -> tuple[list[Installed], list[str]]:
    """Install the models of a file.

    Args:
        path: the file.
        results: nnU-Net's folder of results, or another.
        dataset: install under the name of this data set instead of the file's.
        progress: called with numbers of bytes.

    Returns:
        The models, and the names of members that were left out: pickles and what belongs to no model.

    Raises:
        UserError: the file is damaged, holds no model, or a checkpoint holds more than tensors and plain values; a
            model does not work here; or there is one already.
    """
    with opened(path) as archive, ExitStack() as stack:
        names = names_of(archive)
        places = sorted({tuple(name.split("/")[:2]) for name in names if _is_of_model(name)})
        if not places:
            raise UserError(
                f"{path} holds no model; expected Dataset…/TRAINER__PLANS__CONFIGURATION/plans.json as export-model or "
                "nnUNetv2_export_model_to_zip writes it"
            )
        for name in sorted({place[0] for place in places}):
            _check_name(path, dataset or name, results)
        folders: dict[tuple[str, ...], tuple[Path, Path]] = {}
        for place in places:
            target = results / (dataset or place[0]) / place[1]
            stack.enter_context(_parent(target))
            folders[place] = target, stack.enter_context(atomic_folder(target))

        def target_of(name: str) -> Path | None:
            place, kept = tuple(name.split("/")[:2]), name.endswith(_KINDS)
            return folders[place][1].joinpath(*name.split("/")[2:]) if place in folders and kept else None

        sums = unpack(path, archive, target_of, progress)
        found = []
        for place, (target, temporary) in folders.items():
            own = {name.split("/", 2)[2]: value for name, value in sums.items() if tuple(name.split("/")[:2]) == place}
            with _named(path, place, temporary):
                manifest = read_manifest(temporary / NAME) if NAME in own else None
                if manifest is not None:
                    _verify(temporary, place, manifest, own)
                folds = _try(temporary, manifest)
            found.append(Installed(target, folds, manifest))
    return found, [name for name in names if name not in sums]


def _is_of_model(name: str) -> bool:
    parts = name.split("/")
    return len(parts) > 2 and bool(DATASET.fullmatch(parts[0]) and MODEL.fullmatch(parts[1]))


def _check_name(path: Path, dataset: str, results: Path) -> None:
    """Refuse a second data set of the same number, after which nnU-Net would know neither by it."""
    number = dataset.split("_")[0]
    bases = [results, *(Path(os.environ[name]) for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
                        if os.environ.get(name))]  # fmt: skip
    for base in bases:
        for other in sorted(base.glob(f"{number}_*")):
            if other.name != dataset and other.is_dir():
                raise UserError(
                    f"{path} is for {dataset}, and {other} has the same number; give the model another with -d, such "
                    f"as -d Dataset901_{dataset.partition('_')[2]}"
                )


@contextlib.contextmanager
def _parent(target: Path) -> Iterator[None]:
    """Remove the folder of the data set again where it is made in vain."""
    there = target.parent.exists()
    try:
        yield
    except BaseException:
        if not there:
            with contextlib.suppress(OSError):
                target.parent.rmdir()
        raise


@contextlib.contextmanager
def _named(path: Path, place: tuple[str, ...], temporary: Path) -> Iterator[None]:
    """Let messages name the file and its member where they would name a folder that is about to vanish."""
    try:
        yield
    except UserError as error:
        raise UserError(str(error).replace(str(temporary), f"{path}: {'/'.join(place)}")) from None


def _verify(folder: Path, place: tuple[str, ...], manifest: Manifest, sums: dict[str, str]) -> None:
    """Refuse files that are not those the manifest lists."""
    if (manifest.dataset, manifest.model) != place:
        raise UserError(f"{folder / NAME} is of {manifest.dataset}/{manifest.model}; export the model again")
    for name in sorted({*manifest.files, *sums} - {NAME}):
        if name not in sums:
            raise UserError(f"{folder / name} is missing; copy or download the file again")
        if manifest.files.get(name) != sums[name]:
            raise UserError(f"{folder / name} has another checksum than {NAME} says; copy or download the file again")


def _try(folder: Path, manifest: Manifest | None) -> tuple[str, ...]:
    """Open the model as prediction does; returns its folds."""
    by_name: dict[str, list[str]] = {}
    for path in sorted(folder.glob("fold_*/*.pth")):
        by_name.setdefault(path.name, []).append(path.parent.name.removeprefix("fold_"))
    if not by_name:
        raise UserError(f"{folder} holds no checkpoint (fold_*/*.pth); export the model again")
    for name, folds in by_name.items():
        with quiet_predictor():
            predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
        try:
            open_model_folder(predictor, folder, folds, name, otherwise=_OTHERWISE)
        except UserError as error:
            raise UserError(f"{error}{_newer(manifest)}") from None
    return tuple(sorted({fold for folds in by_name.values() for fold in folds}))


_OTHERWISE = "no model that is given away needs that, so it is not installed"


def _newer(manifest: Manifest | None) -> str:
    """What to do where the file's package is newer than the one here."""
    written = manifest.versions.get("nnunet-ext", "") if manifest else ""
    with contextlib.suppress(InvalidVersion):
        if written and Version(written) > Version(__version__):
            return f"; it was written by nnunet-ext {written}, and {__version__} is here: pip install -U nnunet-ext"
    return ""
