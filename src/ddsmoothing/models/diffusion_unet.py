"""The U-shaped network of improved-diffusion and guided-diffusion, which load into it by name. It knows no files.

Names inside are those of the published checkpoints; which parts there are follows from a few numbers.

References: Ho et al. 2020, arXiv:2006.11239; Nichol and Dhariwal 2021, arXiv:2102.09672; Dhariwal and Nichol 2021,
    arXiv:2105.05233.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from ddsmoothing.errors import ModelError

GROUPS = 32  # of every group normalisation


@dataclass(frozen=True, kw_only=True)
class UNetShape:
    """How large such a network is.

    Attributes:
        width: channels of the first resolution.
        factors: channels of each resolution, in widths; each one halves the image.
        blocks: residual blocks of a resolution on the way down; on the way up there is one more.
        attention: by how much an image is shrunk where there is attention, such as 2 and 4.
        heads: of each attention.
        head_channels: channels of one head, in place of heads.
        scale_shift: whether blocks are told the timestep as scale and shift, or as a sum.
        residual_updown: whether images are shrunk and grown inside residual blocks, or by convolutions of their own.
        channels: of an image.
        outputs: channels of what comes out; twice as many with a learned variance.
        labels: classes of a class-conditional network; 0 for all others.
    """

    width: int
    factors: tuple[int, ...]
    blocks: int
    attention: tuple[int, ...]
    heads: int = 4
    head_channels: int | None = None
    scale_shift: bool = True
    residual_updown: bool = False
    channels: int = 3
    outputs: int = 6
    labels: int = 0


class DiffusionUNet(nn.Module):
    """From noisy images ``(B, C, H, W)`` and timesteps ``(B,)`` to what the diffusion model predicts.

    Sides are multiples of ``2^(resolutions - 1)``. Waves and normalisations are computed in float32 in any precision.
    """

    def __init__(self, shape: UNetShape) -> None:
        super().__init__()
        self.width, told = shape.width, 4 * shape.width
        self.time_embed = nn.Sequential(nn.Linear(shape.width, told), nn.SiLU(), nn.Linear(told, told))
        if shape.labels:
            self.label_emb = nn.Embedding(shape.labels, told)
        size = shape.factors[0] * shape.width
        self.input_blocks = nn.ModuleList([Parts(nn.Conv2d(shape.channels, size, 3, padding=1))])
        kept, shrunk = [size], 1
        for level, factor in enumerate(shape.factors):
            for _ in range(shape.blocks):
                parts: list[nn.Module] = [Residual(size, factor * shape.width, told, shape.scale_shift)]
                size = factor * shape.width
                self.input_blocks.append(Parts(*parts, *_attention(shape, size, shrunk)))
                kept.append(size)
            if level + 1 < len(shape.factors):
                change = (
                    Residual(size, size, told, shape.scale_shift, "down") if shape.residual_updown else Shrink(size)
                )
                self.input_blocks.append(Parts(change))
                kept.append(size)
                shrunk *= 2
        middle = (Residual(size, size, told, shape.scale_shift) for _ in range(2))
        self.middle_block = Parts(next(middle), Attention(size, _heads(shape, size)), next(middle))
        self.output_blocks = nn.ModuleList()
        for level, factor in reversed(list(enumerate(shape.factors))):
            for i in range(shape.blocks + 1):
                parts = [Residual(size + kept.pop(), factor * shape.width, told, shape.scale_shift)]
                size = factor * shape.width
                parts += _attention(shape, size, shrunk)
                if level and i == shape.blocks:
                    grown = Residual(size, size, told, shape.scale_shift, "up") if shape.residual_updown else Grow(size)
                    parts.append(grown)
                    shrunk //= 2
                self.output_blocks.append(Parts(*parts))
        self.out = nn.Sequential(Norm(GROUPS, size), nn.SiLU(), nn.Conv2d(size, shape.outputs, 3, padding=1))

    def forward(self, x: torch.Tensor, t: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
        """What is predicted ``(B, outputs, H, W)``.

        Args:
            x: ``(B, C, H, W)``.
            t: ``(B,)``, int64 or float32.
            labels: ``(B,)`` int64, of a class-conditional network.
        Raises: ModelError where labels are missing, or not wanted.
        """
        if (labels is None) == hasattr(self, "label_emb"):
            raise ModelError(f"the network is{' not' * (labels is not None)} class-conditional: check its label.")
        told = self.time_embed(waves(t, self.width).to(next(self.parameters()).dtype))
        if labels is not None:
            told = told + self.label_emb(labels)
        kept = []
        for block in self.input_blocks:
            x = block(x, told)
            kept.append(x)
        x = self.middle_block(x, told)
        for block in self.output_blocks:
            x = block(torch.cat([x, kept.pop()], dim=1), told)
        return self.out(x)  # type: ignore[no-any-return]


def waves(t: torch.Tensor, size: int) -> torch.Tensor:
    """Timesteps ``(B,)`` as cosines and sines ``(B, size)`` of periods from 2 pi to 20,000 pi, float32."""
    half = size // 2
    rates = torch.exp(torch.arange(half, device=t.device, dtype=torch.float32) * (-math.log(10_000.0) / half))
    angles = t.float()[:, None] * rates
    return functional.pad(torch.cat([angles.cos(), angles.sin()], dim=1), (0, size % 2))


class Norm(nn.GroupNorm):
    """Group normalisation, computed in float32 at least."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)
        weight, bias = self.weight.to(wide), self.bias.to(wide)
        return functional.group_norm(x.to(wide), self.num_groups, weight, bias, self.eps).to(x.dtype)


