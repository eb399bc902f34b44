"""A small denoiser ``D(y, sigma)`` for images of about 28 to 64 pixels: a U-shaped network in EDM's preconditioning.

It knows no files, no training and no classifier. Images and sigma are in pixel units, pixels in [0, 1].
"""

from __future__ import annotations

from typing import Final

import torch
from torch import nn
from torch.nn import functional

from ddsmoothing.models.networks import Float32Linear

DATA_STD: Final = 0.5  # EDM's sigma_data, of images in [-1, 1]
TOLD: Final = 32  # numbers in which every block is told sigma


def preconditioning(s: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """EDM's ``c_skip, c_out, c_in`` for noise of standard deviation s on images in [-1, 1].

    References: Karras et al. 2022, arXiv:2206.00364, table 1.
    """
    total = s.square() + DATA_STD**2
    return DATA_STD**2 / total, s * DATA_STD / total.sqrt(), 1.0 / total.sqrt()


class Block(nn.Module):
    """Two 3x3 convolutions behind group normalisation, scaled and shifted between by what is told of sigma."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(8, width), nn.Conv2d(width, width, 3, padding=1)
        self.norm2, self.conv2 = nn.GroupNorm(8, width), nn.Conv2d(width, width, 3, padding=1)
        self.told = Float32Linear(TOLD, 2 * width)

    def forward(self, x: torch.Tensor, told: torch.Tensor) -> torch.Tensor:
        out = self.norm2(self.conv1(functional.silu(self.norm1(x))))
        scale, shift = self.told(told).to(out.dtype)[:, :, None, None].chunk(2, dim=1)
        return x + self.conv2(functional.silu(out * (1.0 + scale) + shift))  # type: ignore[no-any-return]


class SmallUNet(nn.Module):
    """Three resolutions, one block at each on the way down and two on the way up: 236,433 parameters for grey images.

    It is a base of denoised classifiers: called ``model(y, sigma)``, it gives an image, the mean of the clean ones that
    noise of this sigma would have made y. Not clamped to [0, 1]. At first it gives ``c_skip`` times its input.

    References: Karras et al. 2022, arXiv:2206.00364 (EDM), with the noise on [-1, 1] twice sigma.
    """

    takes_sigma = True

    def __init__(self, channels: int, widths: tuple[int, int, int] = (24, 48, 64)) -> None:
        super().__init__()
        small, middle, large = widths
        self.sigma1, self.sigma2 = Float32Linear(1, TOLD), Float32Linear(TOLD, TOLD)
        self.first = nn.Conv2d(channels, small, 3, padding=1)
        self.down1, self.shrink1 = Block(small), nn.Conv2d(small, middle, 3, 2, 1)
        self.down2, self.shrink2 = Block(middle), nn.Conv2d(middle, large, 3, 2, 1)
        self.bottom, self.widen2 = Block(large), nn.Conv2d(large, middle, 1)
        self.up2, self.widen1 = Block(middle), nn.Conv2d(middle, small, 1)
        self.up1, self.norm = Block(small), nn.GroupNorm(8, small)
        self.last = nn.Conv2d(small, channels, 3, padding=1)
        for parameter in self.last.parameters():
            nn.init.zeros_(parameter)

    def forward(self, y: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        """The denoised image ``(B, C, H, W)`` of y's type.

        Args:
            y: ``(B, C, H, W)``, noisy, in pixel units.   sigma: ``(B,)`` float32, standard deviation, the same units.
        """
        s = 2.0 * sigma.float().reshape(-1, 1, 1, 1)
        skip, out, into = preconditioning(s)
        z = 2.0 * y.float() - 1.0
        found = self._network((into * z).to(self.first.weight.dtype), s.reshape(-1, 1).log() / 4.0)
        return ((skip * z + out * found.float() + 1.0) / 2.0).to(y.dtype)

    def _network(self, x: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        told = functional.silu(self.sigma2(functional.silu(self.sigma1(noise))))
        one = self.down1(self.first(x), told)
        two = self.down2(self.shrink1(one), told)
        x = self.bottom(self.shrink2(two), told)
        x = self.up2(two + _grown(self.widen2(x), two), told)
        x = self.up1(one + _grown(self.widen1(x), one), told)
        return self.last(functional.silu(self.norm(x)))  # type: ignore[no-any-return]


def _grown(x: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Pixels repeated to the size of another map, which an odd size halved does not come back to by itself."""
    return functional.interpolate(x, size=like.shape[2:], mode="nearest")


def edm_weight(sigma: torch.Tensor) -> torch.Tensor:
    """EDM's weight of a squared error in pixel units: ``4 (s^2 + .25) / (.25 s^2) = 16 + 1/sigma^2``, s = 2 sigma.

    It makes the loss of an untrained network about the same at every sigma.

    References: Karras et al. 2022, arXiv:2206.00364, table 1; the 4 is that of [-1, 1] against [0, 1].
    """
    return 4.0 / preconditioning(2.0 * sigma)[1].square()
