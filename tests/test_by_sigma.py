"""Several networks behind one sigma: routing, independence of what stands beside, files of ranges."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import ddsmoothing as dds
from ddsmoothing.errors import InputError, ModelError
from ddsmoothing.models import model_hash, save_model
from ddsmoothing.models.spec import ModelSpec

INF = math.inf


class Says(nn.Module):
    """Always the same logits."""

    def __init__(self, *logits: float) -> None:
        super().__init__()
        self.register_buffer("logits", torch.tensor(logits))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.logits.expand(len(x), -1)


class SaysSigma(nn.Module):
    """Sigma itself."""

    takes_sigma = True

    def forward(self, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        return torch.stack([sigma, -sigma], 1)


def three(seed: int = 0) -> list[tuple[float, nn.Module]]:
    """Three small convolutional networks of random weights."""
    torch.manual_seed(seed)
    spec = ModelSpec(arch="small-cnn", classes=tuple("abcd"), mean=(0.5,), std=(0.25,), input_shape=(1, 12, 12))
    return [(upper, spec.build().eval()) for upper in (0.2, 0.4, INF)]


def test_each_sigma_has_one_network_and_an_upper_end_is_its_own() -> None:
    model = dds.BySigma([(0.1, Says(0.0, 1.0)), (0.4, Says(0.0, 2.0)), (INF, SaysSigma())])
    sigma = torch.tensor([0.05, 0.1, np.nextafter(np.float32(0.1), 1), 0.4, np.nextafter(np.float32(0.4), 1), 7.0])
    assert float(np.float32(0.4)) > 0.4  # as float64 it would lie above the end
    found = model(torch.zeros(6, 3), sigma)
    assert found[:, 1].tolist()[:4] == [1.0, 1.0, 2.0, 2.0]
    assert torch.equal(found[4:, 0], sigma[4:])
    assert model.takes_sigma is True


def test_a_row_s_logits_do_not_depend_on_the_sigmas_beside_it() -> None:
    """Bit for bit what its network alone gives in a block of this shape."""
    ranges = three()
    model, generator = dds.BySigma(ranges).eval(), torch.Generator().manual_seed(1)
    x = torch.rand(37, 1, 12, 12, generator=generator)
    sigma = torch.tensor([0.1, 0.3, 0.9])[torch.randint(3, (37,), generator=generator)]
    with torch.inference_mode():
        mixed = model(x, sigma)
        for i, (_, network) in enumerate(ranges):
            mine = sigma == torch.tensor([0.1, 0.3, 0.9])[i]
            assert 5 < int(mine.sum()) < 25
            assert torch.equal(mixed[mine], network(x)[mine])
            assert torch.equal(mixed[mine], model(x, torch.full((37,), [0.1, 0.3, 0.9][i]))[mine])
        assert not torch.equal(mixed, ranges[0][1](x))


def test_only_networks_that_are_needed_run() -> None:
    ranges, ran = three(), []
    for i, (_, network) in enumerate(ranges):
        network.register_forward_pre_hook(lambda _, inputs, i=i: ran.append((i, len(inputs[0]))))
    model = dds.BySigma(ranges).eval()
    model(torch.rand(8, 1, 12, 12), torch.full((8,), 0.3))
    assert ran == [(1, 8)]
    model(torch.rand(8, 1, 12, 12), torch.tensor([0.1] * 7 + [0.9]))
    assert ran[1:] == [(0, 8), (2, 8)]


def test_ranges_and_weights_are_in_the_hash() -> None:
    def built(uppers=(0.2, 0.4, INF), seed=0, order=(0, 1, 2), **options):
        networks = [network for _, network in three(seed)]
        return dds.BySigma([(upper, networks[i]) for upper, i in zip(uppers, order, strict=True)], **options)

    models = [
        built(),
        built((0.2, 0.41, INF)),
        built(seed=1),
        built(order=(0, 2, 1)),
        built(sigma_range=(0.1, 1.0)),
    ]
    assert len({model_hash(model) for model in models}) == len(models)
    assert model_hash(built()) == model_hash(models[0]) == model_hash(copy.deepcopy(models[0]))


@pytest.mark.parametrize(
    ("ranges", "options", "message"),
    [
        ([], {}, "the upper ends of sigma are"),
        ([(0.4, Says(1.0))], {}, "the last infinite"),
        ([(0.4, Says(1.0)), (0.4, Says(1.0)), (INF, Says(1.0))], {}, "expected ascending"),
        ([(-1.0, Says(1.0)), (INF, Says(1.0))], {}, "expected ascending"),
        ([(math.nan, Says(1.0)), (INF, Says(1.0))], {}, "expected ascending"),
        ([(INF, lambda x: x)], {}, "a network is a function"),
        ([(INF, Says(1.0))], {"sigma_range": (1.0, 0.1)}, "the smaller first"),
    ],
)
def test_ranges_that_cannot_be_meant_are_refused(ranges, options, message: str) -> None:
    with pytest.raises(InputError, match=message):
        dds.BySigma(ranges, **options)


def test_networks_of_other_classes_are_refused_where_they_meet() -> None:
    model = dds.BySigma([(0.4, Says(1.0, 2.0)), (INF, Says(1.0, 2.0, 3.0))])
    with pytest.raises(ModelError, match="expected the same classes"):
        model(torch.zeros(2, 3), torch.tensor([0.1, 0.9]))


def test_bf16() -> None:
    model = dds.BySigma(three()).eval()
    cast, x = copy.deepcopy(model).bfloat16(), torch.rand(6, 1, 12, 12)
    sigma = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.401, 2.0])  # in bf16 0.401 would be 0.4004, and 0.4 be 0.4004 too
    with torch.inference_mode():
        exact, found = model(x, sigma), cast(x.bfloat16(), sigma)
    assert (found.float() - exact).abs().max() < 0.05 * (1 + exact.abs().max())


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """Three networks of this package's own files and a file of ranges that names them from its folder."""
    for i, (_, network) in enumerate(three()):
        save_model(network, network.spec, tmp_path / f"net{i}.safetensors")
    (tmp_path / "ranges.toml").write_text(
        """
sigma_range = [0.1, 1.0]
[[range]]
upper = 0.2
model = "net0.safetensors"
[[range]]
upper = 0.4
model = "net1.safetensors"
[[range]]
upper = inf
model = "net2.safetensors"
"""
    )
    return tmp_path / "ranges.toml"


