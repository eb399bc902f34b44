"""Architectures: published sizes, shapes, where the normalisation stands, and what a name may not do."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from ddsmoothing.errors import InputError, ModelError
from ddsmoothing.models import (
    ARCHITECTURES,
    ModelSpec,
    Normalize,
    build_model,
    load_model,
    model_hash,
    save_model,
    spec_of,
)

CIFAR = (3, 32, 32)


def built(name: str, classes: int = 10, shape: tuple[int, ...] = CIFAR, **options: object) -> nn.Module:
    return build_model(name, num_classes=classes, input_shape=shape, random_weights=True, **options)  # type: ignore[arg-type]


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


# Parameters as published; those of ResNet-20 and ResNet-110 are of option A (0.27 and 1.7 million, He et al. 2016,
# table 6) plus the two 1x1 convolutions and their normalisation that Cohen's networks have instead.
SIZES = {
    "small-cnn": 35_674,
    "medium-cnn": 63_874,
    "cifar-resnet18": 11_173_962,
    "cifar-resnet18-7x7": 11_181_642 - 2 * 64,  # torchvision's, without the first batch normalisation
    "cifar-resnet20": 269_722 + 16 * 32 + 64 + 32 * 64 + 128,
    "cifar-resnet110": 1_727_962 + 16 * 32 + 64 + 32 * 64 + 128,
    "wrn-40-2": 2_243_546,
    "resnet50": 25_557_032 - 990 * 2049,  # ImageNet's 1,000 classes less 990
    # 5x5/2-32, 3x3/2-64, 3x3/2-128, each with batch normalisation, 2048-128-10
    "stride-cnn": 3 * 25 * 32 + 64 + 9 * 32 * 64 + 128 + 9 * 64 * 128 + 256 + 2049 * 128 + 1290,
    "lenet": 3 * 25 * 20 + 20 + 20 * 25 * 50 + 50 + (25 * 50 + 1) * 500 + 501 * 10,
}


def test_every_architecture_is_tested() -> None:
    assert SIZES.keys() == {name for name, known in ARCHITECTURES.items() if not known.denoiser}


@pytest.mark.parametrize("name", SIZES)
def test_size_and_shape(name: str) -> None:
    model = built(name)
    assert parameters(model) == SIZES[name]
    assert model.training
    assert model.eval()(torch.rand(2, *CIFAR)).shape == (2, 10)


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 28, 28), (1, 32, 32), (3, 32, 32)])
def test_the_small_network_takes_grey_and_colour_of_28_and_32_pixels(shape: tuple[int, ...]) -> None:
    assert built("small-cnn", 7, shape).eval()(torch.rand(2, *shape)).shape == (2, 7)


@pytest.mark.parametrize("name", ["cifar-resnet18", "cifar-resnet20", "wrn-40-2"])
def test_a_grey_input_of_28_pixels(name: str) -> None:
    assert built(name, 4, (1, 28, 28)).eval()(torch.rand(2, 1, 28, 28)).shape == (2, 4)


def test_resnet18_with_the_wide_stem_is_torchvisions_less_one_layer() -> None:
    """Same weights, and the layer that is left out made the identity: the same logits."""
    torchvision = pytest.importorskip("torchvision")
    ours = built("cifar-resnet18-7x7", normalize="none").eval()
    theirs = torchvision.models.resnet18(num_classes=10).eval()
    state = {key.removeprefix("1."): value for key, value in ours.state_dict().items() if key.startswith("1.")}
    missing, unexpected = theirs.load_state_dict(state, strict=False)
    assert {key.partition(".")[0] for key in missing} == {"bn1"}
    assert not unexpected
    theirs.bn1 = nn.Identity()
    x = torch.rand(2, *CIFAR)
    assert torch.allclose(ours(x), theirs(x), atol=1e-5)


@pytest.mark.parametrize("name", ["cifar-resnet18", "cifar-resnet20", "wrn-40-2", "small-cnn"])
def test_every_parameter_is_used(name: str) -> None:
    model = built(name)
    model(torch.rand(4, *CIFAR)).square().sum().backward()
    unused = [key for key, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum()]
    assert all(key.endswith("bias") or "bn" in key for key in unused)  # dead for this one batch at most
    assert len(unused) < 3


# normalisation


@pytest.mark.parametrize(
    ("normalize", "shape", "mean", "std"),
    [
        ("auto", CIFAR, (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
        ("auto", (3, 224, 224), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ("auto", (1, 28, 28), (0.286,), (0.353,)),
        ("auto", (2, 8, 8), (0.0, 0.0), (1.0, 1.0)),
        ("mnist", (1, 28, 28), (0.1307,), (0.3081,)),
        ("center", CIFAR, (0.4914, 0.4822, 0.4465), (1.0, 1.0, 1.0)),
        ("none", CIFAR, (0.0,) * 3, (1.0,) * 3),
    ],
)
def test_normalisation(normalize: str, shape: tuple[int, ...], mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    model = built("small-cnn", shape=shape, normalize=normalize)
    spec, first = spec_of(model), next(model.children())
    assert isinstance(first, Normalize)
    assert spec is not None
    assert (spec.mean, spec.std) == (mean, std)
    x = torch.rand(2, *shape)
    expected = (x - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    assert torch.equal(first(x), expected)
    assert (normalize != "none") or torch.equal(first(x), x)


def test_timm_networks_get_their_own_normalisation() -> None:
    pytest.importorskip("timm")
    spec = spec_of(built("timm:vit_tiny_patch16_224", shape=(3, 224, 224)))
    assert spec is not None
    assert spec.mean == spec.std == (0.5, 0.5, 0.5)


# save and load


@pytest.mark.parametrize("name", ["small-cnn", "cifar-resnet20", "torchvision:squeezenet1_1", "timm:resnet10t"])
def test_a_saved_network_comes_back_with_its_hash(name: str, tmp_path: Path) -> None:
    if ":" in name:
        pytest.importorskip(name.partition(":")[0])
    shape = (3, 64, 64)
    model = built(name, 5, shape, normalize="center").eval()
    spec = spec_of(model)
    assert spec is not None
    save_model(model, spec, tmp_path / "net.safetensors")
    again = load_model(str(tmp_path / "net.safetensors"))
    x = torch.rand(2, *shape)
    assert torch.equal(again(x), model(x))
    assert model_hash(again) == model_hash(model)
    assert spec_of(again) == spec


def test_the_spec_of_an_older_file_is_unchanged_in_the_hash() -> None:
    """What fields a spec may have since is not part of a hash where they are not used."""
    old = ModelSpec(arch="small-cnn", classes=("a", "b"), mean=(0.5,), std=(0.25,), training_sigmas=(0.1, 0.9))
    text = '{"arch":"small-cnn","classes":["a","b"],"mean":[0.5],"std":[0.25],"training_sigmas":[0.1,0.9]}'
    assert old.text() == text
    parsed = ModelSpec.model_validate_json(text)
    hashes = set()
    for spec in (old, parsed, ModelSpec.model_validate(old.model_dump())):
        torch.manual_seed(0)
        hashes.add(model_hash(spec.build()))
    assert len(hashes) == 1


@pytest.mark.parametrize(
    "change",
    [{"mean": (0.5, 0.5)}, {"std": ()}, {"input_shape": (28, 28)}, {"arch": "cifar-resnet20"}, {"arch": "x:y"}],
)
def test_a_spec_that_contradicts_itself(change: dict[str, object]) -> None:
    spec = ModelSpec(arch="small-cnn", classes=("a", "b"), mean=(0.5,), std=(0.25,))
    with pytest.raises(ModelError):
        spec.model_copy(update=change).build()


@pytest.mark.parametrize("shape", [[3, 10**6, 10**6], [0, 28, 28], [-1, 28, 28], [3, 1025, 8]])
def test_a_spec_cannot_ask_for_a_huge_network(shape: list[int]) -> None:
    with pytest.raises(ValueError, match="input_shape"):
        ModelSpec.model_validate(
            {"arch": "small-cnn", "classes": ["a", "b"], "mean": [0.5], "std": [0.5], "input_shape": shape}
        )


# names


def refused(message: str, *args: str, **options: object) -> None:
    with pytest.raises((InputError, ModelError), match=message) as error:
        load_model(*args, **options)  # type: ignore[arg-type]
    assert "\n" not in str(error.value)


def test_a_named_network_needs_weights(tmp_path: Path) -> None:
    for name in ("cifar-resnet20", "torchvision:resnet18", "timm:resnet18"):
        refused("--weights FILE, --download .*--random-weights", name)
    refused("needs weights", "cifar-resnet20", download=True)  # nothing is published for it
    refused("one of --weights and --random-weights", "cifar-resnet20", weights=tmp_path, random_weights=True)
    refused("are for named architectures", "fashion-mnist-cnn.safetensors", random_weights=True)
    refused("no model file at", "cifar-resnet20", weights=tmp_path / "none.pt")
    refused("leave --normalize out", "fashion-mnist-cnn", normalize="none")
    refused("are for files", "some.module:build", normalize="none")
    model = load_model("cifar-resnet20", random_weights=True)
    assert not model.training


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cifar-resnet21", "Did you mean 'cifar-resnet20'"),
        ("torchvision:resnet19", "Did you mean 'torchvision:resnet1"),
        ("torchvision:hf-hub:evil/model", "unknown model"),
        ("timm:resnet19", "Did you mean 'timm:resnet"),
        ("timm:hf-hub:evil/model", "unknown model"),
        ("timm:../../etc/passwd", "unknown model"),
        ("timm:local-dir:/tmp", "unknown model"),
    ],
)
def test_names_that_are_not_known(name: str, message: str) -> None:
    """Also those by which timm would fetch or read something."""
    if ":" in name:
        pytest.importorskip(name.partition(":")[0])
    refused(message, name, random_weights=True)


@pytest.mark.parametrize("package", ["torchvision", "timm"])
def test_a_package_that_is_missing(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    refused(r"pip install 'ddsmoothing\[vision\]'", f"{package}:resnet18", random_weights=True)
    if package == "torchvision":
        refused(r"needs the package torchvision", "resnet50", random_weights=True)


def test_options_that_do_not_fit() -> None:
    refused("takes images", "cifar-resnet20", random_weights=True, input_shape=(5,))
    refused("at least 2", "cifar-resnet20", random_weights=True, num_classes=1)
    refused("unknown normalisation", "cifar-resnet20", random_weights=True, normalize="cifar")
    refused("is for 1 channels", "cifar-resnet20", random_weights=True, normalize="mnist")
    refused("less than or equal to 1024", "small-cnn", random_weights=True, input_shape=(3, 5000, 5000))
    pytest.importorskip("torchvision")
    refused("3 channels", "torchvision:resnet18", random_weights=True, input_shape=(1, 28, 28))


# downloads, with what would come over the network in its place


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    """torchvision's SqueezeNet, as if published with these weights."""
    models = pytest.importorskip("torchvision.models")
    torch.manual_seed(3)
    network = models.squeezenet1_1()

    def state(self: object, **options: object) -> dict[str, torch.Tensor]:
        assert options == {"progress": True, "check_hash": True, "weights_only": True}
        return network.state_dict()  # type: ignore[no-any-return]

    monkeypatch.setattr(models.SqueezeNet1_1_Weights, "get_state_dict", state)
    return network  # type: ignore[no-any-return]


