"""The table and the picture of README's results, from the runs that benchmarks/trained.py keeps.

    python benchmarks/trained_table.py --data .../Dataset004_Hippocampus

evaluates every kept run against the references with `nnunet_ext report`, writes the report into docs/example_report and
its pictures, and the table between the markers of README.md. Takes two minutes.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path

from example_report import REPORT, write_example
from nnunetv2.utilities.crossval_split import generate_crossval_split
from trained import KEPT, METHODS

from nnunet_ext.files import read_json, write_json, write_text

ROOT = Path(__file__).parent.parent
BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the raw folder Dataset004_Hippocampus")
    arguments = parser.parse_args()
    finished = {name: method for name, method in METHODS.items() if (KEPT / method.folder).is_dir()}
    with tempfile.TemporaryDirectory() as temporary:
        for method in finished.values():  # a report keeps its evaluation beside the run
            shutil.copytree(KEPT / method.folder, Path(temporary, method.folder))
        runs = [f"{shown(name)}={Path(temporary, method.folder)}" for name, method in finished.items()]
        # References beside their folds, as nnU-Net has them.
        references = Path(temporary, "gt_segmentations")
        shutil.copytree(arguments.data / "labelsTr", references)
        cases = sorted(path.name.removesuffix(".nii.gz") for path in references.glob("*.nii.gz"))
        write_json(Path(temporary, "splits_final.json"), generate_crossval_split(cases, seed=12345, n_splits=5))
        folders = ["-r", str(references), "--images", str(arguments.data / "imagesTr")]
        places = {temporary: "RESULTS", str(arguments.data.resolve()): "RAW", str(arguments.data): "RAW"}
        write_example([*runs, *folders], places)
    numbers = read_json(REPORT.with_suffix(".json"))
    readme = ROOT / "README.md"
    before, _, rest = readme.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    write_text(readme, f"{before}{BEGIN}\n{table(finished, numbers)}\n{END}{after}")


def shown(name: str) -> str:
    """A method's name with the size of its network, where that is not the published one."""
    model = METHODS[name].model
    return name if model is None else f"{name} tiny"


def table(finished: dict, numbers: dict) -> str:
    heading = "method | parameters | iterations | CPU hours | Dice, Anterior | Dice, Posterior | HD95, mean | missed"
    lines = [f"| {heading} |", "|---|---|---|---|---|---|---|---|"]
    cells = {(row["method"], row["label"], row["metric"]): row for row in numbers["rows"]}
    for name, method in finished.items():
        anterior, posterior = (cells[shown(name), label, "Dice"] for label in ("Anterior", "Posterior"))
        distance = next(row for key, row in cells.items() if key[0] == shown(name) and key[1:] == ("mean", "HD95"))
        fold = KEPT / method.folder / "fold_0"
        record = read_json(fold / "run.json")
        settings = record["settings"]
        lines.append(
            f"| {shown(name)} | {record['parameters'] / 1e6:.1f} M | {settings['epochs'] * settings['iterations']:,} "
            f"| {hours(fold)} | {dice(anterior)} | {dice(posterior)} | {distance['mean']:.2f} mm "
            f"| {anterior['missed'] + posterior['missed']} |"
        )
    return "\n".join(lines)


def hours(fold: Path) -> str:
    """CPU hours of the training and its validation, where every start of the run left its seconds."""
    spent, starts = fold / "cpu_seconds.json", len(list(fold.glob("training_log_*.txt")))
    seconds = read_json(spent) if spent.is_file() else []
    return f"{sum(seconds) / 3600:.1f}" if len(seconds) == starts else "not recorded whole"


def dice(row: dict) -> str:
    """Mean and its 95 % interval."""
    return f"{row['mean']:.3f} ({row['low']:.3f} to {row['high']:.3f})"


if __name__ == "__main__":
    main()
