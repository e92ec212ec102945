"""nnU-Net's augmentation in fused kernels, and its batches from threads (docs/augmentation.md)."""