class Parts(nn.Sequential):
    """One after the other; residual blocks are told the timestep."""

    def forward(self, x: torch.Tensor, told: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        for part in self:
            x = part(x, told) if isinstance(part, Residual) else part(x)
        return x


class Residual(nn.Module):
    """Two convolutions behind normalisations, told the timestep between; change: ``down`` or ``up`` by two."""

    def __init__(self, inputs: int, outputs: int, told: int, scale_shift: bool, change: str | None = None) -> None:
        super().__init__()
        self.scale_shift, self.change = scale_shift, change
        self.in_layers = nn.Sequential(Norm(GROUPS, inputs), nn.SiLU(), nn.Conv2d(inputs, outputs, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(told, 2 * outputs if scale_shift else outputs))
        # the third layer is the dropout of training, which certification never wants
        last = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.out_layers = nn.Sequential(Norm(GROUPS, outputs), nn.SiLU(), nn.Identity(), last)
        self.skip_connection = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: torch.Tensor, told: torch.Tensor) -> torch.Tensor:
        norm, active, convolution = self.in_layers
        h, x = convolution(_resized(active(norm(x)), self.change)), _resized(x, self.change)
        told = self.emb_layers(told).to(h.dtype)[:, :, None, None]
        norm, *rest = self.out_layers
        if self.scale_shift:
            scale, shift = told.chunk(2, dim=1)
            h = norm(h) * (1.0 + scale) + shift
        else:
            h = norm(h + told)
        for layer in rest:
            h = layer(h)
        return self.skip_connection(x) + h  # type: ignore[no-any-return]


class Attention(nn.Module):
    """Every pixel looks at every other one. Channels are first cut into heads, each then into query, key and value."""

    def __init__(self, size: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm, self.qkv, self.proj_out = Norm(GROUPS, size), nn.Conv1d(size, 3 * size, 1), nn.Conv1d(size, size, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        flat = x.flatten(2)
        cut = self.qkv(self.norm(flat)).unflatten(1, (self.heads, 3, -1))  # (B, heads, 3, channels, pixels)
        query, key, value = cut.transpose(-1, -2).unbind(2)
        seen = functional.scaled_dot_product_attention(query, key, value)
        return (flat + self.proj_out(seen.transpose(-1, -2).flatten(1, 2))).reshape(x.shape)  # type: ignore[no-any-return]


class Shrink(nn.Module):
    """Half of each side, by a convolution."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.op = nn.Conv2d(size, size, 3, stride=2, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.op(x)  # type: ignore[no-any-return]


class Grow(nn.Module):
    """Twice each side: pixels repeated, then a convolution."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(size, size, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(_resized(x, "up"))  # type: ignore[no-any-return]


def _resized(x: torch.Tensor, change: str | None) -> torch.Tensor:
    if change is None:
        return x
    return functional.avg_pool2d(x, 2) if change == "down" else functional.interpolate(x, scale_factor=2.0)


def _heads(shape: UNetShape, size: int) -> int:
    return shape.heads if shape.head_channels is None else size // shape.head_channels


def _attention(shape: UNetShape, size: int, shrunk: int) -> list[nn.Module]:
    return [Attention(size, _heads(shape, size))] if shrunk in shape.attention else []