def test_a_file_of_ranges(files: Path) -> None:
    model = dds.load_model(f"by-sigma:{files}")
    assert isinstance(model, dds.BySigma) and not model.training
    assert model.uppers == (0.2, 0.4, INF) and model.sigma_range == (0.1, 1.0)
    x, sigma = torch.rand(6, 1, 12, 12), torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5, 2.0])
    with torch.inference_mode():
        assert torch.equal(model(x, sigma), dds.BySigma(three()).eval()(x, sigma))
    with pytest.raises(InputError, match="leave arch out"):
        dds.load_model(f"by-sigma:{files}", arch="small-cnn")


def test_checkpoints_of_the_field_in_a_file_of_ranges(tmp_path: Path) -> None:
    """An architecture with weights, and a checkpoint with its architecture, as published ones come."""
    spec = ModelSpec(arch="cifar-resnet20", classes=tuple("0123456789"), mean=(0.0,) * 3, std=(1.0,) * 3)
    networks = [spec.build().eval() for _ in range(2)]
    for i, network in enumerate(networks):
        torch.save({"arch": "cifar_resnet20", "state_dict": network.state_dict()}, tmp_path / f"{i}.pth.tar")
    (tmp_path / "two.toml").write_text(
        '[[range]]\nupper = 0.35\nmodel = "0.pth.tar"\nnormalize = "none"\n'
        '[[range]]\nupper = inf\nmodel = "cifar-resnet20"\nweights = "1.pth.tar"\nnormalize = "none"\n'
    )
    model = dds.load_model(f"by-sigma:{tmp_path / 'two.toml'}")
    x = torch.rand(2, 3, 32, 32)
    with torch.inference_mode():
        found = model(x, torch.tensor([0.25, 0.5]))
        assert torch.equal(found, torch.stack([networks[0](x)[0], networks[1](x)[1]]))


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("[[range]\n", ModelError, "is not a TOML file"),
        ("", ModelError, "range: Field required"),
        ("range = []", ModelError, "at least 1 item"),
        ('[[range]]\nupper = 0\nmodel = "x.pt"', ModelError, "greater than 0"),
        ('[[range]]\nupper = inf\nmodel = "x.pt"\ncolour = 3', ModelError, "Extra inputs"),
        ('[[range]]\nupper = inf\nmodel = "os:system"', ModelError, "code that a file names is not run"),
        ('[[range]]\nupper = inf\nmodel = "x.pt"\narch = "os:getcwd"', ModelError, "code that a file names is not run"),
        ('[[range]]\nupper = inf\nmodel = "x.pt"', ModelError, "no model file"),
        ('[[range]]\nupper = 2\nmodel = "fashion-mnist-cnn"', InputError, "the last infinite"),
    ],
)
def test_a_file_that_says_no_ranges_is_refused(tmp_path: Path, text: str, error, message: str) -> None:
    (tmp_path / "ranges.toml").write_text(text)
    with pytest.raises(error, match=message):
        dds.load_model(f"by-sigma:{tmp_path / 'ranges.toml'}")


def test_a_file_that_is_not_there_or_no_text(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot be read"):
        dds.load_model(f"by-sigma:{tmp_path / 'nowhere.toml'}")
    (tmp_path / "ranges.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ModelError, match="is not a TOML file"):
        dds.load_model(f"by-sigma:{tmp_path / 'ranges.toml'}")
