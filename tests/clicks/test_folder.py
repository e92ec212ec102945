"""Images and prompt files are paired by one name per case."""

from __future__ import annotations

import pytest

from nnunet_ext.clicks.folder import pair_with_prompts
from nnunet_ext.errors import UserError


@pytest.fixture
def folders(tmp_path):
    """A function that makes empty files: images as named, and these prompt files."""

    def make(images: list[str], prompts: list[str]):
        for folder, names in (("images", images), ("prompts", prompts)):
            (tmp_path / folder).mkdir()
            for name in names:
                (tmp_path / folder / name).touch()
        return tmp_path / "images", tmp_path / "prompts"

    return make


def test_cases_bear_one_name_whatever_their_files_are_called(folders):
    images, prompts = folders(
        ["a_0000.nii.gz", "b_0000.nii.gz", "c.nii.gz", "d_0000.nii.gz", "e.nii.gz"],
        # Viewers name markups after the volume they have loaded.
        ["a.prompts.json", "b_0000.mrk.json", "c.csv"],
    )
    cases, alone = pair_with_prompts(images, prompts, 1, ".nii.gz")
    assert [(case.case, case.images[0].name, case.prompts.name) for case in cases] == [
        ("a", "a_0000.nii.gz", "a.prompts.json"), ("b", "b_0000.nii.gz", "b_0000.mrk.json"), ("c", "c.nii.gz", "c.csv"),
    ]  # fmt: skip
    assert alone == ["d", "e"]


def test_an_image_of_several_channels_without_prompts_is_named_once(folders):
    images, prompts = folders([f"{c}_000{k}.nii.gz" for c in "ab" for k in (0, 1)], ["a.prompts.json"])
    assert pair_with_prompts(images, prompts, 2, ".nii.gz")[1] == ["b"]


def test_two_prompt_files_of_a_case_are_refused(folders):
    images, prompts = folders(["a_0000.nii.gz"], ["a.prompts.json", "a_0000.csv"])
    with pytest.raises(UserError, match=r"a\.prompts\.json and .*a_0000\.csv are both prompts of a; keep one"):
        pair_with_prompts(images, prompts, 1, ".nii.gz")
