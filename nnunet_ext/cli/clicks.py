"""Replay simulated users on held-out cases through the session that viewers run: Dice and NSD per interaction.

examples:
  nnunet_ext clicks -m nnUNet_results/Dataset004_Hippocampus/nnUNetTrainerInteractive__nnUNetInteractivePlans__\
3d_fullres -d 4 -o clicks
  nnunet_ext clicks -m early=FOLDER sam=OTHER_FOLDER -d 4 -f 0 --users centre box -o clicks
  nnunet_ext clicks -m FOLDER -i imagesTs -l labelsTs -o clicks_ts
  nnunet_ext report RUN --clicks clicks/clicks.json -o report.html

FOLDER is a result folder that viewers open (nnUNetTrainerInteractive, nnUNetTrainerSAMMed3D); NAME=FOLDER gives it a
name, and several are compared on the same cases. By default these are the validation cases of the fold.

Each user sees the reference and corrects the largest error, or for `uniform` any, with one kind of interaction: points
amid it (centre) or anywhere in the error (uniform), 2D boxes, scribbles, lassos; those a model does not understand are
left out. So no number here is a score of automatic segmentation. OUT gets clicks.csv (means, area under the curve,
interactions to Dice 0.80, 0.85 and 0.90, seconds), clicks_objects.csv, clicks.json and clicks.png. What was finished
before an interruption is not run again. Needs pip install 'nnunet-ext[interactive]'.

Exit status: 0 all cases were clicked through, 1 a case failed (the others are in the results), 2 wrong usage.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from nnunet_ext.cli.device import chosen_device
from nnunet_ext.cli.numbers import at_least_one
from nnunet_ext.errors import UsageError, UserError

# As in nnunet_ext.clicks.users, which takes long to import.
_USERS = ("centre", "uniform", "box", "scribble", "lasso")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-m", "--models", required=True, nargs="+", metavar="FOLDER", help="FOLDER or NAME=FOLDER")
    parser.add_argument("-d", "--dataset", help="number or name; its validation cases are clicked on")
    parser.add_argument("-i", "--input", type=Path, metavar="FOLDER", help="images, in the place of -d")
    parser.add_argument("-l", "--labels", type=Path, metavar="FOLDER", help="their references")
    parser.add_argument("-o", "--output", required=True, type=Path, metavar="FOLDER", help="results go here")
    parser.add_argument("-f", "--fold", default="0", help="of the models, and of -d (default: 0)")
    parser.add_argument("-chk", "--checkpoint", default="checkpoint_final.pth", help="of -m (default: %(default)s)")
    parser.add_argument("--users", nargs="+", choices=_USERS, default=list(_USERS), help="default: all")
    parser.add_argument("--components", action="store_true", help="every connected part of a label is an object")
    parser.add_argument("--cases", type=at_least_one, metavar="N", help="take so many, spread evenly (default: all)")
    parser.add_argument("--no-autozoom", action="store_true", help="the session looks from one distance only")
    parser.add_argument("--trust", action="store_true", help="read checkpoints as nnU-Net does, running what they hold")
    parser.add_argument(
        "-device", "--device", choices=("cuda", "cpu", "mps"), help="default: cuda where there is one, else cpu"
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress bar, no table")


def run(arguments: argparse.Namespace) -> int:
    if (arguments.dataset is None) == (arguments.input is None):
        raise UsageError("give -d, or -i and -l: which cases are clicked on")
    if (arguments.input is None) != (arguments.labels is None):
        raise UsageError("-i and -l go together: images, and the references that simulated users look at")
    folders = named_folders(arguments.models)
    from tqdm import tqdm

    from nnunet_ext.clicks.curve_folder import (
        cases_of_folders,
        click_through_cases,
        validation_cases,
        write_results,
    )
    from nnunet_ext.clicks.curves import InteractionCurve
    from nnunet_ext.clicks.users import USERS
    from nnunet_ext.clicks.viewer_session import open_in_session, viewer_session
    from nnunet_ext.evaluation.labels import find_dataset_json

    viewer_session()
    device = chosen_device(arguments.device, "clicks")
    curves: dict[str, list[InteractionCurve]] = {}
    settings, failed = {}, 0
    for name, folder in folders.items():
        model = open_in_session(
            folder,
            arguments.fold,
            arguments.checkpoint,
            device,
            autozoom=not arguments.no_autozoom,
            trust=arguments.trust,
        )
        users = [user for user in arguments.users if USERS[user][0] in model.kinds]
        if not users:
            raise UserError(f"{folder} understands none of {', '.join(arguments.users)}; see its inference_info.json")
        if arguments.dataset is not None:
            held_out = validation_cases(arguments.dataset, arguments.fold, model.channels, arguments.cases)
        else:
            described = find_dataset_json(arguments.labels, arguments.input) or folder / "dataset.json"
            held_out = cases_of_folders(arguments.input, arguments.labels, described, model.channels, arguments.cases)
        file = folder / f"fold_{arguments.fold}" / arguments.checkpoint
        settings[name] = {
            "folder": str(folder.resolve()), "fold": arguments.fold, "checkpoint": arguments.checkpoint,
            "written": file.stat().st_mtime_ns, "autozoom": not arguments.no_autozoom, "device": device,
            "cases_of": held_out.title,
        }  # fmt: skip
        work = click_through_cases(name, model, held_out, users, arguments.output, settings[name], arguments.components)
        curves[name] = []
        for case, found in tqdm(work, name, len(held_out.cases), disable=arguments.quiet, unit="case"):
            if isinstance(found, UserError):
                failed += 1
                print(f"nnunet_ext clicks: {name}: {case}: {found}", file=sys.stderr)
            else:
                curves[name] += found
    common = set.intersection(*({curve.case for curve in own} for own in curves.values()))
    if not common:
        raise UserError("no case was clicked through by every model; the lines above say why")
    shared = {name: [curve for curve in own if curve.case in common] for name, own in curves.items()}
    summary = write_results(shared, held_out.title, arguments.output, settings)
    if not arguments.quiet:
        print(_table(summary), file=sys.stderr)
        print(f"{arguments.output}/clicks.csv, clicks_objects.csv, clicks.json, clicks.png", file=sys.stderr)
    return 1 if failed else 0


def named_folders(words: Sequence[str]) -> dict[str, Path]:
    """NAME=FOLDER or FOLDER, which is then named after itself.

    Raises:
        UsageError: a name twice, or one that cannot be a folder's.
        UserError: a folder is none.
    """
    folders: dict[str, Path] = {}
    for word in words:
        name, equals, rest = word.partition("=")
        folder = Path(rest if equals else word)
        name = name if equals else folder.resolve().name
        if not name or name in (".", "..") or "/" in name or "\\" in name or "\0" in name:
            raise UsageError(f"-m {word!r}: {name!r} cannot be a name; give NAME=FOLDER")
        if name in folders:
            raise UsageError(f"-m has {name} twice; give them names with NAME=FOLDER")
        if not folder.is_dir():
            raise UserError(f"{folder} is no folder; give a result folder such as nnUNetTrainerInteractive__…")
        folders[name] = folder
    return folders


def _table(summary: dict) -> str:
    counts = summary["interactions"]
    lines = [f"\n{summary['note']}", f"{'':28s}" + "".join(f"{n:>8d}" for n in counts) + "     AUC   s each"]
    for name, users in summary["models"].items():
        for user, found in users.items():
            mean = found["mean"]
            values = "".join(f"{mean['Dice'][str(n)]:8.3f}" for n in counts)
            lines.append(f"{f'{name}, {user}'[:28]:28s}{values}{mean['Dice AUC']:8.3f}{mean['seconds each']:9.2f}")
    return "\n".join(lines)
