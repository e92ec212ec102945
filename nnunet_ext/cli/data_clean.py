"""Clean a NIfTI data set into a new one, with a log of every change. The original is never touched.

examples:
  nnunet_ext data clean Dataset042_Things --rules repairs                       # says what would change
  nnunet_ext data clean Dataset042_Things --rules finite canonical -o nnUNet_raw/Dataset142_Things --apply
  nnunet_ext data clean Dataset042_Things --rules sam-med3d --symmetric kidneys

rules:
  sam-med3d   drop-small-targets (under 1 cm3 or 1.5 cm), drop-mostly-background (over 99 %), largest-components (five),
              split-sides: the four steps of SAM-Med3D's authors. For nnU-Net the first two delete small lesions.
  repairs     finite, repair-forms, copy-header, cast-labels, consecutive-labels, canonical
  or any of these by name, and drop-unreadable

Without --apply nothing is written. With it, cleaning.json in the new data set says for every file where it came from,
the hash of its voxels before and after, and each change by rule: docs/data.md.

Exit status: 0 done or nothing to do, 1 a file cannot be read or written, 2 wrong usage.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from nnunet_ext.data.clean import clean_dataset
from nnunet_ext.files import json_text

_SHOWN = 12


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dataset", metavar="DATASET", help="folder, or name or number under $nnUNet_raw")
    parser.add_argument("--rules", nargs="+", required=True, metavar="RULE", help="rules or sets of rules, see above")
    parser.add_argument("-o", "--output", type=Path, metavar="FOLDER", help="the new data set; with --apply")
    parser.add_argument("--apply", action="store_true", help="write it; without, only say what would change")
    parser.add_argument(
        "--symmetric", nargs="+", metavar="LABEL", help="labels split-sides splits (default: kidneys, lungs and such)"
    )
    parser.add_argument("--json", action="store_true", help="print the log as JSON")
    parser.add_argument("-q", "--quiet", action="store_true", help="no summary, no progress bar")


def run(arguments: argparse.Namespace) -> int:
    if arguments.apply != (arguments.output is not None):
        print("nnunet_ext data clean: -o and --apply go together; without both nothing is written", file=sys.stderr)
        return 2
    log = clean_dataset(
        arguments.dataset, arguments.rules, arguments.output, arguments.symmetric, progress=not arguments.quiet
    )
    if arguments.json:
        print(json_text(log), end="")
    elif not arguments.quiet:
        print(_summary(log))
        print(
            f"wrote {arguments.output}" if arguments.apply else "nothing written; -o FOLDER --apply writes it",
            file=sys.stderr,
        )
    return 0


def _summary(log: dict[str, Any]) -> str:
    lines = []
    counts = Counter(rule for case in log["cases"] for rule in {change["rule"] for change in case["changes"]})
    for rule in log["rules"]:
        lines.append(f"{rule}: changes {counts[rule]} of {len(log['cases'])} cases")
        affected = [(case["name"], c) for case in log["cases"] for c in case["changes"] if c["rule"] == rule]
        for name, change in affected[:_SHOWN]:
            facts = ", ".join(f"{key} {_short(value)}" for key, value in change.items() if key != "rule")
            lines.append(f"  {name}: {facts}")
        if len(affected) > _SHOWN:
            lines.append(f"  ... and {len(affected) - _SHOWN} more (--json)")
    lines += [f"dropped: {case['name']}: {case['dropped']}" for case in log["cases"] if case["dropped"]]
    if log["labels_before"] != log["labels_after"]:
        lines.append(f"labels: {log['labels_after']}")
    return "\n".join(lines)


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
