"""The page "Your own loss, your own trainer": its file is found by nnU-Net and trains."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

PAGE = Path(__file__).parents[2] / "docs" / "own_trainer.md"


def test_the_file_on_the_page_trains_with_its_loss(make_trainer, tmp_path, monkeypatch):
    source = re.search(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "my_trainers").mkdir()
    (tmp_path / "my_trainers" / "my_trainer.py").write_text(source[1])
    monkeypatch.setenv("nnUNet_extTrainer", str(tmp_path / "my_trainers"))
    trainer = make_trainer(recursive_find_trainer_class_by_name("nnUNetTrainerMine"))
    trainer.run_training()
    assert type(trainer.loss).__name__ == "TverskyLoss"
    # Tversky's loss lies between 0 and 1; nnU-Net's Dice + cross-entropy of an untrained network does not.
    losses = trainer.logger.get_value("train_losses", None)
    assert len(losses) == 2 and all(0 < loss < 1 for loss in losses) and np.isfinite(losses).all()
    assert json.loads(Path(trainer.output_folder, "run.json").read_text())["trainer"] == "nnUNetTrainerMine"
