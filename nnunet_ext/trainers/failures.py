"""How a training ends that cannot go on: one line, on every rank."""

from __future__ import annotations

import torch
import torch.distributed as dist
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_ext.errors import TrainingError


class FailsInOneLine(nnUNetTrainer):
    """nnU-Net's trainer with a way to end the command, alone or with all ranks."""

    def fail(self, message: str) -> None:
        """Put one line into the log and end the command with it.

        Raises:
            TrainingError: always.
        """
        self.print_to_log_file(f"ERROR: {message}", also_print_to_console=False)
        raise TrainingError(message)

    def fail_together(self, message: str | None) -> None:
        """Fail on all ranks of distributed training when one has to; the others would wait for it forever.

        Args:
            message: what is wrong on this rank, or None. Every rank calls this at the same place.

        Raises:
            TrainingError: with the messages of all ranks, if there is one.
        """
        messages = [message]
        if self.is_ddp:
            flag = torch.tensor(int(message is not None), device=self.device)
            dist.all_reduce(flag, op=dist.ReduceOp.MAX)
            if flag.item():
                messages = [None] * dist.get_world_size()
                dist.all_gather_object(messages, message)
        found = [text for text in messages if text]
        if found:
            self.fail("; ".join(found))
