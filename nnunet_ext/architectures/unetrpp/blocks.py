"""Convolution blocks of UNETR++ for volumes in channels-last memory, where a volume is its own list of tokens.

Three things make them faster on a CPU than the same blocks written plainly, with equal results:

* no fresh memory where a buffer can be overwritten: at full resolution the page faults of a new tensor cost ten times
  the arithmetic of a norm or an activation;
* instance norm, residual and LeakyReLU as one function, whose backward needs its output alone;
* volumes that PyTorch's CPU convolution would send to its slow kernel go to the fast one (see `conv3x3x3`).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunet_ext.architectures.blocks import Convolution

SLOPE = 0.01  # of the LeakyReLU
_ROWS = 1 << 15  # tokens per step of the norm's backward: its temporaries stay in cache


def tokens(x: Tensor) -> Tensor:
    """(B, C, D, H, W) -> (B, D*H*W, C), a view if x is channels-last."""
    return x.permute(0, 2, 3, 4, 1).reshape(x.shape[0], -1, x.shape[1])


def volume(x: Tensor, grid: torch.Size | tuple[int, ...]) -> Tensor:
    """(B, D*H*W, C) -> (B, C, D, H, W), a view in channels-last memory."""
    return x.view(x.shape[0], *grid, x.shape[2]).permute(0, 4, 1, 2, 3)


def covariance(rows: Tensor) -> Tensor:
    """(B, N, C) of mean zero -> (B, C, C). By blocks: one product adds up millions of tokens with an error of 1e-3."""
    size = 4096
    whole = rows.shape[1] // size * size
    blocks = rows[:, :whole].unflatten(1, (whole // size, size))
    rest = rows[:, whole:]
    return ((blocks.transpose(2, 3) @ blocks).sum(1) + rest.transpose(1, 2) @ rest) / rows.shape[1]


def conv3x3x3(x: Tensor, weight: Tensor) -> Tensor:
    """Convolution with kernel 3, padding 1, without bias.

    PyTorch (as of 2.15) computes a single volume with C * D * H <= 20480 on the CPU, or a large one of one channel,
    with a kernel two to five times slower than oneDNN's, which a batch always gets. Such a volume is therefore cut into
    two slabs that overlap by the kernel's reach: the same sums, as a batch of two.
    """
    batch, channels, depth, height, _ = x.shape
    if depth == 2 and x.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
        # The weight gradient of oneDNN's bf16 kernel holds uninitialised memory at depth 2 (torch 2.15).
        with torch.autocast("cpu", enabled=False):
            return F.conv3d(x.float(), weight, padding=1)
    slow = x.device.type == "cpu" and x.dtype == torch.float32 and batch == 1 and channels * depth * height <= 20480
    if not slow or depth < 8 or depth % 2:
        return F.conv3d(x, weight, padding=1)
    padded = F.pad(x.permute(0, 2, 3, 4, 1)[0], (0, 0, 0, 0, 0, 0, 1, 1))  # (D + 2, H, W, C)
    slabs = torch.stack((padded[: depth // 2 + 2], padded[depth // 2 :])).permute(0, 4, 1, 2, 3)
    y = F.conv3d(slabs, weight, padding=(0, 1, 1))  # (2, C, D / 2, H, W)
    return y.permute(0, 2, 3, 4, 1).reshape(1, depth, *x.shape[3:], -1).permute(0, 4, 1, 2, 3)


def pointwise(x: Tensor, conv: nn.Conv3d) -> Tensor:
    """A 1x1x1 convolution; on channels-last memory a matrix product without copies."""
    if not x.is_contiguous(memory_format=torch.channels_last_3d):
        return conv(x)
    return volume(F.linear(tokens(x), conv.weight.flatten(1), conv.bias), x.shape[2:])


class _InstanceNormLeakyReLU(torch.autograd.Function):
    """LeakyReLU(instance norm(x) + residual), written over x, which must be of no further use to anyone."""

    @staticmethod
    def forward(ctx, x: Tensor, residual: Tensor | None, eps: float) -> Tensor:  # type: ignore[override]
        y = x.detach()
        rows = tokens(y)  # (B, N, C), a view of y
        rows -= rows.mean(1, keepdim=True)
        variance = covariance(rows).diagonal(dim1=1, dim2=2)
        scale = (variance + eps).rsqrt()[:, None]  # (B, 1, C)
        rows *= scale
        if residual is not None:
            rows += tokens(residual)
        F.leaky_relu_(rows, SLOPE)
        ctx.save_for_backward(y, residual, scale)
        return y

    @staticmethod
    def backward(ctx, grad: Tensor):  # type: ignore[override]
        y, residual, scale = ctx.saved_tensors
        rows, grid = tokens(y), y.shape[2:]
        grad = tokens(grad).contiguous()
        grad_sum = torch.empty_like(rows)  # of x^ + residual
        steps = [slice(i, i + _ROWS) for i in range(0, rows.shape[1], _ROWS)]

        def normalised(step: slice) -> Tensor:
            # LeakyReLU is undone by LeakyReLU of the inverse slope.
            x = F.leaky_relu(rows[:, step], 1 / SLOPE)
            return x if residual is None else x - tokens(residual)[:, step]

        mean, mean_product = torch.zeros_like(scale), torch.zeros_like(scale)
        for step in steps:
            part = grad_sum[:, step]
            torch.ops.aten.leaky_relu_backward.grad_input(grad[:, step], rows[:, step], SLOPE, True, grad_input=part)
            mean += part.sum(1, keepdim=True)
            mean_product += (part * normalised(step)).sum(1, keepdim=True)
        mean /= rows.shape[1]
        mean_product /= rows.shape[1]
        grad_x = torch.empty_like(grad_sum) if residual is not None else grad_sum
        for step in steps:
            part = normalised(step).mul_(-mean_product).add_(grad_sum[:, step]).sub_(mean)
            torch.mul(part, scale, out=grad_x[:, step])
        return volume(grad_x, grid), None if residual is None else volume(grad_sum, grid), None


class _Head(torch.autograd.Function):
    """A 1x1x1 convolution from tokens to scores in plain memory, whose gradient comes back as tokens: no copies."""

    @staticmethod
    def forward(ctx, rows: Tensor, weight: Tensor, bias: Tensor) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(rows, weight)
        return torch.baddbmm(bias[:, None], weight.expand(rows.shape[0], -1, -1), rows.transpose(1, 2))  # (B, K, N)

    @staticmethod
    def backward(ctx, grad: Tensor):  # type: ignore[override]
        rows, weight = ctx.saved_tensors
        return grad.transpose(1, 2) @ weight, (grad @ rows).sum(0), grad.sum((0, 2))


def logits(x: Tensor, head: nn.Conv3d) -> Tensor:
    """Class scores (B, K, D, H, W) in plain memory from features in either."""
    if x.device.type != "cpu" or torch.is_autocast_enabled("cpu"):
        return head(x).contiguous()
    return _Head.apply(tokens(x), head.weight.flatten(1), head.bias).view(x.shape[0], -1, *x.shape[2:])


def instance_norm_leaky_relu_(x: Tensor, residual: Tensor | None = None, eps: float = 1e-5) -> Tensor:
    """LeakyReLU(instance norm(x) + residual); may overwrite x, so give it a tensor nobody else reads."""
    if (
        x.device.type == "cpu"
        and x.dtype in (torch.float32, torch.float64)
        and not torch.is_autocast_enabled("cpu")  # the sums of squares are a matrix product
    ):
        if residual is not None:
            residual = residual.contiguous(memory_format=torch.channels_last_3d)
        return _InstanceNormLeakyReLU.apply(x.contiguous(memory_format=torch.channels_last_3d), residual, eps)
    y = F.instance_norm(x, eps=eps)
    return F.leaky_relu_(y if residual is None else y + residual, SLOPE)


class ResidualBlock(nn.Module):
    """conv3 - norm - LeakyReLU - conv3 - norm, plus the input (conv1 - norm where channels change), LeakyReLU.

    The norm is batch norm, or instance norm without parameters; the names are the official ones.
    """

    def __init__(self, in_channels: int, out_channels: int, norm: str):
        super().__init__()
        self.conv1 = Convolution(3, in_channels, out_channels, 3)
        self.conv2 = Convolution(3, out_channels, out_channels, 3)
        self.conv3 = Convolution(3, in_channels, out_channels, 1) if in_channels != out_channels else None
        self.norm1 = nn.BatchNorm3d(out_channels) if norm == "batch" else None
        self.norm2 = nn.BatchNorm3d(out_channels) if norm == "batch" else None

    def forward(self, x: Tensor) -> Tensor:
        y = conv3x3x3(x, self.conv1.conv.weight)
        if self.norm1 is None or self.norm2 is None:
            y = conv3x3x3(instance_norm_leaky_relu_(y), self.conv2.conv.weight)
            return instance_norm_leaky_relu_(y, self._shortcut(x))
        y = F.leaky_relu_(self.norm1(y), SLOPE)
        y = self.norm2(conv3x3x3(y, self.conv2.conv.weight))
        y += x
        return F.leaky_relu_(y, SLOPE)

    def _shortcut(self, x: Tensor) -> Tensor:
        if self.conv3 is None:
            return x
        weight = self.conv3.conv.weight.flatten(1)  # (C', C)
        if not x.is_contiguous(memory_format=torch.channels_last_3d):
            return F.instance_norm(self.conv3(x))
        # Mean and variance of W x follow from those of x, which has few channels: the norm is part of the weights.
        with torch.autocast(x.device.type, enabled=False):
            rows = tokens(x.to(weight.dtype))  # (B, N, C)
            rows = rows - rows.mean(1, keepdim=True)
            variance = ((weight @ covariance(rows)) * weight).sum(-1)  # (B, C')
            weight = weight * (variance + 1e-5).rsqrt()[..., None]  # (B, C', C)
            return volume(rows @ weight.transpose(1, 2), x.shape[2:])
