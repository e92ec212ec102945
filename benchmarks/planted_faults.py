"""What `nnunet_ext data check` finds of label maps that do not fit their image, and how often it cries wolf.

    python benchmarks/planted_faults.py --data .../raw/Dataset004_Hippocampus .../Dataset905_SCDLV

plants one fault at a time in one case of a real data set (labels shifted by some voxels, two labels exchanged, the
label map of another case, the image mirrored, image and labels mirrored), has the check look at the case among the
untouched others, and counts how often that case's label map is a finding (`label-implausible`, `left-right`).
Untouched cases that are findings are false alarms. Writes benchmarks/results/planted_faults.csv.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import io
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from tqdm import tqdm

from nnunet_ext.data.check import check_dataset
from nnunet_ext.data.cohort import compare_cases
from nnunet_ext.data.inspect_case import inspect_case
from nnunet_ext.data.layout import CaseFiles, Layout
from nnunet_ext.files import write_text

RESULTS = Path(__file__).parent / "results" / "planted_faults.csv"
SHIFTS = (2, 4, 6, 8, 16, 32)
CHECKS = ("label-implausible", "left-right")
# Image and label map of the case, and the label map of another, arrays in the file's axis order.
Fault = Callable[[np.ndarray, np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="raw data sets of one channel")
    parser.add_argument("--cases", type=int, default=40, help="in which each fault is planted (default: %(default)s)")
    arguments = parser.parse_args()
    rows = [row for folder in arguments.data for row in try_data(folder, arguments.cases)]
    text = io.StringIO()
    table = csv.DictWriter(text, ["data", "cases", "fault", "planted", "found", "share", "date"], lineterminator="\n")
    table.writeheader()
    table.writerows({**row, "date": datetime.date.today().isoformat()} for row in rows)
    write_text(RESULTS, text.getvalue())
    print(text.getvalue(), end="")


def try_data(folder: Path, wanted: int) -> list[dict[str, object]]:
    report = check_dataset(folder)
    layout, facts = report.layout, list(report.cases)
    files = {case.name: case for case in layout.cases if case.split == "Tr" and case.label is not None}
    of_name = {case.name: position for position, case in enumerate(facts)}
    alarms = {finding.file for finding in compare_cases(layout, facts) if finding.check in CHECKS}
    common = {"data": folder.name, "cases": len(files)}
    rows = [{**common, "fault": "none", "planted": len(files), "found": len(alarms), "share": len(alarms) / len(files)}]
    names = sorted(files)
    chosen = names[:: max(1, len(names) // wanted)][:wanted]
    for name, plant in faults(layout).items():
        found = 0
        for case in tqdm(chosen, desc=f"{folder.name}: {name}"):
            other = names[(names.index(case) + len(names) // 2) % len(names)]
            with tempfile.TemporaryDirectory() as scratch:
                planted = write_case(files[case], files[other], plant, Path(scratch))
                seen = inspect_case(planted, layout.values, len(layout.channels))
            cohort = [*facts[: of_name[case]], seen, *facts[of_name[case] + 1 :]]
            assert seen.label is not None
            own = (seen.label.file, str(planted.label))
            found += any(f.file in own for f in compare_cases(layout, cohort) if f.check in CHECKS)
        rows.append({**common, "fault": name, "planted": len(chosen), "found": found, "share": found / len(chosen)})
    return [{**row, "share": f"{row['share']:.2f}"} for row in rows]


def faults(layout: Layout) -> dict[str, Fault]:
    """Name -> what is done to a case."""
    made: dict[str, Fault] = {
        f"labels shifted by {n} voxels": lambda image, labels, other, n=n: (image, shifted(labels, n)) for n in SHIFTS
    }
    foreground = [value for value in layout.values if value and layout.name_of(value) != "ignore"]
    if len(foreground) > 1:
        a, b = foreground[:2]

        def exchanged(image, labels, other):
            return image, np.where(labels == a, b, np.where(labels == b, a, labels)).astype(labels.dtype)

        made["two labels exchanged"] = exchanged
    made["label map of another case"] = lambda image, labels, other: (image, fitted(other, labels.shape))
    made["image mirrored"] = lambda image, labels, other: (image[..., ::-1], labels)
    made["image and labels mirrored"] = lambda image, labels, other: (image[..., ::-1], labels[..., ::-1])
    return made


def shifted(labels: np.ndarray, voxels: int) -> np.ndarray:
    """Along the file's fastest axis; what enters is background."""
    moved = np.zeros_like(labels)
    moved[..., voxels:] = labels[..., :-voxels]
    return moved


def fitted(labels: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Cut or padded with background at the far ends."""
    result = np.zeros(shape, labels.dtype)
    common = tuple(slice(0, min(sides)) for sides in zip(shape, labels.shape, strict=True))
    result[common] = labels[common]
    return result


def write_case(case: CaseFiles, other: CaseFiles, plant: Fault, folder: Path) -> CaseFiles:
    """A case with a fault, as files of the same kinds."""
    image, labels, others = (sitk.ReadImage(str(path)) for path in (case.images[0], case.label, other.label))
    arrays = plant(*(sitk.GetArrayFromImage(i) for i in (image, labels, others)))
    paths = []
    for source, array, original in zip((case.images[0], case.label), arrays, (image, labels), strict=True):
        written = sitk.GetImageFromArray(np.ascontiguousarray(array))
        written.CopyInformation(original)
        assert source is not None
        paths.append(folder / f"{'image' if original is image else 'label'}_{source.name}")
        sitk.WriteImage(written, str(paths[-1]))
    return replace(case, images=(paths[0],), label=paths[1])


if __name__ == "__main__":
    main()
