"""Semantic condition of MedSegDiff-V2: the spectrum-space transformer (SS-Former) with neural band-pass filters.

The paper's module, for queries from the condition embedding c and keys from the diffusion embedding e, both maps of
m patches and d channels, F the discrete Fourier transform over the axes of the map:

    M  = (F(c) W_q) (F(e) W_k)^T        affinities of frequencies, m x m
    M' = M . NBP(t)                     the filter, in (0, 1), depends on the time step alone
    f  = F^-1(M') (c W_v)

F^-1 undoes both transforms, so with a filter of ones F^-1(M') is the plain affinity (c W_q)(e W_k)^T. What was decided
where the paper is silent or contradicts itself:

* Its text has queries from e, its formula from c: the formula.
* No normalisation is written down; literally, four blocks overflow at initialisation. Here queries, keys and values
  come from layer norms, affinities are divided by sqrt(d) and their sum over keys by sqrt(m), and each attention and
  MLP is added to its input.
* F^-1 of a filtered M is complex. Its real part is taken, which is the same as making the filter even.
* The filter's coordinate map holds the radial frequency of the query and of the key.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunet_ext.architectures.blocks import CONVOLUTIONS, TRANSPOSED_CONVOLUTIONS, crop_to, pad_to_multiple


class NeuralBandPassFilter(nn.Module):
    """NBP-Filter: R blocks of convolution and norm on a coordinate map, scaled and shifted by the time step.

    Args:
        embedding_dim: channels of the time embedding.
        channels: of the convolutions.
        blocks: R, 6 in the paper.
        kernel_size: of the convolutions.
    """

    def __init__(self, embedding_dim: int, channels: int = 32, blocks: int = 6, kernel_size: int = 3):
        super().__init__()
        self.convolutions = nn.ModuleList(
            nn.Conv2d(2 if i == 0 else channels, channels, kernel_size, padding=kernel_size // 2) for i in range(blocks)
        )
        self.scales = nn.ModuleList(nn.Linear(embedding_dim, channels) for _ in range(blocks))
        self.shifts = nn.ModuleList(nn.Linear(embedding_dim, channels) for _ in range(blocks))
        self.out = nn.Conv2d(channels, 1, 1)

    def forward(self, embedding: Tensor, grid: Sequence[int]) -> Tensor:
        """Filter for each time step: embedding (batch, embedding_dim) -> (batch, m, m) in (0, 1), m = prod(grid)."""
        x = coordinate_map(grid, embedding.device).expand(len(embedding), -1, -1, -1)
        for convolution, scale, shift in zip(self.convolutions, self.scales, self.shifts, strict=True):
            x = F.instance_norm(convolution(x))
            x = F.silu(x * (1 + scale(embedding)[:, :, None, None]) + shift(embedding)[:, :, None, None])
        return self.out(x)[:, 0].sigmoid()


def coordinate_map(grid: Sequence[int], device: torch.device | None = None) -> Tensor:
    """Radial frequency of query (row) and key (column), from 0 to 1: (1, 2, m, m) for a map of shape `grid`."""
    axes = [torch.fft.fftfreq(n, device=device) * 2 for n in grid]
    squares = torch.stack(torch.meshgrid(*axes, indexing="ij")).square().mean(0)
    radius = squares.sqrt().flatten()
    m = len(radius)
    return torch.stack((radius[:, None].expand(m, m), radius[None].expand(m, m)))[None]


def filtered_affinity(query: Tensor, key: Tensor, grid: Sequence[int], filter_: Tensor | None) -> Tensor:
    """F^-1((F(query) F(key)^T) . filter), its real part.

    Args:
        query, key: (batch, m, d), m = prod(grid), real.
        grid: shape of the map of patches.
        filter_: (batch or 1, m, m); None for ones, where the transforms cancel and are left out.

    Returns:
        (batch, m, m), single precision.
    """
    query, key = query.float(), key.float()
    if filter_ is None:
        return query @ key.transpose(1, 2)
    axes = tuple(range(1, 1 + len(grid)))

    def transform(x: Tensor) -> Tensor:
        return torch.fft.fftn(x.unflatten(1, tuple(grid)), dim=axes).flatten(1, len(grid))

    affinity = (transform(query) @ transform(key).transpose(1, 2)) * filter_.float()
    spectrum = affinity.unflatten(2, tuple(grid)).unflatten(1, tuple(grid))
    both = tuple(range(1, 1 + 2 * len(grid)))
    spatial = torch.fft.ifftn(spectrum, dim=both).real
    return spatial.flatten(1, len(grid)).flatten(2)


class SpectralAttention(nn.Module):
    """One cross-attention in Fourier space, and the MLP that refines it.

    Args:
        dim: d.
        embedding_dim: channels of the time embedding.
        filter_channels: of the NBP-Filter; None for the ablation without it.
        filter_kernel_size: of its convolutions.
    """

    def __init__(self, dim: int, embedding_dim: int, filter_channels: int | None, filter_kernel_size: int):
        super().__init__()
        self.norm_query, self.norm_key, self.norm_value = (nn.LayerNorm(dim) for _ in range(3))
        self.to_query, self.to_key, self.to_value = (nn.Linear(dim, dim, bias=False) for _ in range(3))
        self.filter = (
            None
            if filter_channels is None
            else NeuralBandPassFilter(embedding_dim, filter_channels, kernel_size=filter_kernel_size)
        )
        self.mlp = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))

    def forward(self, query: Tensor, key: Tensor, value: Tensor, grid: Sequence[int], filter_: Tensor | None) -> Tensor:
        """Attend: query, key, value (batch, m, d), filter (batch or 1, m, m) or None -> (batch, m, d)."""
        m, d = query.shape[1:]
        q, k, v = (
            project(norm(x))
            for project, norm, x in (
                (self.to_query, self.norm_query, query),
                (self.to_key, self.norm_key, key),
                (self.to_value, self.norm_value, value),
            )
        )
        # Half precision has no Fourier transform on most devices.
        with torch.autocast(query.device.type, enabled=False):
            affinity = filtered_affinity(q, k, grid, filter_) / (d * m) ** 0.5
            attended = affinity @ v.float()
        x = query + attended.to(query.dtype)
        return x + self.mlp(x)


class SSFormer(nn.Module):
    """N blocks of two mirrored cross-attentions between the condition embedding c0 and the diffusion embedding e.

    In each block the first attends from c to e and gathers c, giving c~; the second attends from c~ to e and
    gathers e, giving the c of the next block. The last is projected back and added to e.

    Args:
        condition_channels, diffusion_channels: of c0 and e.
        embedding_dim: channels of the time embedding.
        patch_size: voxels of c0 and e per patch and axis, see `patch_size_for`.
        dim: d.
        blocks: N, 4 in the paper.
        band_pass: False for the ablation without NBP-Filter.
        filter_channels, filter_kernel_size: of the NBP-Filters.
    """

    def __init__(
        self,
        condition_channels: int,
        diffusion_channels: int,
        embedding_dim: int,
        patch_size: Sequence[int],
        *,
        dim: int = 320,
        blocks: int = 4,
        band_pass: bool = True,
        filter_channels: int = 32,
        filter_kernel_size: int = 3,
    ):
        super().__init__()
        spatial_dims, patch = len(patch_size), tuple(patch_size)
        conv = CONVOLUTIONS[spatial_dims]
        self.patch_size = patch
        self.patchify_condition = conv(condition_channels, dim, patch, patch)
        self.patchify_diffusion = conv(diffusion_channels, dim, patch, patch)
        channels = filter_channels if band_pass else None
        self.attentions = nn.ModuleList(
            SpectralAttention(dim, embedding_dim, channels, filter_kernel_size) for _ in range(2 * blocks)
        )
        self.norm = nn.LayerNorm(dim)
        self.unpatchify = TRANSPOSED_CONVOLUTIONS[spatial_dims](dim, diffusion_channels, patch, patch)
        # Begins without influence on the diffusion model.
        nn.init.zeros_(self.unpatchify.weight)
        nn.init.zeros_(self.unpatchify.bias)

    def filters(self, embedding: Tensor, grid: Sequence[int]) -> list[Tensor | None]:
        """All NBP-Filters of time steps; `grid` is that of the embeddings. They depend on nothing else."""
        cut = tuple(-(-n // p) for n, p in zip(grid, self.patch_size, strict=True))
        return [None if a.filter is None else a.filter(embedding, cut) for a in self.attentions]  # type: ignore[operator,union-attr]

    def tokens(self, condition: Tensor) -> Tensor:
        """Patches of c0: (batch, condition_channels, *grid) -> (batch, m, dim)."""
        return self.patchify_condition(pad_to_multiple(condition, self.patch_size)).flatten(2).transpose(1, 2)

    def forward(self, tokens: Tensor, diffusion: Tensor, filters: Sequence[Tensor | None]) -> Tensor:
        """Condition the diffusion embedding.

        Args:
            tokens: of `tokens`, (batch, m, dim).
            diffusion: e, (batch, diffusion_channels, *grid).
            filters: of `filters`.

        Returns:
            e with the condition added, same shape.
        """
        e = self.patchify_diffusion(pad_to_multiple(diffusion, self.patch_size))
        cut = e.shape[2:]
        e = e.flatten(2).transpose(1, 2)
        c = tokens
        for i in range(0, len(self.attentions), 2):
            refined = self.attentions[i](c, e, c, cut, filters[i])
            c = self.attentions[i + 1](refined, e, e, cut, filters[i + 1])
        update = self.unpatchify(self.norm(c).transpose(1, 2).unflatten(2, tuple(cut)))
        return diffusion + crop_to(update, diffusion.shape[2:])


def patch_size_for(grid: Sequence[int], max_patches: int) -> tuple[int, ...]:
    """Patch that cuts a map of shape `grid` into at most `max_patches`, halving the longest axis first."""
    patch, cut = [1] * len(grid), list(grid)
    while torch.Size(cut).numel() > max_patches:
        axis = cut.index(max(cut))
        patch[axis] *= 2
        cut[axis] = -(-grid[axis] // patch[axis])
    return tuple(patch)
