"""Label maps that do not fit their image, and the page on which a person looks at them."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from helpers.blobs import CASES, load, make, write

from nnunet_ext.data.check import check_dataset
from nnunet_ext.data.check_page import render_page
from nnunet_ext.data.label_cohort import bound

LABEL = "labelsTr/a_01.nii.gz"


def test_cases_with_errors_come_first_and_one_that_cannot_be_read_has_a_tile(tmp_path):
    clean = make(tmp_path / "Dataset042_Blobs")
    last = sorted((clean / "imagesTr").iterdir())[-1]
    last.write_bytes(last.read_bytes()[:100])
    write(clean / LABEL, load(clean, LABEL)[0] * 0, load(clean, LABEL)[1])
    tiles = re.findall(r'<figure class="(\w*)">(.*?)<figcaption>(.*?)</figcaption>', render_page(check_dataset(clean)))
    assert len(tiles) == len(CASES)
    (worst, picture, name), (second, *_, empty) = tiles[0], tiles[1]
    assert (worst, name) == ("error", f"{last.name.removesuffix('_0000.nii.gz')} (error)") and "no picture" in picture
    assert (second, empty) == ("warning", "a_01 (warning)")
    assert all(mark == "" and "img" in shown for mark, shown, _ in tiles[2:])


def test_label_maps_that_do_not_fit_are_found_among_real_cases(real_data, tmp_path):
    source, folder = real_data / "Dataset004_Hippocampus", tmp_path / "Dataset004_Hippocampus"
    names = sorted(path.name.removesuffix(".nii.gz") for path in (source / "labelsTr").glob("*.nii.gz"))[:60]
    for kind, ending in (("imagesTr", "_0000"), ("labelsTr", "")):
        (folder / kind).mkdir(parents=True)
        for name in names:
            (folder / kind / f"{name}{ending}.nii.gz").symlink_to(source / kind / f"{name}{ending}.nii.gz")
    description_of = json.loads((source / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps({**description_of, "numTraining": len(names)}))

    def implausible():
        found = check_dataset(folder, processes=1).findings
        return {finding.file: finding.value for finding in found if finding.check == "label-implausible"}

    assert implausible() == {}
    plants = {
        names[3]: lambda labels: np.roll(labels, 8, axis=0),
        names[7]: lambda labels: np.array([0, 2, 1], labels.dtype)[labels.astype(int)],
    }
    for name, plant in plants.items():
        path = f"labelsTr/{name}.nii.gz"
        array, affine = load(folder, path)
        (folder / path).unlink()
        write(folder / path, plant(array), affine)
    found = implausible()
    assert set(found) == {f"labelsTr/{name}.nii.gz" for name in plants}
    assert "mm from its usual place in the image" in found[f"labelsTr/{names[3]}.nii.gz"]
    assert "Posterior lies 20 mm from its usual place" in found[f"labelsTr/{names[7]}.nii.gz"]


def test_few_cases_need_a_larger_difference():
    assert [bound(n) for n in (5, 10, 10**6)] == [11, 8.25, pytest.approx(5.5, abs=1e-4)]
