"""How nnU-Net finds this project's classes by name, although it only searches its own folders.

* `startup/` is installed beside the package and runs in every interpreter: it waits for nnU-Net and then attaches
  `lookup`. This is what makes `nnUNetv2_train -tr nnUNetTrainerSegMamba` work right after `pip install`.
* `shims/` is the folder for nnU-Net's own variable `nnUNet_extTrainer`, where the first way cannot act (`PYTHONPATH`,
  `pip install --target`).
* `table` lists the classes; `lookup` answers.
"""

from __future__ import annotations

from pathlib import Path

# Holds exactly one module: nnU-Net imports every module of a folder named in nnUNet_extTrainer.
SHIMS = Path(__file__).parent / "shims"
