"""One training step per model: from network and batch to loss, without nnU-Net.

Its trainer runs it, and the estimate of a plan's memory runs the same on fake tensors, so the two cannot drift apart.
A module here has

    step(network, batch, loss) -> Tensor          a scalar; `loss` is nnU-Net's of (outputs, target)
    example(network, image, outputs) -> batch     for (batch, channels, *patch) images and a number of output channels:
                                                  right in shapes and types, its values mean nothing. Whatever a step
                                                  draws is drawn before it and part of the batch; here it is what
                                                  takes most memory
"""
