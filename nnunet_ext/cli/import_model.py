"""Install a model's file, written by export-model or nnUNetv2_export_model_to_zip, where prediction finds it.

Every member's checksum is compared, checkpoints are read without running what they may hold, and each network is built
and given its weights; only then the model's folder appears, in nnUNet_results or the folder of -o. A model that is
there already is not replaced. Pickles, which run code when they are read, are left out and named.

examples:
  nnunet_ext import-model hippocampus.zip
  nnunet_ext import-model hippocampus.zip -d Dataset901_Hippocampus -o models

Exit status: 0 installed, 1 refused, 2 wrong usage.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from nnunet_ext.datasets import base_folder
from nnunet_ext.errors import UsageError, one_line


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, metavar="FILE", help="the model's file")
    parser.add_argument("-o", type=Path, metavar="FOLDER", help="instead of nnUNet_results")
    parser.add_argument("-d", metavar="NAME", help="install as a model of this data set, such as Dataset901_Liver")
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress bar")


def run(arguments: argparse.Namespace) -> int:
    from tqdm import tqdm

    from nnunet_ext.sharing.install import install_models
    from nnunet_ext.sharing.pack import DATASET

    if arguments.d is not None and not DATASET.fullmatch(arguments.d):
        raise UsageError(f"-d {arguments.d} must be a name such as Dataset901_Liver")
    results = arguments.o if arguments.o is not None else base_folder("nnUNet_results")
    with tqdm(desc="unpack", unit="B", unit_scale=True, delay=2, disable=arguments.quiet) as bar:
        models, left_out = install_models(arguments.file, results, arguments.d, bar.update)
    if left_out:
        print(one_line(f"left out: {', '.join(left_out)}"), file=sys.stderr)
    for model in models:
        about = model.manifest
        if about is not None:
            print(one_line(f"licence: {about.licence}; trained on: {about.training_data}"), file=sys.stderr)
        if about is not None and about.training_images:
            print(f"it carries {about.training_images} images of its training data", file=sys.stderr)
        words = f"nnunet_ext predict -m {shlex.quote(str(model.folder))} -f {' '.join(model.folds)} -i IMAGES -o LABELS"
        print(one_line(f"next: {words}"), file=sys.stderr)
        print(model.folder)
    return 0
