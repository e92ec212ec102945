"""Cases by nnU-Net's names: every command finds the same ones."""

from __future__ import annotations

import pytest

from nnunet_ext.cases import channel_files, ending_of, find_cases
from nnunet_ext.errors import UserError


def folder(tmp_path, *names):
    for name in names:
        (tmp_path / name).write_text("")
    return tmp_path


def found(cases):
    return {name: [path.name for path in files] for name, files in cases.items()}


def test_cases_in_natural_order_with_their_channels(tmp_path):
    names = [f"{case}_{channel}.nii.gz" for case in ("b_10", "b_9", "a.x") for channel in ("0001", "0000")]
    base = folder(tmp_path, *names, ".hidden_0000.nii.gz", "._b_9_0000.nii.gz", "notes.txt", "b_9.nii.gz", "c_0000.nii")
    cases = found(find_cases(base, (".nii.gz",), 2))
    assert list(cases) == ["a.x", "b_9", "b_10"]
    assert cases["b_9"] == ["b_9_0000.nii.gz", "b_9_0001.nii.gz"]
    there = channel_files(base, (".nii.gz",))
    assert [path.name for path in there.others] == ["b_9.nii.gz", "c_0000.nii", "notes.txt"]
    assert there.cases["a.x"].keys() == {0, 1}


def test_endings_of_any_case_and_as_many_channels_as_there_are(tmp_path):
    base = folder(tmp_path, "a_0000.NII.GZ", "a_0002.nii.gz", "b_0000.nii", "b_0002.nii")
    cases = found(find_cases(base, (".nii.gz", ".nii"), any_case=True))
    assert cases == {"a": ["a_0000.NII.GZ", "a_0002.nii.gz"], "b": ["b_0000.nii", "b_0002.nii"]}
    assert ending_of("x.NII.GZ", (".nii.gz", ".gz"), any_case=True) == ".nii.gz"
    assert ending_of("x.NII.GZ", (".nii.gz",)) is None


def test_colours_come_in_fewer_files(tmp_path):
    base = folder(tmp_path, "a_0000.png", "b_0000.png", "b_0001.png", "b_0002.png")
    assert found(find_cases(base, (".png",), 3, colours=True))["a"] == ["a_0000.png"]
    with pytest.raises(UserError, match=r"lacks a_0001\.png; 3 channel\(s\)"):
        find_cases(base, (".png",), 3)


@pytest.mark.parametrize(
    ("names", "channels", "message"),
    [
        ([], 1, r"holds no image named NAME_0000 with the ending \.nii or \.mha"),
        (["a_0000.png"], 1, "holds no image named NAME_0000"),
        (["a_0001.nii"], 1, r"lacks a_0000\.nii; 1 channel"),
        (["a_0000.nii", "a_0001.nii"], 1, "has 2 channels of a; 1 are expected"),
        (["a_0000.nii", "b_0000.nii", "b_0001.nii"], None, r"lacks a_0001\.nii; 2 channel"),
        (["a_0000.nii", "a_0000.mha"], 1, r"has a_0000\.mha and a_0000\.nii, which are one channel"),
        (["a_0000.nii", "b.nii"], None, r"b\.nii has no channel number; rename it to b_0000\.nii"),
        (["_0000.nii"], 1, r"has no name before its channel number; rename it to NAME_0000\.nii"),
        (["._0000.nii"], 1, "has no name before its channel number"),
        ([".._0000.nii"], None, "has no name before its channel number"),
        (["a_\u0660\u0660\u0660\u0660.nii"], 1, "holds no image named NAME_0000"),
    ],
)
def test_refusals(tmp_path, names, channels, message):
    with pytest.raises(UserError, match=message):
        find_cases(folder(tmp_path, *names), (".nii", ".mha"), channels)


def test_no_folder(tmp_path):
    with pytest.raises(UserError, match=r"nowhere is no folder; give one of images such as NAME_0000\.nii"):
        find_cases(tmp_path / "nowhere", (".nii",))
