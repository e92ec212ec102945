"""From data that nnU-Net has looked at to plans.json, and preprocessing with nnU-Net's output in less time.

Sizes of networks stand in the rows of `models/`.

    files.py                         plans.json and dataset.json with their types checked
    planner.py                       planners, for nnU-Net's own commands
    offer.py, write.py               `nnunet_ext plan`: what fits which GPU; plans that name one of our networks
    fit.py, estimate.py, memory.py   patch and batch that fill a memory, by a training step on fake tensors
    adapted.py, constructor.py, probe.py   a row for a network named by its path, found out on tensors without data
    network.py                       from plans to a network's keyword arguments
    preprocessor.py                  `ExactFastPreprocessor`
"""
