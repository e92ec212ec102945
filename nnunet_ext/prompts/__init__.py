"""Clicks and masks as data: what they are, who makes them, and how they are read.

No network in here.

    types.py                          a prompt, on a tensor and in a file
    files.py, foreign.py, locate.py   prompt files of this project and of other programs; from positions to voxels
    raster.py                         prompts drawn into label maps, for nnU-Net's cascade
    channels.py                       interactions as channels of an image, for early prompting and viewers
    objects.py, drawn.py, early.py    early prompting: which object, who draws, how an interaction goes
    simulate.py, rounds.py            simulated users, and the loop of clicking and segmenting again
"""
