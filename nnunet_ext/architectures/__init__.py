"""The networks: plain `nn.Module`s that know tensors, not nnU-Net, one package per model.

Each exports the class that plans name, called as `Network(input_channels, num_classes, deep_supervision, **arguments)`,
whose `forward(x)` gives logits. `geometry.py`, where there is one, says what follows from a patch. Shared are
`blocks.py` (convolution blocks of UNETR) and `precision.py` (sines and cosines of large angles).
"""
