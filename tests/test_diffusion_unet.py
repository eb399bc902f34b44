"""The U-shaped network of published diffusion models, against a plain computation from its tensors by name."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from ddsmoothing.errors import ModelError
from ddsmoothing.models.denoisers import LAYOUTS
from ddsmoothing.models.diffusion_unet import Attention, DiffusionUNet, UNetShape, waves

SHAPES = {
    "convolutions": UNetShape(width=32, factors=(1, 2), blocks=1, attention=(2,), heads=4),
    "sums": UNetShape(width=32, factors=(1, 1, 2), blocks=2, attention=(1, 4), heads=2, scale_shift=False, outputs=3),
    "residual": UNetShape(
        width=32,
        factors=(1, 2),
        blocks=2,
        attention=(2,),
        head_channels=16,
        residual_updown=True,
        channels=1,
        outputs=2,
    ),
    "labels": UNetShape(width=64, factors=(1,), blocks=1, attention=(), heads=1, labels=5),
}


def scrambled(shape: UNetShape) -> DiffusionUNet:
    """With weights that leave nothing at zero or one."""
    generator = torch.Generator().manual_seed(0)
    network = DiffusionUNet(shape)
    for parameter in network.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2
    return network.eval()


class Plain:
    """The published computation, written out from a state dict: which parts a block has is read off its names."""

    def __init__(self, state: dict[str, torch.Tensor], shape: UNetShape) -> None:
        self.state, self.shape = state, shape

    def names(self, prefix: str) -> list[str]:
        found = {key[len(prefix) :].split(".")[0] for key in self.state if key.startswith(prefix)}
        return sorted(found, key=lambda name: (not name.isdigit(), int(name) if name.isdigit() else 0, name))

    def conv(self, name: str, x: torch.Tensor, **options: int) -> torch.Tensor:
        return functional.conv2d(x, self.state[f"{name}.weight"], self.state[f"{name}.bias"], **options)

    def norm(self, name: str, x: torch.Tensor) -> torch.Tensor:
        rows, size = x.shape[:2]
        groups = x.reshape(rows, 32, -1)
        mean, var = groups.mean(2, keepdim=True), groups.var(2, unbiased=False, keepdim=True)
        flat = ((groups - mean) / (var + 1e-5).sqrt()).reshape(rows, size, -1)
        return (flat * self.state[f"{name}.weight"][:, None] + self.state[f"{name}.bias"][:, None]).reshape(x.shape)

    def linear(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return x @ self.state[f"{name}.weight"].T + self.state[f"{name}.bias"]

    def attention(self, name: str, x: torch.Tensor) -> torch.Tensor:
        rows, size = x.shape[:2]
        heads = size // self.shape.head_channels if self.shape.head_channels else self.shape.heads
        flat = x.reshape(rows, size, -1)
        qkv = self.state[f"{name}.qkv.weight"][:, :, 0] @ self.norm(f"{name}.norm", flat)
        qkv = (qkv + self.state[f"{name}.qkv.bias"][:, None]).reshape(rows * heads, 3 * size // heads, -1)
        query, key, value = qkv.split(size // heads, dim=1)
        weight = torch.softmax(query.transpose(1, 2) @ key / math.sqrt(size // heads), dim=2)
        seen = (value @ weight.transpose(1, 2)).reshape(rows, size, -1)
        seen = self.state[f"{name}.proj_out.weight"][:, :, 0] @ seen + self.state[f"{name}.proj_out.bias"][:, None]
        return (flat + seen).reshape(x.shape)

    def residual(self, name: str, x: torch.Tensor, told: torch.Tensor, change: str | None) -> torch.Tensor:
        def resized(image: torch.Tensor) -> torch.Tensor:
            if change == "up":
                return image.repeat_interleave(2, 2).repeat_interleave(2, 3)
            return functional.avg_pool2d(image, 2, 2) if change == "down" else image

        h = resized(functional.silu(self.norm(f"{name}.in_layers.0", x)))
        h, x = self.conv(f"{name}.in_layers.2", h, padding=1), resized(x)
        told = self.linear(f"{name}.emb_layers.1", functional.silu(told))[:, :, None, None]
        if self.shape.scale_shift:
            half = told.shape[1] // 2
            h = self.norm(f"{name}.out_layers.0", h) * (1 + told[:, :half]) + told[:, half:]
        else:
            h = self.norm(f"{name}.out_layers.0", h + told)
        h = self.conv(f"{name}.out_layers.3", functional.silu(h), padding=1)
        if f"{name}.skip_connection.weight" in self.state:
            x = self.conv(f"{name}.skip_connection", x)
        return x + h

    def block(self, name: str, x: torch.Tensor, told: torch.Tensor, change: str | None) -> torch.Tensor:
        parts = self.names(f"{name}.")
        for part in parts:
            inside, here = self.names(f"{name}.{part}."), f"{name}.{part}"
            if "in_layers" in inside:
                alone = change if (change == "down" and len(parts) == 1) or (change == "up" and part != "0") else None
                x = self.residual(here, x, told, alone)
            elif "qkv" in inside:
                x = self.attention(here, x)
            elif "op" in inside:
                x = self.conv(f"{here}.op", x, stride=2, padding=1)
            elif "conv" in inside:
                x = self.conv(f"{here}.conv", x.repeat_interleave(2, 2).repeat_interleave(2, 3), padding=1)
            else:
                x = self.conv(here, x, padding=1)
        return x

    def __call__(self, x: torch.Tensor, t: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
        shape, half = self.shape, self.shape.width // 2
        angles = torch.tensor([[float(step) * 10_000 ** (-i / half) for i in range(half)] for step in t])
        told = self.linear("time_embed.0", torch.cat([angles.cos(), angles.sin()], 1))
        told = self.linear("time_embed.2", functional.silu(told))
        if labels is not None:
            told = told + self.state["label_emb.weight"][labels]
        kept, changes = [], []
        for i in map(int, self.names("input_blocks.")):
            shrinks = i > 0 and i % (shape.blocks + 1) == 0
            changes.append(shrinks)
            x = self.block(f"input_blocks.{i}", x, told, "down" if shrinks and shape.residual_updown else None)
            kept.append(x)
        x = self.block("middle_block", x, told, None)
        for i in map(int, self.names("output_blocks.")):
            x = self.block(f"output_blocks.{i}", torch.cat([x, kept.pop()], 1), told, "up")
        assert sum(changes) == len(shape.factors) - 1
        return self.conv("out.2", functional.silu(self.norm("out.0", x)), padding=1)


@pytest.mark.parametrize("name", SHAPES)
def test_the_network_is_the_published_one(name: str) -> None:
    shape = SHAPES[name]
    network, generator = scrambled(shape), torch.Generator().manual_seed(1)
    x, t = torch.randn(3, shape.channels, 8, 8, generator=generator), torch.tensor([0, 37, 999])
    labels = torch.tensor([0, 4, 2]) if shape.labels else None
    with torch.no_grad():
        found = network(x, t, labels)
        wanted = Plain(network.state_dict(), shape)(x, t, labels)
        assert found.shape == (3, shape.outputs, 8, 8)
        torch.testing.assert_close(found, wanted, atol=2e-4, rtol=2e-4)
        assert (found - network(x, t + 1, labels)).abs().max() > 1e-3  # it is told the timestep
        scaled = network(x, t.float() * 0.25, labels)
        torch.testing.assert_close(
            scaled, Plain(network.state_dict(), shape)(x, t * 0.25, labels), atol=2e-4, rtol=2e-4
        )
    with pytest.raises(ModelError, match="class-conditional"):
        network(x, t, torch.tensor([0, 0, 0]) if labels is None else None)


def test_names_and_sizes_of_the_published_checkpoints() -> None:
    """Numbers of parameters as published, 52.5 and 552.8 million, and some names as in the files."""
    with torch.device("meta"):
        cifar, imagenet = (DiffusionUNet(LAYOUTS[name].shape).state_dict() for name in LAYOUTS)
    assert sum(tensor.numel() for tensor in cifar.values()) == 52_546_438
    assert sum(tensor.numel() for tensor in imagenet.values()) == 552_814_086
    assert cifar["input_blocks.4.0.op.weight"].shape == (128, 128, 3, 3)
    assert cifar["input_blocks.5.0.skip_connection.weight"].shape == (256, 128, 1, 1)
    assert cifar["output_blocks.3.1.conv.bias"].shape == (256,)
    assert cifar["middle_block.1.qkv.weight"].shape == (768, 256, 1)
    assert cifar["out.2.weight"].shape == (6, 128, 3, 3)
    assert imagenet["input_blocks.3.0.in_layers.2.weight"].shape == (256, 256, 3, 3)
    assert imagenet["input_blocks.17.1.proj_out.weight"].shape == (1024, 1024, 1)
    assert imagenet["output_blocks.2.2.emb_layers.1.weight"].shape == (2048, 1024)
    assert imagenet["time_embed.0.weight"].shape == (1024, 256)


def test_heads_are_cut_before_query_key_and_value() -> None:
    """The other order, of later checkpoints, gives something else."""
    torch.manual_seed(0)
    module, x = Attention(32, 4), torch.randn(2, 32, 3, 3)
    with torch.no_grad():
        qkv = module.qkv(module.norm(x.flatten(2)))
        query, key, value = (part.unflatten(1, (4, 8)).transpose(2, 3) for part in qkv.chunk(3, dim=1))
        seen = functional.scaled_dot_product_attention(query, key, value).transpose(2, 3).flatten(1, 2)
        other = (x.flatten(2) + module.proj_out(seen)).reshape(x.shape)
        assert (module(x) - other).abs().max() > 1e-3


def test_waves() -> None:
    found = waves(torch.tensor([0, 397]), 7)
    assert found.shape == (2, 7) and found.dtype == torch.float32
    assert found[0].tolist() == [1, 1, 1, 0, 0, 0, 0]
    assert found[1, 1] == pytest.approx(math.cos(397 * 10_000 ** (-1 / 3)), abs=1e-4)


def test_bf16_is_near_and_casts_no_timestep() -> None:
    network = scrambled(SHAPES["convolutions"])
    cast, seen = copy.deepcopy(network).bfloat16(), []
    cast.time_embed[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    x, t = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1)), torch.tensor([396, 397])
    with torch.no_grad():
        exact, found = network(x, t), cast(x.bfloat16(), t)
    assert found.dtype == torch.bfloat16
    assert (found.float() - exact).abs().max() < 0.1 * exact.abs().max()
    torch.testing.assert_close(seen[0], waves(t, 32).bfloat16(), atol=0, rtol=0)
    assert not torch.equal(seen[0][0], seen[0][1])
    assert isinstance(cast.out[0], nn.GroupNorm)
