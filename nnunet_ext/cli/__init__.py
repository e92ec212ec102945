"""The `nnunet_ext` command: one file per sub-command, whose docstring is its help and begins with what it does.

`main.py` lists the commands and turns errors into one line and an exit status. `data_*.py` and `slurm_*.py` are the
commands under `data` and `slurm`. Shared: `numbers.py` (numbers that are refused with a reason), `running.py` and
`progress.py` (nnU-Net's own commands started, logged, and shown in brief). Work is done in the packages below: a file
here reads arguments, calls, and prints.
"""
