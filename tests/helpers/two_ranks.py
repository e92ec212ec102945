"""Two ranks of distributed training on a CPU, where nnU-Net expects two GPUs."""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch
import torch.distributed as dist
from nnunetv2.training.nnUNetTrainer import nnUNetTrainer as stock


def train_and_validate(rank: int, port: int, preprocessed: str, folder: str) -> None:
    """One rank: the second cannot write its cases, and then meets NaN. What ends each rank goes into `rank_N.json`."""
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=2)
    wrapped = stock.DDP
    stock.DDP = lambda network, device_ids: wrapped(network)
    from nnunet_ext.errors import TrainingError
    from nnunet_ext.inference.predictor import Done, FolderPredictor
    from nnunet_ext.trainers.segmamba import nnUNetTrainerSegMamba

    plans = json.loads(Path(preprocessed, "nnUNetPlansSegMambaTiny.json").read_text())
    dataset_json = json.loads(Path(preprocessed, "dataset.json").read_text())
    plans["continue_training"] = False
    trainer = nnUNetTrainerSegMamba(plans, "3d_fullres", "all", dataset_json, torch.device("cpu"))
    trainer.device = torch.device("cpu")
    trainer.initialize()
    cases = trainer.do_split()[0][:2]
    trainer.do_split = lambda: (cases, cases)
    said = {"log": ""}
    if rank == 1:
        FolderPredictor.export = lambda self, case, *_: Done(case, 0.0, "no space left")
    try:
        trainer.perform_actual_validation()
    except TrainingError as error:
        said["export"] = str(error)
    batch = {
        "data": torch.randn(1, 1, 16, 32, 32),
        "target": torch.zeros(1, 1, 16, 32, 32, dtype=torch.int16),
        "keys": [f"case_of_rank_{rank}"],
    }
    trainer.network.train()
    trainer.lr_scheduler.step(0)
    trainer.train_step(batch)
    if rank == 1:
        batch["data"][:] = float("nan")
    try:
        trainer.train_step(batch)
    except TrainingError as error:
        said["loss"] = str(error)
    if rank == 0:  # nobody else writes
        said["log"] = Path(trainer.log_file).read_text()
    Path(folder, f"rank_{rank}.json").write_text(json.dumps(said))
    dist.destroy_process_group()
