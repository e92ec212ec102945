"""Plain `nn.Module`s: they know tensors, not nnU-Net."""
