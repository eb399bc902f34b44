"""What the loop for a device has to count: batches, requests and models, with the counts of ``ClassCounter``."""

from __future__ import annotations

import numpy as np
import torch

from ddsmoothing.counting.contract import DUELS, WINS, Request
from ddsmoothing.counting.device import DeviceCounter
from ddsmoothing.counting.engine import Engine
from ddsmoothing.counting.local import ClassCounter
from ddsmoothing.inputs import Batch, prepare
from ddsmoothing.noise import NOISES
from ddsmoothing.streams import Stream

K = 4


class Net(torch.nn.Module):
    """A small network whose answers depend on every pixel."""

    def __init__(self, channels: int = 2, side: int = 3) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = torch.nn.Conv2d(channels, 8, 3, padding=1), torch.nn.Linear(8 * side * side, K)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.relu(self.first(x)).flatten(1))


class Told(Net):
    """Another answer at another sigma."""

    takes_sigma = True

    def forward(self, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        assert sigma.shape == (len(x),)
        assert sigma.dtype == torch.float32
        return super().forward(x) * torch.stack([torch.ones_like(sigma), sigma, 1 - sigma, sigma**2], 1)


def images(count: int, shape: tuple[int, ...], off: tuple[int, ...] = (), levels: int = 255) -> Batch:
    """Inputs on a grid, but for some off it; ids up to 2^64 - 1."""
    rng = np.random.default_rng(3)
    x = torch.from_numpy(rng.integers(0, levels + 1, (count, *shape))).to(torch.float32) / levels
    for i in off:
        x[i] += 0.3 / levels
    return prepare(x, [2**64 - 1 - 7 * i for i in range(count)], None, levels=levels)


def requests(count: int, largest: int) -> list[Request]:
    """Of every kind, at several sigmas, streams and blocks, some of them short."""
    kinds = [{}, {"tally": WINS, "anchor": 1}, {"tally": DUELS}, {"first_block": 2**32 * 5 + 2}, {"tally": WINS}]
    kinds[-1]["anchor"] = 3
    sizes = [largest, 7, largest // 3, 1, largest // 2]
    return [
        Request(row=i % count, sigma=(0.12, 0.5, 1.0, 6.0)[i % 4], stream=Stream(i % 5), n=sizes[i % 5], **kinds[i % 5])
        for i in range(11)
    ]


def check(
    batch: Batch, asked: list[Request], rows: int, model: torch.nn.Module, noise: str = "gaussian", **form: object
) -> None:
    """The counts of both, and all samples told."""
    engine, told = Engine(model, **form), []
    wanted = ClassCounter(engine, NOISES[noise], K, rows).count(batch, asked, 2**64 - 5)
    found = DeviceCounter(engine, NOISES[noise], K, rows).count(batch, asked, 2**64 - 5, told.append)
    for request, a, b in zip(asked, wanted, found, strict=True):
        np.testing.assert_array_equal(a, b, err_msg=str(request))
    assert sum(told) == sum(request.n for request in asked)
