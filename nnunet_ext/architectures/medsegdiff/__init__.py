"""MedSegDiff-V2 (Wu et al., AAAI 2024, arXiv:2301.11798) in 2D and 3D: a condition model that guides a diffusion model.

The released code of that name has neither of the paper's two conditions; this follows the paper. From the image:

    condition.py   condition model (a U-Net) and anchor condition (uncertain spatial attention, U-SA)
    ss_former.py   semantic condition (spectrum-space transformer with neural band-pass filter)
    denoiser.py    diffusion model: a U-Net of the noisy mask that knows the time step
    model.py       the three together
    sampled.py     what nnU-Net trains and runs: the sampler behind `forward(x) -> logits`, and the control without it
"""

from nnunet_ext.architectures.medsegdiff.model import Condition, MedSegDiffV2
from nnunet_ext.architectures.medsegdiff.sampled import Averaged, DirectControl, SampledMedSegDiffV2

__all__ = ["Averaged", "Condition", "DirectControl", "MedSegDiffV2", "SampledMedSegDiffV2"]
