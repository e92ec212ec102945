"""A few labelled images to label maps, without training: the application of `support/`.

A network that was trained on other tasks, and images of a new one:

    folder.py          a folder of images by a folder of labelled ones
    support_file.py    another support set for a trained model
    support_curve.py   Dice against support size
"""
