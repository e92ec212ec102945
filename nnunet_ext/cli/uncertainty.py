"""How much the samples of a prediction differ, voxel by voxel and as numbers, and whether references differ as much.

examples:
  nnunet_ext uncertainty -i predictions/samples
  nnunet_ext uncertainty -i predictions/samples -r labelsTs
  nnunet_ext uncertainty -i predictions/samples -r annotator_1 annotator_2 annotator_3 --json

Reads SAMPLES/CASE/sample_00.nii.gz and so on, as diffusion models write them, or any label maps of these names. Writes
into SAMPLES/uncertainty (or -o) per case CASE_entropy.nii.gz and CASE_variance.nii.gz in the geometry of the image
(and CASE_mutual_information.nii.gz where probabilities were stored), summary.json with the agreement of the samples
and, with references, GED² (generalised energy distance: 0 where samples and references differ alike), mean Dice and
calibration errors per case and on average, and a picture of the most uncertain case, on its image (--images).
docs/uncertainty.md has the definitions.

Exit status: 0 all cases measured, 1 something could not be, 2 wrong usage.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnunet_ext.cli.numbers import at_least_one
from nnunet_ext.errors import UserError, one_line, reason_of

if TYPE_CHECKING:
    from nnunet_ext.evaluation.labels import Labels
    from nnunet_ext.evaluation.samples import Uncertainty


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-i", "--input", required=True, type=Path, metavar="SAMPLES", help="folder with a folder of samples per case"
    )
    parser.add_argument(
        "-r", "--reference", type=Path, nargs="+", default=[], metavar="FOLDER",
        help="reference label maps named CASE and an ending; one folder per annotator",
    )  # fmt: skip
    parser.add_argument(
        "-o", "--output", type=Path, metavar="FOLDER", help="results go here (default: SAMPLES/uncertainty)"
    )
    parser.add_argument(
        "--dataset-json", type=Path, metavar="FILE",
        help="labels, regions and ignore label (default: the dataset.json in or above SAMPLES, or in or beside the "
        "references; without one, every label that occurs)",
    )  # fmt: skip
    parser.add_argument(
        "--images", type=Path, metavar="FOLDER",
        help="images for the picture (default: those that samples.json names)",
    )  # fmt: skip
    parser.add_argument("--bins", type=at_least_one, default=10, metavar="N", help="of the calibration (%(default)s)")
    parser.add_argument("--unbiased", action="store_true", help="GED² without the pairs of a map with itself")
    parser.add_argument("--json", action="store_true", help="print summary.json to stdout instead of the table")
    parser.add_argument("-q", "--quiet", action="store_true", help="no table, no progress bar")


def run(arguments: argparse.Namespace) -> int:
    from tqdm import tqdm

    from nnunet_ext import __version__
    from nnunet_ext.evaluation.labels import find_dataset_json, labels_from_dataset_json
    from nnunet_ext.evaluation.samples import find_reference, find_samples, measure_files
    from nnunet_ext.evaluation.summary import check_output_folder
    from nnunet_ext.files import json_text, write_json
    from nnunet_ext.reports.uncertainty import write_maps

    cases = find_samples(arguments.input)
    for folder in arguments.reference:
        if not folder.is_dir():
            raise UserError(f"{folder} is not a folder; give the folder that holds the references")
    found = arguments.dataset_json
    if found is None:
        found = find_dataset_json(arguments.reference[0] if arguments.reference else arguments.input, arguments.input)
    labels = None if found is None else labels_from_dataset_json(found)
    output = arguments.output or arguments.input / "uncertainty"
    check_output_folder(output)

    results: dict[str, dict[str, Any]] = {}
    failures: dict[str, str] = {}
    worst = None
    for case, files in tqdm(cases.items(), desc="uncertainty", unit="case", delay=2, disable=arguments.quiet):
        try:
            references = [find_reference(folder, case) for folder in arguments.reference]
            result = measure_files(files, references, labels, bins=arguments.bins, unbiased=arguments.unbiased)
            write_maps(result.maps, files[0], output, case)
        except Exception as error:  # a strange file must not cost the other cases
            failures[case] = reason_of(error)
            continue
        results[case] = {
            "samples": result.samples,
            "from": result.source,
            "entropy": result.entropy,
            "variance": result.variance,
            **result.scores,
            "labels": {str(target): values for target, values in result.labels.items()},
        }
        # Without foreground the entropy is NaN, which is no uncertainty.
        if worst is None or math.isnan(worst[1].entropy) or result.entropy > worst[1].entropy:
            worst = case, result
    if not results or worst is None:
        raise UserError(
            f"none of the {len(cases)} case(s) could be measured; the first: {next(iter(failures.values()))}"
        )
    summary = {
        "mean": _means(list(results.values())),
        "cases": results,
        "failed": failures,
        "most_uncertain": worst[0],
        "names": {} if labels is None else dict(zip(labels.keys, labels.names, strict=True)),
        "settings": {
            "written_by": f"nnunet_ext {__version__}",
            "references": [str(folder) for folder in arguments.reference],
            "ignore_label": None if labels is None else labels.ignore,
            "GED2": "unbiased" if arguments.unbiased else "V-statistic",
            "calibration_bins": arguments.bins,
            "entropy_unit": "nats",
        },
    }
    write_json(output / "summary.json", summary)
    _write_picture(worst[1], worst[0], cases[worst[0]][0], output / "most_uncertain.png", arguments, labels)
    if arguments.json:
        print(json_text(summary), end="")
    elif not arguments.quiet:
        print(_table(summary))
        print(f"results in {output}", file=sys.stderr)
    for case, message in failures.items():
        print("nnunet_ext uncertainty: " + one_line(f"{case} left out: {message}"), file=sys.stderr)
    return 1 if failures else 0


def _write_picture(
    result: Uncertainty, case: str, sample: Path, path: Path, arguments: argparse.Namespace, labels: Labels | None
) -> None:
    """The picture with the image under it, or without when there is none that fits."""
    from nnunet_ext.evaluation.samples import find_image, find_reference
    from nnunet_ext.reports.uncertainty import check_same_size, write_picture

    image: Path | None = None
    try:
        image = find_image(sample.parent, arguments.images)
        check_same_size(image, sample)
    except UserError as error:
        image = None
        print(f"nnunet_ext uncertainty: note: no image under the picture: {error}", file=sys.stderr)
    references = [find_reference(folder, case) for folder in arguments.reference]
    ignore = None if labels is None else labels.ignore
    write_picture(result, case, sample, path, image=image, references=references, ignore=ignore)


def _means(cases: list[dict[str, Any]]) -> dict[str, float]:
    """Over the cases that have a value."""
    names = [name for name, value in cases[0].items() if isinstance(value, float)]
    known = {name: [case[name] for case in cases if not math.isnan(case[name])] for name in names}
    return {name: sum(values) / len(values) if values else math.nan for name, values in known.items()}


def _table(summary: dict[str, Any]) -> str:
    names = list(summary["mean"])
    width = max(len(case) for case in ["mean", *summary["cases"]])
    lines = [" " * width + "  samples" + "".join(f"  {name:>9s}" for name in names)]
    lines[0] = lines[0].replace("ECE_foreground", "ECE_foregr.")
    for case, values in summary["cases"].items():
        lines.append(f"{case:{width}s}  {values['samples']:7d}" + _row(values, names))
    lines.append(f"{'mean':{width}s}  {'':7s}" + _row(summary["mean"], names))
    return "\n".join(lines)


def _row(values: dict[str, Any], names: list[str]) -> str:
    return "".join(f"  {values[name]:{max(9, len(name))}.4f}" for name in names)
