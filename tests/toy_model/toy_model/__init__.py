"""A model for nnU-Net in three files: network, trainer, row. Nothing heavy is imported here: the row is read often."""
