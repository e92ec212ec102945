"""UNETR++ step by step as the authors' code computes it: the slow reference that the network is compared with.

One function per official module, on the parameters of ours, in plain memory: tokens by transposition, four attention
inputs formed and normalised in full, every tensor fresh. Tests compare outputs and gradients, the benchmark times.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunet_ext.architectures.unetrpp.blocks import ResidualBlock
from nnunet_ext.architectures.unetrpp.epa import EPA
from nnunet_ext.architectures.unetrpp.model import UNETRPP, TransformerBlock, UpBlock


def plain_forward(model: UNETRPP, x: Tensor) -> list[Tensor]:
    """Three outputs, finest first, of a network whose patch needs no padding."""
    stages, y = [], x
    for (reduce, norm), stage in zip(
        model.unetr_pp_encoder.downsample_layers, model.unetr_pp_encoder.stages, strict=True
    ):
        y = norm(reduce.conv(y))
        for block in stage:
            y = plain_transformer_block(block, y)
        stages.append(y)
    decoded2 = plain_up_block(model.decoder5, stages[3], stages[2])
    decoded1 = plain_up_block(model.decoder4, decoded2, stages[1])
    decoded0 = plain_up_block(model.decoder3, decoded1, stages[0])
    full = plain_up_block(model.decoder2, decoded0, plain_residual_block(model.encoder1, x))
    heads = (model.out1, model.out2, model.out3)
    return [head["conv"].conv(features) for head, features in zip(heads, (full, decoded0, decoded1), strict=True)]


def plain_up_block(up: UpBlock, x: Tensor, skip: Tensor) -> Tensor:
    x = up.transp_conv.conv(x) + skip
    block = up.decoder_block[0]
    if isinstance(block, ResidualBlock):
        return plain_residual_block(block, x)
    for transformer in block:
        x = plain_transformer_block(transformer, x)
    return x


def plain_residual_block(block: ResidualBlock, x: Tensor) -> Tensor:
    def norm(module: nn.Module | None, y: Tensor) -> Tensor:
        return F.instance_norm(y) if module is None else module(y)

    y = F.leaky_relu(norm(block.norm1, block.conv1(x)), 0.01, inplace=True)
    y = norm(block.norm2, block.conv2(y))
    shortcut = x if block.conv3 is None else F.instance_norm(block.conv3(x))
    y = y + shortcut
    return F.leaky_relu(y, 0.01, inplace=True)


def plain_transformer_block(block: TransformerBlock, x: Tensor) -> Tensor:
    batch, channels, *grid = x.shape
    rows = x.reshape(batch, channels, -1).permute(0, 2, 1) + block.pos_embed
    rows = rows + block.gamma * plain_epa(block.epa_block, block.norm(rows))
    attended = rows.reshape(batch, *grid, channels).permute(0, 4, 1, 2, 3)
    y = plain_residual_block(block.conv51, attended)
    if block.conv52 is not None:
        y = plain_residual_block(block.conv52, y)
    return attended + block.conv8(y)


def plain_epa(epa: EPA, x: Tensor) -> Tensor:
    batch, n, channels = x.shape
    qkvv = epa.qkvv(x).reshape(batch, n, 4, epa.num_heads, -1).permute(2, 0, 3, 4, 1)
    query, key, value_channel, value_spatial = qkvv  # (B, h, d, N) each
    if epa.projection == "matrix":
        k_proj, v_proj = key @ epa.EF, value_spatial @ epa.EF  # (B, h, d, P)
    else:
        k_proj, v_proj = epa.E(key), epa.F(value_spatial)
    query, key = F.normalize(query, dim=-1), F.normalize(key, dim=-1)
    attention = ((query @ key.transpose(-2, -1)) * epa.temperature).softmax(dim=-1)
    attention = F.dropout(attention, epa.dropout, epa.training)
    x_channel = (attention @ value_channel).permute(0, 3, 1, 2).reshape(batch, n, channels)
    attention = ((query.transpose(-2, -1) @ k_proj) * epa.temperature2).softmax(dim=-1)
    attention = F.dropout(attention, epa.dropout, epa.training)
    x_spatial = attention @ v_proj.transpose(-2, -1)  # (B, h, N, d)
    x_spatial = x_spatial.permute((0, 3, 1, 2) if epa.scramble else (0, 2, 1, 3)).reshape(batch, n, channels)
    if epa.fusion == "sum":
        return x_channel + x_spatial
    return torch.cat((epa.out_proj(x_spatial), epa.out_proj2(x_channel)), dim=-1)
