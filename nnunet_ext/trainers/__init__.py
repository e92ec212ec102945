"""One `nnUNetTrainer` subclass per file; `_base` holds what all of them share."""
