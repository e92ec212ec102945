"""Checks of the installation and the machine, each a function that returns findings; nothing here changes anything.

    finding.py   what one check found, and the remedy
    software.py  packages, environment variables, the look-up of trainers, the scan backends
    machine.py   nnU-Net's folders, GPU, memory, disk, cores
    probes.py    what only a fresh interpreter can tell

`nnunet_ext doctor` prints it all.
"""
