"""Several training processes as one: started by torchrun, or a single one. It knows no objective and no files."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ddsmoothing.counting.engine import takes_sigma


@dataclass(frozen=True, kw_only=True)
class World:
    """This process among all: its rank, how many there are, and its device."""

    rank: int
    size: int
    device: torch.device

    def total(self, values: torch.Tensor) -> torch.Tensor:
        """The sum of this tensor over all processes."""
        if self.size > 1:
            values = values.clone()
            dist.all_reduce(values)
        return values

    def any(self, flag: bool) -> bool:
        """Is it true in any process?"""
        return flag if self.size == 1 else bool(self.total(torch.tensor(int(flag), device=self.device)))

    def wrap(self, model: nn.Module) -> nn.Module:
        """The module whose backward pass averages gradients over all processes."""
        if self.size == 1:
            return model
        places = [self.device] if self.device.type == "cuda" else None
        wrapped = DistributedDataParallel(model, device_ids=places)
        wrapped.takes_sigma = takes_sigma(model)  # type: ignore[assignment]
        return wrapped

    def share_buffers(self, model: nn.Module) -> None:
        """Give all processes the first one's buffers, such as BatchNorm statistics."""
        if self.size > 1:
            for buffer in model.buffers():
                dist.broadcast(buffer, 0)

    def share_number(self, number: int) -> int:
        """The first process's number, in all of them."""
        if self.size == 1:
            return number
        shared = torch.tensor(number, device=self.device)
        dist.broadcast(shared, 0)
        return int(shared)


@contextmanager
def joined(device: torch.device) -> Iterator[World]:
    """The processes that torchrun started, or this one alone."""
    size, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    if size == 1:
        yield World(rank=0, size=1, device=device)
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield World(rank=rank, size=size, device=device)
    finally:
        dist.destroy_process_group()
