"""Support sets of few-shot segmentation: pools of labelled slices, draws from them, training episodes."""
