"""docs/clinic.md, line by line: from DICOM over training and ONNX to DICOM SEG."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from helpers import nnunet_dataset
from helpers.dicom_files import square, write_rtstruct, write_series
from highdicom.seg import segread

from nnunet_ext.cli.main import main

PAGE = Path(__file__).parents[2] / "docs" / "clinic.md"
SHAPE = (12, 32, 32)


def commands() -> list[list[str]]:
    """Those of the section `The whole way`."""
    section = PAGE.read_text(encoding="utf-8").split("## The whole way")[1].split("\n## ")[0]
    return [shlex.split(line) for block in re.findall(r"```bash\n(.*?)```", section, re.DOTALL)
            for line in block.splitlines()]  # fmt: skip


@pytest.mark.slow
def test_the_page_as_it_stands(tmp_path, monkeypatch):
    for number in range(6):
        low, high = 8.5, 18.5 + number % 3
        volume = np.random.default_rng(number).integers(-60, 60, SHAPE)
        volume[3:9, 9:19, 9:19] += 300
        folder = write_series(tmp_path / ("new" if number == 5 else "clinic") / f"p{number}", volume)
        if number < 5:
            write_rtstruct(folder / "rt.dcm", {"organ": [(n, square(low, high)) for n in range(3, 9)]})
    monkeypatch.chdir(tmp_path)
    for name in nnunet_dataset.FOLDERS:
        (tmp_path / name).mkdir()
        monkeypatch.setenv(name, str(tmp_path / name))
    steps = {"EPOCHS": "1", "ITERATIONS": "4", "VAL_ITERATIONS": "1"}
    lines = commands()
    assert len(lines) == 8
    for words in lines:
        if words[0] == "nnunet_ext":
            assert main(words[1:]) == 0, words
        else:
            small = {"nnUNetv2_train": ["-device", "cpu"], "nnUNetv2_plan_and_preprocess": ["-np", "1", "-npfp", "1"]}
            settings = {f"NNUNET_EXT_{key}": value for key, value in steps.items()}
            nnunet_dataset.run(tmp_path, *words, *small[words[0]], **settings)
    seg = segread(tmp_path / "segs" / "p5.dcm")
    assert seg.get_segment_description(1).segment_label == "organ"
    assert {str(uid) for *_, uid in seg.get_source_image_uids()} and seg.Rows == 32
