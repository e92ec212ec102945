"""A model folder with an ONNX file, made by hand in no time: one 1x1x1 convolution."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from helpers.model_folders import plans

DATASET = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "a": 1, "b": 2}, "file_ending": ".nii.gz"}


def write_onnx_model(base: Path) -> Path:
    """The folder, with fold 0."""
    described = plans()
    folder = base / "nnUNetTrainer__nnUNetPlans__3d_fullres"
    (folder / "fold_0").mkdir(parents=True)
    (folder / "plans.json").write_text(json.dumps(described))
    (folder / "dataset.json").write_text(json.dumps(DATASET))
    patch = described["configurations"]["3d_fullres"]["patch_size"]
    kernel = np.array([-1.0, 1.0, 0.5], np.float32).reshape(3, 1, 1, 1, 1)
    graph = helper.make_graph(
        [helper.make_node("Conv", ["image", "kernel"], ["logits"])],
        "network",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 1, *patch])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 3, *patch])],
        [numpy_helper.from_array(kernel, "kernel")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    about = {"format": 1, "configuration": "3d_fullres", "trainer": "nnUNetTrainer", "mirroring_axes": [0]}
    helper.set_model_props(model, {"nnunet_ext": json.dumps({**about, "plans": described, "dataset": DATASET})})
    onnx.save(model, folder / "fold_0" / "checkpoint_final.onnx")
    return folder
