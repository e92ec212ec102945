"""What a model's file says of itself, in `nnunet_ext_model.json` among the model's own files."""

from __future__ import annotations

import contextlib
import importlib.metadata
import platform
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from nnunet_ext import __version__
from nnunet_ext.errors import UserError
from nnunet_ext.json_object import JsonObject

NAME = "nnunet_ext_model.json"
# Raised whenever a package that knows the number below would misread the file.
FORMAT = 1
_SHA256 = re.compile(r"[0-9a-f]{64}")
# A manifest of more is none: it has a line per file.
_LARGEST = 16 << 20
_REMEDY = "export the model again"


@dataclass(frozen=True)
class Manifest:
    """What is known of a model beyond its files.

    Attributes:
        dataset: nnU-Net's name, such as Dataset004_Hippocampus.
        model: name of the folder, TRAINER__PLANS__CONFIGURATION.
        folds: numbers or "all".
        licence: under which it is given away.
        training_data: what it was trained on, and where that is from.
        training_images: how many images of the training data the checkpoints themselves carry.
        versions: of the packages it was written with, Python among them.
        files: path within the folder -> SHA-256.
        format: of this file.
    """

    dataset: str
    model: str
    folds: tuple[str, ...]
    licence: str
    training_data: str
    training_images: int = 0
    versions: dict[str, str] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    format: int = FORMAT

    def content(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


def read_manifest(path: Path) -> Manifest:
    """The manifest beside a model's files.

    Raises:
        UserError: it is missing or damaged, or of a package newer than this one in a way that matters.
    """
    if path.is_file() and path.stat().st_size > _LARGEST:
        raise UserError(f"{path} is larger than any manifest; {_REMEDY}")
    about = JsonObject.read(path, _REMEDY)
    versions = about.texts_by_key("versions")
    number = about.whole("format")
    if number > FORMAT:
        by = versions.get("nnunet-ext", "a newer nnunet-ext")
        raise UserError(
            f"{path} has format {number}, written by nnunet-ext {by}; {__version__} here knows {FORMAT}; "
            "pip install -U nnunet-ext"
        )
    files = about.texts_by_key("files")
    for name, found in files.items():
        if not _SHA256.fullmatch(found):
            about.object("files").refuse(name, "a SHA-256 of 64 hexadecimal digits")
    texts = {key: about.text(key) for key in ("dataset", "model", "licence", "training_data")}
    images, folds = about.whole("training_images"), about.texts("folds")
    return Manifest(**texts, folds=folds, training_images=images, versions=versions, files=files, format=number)


def versions_of(*modules: str) -> dict[str, str]:
    """Versions of what makes a model's numbers, and of the packages of these modules where they have their name."""
    found = {"nnunet-ext": __version__, "python": platform.python_version()}
    for name in ("torch", "nnunetv2", "dynamic-network-architectures", *(path.split(".")[0] for path in modules)):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found.setdefault(name.replace("_", "-"), importlib.metadata.version(name))
    return found
