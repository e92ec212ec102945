"""The network nnU-Net trains: where a click looks before any training."""

from __future__ import annotations

import math

import torch

from nnunet_ext.architectures.sam_med3d.promptable import PromptableSAMMed3D
from nnunet_ext.models.sam_med3d import SIZES
from nnunet_ext.prompts.types import Points


def test_a_click_looks_where_it_is_from_the_first_step():
    torch.manual_seed(0)
    network = PromptableSAMMed3D(1, 3, **SIZES["tiny"]).eval()
    attention = network.sam.mask_decoder.transformer.layers[0].cross_attn_token_to_image
    seen = []

    def look(module, arguments):
        q, k = (
            project(x).unflatten(-1, (module.num_heads, -1)).transpose(1, 2)
            for project, x in zip((module.q_proj, module.k_proj), arguments[:2], strict=True)
        )
        seen.append((q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(-1))

    attention.register_forward_pre_hook(look)
    image = torch.randn(1, 1, 40, 56, 40)
    near = []
    with torch.no_grad():
        embedding = network.embed(image)
        for _ in range(12):
            index = torch.stack([torch.randint(n, ()) for n in image.shape[2:]])
            points = Points(index[None, None], torch.ones(1, 1, dtype=torch.int64))
            network.segment(embedding, points, network.no_mask(1, image.device), image.shape[2:])
            # Tokens: IoU, four masks, the click, and the one that is no point.
            weights = seen[-1][0, :, 5].mean(0).reshape(8, 8, 8)
            cell = [int((i + 0.5) / n * 8) for i, n in zip(index, image.shape[2:], strict=True)]
            near.append(weights[tuple(slice(max(c - 1, 0), c + 2) for c in cell)].sum().item())
    mean = sum(near) / len(near)
    # 27 of 512 cells; with axes exchanged as in the published code it is about 0.06.
    assert mean > 0.7, mean
