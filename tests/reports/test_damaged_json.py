"""JSON files with one value wrong, missing, huge or nested without end: a report, or one line that says why."""

from __future__ import annotations

import json
import os
import random
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
from helpers.toy_runs import DATASET, make_dataset, make_run

from nnunet_ext.cli.main import main

# JSON text that takes the place of a value; None removes it.
_FRAGMENTS = (
    None, "null", "true", "0", "-1", "1.5", "3", '""', '"text"', "[]", "{}", "[[]]", "[null]", '[{"a": 1}]',
    "NaN", "Infinity", "-Infinity", "1e308", "-1e308", "1e999", "5e-324", str(2**31), str(2**63), str(10**30),
    "7" * 4000, "7" * 5000, r'"a\nb\u001b[31m"', r'"\u0000"', r'"\ud800"', '"' + "x" * 5000 + '"', '"/"', '"../.."',
    "[" * 500 + "]" * 500, "[" * 100_000 + "]" * 100_000, '{"a":' * 100_000 + "1" + "}" * 100_000, "[1, 2", "\x00",
)  # fmt: skip
_PLACE = "@place@"


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    """Two evaluated runs and their data set, without images."""
    base = tmp_path_factory.mktemp("scene")
    make_dataset(base)
    for trainer in ("nnUNetTrainerExt", "nnUNetTrainerSegMamba"):
        folder = make_run(base, trainer, 1)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("nnUNet_preprocessed", str(base / "preprocessed"))
            assert main(["evaluate", "--folds", str(folder), "-q", "-n1"]) == 0
    shutil.rmtree(base / "raw")
    return base


def places(value: Any, path: tuple = ()) -> list[tuple]:
    """Paths to every value inside."""
    found = [path]
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        found += places(child, (*path, key))
    return found


def damaged(text: str, rng: random.Random) -> tuple[str, str]:
    """(what was done, the text with one value replaced or removed, or a key renamed)."""
    content = json.loads(text)
    # A level first, then a place: else nearly all would be metrics of cases.
    by_depth: dict[int, list[tuple]] = {}
    for path in places(content):
        by_depth.setdefault(len(path), []).append(path)
    path = rng.choice(by_depth[rng.choice(list(by_depth))])
    fragment = rng.choice(_FRAGMENTS)
    holder: dict = {"whole": content}
    inside: Any = holder
    for key in ("whole", *path)[:-1]:
        inside = inside[key]
    last = ("whole", *path)[-1]
    if fragment is None and path:
        del inside[last]
    elif rng.random() < 0.1 and isinstance(inside, dict) and path:
        inside[rng.choice(["", "0", "9" * 30, "a\nb", "\ud800", "x" * 5000, "(1, 2)"])] = inside.pop(last)
    else:
        inside[last] = _PLACE
    changed = json.dumps(holder["whole"]).replace(f'"{_PLACE}"', fragment or "null")
    return f"{path} -> {(fragment or 'removed')[:40]}", changed


def outcomes(scene: Path, capsys, monkeypatch, count: int, seed: int) -> list[str]:
    """What went wrong in `count` attempts."""
    monkeypatch.setenv("nnUNet_preprocessed", str(scene / "preprocessed"))
    monkeypatch.delenv("nnUNet_raw", raising=False)
    rng = random.Random(seed)
    folder = scene / "results" / DATASET / "nnUNetTrainerSegMamba__nnUNetPlans__3d_fullres"
    splits = scene / "preprocessed" / DATASET / "splits_final.json"
    out = scene / "out"
    report = ["report", str(folder.parent / "*"), "-o", str(out / "r.html"), "-q"]
    evaluate = ["evaluate", "--folds", str(folder), "-o", str(out), "-q", "-n1"]
    targets = [
        (report, folder / "evaluation" / "summary.json", 5),
        (report, folder / "fold_0" / "run.json", 3),
        (report, folder / "plans.json", 1),
        (report, splits, 1),
        (evaluate, folder / "dataset.json", 2),
        (evaluate, splits, 2),
        (evaluate, out / "summary.json", 1),
    ]
    wrong = []
    for _ in range(count):
        arguments, file, _weight = rng.choices(targets, [weight for *_, weight in targets])[0]
        shutil.rmtree(out, ignore_errors=True)
        if file.parent == out:
            shutil.copytree(folder / "evaluation", out)
        text = file.read_text()
        what, changed = damaged(text, rng)
        what = f"{arguments[0]}, {file.name}: {what}"
        try:
            file.write_text(changed)
            os.utime(file, (2**32, 2**32))  # not older than the predictions
            with warnings.catch_warnings():
                warnings.simplefilter("error", RuntimeWarning)
                status = main(arguments)
        except BaseException as error:  # what the user would see as a traceback
            wrong.append(f"{what}: {type(error).__name__}: {str(error)[:200]}")
            continue
        finally:
            file.write_text(text)
            printed = capsys.readouterr()
        lines = printed.err.removesuffix("\n").split("\n") if printed.err else []
        prefix = f"nnunet_ext {arguments[0]}: "
        fine = all(line.startswith(prefix) and line.isprintable() for line in lines)
        if status == 1:
            # Labels may still fit some cases: then each of the others has its line.
            one_each = len(lines) == 1 or all(" left out: " in line for line in lines)
            fine &= one_each and max(map(len, lines)) < 6000 and not (out / "r.html").exists()
        if status not in (0, 1) or not fine or printed.out:
            wrong.append(f"{what}: status {status}, {printed.out[:100]!r}, {lines[:3]}")
    return wrong


def test_a_damaged_file_is_one_line(scene, capsys, monkeypatch):
    wrong = outcomes(scene, capsys, monkeypatch, 200, seed=0)
    assert not wrong, "\n".join(wrong)


@pytest.mark.slow
def test_many_damaged_files_are_one_line_each(scene, capsys, monkeypatch):
    wrong = outcomes(scene, capsys, monkeypatch, 3000, seed=1)
    assert not wrong, "\n".join(wrong)
