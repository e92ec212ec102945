"""The module nnU-Net meets when `nnUNet_extTrainer` names this folder: it hands over trainers, imported when asked for.

nnU-Net forgets modules from such a folder after each search, so the classes themselves live in the package and
keep their names there; that keeps them one and the same, and picklable. Nothing else may be put into this folder.
"""

from typing import Any

from nnunet_ext.discovery.lookup import load
from nnunet_ext.discovery.table import find


def __getattr__(name: str) -> Any:
    entry = find(name, "trainer")
    if entry is None:
        raise AttributeError(name)
    return load(entry)
