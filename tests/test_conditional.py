"""Networks that are told sigma, and the small denoiser: what they compute, and what their files say."""

from __future__ import annotations

import copy
import math
import threading
from pathlib import Path

import pytest
import torch
from torch import nn

from ddsmoothing.counting.engine import Engine, at_sigma, takes_sigma
from ddsmoothing.errors import InputError, ModelError
from ddsmoothing.models import ARCHITECTURES, ModelSpec, load_model, model_hash, save_model, spec_of
from ddsmoothing.models.conditional import CONDITIONS, Conditional, Film
from ddsmoothing.models.networks import Float32Linear
from ddsmoothing.models.unet import SmallUNet, edm_weight, preconditioning

CLASSIFIERS = [name for name, known in ARCHITECTURES.items() if not known.denoiser and name != "resnet50"]


def spec(arch: str, condition: str | None = None, shape: tuple[int, ...] = (3, 32, 32)) -> ModelSpec:
    statistics = {"mean": (0.4,) * shape[0], "std": (0.3,) * shape[0]}
    return ModelSpec.model_validate(
        {"arch": arch, "classes": ("a", "b", "c"), "input_shape": shape, "condition": condition, **statistics}
    )


def changed(model: nn.Module, seed: int = 0, by: float = 0.1) -> nn.Module:
    """The model with all parameters moved, so that nothing added is zero any more."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data += by * torch.randn(parameter.shape, generator=generator)
    return model.eval()


# every architecture


@pytest.mark.parametrize("condition", CONDITIONS)
@pytest.mark.parametrize("arch", CLASSIFIERS)
def test_every_architecture_can_be_told_sigma_and_starts_as_what_it_was_made_of(arch: str, condition: str) -> None:
    torch.manual_seed(0)
    plain, told = spec(arch).build().eval(), spec(arch, condition).build().eval()
    state = plain.state_dict()
    for name, value in told.state_dict().items():
        if name in state:
            value[tuple(slice(0, size) for size in state[name].shape)] = state[name]
    x, sigma = torch.rand(4, 3, 32, 32), torch.tensor([0.1, 0.3, 0.6, 1.2])
    assert takes_sigma(told)
    assert not takes_sigma(plain)
    mean, std = plain[0].mean, plain[0].std  # type: ignore[index]
    scaled = (x - mean) / (0.3**2 + sigma**2).sqrt().reshape(-1, 1, 1, 1) * std + mean  # what plain then normalises
    wanted = plain(scaled)  # of deep networks that were not trained, numbers of any size
    assert torch.allclose(told(x, sigma), wanted, atol=1e-5 * max(1.0, float(wanted.detach().abs().max())))
    changed(told, by=0.01)
    parts = [told(x[i : i + 1], sigma[i : i + 1]) for i in range(4)]
    assert torch.allclose(told(x, sigma), torch.cat(parts), rtol=1e-3, atol=1e-4)
    assert not torch.allclose(told(x, sigma), told(x, sigma.flip(0)), atol=1e-3)


@pytest.mark.parametrize("condition", CONDITIONS)
@pytest.mark.parametrize("name", ["torchvision:squeezenet1_1", "timm:resnet10t", "timm:vit_tiny_patch16_224"])
def test_networks_of_libraries_can_be_told_sigma(name: str, condition: str) -> None:
    pytest.importorskip(name.partition(":")[0])
    side = 224 if "224" in name else 64
    model = changed(spec(name, condition, (3, side, side)).build())
    x, sigma = torch.rand(1, 3, side, side).expand(2, -1, -1, -1), torch.tensor([0.1, 1.0])
    logits = model(x, sigma)
    assert logits.shape == (2, 3)
    assert not torch.allclose(logits[0], logits[1], atol=1e-4)


def test_film_scales_and_shifts_by_polynomials_of_log_sigma() -> None:
    film = Film(2)
    film.weight.data = torch.tensor([[1.0, 2.0, 3.0, 4.0], [0.1, 0.2, 0.3, 0.4]])
    log = math.log(0.5)
    h = torch.full((1, 2, 1, 1), 2.0)
    expected = [2 * (1 + log + 0.1 * log**2) + 3 * log + 0.3 * log**2]
    expected += [2 * (1 + 2 * log + 0.2 * log**2) + 4 * log + 0.4 * log**2]
    found = film(h, torch.tensor([log]).reshape(1, 1, 1, 1))
    assert found.flatten().tolist() == pytest.approx(expected, rel=1e-6)


def test_the_channel_holds_log_sigma() -> None:
    model = spec("small-cnn", "channel", (1, 28, 28)).build().eval()
    seen: list[torch.Tensor] = []
    model[1].register_forward_pre_hook(lambda _, args: seen.append(args[0]))  # type: ignore[index]
    model(torch.zeros(2, 1, 28, 28), torch.tensor([0.25, 2.0]))
    assert seen[0].shape == (2, 2, 28, 28)
    assert seen[0][:, 1, 3, 5].tolist() == pytest.approx([math.log(0.25), math.log(2.0)])
    assert seen[0][:, 0, 3, 5].tolist() == pytest.approx([-0.4 / math.hypot(0.3, s) for s in (0.25, 2.0)])


@pytest.mark.parametrize("condition", CONDITIONS)
def test_copies_threads_and_half_precision(condition: str) -> None:
    model = changed(spec("small-cnn", condition, (1, 28, 28)).build())
    x, sigma = torch.rand(2, 1, 28, 28), torch.tensor([0.2, 0.9])
    expected = model(x, sigma)
    assert torch.equal(copy.deepcopy(model)(x, sigma), expected)
    half = Engine(model, precision="bf16").model(x.bfloat16(), sigma)  # type: ignore[call-arg]
    assert half.dtype == torch.float32
    assert torch.allclose(half, expected, atol=0.1)
    found: dict[int, torch.Tensor] = {}

    def work(i: int) -> None:
        for _ in range(20):
            found[i] = model(x, sigma * (1 + i))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i in range(3):
        assert torch.equal(found[i], model(x, sigma * (1 + i)))


def test_the_gradient_reaches_sigma() -> None:
    for condition in CONDITIONS:
        model = changed(spec("small-cnn", condition, (1, 28, 28)).build())
        sigma = torch.tensor([0.3, 0.7], requires_grad=True)
        (gradient,) = torch.autograd.grad(at_sigma(model, sigma)(torch.rand(4, 1, 28, 28)).sum(), sigma)
        assert bool((gradient != 0).all())


def test_a_network_that_cannot_be_told_sigma_so() -> None:
    linear = nn.Sequential(*spec("small-cnn", None, (1, 28, 28)).build()[:1], nn.Flatten(), nn.Linear(784, 3))  # type: ignore[index]
    with pytest.raises(ModelError, match="no convolution of 1 input channels"):
        Conditional(linear, "channel")
    with pytest.raises(ModelError, match="neither batch normalisations"):
        Conditional(linear, "film")
    with pytest.raises(InputError, match="Did you mean 'film'"):
        Conditional(linear, "films")


# files


@pytest.mark.parametrize("condition", CONDITIONS)
def test_a_saved_conditional_network_comes_back_with_its_range_and_hash(condition: str, tmp_path: Path) -> None:
    known = spec("cifar-resnet20", condition).model_copy(update={"sigma_range": (0.1, 1.2)})
    model = changed(known.build())
    save_model(model, known, tmp_path / "m.safetensors")
    again = load_model(str(tmp_path / "m.safetensors"))
    x, sigma = torch.rand(2, 3, 32, 32), torch.tensor([0.2, 0.9])
    assert torch.equal(again(x, sigma), model(x, sigma))
    found = spec_of(again)
    assert found is not None
    assert (found.condition, found.sigma_range) == (condition, (0.1, 1.2))
    assert model_hash(again) == model_hash(model)
    model.spec = known.model_copy(update={"sigma_range": (0.1, 1.3)})  # type: ignore[assignment]
    assert model_hash(again) != model_hash(model)


@pytest.mark.parametrize("prefix", ["1.", "1.module.", "module.1."])
def test_a_published_lenet_loads_by_name_without_normalisation(prefix: str, tmp_path: Path) -> None:
    """The layout of alinlab/smoothing-catrs: Sequential(Identity, LeNet), in float arithmetic written out here."""
    shapes = {"conv1": (20, 1, 5, 5), "conv2": (50, 20, 5, 5), "fc1": (500, 800), "fc2": (10, 500)}
    generator = torch.Generator().manual_seed(3)
    state = {f"{k}.weight": torch.randn(s, generator=generator) / 10 for k, s in shapes.items()}
    state |= {f"{k}.bias": torch.randn(s[0], generator=generator) / 10 for k, s in shapes.items()}
    file = {"epoch": 150, "arch": "lenet", "state_dict": {prefix + k: v for k, v in state.items()}, "optimizer": {}}
    torch.save(file, tmp_path / "checkpoint.pth.tar")
    model = load_model(str(tmp_path / "checkpoint.pth.tar"))
    x = torch.rand(3, 1, 28, 28)
    h = x
    for k in ("conv1", "conv2"):
        h = nn.functional.conv2d(h, state[f"{k}.weight"], state[f"{k}.bias"]).clamp_min(0)
        h = h.unfold(2, 2, 2).unfold(3, 2, 2).amax((4, 5))
    h = (h.flatten(1) @ state["fc1.weight"].T + state["fc1.bias"]).clamp_min(0)
    assert torch.allclose(model(x), h @ state["fc2.weight"].T + state["fc2.bias"], atol=1e-5)
    found = spec_of(model)
    assert found is not None
    assert (found.mean, found.std) == ((0.0,), (1.0,))


# the last layer


def test_few_logits_tie_in_half_precision() -> None:
    model = changed(spec("stride-cnn", None, (1, 28, 28)).build())
    x = torch.rand(64, 1, 28, 28)
    with torch.autocast("cpu", torch.bfloat16):
        cast = model(x)
    half = Engine(model, precision="bf16").model(x.bfloat16())
    for logits in (cast, half):
        assert logits.dtype == torch.float32
        assert len(logits.unique()) == logits.numel()
        assert len(logits.bfloat16().unique()) < logits.numel()  # what a last layer in bf16 would give
    double = Float32Linear(3, 2, dtype=torch.float64)
    assert double(torch.ones(1, 3, dtype=torch.float64)).dtype == torch.float64


# the denoiser


def denoiser_spec(**changes: object) -> ModelSpec:
    given: dict[str, object] = {"arch": "small-unet", "classes": (), "mean": (), "std": (), "input_shape": (1, 28, 28)}
    return ModelSpec.model_validate(given | changes)


def test_the_denoiser_is_small_and_its_file_below_a_megabyte(tmp_path: Path) -> None:
    known = denoiser_spec(sigma_range=(0.1, 1.5))
    model = changed(known.build())
    assert takes_sigma(model)
    assert sum(p.numel() for p in model.parameters()) == 236_433
    save_model(model, known, tmp_path / "d.safetensors")
    assert (tmp_path / "d.safetensors").stat().st_size < 1_000_000
    again = load_model(str(tmp_path / "d.safetensors"))
    y, sigma = torch.rand(2, 1, 28, 28), torch.tensor([0.2, 0.9])
    assert torch.equal(again(y, sigma), model(y, sigma))
    assert spec_of(again) == known


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (1, 27, 33)])
def test_the_denoiser_gives_images_of_its_inputs_shape_row_by_row(shape: tuple[int, ...]) -> None:
    model = changed(SmallUNet(shape[0]))
    y, sigma = torch.rand(3, *shape), torch.tensor([0.1, 0.5, 1.5])
    out = model(y, sigma)
    assert out.shape == y.shape
    for i in range(3):
        assert torch.allclose(out[i : i + 1], model(y[i : i + 1], sigma[i : i + 1]), atol=1e-5)
    assert not torch.allclose(out, model(y, sigma.flip(0)), atol=1e-3)
    half = Engine(model, precision="bf16").model(y.bfloat16(), sigma)  # type: ignore[call-arg]
    assert half.dtype == torch.bfloat16
    assert torch.allclose(half.float(), out, atol=0.1)


def test_the_preconditioning_is_that_of_the_paper_with_noise_twice_as_large_on_minus_one_to_one() -> None:
    model = SmallUNet(1)
    y, sigma = torch.rand(2, 1, 28, 28), torch.tensor([0.25, 1.0])
    for i, s in enumerate((0.5, 2.0)):
        skip, out, into = preconditioning(torch.tensor(s))
        assert float(skip) == pytest.approx(0.25 / (s * s + 0.25))
        assert float(out) == pytest.approx(0.5 * s / math.sqrt(s * s + 0.25))
        assert float(into) == pytest.approx(1 / math.sqrt(s * s + 0.25))
        shrunk = (float(skip) * (2 * y[i] - 1) + 1) / 2  # an untrained network adds nothing
        assert torch.allclose(model(y, sigma)[i], shrunk, atol=1e-6)
        given: list[torch.Tensor] = []
        hook = model.first.register_forward_pre_hook(lambda _, args, given=given: given.append(args[0]))
        model(y, sigma)
        hook.remove()
        assert torch.allclose(given[0][i], (2 * y[i] - 1) * float(into), atol=1e-6)
        assert float(edm_weight(torch.tensor(s / 2))) == pytest.approx(4 * (s * s + 0.25) / (0.25 * s * s))


@pytest.mark.parametrize(
    "change",
    [{"classes": ("a", "b")}, {"mean": (0.5,), "std": (0.5,)}, {"condition": "film"}, {"input_shape": (28, 28)}],
)
def test_a_denoisers_spec_that_contradicts_itself(change: dict[str, object]) -> None:
    with pytest.raises(ModelError):
        denoiser_spec(**change).build()
    with pytest.raises(ModelError, match="at least 2"):
        spec("small-cnn").model_copy(update={"classes": ()}).build()
