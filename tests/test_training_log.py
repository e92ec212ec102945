"""Training logs of runs that were interrupted: one curve, the same for reports and for the status of batch jobs."""

from __future__ import annotations

import pytest

from nnunet_ext.slurm.progress import read_progress
from nnunet_ext.training_log import read_training_log, training_logs


def write(folder, name, epochs, loss):
    lines = []
    for epoch in epochs:
        at = f"2026-01-{10 if '_10_' in name else 9:02d} 10:{epoch:02d}:"
        lines += [f"{at}00.1: Epoch {epoch} ", f"{at}10.1: train_loss {loss} ", f"{at}10.2: Epoch time: 60.0 s "]
    (folder / f"training_log_2026_1_{name}.txt").write_text("\n".join(lines) + "\n")


def test_logs_are_in_order_of_time_and_abandoned_epochs_are_dropped(tmp_path):
    write(tmp_path, "9_10_00_00", range(5), 1.0)  # epochs 3 and 4 came after the last checkpoint
    write(tmp_path, "10_9_00_00", range(3, 4), 2.0)  # run again from epoch 3, and so far
    names = [file.name for file in training_logs(tmp_path)]
    assert names == ["training_log_2026_1_9_10_00_00.txt", "training_log_2026_1_10_9_00_00.txt"]
    log = read_training_log(tmp_path)
    assert log.curves["train_loss"] == {0: 1.0, 1: 1.0, 2: 1.0, 3: 2.0} and log.epochs == 4
    progress = read_progress(tmp_path)
    assert progress.losses == (1.0, 1.0, 1.0, 2.0) and progress.epochs == 4


@pytest.mark.parametrize(
    "line",
    [
        "2026-01-09 10:00:00.1: train_loss abc",
        "2026-99-99 99:99:99.1: predicting a",
        f"2026-01-09 10:00:00.1: Epoch {'9' * 5000}",
        "2026-01-09 10:00:00.1: Pseudo dice [np.float32(abc)]",
    ],
)
def test_a_damaged_line_costs_only_itself(tmp_path, line):
    write(tmp_path, "9_10_00_00", range(2), 1.0)
    with open(tmp_path / "training_log_2026_1_9_10_00_00.txt", "a") as file:
        file.write(line + "\n")
    (tmp_path / "training_log_2026_1_9_11_00_00.txt").mkdir()
    assert read_training_log(tmp_path).curves["train_loss"] == {0: 1.0, 1: 1.0}
    assert read_progress(tmp_path).losses == (1.0, 1.0)
