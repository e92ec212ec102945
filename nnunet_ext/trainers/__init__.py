"""One `nnUNetTrainer` subclass per file; `shared` holds what all of them share."""
