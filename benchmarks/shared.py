"""What several benchmarks share: rows with versions and hardware as CSV, and short validations."""

from __future__ import annotations

import csv
import datetime
import importlib.metadata
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nnunet_ext.files import read_json, write_json


def write_rows(path: Path, columns: Sequence[str], rows: list[dict[str, Any]], packages: Sequence[str]) -> None:
    """Write rows, numbers rounded to six digits; those without a date get it, the processor and packages' versions."""
    facts = {
        "date": datetime.date.today().isoformat(),
        "cpu": _cpu(),
        "python": platform.python_version(),
        "versions": " ".join(f"{p}={importlib.metadata.version(p)}" for p in packages),
    }
    path.parent.mkdir(exist_ok=True)
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        for row in rows:
            rounded = {k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()}
            writer.writerow(facts | rounded)  # a row of an earlier run keeps what is its own
    print(f"written: {path}")


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":")[1].strip() + f", {os.cpu_count()} CPUs, one thread"
    return platform.processor()


def few_validation_cases(preprocessed: Path, cases: int) -> None:
    """nnU-Net's own split, with fewer cases to validate on."""
    from nnunetv2.utilities.crossval_split import generate_crossval_split

    path = preprocessed / "splits_final.json"
    keys = sorted(file.name.split(".")[0] for file in (preprocessed / "gt_segmentations").iterdir())
    splits = read_json(path) if path.is_file() else generate_crossval_split(keys, seed=12345, n_splits=5)
    splits[0]["val"] = sorted(splits[0]["val"])[:cases]
    write_json(path, splits)
