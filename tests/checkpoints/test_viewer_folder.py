"""What viewers read beside nnU-Net's files."""

from __future__ import annotations

import json

import pytest

from nnunet_ext.checkpoints.viewer_folder import inference_info, write_viewer_folder


def test_the_licence_is_the_users_else_what_stands_there_else_the_data_sets(tmp_path):
    def licence(dataset_json, **environment):
        write_viewer_folder(tmp_path, dataset_json, environment=environment)
        return (tmp_path / "LICENSE").read_text()

    assert licence({}) == "not stated\n"
    assert licence({"licence": "CC0 1.0"}) == "not stated\n"  # somebody's file stays
    (tmp_path / "LICENSE").unlink()
    assert licence({"licence": " ", "license": "CC BY-SA 4.0"}) == "CC BY-SA 4.0\n"
    assert licence({"licence": "CC0 1.0"}, NNUNET_EXT_LICENCE="MIT") == "MIT\n"
    assert json.loads((tmp_path / "inference_info.json").read_text()) == inference_info()


def test_only_interactions_of_the_session_can_be_claimed():
    assert inference_info(["points"])["supported_interactions"] == {
        "points": True, "bbox2d": False, "bbox3d": False, "scribble": False, "lasso": False,
    }  # fmt: skip
    with pytest.raises(ValueError, match="polygon"):
        inference_info(["polygon"])
