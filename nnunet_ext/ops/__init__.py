"""Operators the networks share.

Each has a plain reference, and faster ways that are tested against it.

    selective_scan/, causal_conv1d/   the two operators of Mamba: reference.py, and a file per backend
    order.py                          the orders in which SegMamba reads a volume's tokens
    compiled.py, triton_probe.py      numba kernels and their threads; whether Triton's can be trusted on a device
    resample.py                       nnU-Net's resampling of images and label maps
"""