def test_downloaded_weights(published: nn.Module) -> None:
    model, x = load_model("torchvision:squeezenet1_1", download=True), torch.rand(2, 3, 64, 64)
    mean, std = (torch.tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    assert torch.allclose(model(x), published.eval()((x - mean) / std), atol=1e-6)
    assert not model.training
    refused("weights for 1000 classes, got 7", "torchvision:squeezenet1_1", download=True, num_classes=7)
    refused("weights for 0 classes", "torchvision:inception_v3", download=True)


def test_weights_that_cannot_be_downloaded(published: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: object, **options: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(sys.modules["torchvision.models"].SqueezeNet1_1_Weights, "get_state_dict", fail)
    refused("could not be downloaded: no route to host", "torchvision:squeezenet1_1", download=True)


def test_downloaded_weights_of_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    timm = pytest.importorskip("timm")
    network = timm.create_model("resnet10t")
    create = timm.create_model

    def pretend(name: str, *, pretrained: bool = False, **options: object) -> nn.Module:
        return network if pretrained else create(name, **options)  # type: ignore[no-any-return]

    monkeypatch.setattr(timm, "create_model", pretend)
    model = load_model("timm:resnet10t", download=True)
    inner = {key[2:]: value for key, value in model.state_dict().items() if key.startswith("1.")}
    assert inner.keys() == network.state_dict().keys()
    assert all(torch.equal(inner[key], value) for key, value in network.state_dict().items())
    refused("weights for 1000 classes, got 3", "timm:resnet10t", download=True, num_classes=3)


# functions


def test_a_network_from_a_function_is_saved_and_asked_for_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = "import torch\ndef build(): return torch.nn.Linear(4, 2)\ndef bare(): return lambda x: x\n"
    (tmp_path / "zoo_nets_for_tests.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    arch, path = "zoo_nets_for_tests:build", tmp_path / "net.safetensors"
    model = build_model(arch, num_classes=2, input_shape=(4,))
    spec = spec_of(model)
    assert spec is not None
    save_model(model, spec, path)
    sys.modules.pop("zoo_nets_for_tests")
    refused("code that a file names is not run; add --arch zoo_nets_for_tests:build", str(path))
    assert "zoo_nets_for_tests" not in sys.modules
    again = load_model(str(path), arch=arch)
    assert torch.equal(again(torch.ones(1, 4)), model(torch.ones(1, 4)))
    refused("holds a zoo_nets_for_tests:build, got --arch small-cnn", str(path), arch="small-cnn")
    with pytest.raises(ModelError, match="bare callable"):
        build_model("zoo_nets_for_tests:bare", num_classes=2, input_shape=(4,))
    sys.modules.pop("zoo_nets_for_tests", None)


# the command line


def test_commands_take_networks_by_name(cli: Callable[..., object], npz: Callable[..., Path], tmp_path: Path) -> None:
    import numpy as np

    x = np.random.default_rng(0).integers(0, 256, (3, 3, 32, 32), dtype=np.uint8)
    data = npz(x=x, y=np.array([0, 1, 2]))
    base = ("predict", "--data", data, "--sigma", 0.25, "--n", 20, "--block-size", 20, "--seed", 1)
    answer = cli(*base, "--model", "small-cnn", "--num-classes", 4, "--random-weights")
    assert answer.code == 0, answer.err  # type: ignore[attr-defined]
    for model in ("small-cnn", "torchvision:resnet18"):
        answer = cli(*base, "--model", model)
        assert answer.code == 2  # type: ignore[attr-defined]
        assert "--random-weights" in answer.err  # type: ignore[attr-defined]
    net = built("small-cnn", 4)
    torch.save(net.state_dict(), tmp_path / "net.pt")
    answer = cli(*base, "--model", tmp_path / "net.pt")
    assert "give --arch" in answer.err  # type: ignore[attr-defined]
    told = ("--model", tmp_path / "net.pt", "--arch", "small-cnn", "--num-classes", 4)
    assert cli(*base, *told).code == 0  # type: ignore[attr-defined]
    engine = ("--precision", "bf16", "--block-size", 32, "--n0", 10, "--n", 100, "--sigma", 0.25)
    asked = ("memory", "query", *told, "--store", tmp_path / "m.memory", "--input", data, *engine)
    answer = cli(*asked)
    assert answer.code == 0, answer.err  # type: ignore[attr-defined]
    assert cli("doctor", *told, "--data", data, "--sigma", 0.25).out  # type: ignore[attr-defined]
