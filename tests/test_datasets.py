"""Data sets by number or name: what is found, and one line for each thing that can be wrong."""

from __future__ import annotations

import re

import pytest

from nnunet_ext.data.layout import raw_dataset
from nnunet_ext.datasets import find_dataset
from nnunet_ext.errors import UserError

RAW, PREPROCESSED = "nnUNet_raw", "nnUNet_preprocessed"


@pytest.fixture
def base(tmp_path, monkeypatch):
    for variable, names in (
        (RAW, ("Dataset004_Hippocampus", "Dataset005_One", "Dataset005_Two", "Dataset006_Here")),
        (PREPROCESSED, ("Dataset004_Hippocampus", "Dataset006_There", "Dataset1004_Far")),
    ):
        for name in names:
            (tmp_path / variable / name).mkdir(parents=True)
        monkeypatch.setenv(variable, str(tmp_path / variable))
    (tmp_path / RAW / "Dataset007_File").touch()
    return tmp_path


@pytest.mark.parametrize(
    ("dataset", "variables", "folder"),
    [
        ("4", (RAW,), "nnUNet_raw/Dataset004_Hippocampus"),
        ("004", (PREPROCESSED,), "nnUNet_preprocessed/Dataset004_Hippocampus"),
        ("4", (RAW, PREPROCESSED), "nnUNet_raw/Dataset004_Hippocampus"),
        ("6", (PREPROCESSED,), "nnUNet_preprocessed/Dataset006_There"),
        ("1004", (RAW, PREPROCESSED), "nnUNet_preprocessed/Dataset1004_Far"),
        ("Dataset005_Two", (RAW,), "nnUNet_raw/Dataset005_Two"),
    ],
)
def test_found_by_number_and_name(base, dataset, variables, folder):
    assert find_dataset(dataset, *variables) == base / folder


@pytest.mark.parametrize(
    ("dataset", "variables", "message"),
    [
        ("4", ("nnUNet_results",), "nnUNet_results is not set; export it"),
        ("8", (RAW,), "expected one folder Dataset008_* in {base}/nnUNet_raw, found none; look again"),
        ("Dataset005_On", (RAW,), "expected one folder Dataset005_On in {base}/nnUNet_raw, found none; look again"),
        ("7", (RAW,), "found none"),
        ("5", (RAW,), "found Dataset005_One, Dataset005_Two; give the whole name"),
        ("6", (RAW, PREPROCESSED), "{base}/nnUNet_preprocessed, found Dataset006_Here, Dataset006_There; give"),
        ("hippocampus", (RAW,), "data set 'hippocampus' must be a number such as 4 or a name such as Dataset004_Hip"),
        ("Dataset005_*", (RAW,), "data set 'Dataset005_*' must be a number"),
        ("Dataset004_Hippocampus/..", (RAW,), "must be a number"),
        ("-4", (RAW,), "must be a number"),
        ("", (RAW,), "data set '' must be a number"),
    ],
)
def test_errors(base, monkeypatch, dataset, variables, message):
    monkeypatch.delenv("nnUNet_results", raising=False)
    with pytest.raises(UserError, match=re.escape(message.format(base=base))):
        find_dataset(dataset, *variables, remedy="look again")


def test_a_raw_data_set_may_be_a_path(base, monkeypatch):
    elsewhere = base / "elsewhere" / "things"
    elsewhere.mkdir(parents=True)
    monkeypatch.chdir(base)
    assert raw_dataset("elsewhere/things") == elsewhere
    assert raw_dataset("4") == base / RAW / "Dataset004_Hippocampus"
    with pytest.raises(UserError, match="elsewhere/thing is not a folder; give one, or a data set's name or number"):
        raw_dataset("elsewhere/thing")
