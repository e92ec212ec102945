"""Checks of the installation and the machine, each a function that returns findings; nothing here changes anything.

`software` looks at packages, environment variables, the look-up of trainers and the scan backends; `machine` at
folders, GPU, memory, disk and cores; `probes` asks fresh interpreters. `nnunet_ext doctor` prints it all.
"""
