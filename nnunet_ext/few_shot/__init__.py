"""A few labelled images to label maps, without training: folders, support files, Dice against support size."""
