"""Denoisers by name: published layouts, folders of diffusers, functions; what is refused."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import ddsmoothing as dds
from ddsmoothing.errors import InputError, ModelError
from ddsmoothing.models import ModelSpec, denoisers, save_model, spec_of
from ddsmoothing.models.denoised import DiffusionDenoiser, PixelDenoiser
from ddsmoothing.models.denoisers import LAYOUTS, Layout
from ddsmoothing.models.diffusion_unet import DiffusionUNet, UNetShape
from ddsmoothing.models.schedules import alphas_bar

SMALL = UNetShape(width=32, factors=(1, 2), blocks=1, attention=(2,), heads=4)
NEEDS_DIFFUSERS = pytest.mark.skipif(importlib.util.find_spec("diffusers") is None, reason="needs diffusers")
FUNCTIONS = """
import torch
from ddsmoothing.models import DiffusionDenoiser, PixelDenoiser

class Blur(torch.nn.Module):
    def forward(self, y, sigma):
        return torch.nn.functional.avg_pool2d(y, 3, 1, 1)

class Noisy(torch.nn.Module):
    def forward(self, y, sigma):
        return y + torch.rand_like(y)

def blur():
    return Blur()

def wrapped():
    return PixelDenoiser(Blur(), clip=True, sigma_range=(0.1, 0.5))

def noisy():
    return Noisy()

def bare():
    return lambda y, sigma: y
"""


@pytest.fixture
def functions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "my_denoisers.py").write_text(FUNCTIONS)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(__import__("sys").modules, "my_denoisers", raising=False)
    return "my_denoisers"


def network() -> DiffusionUNet:
    generator = torch.Generator().manual_seed(0)
    made = DiffusionUNet(SMALL)
    for parameter in made.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
    return made


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_published_checkpoint_is_loaded_by_name(tmp_path: Path, monkeypatch, suffix: str) -> None:
    layout = Layout(shape=SMALL, schedule="cosine", steps=400, timestep_scale=2.5)
    monkeypatch.setitem(LAYOUTS, "improved-diffusion-cifar10", layout)
    made, path = network(), tmp_path / f"ema{suffix}"
    state = dict(reversed([(key, value.clone()) for key, value in made.state_dict().items()]))
    if suffix == ".pt":
        torch.save(state, path)
    else:
        save_file(state, path)
    denoiser = dds.load_denoiser(f"improved-diffusion-cifar10:{path}", rule="ceil", input_shape=(3, 8, 8))
    wanted = DiffusionDenoiser(made, alphas_bar("cosine", 400), rule="ceil", timestep_scale=2.5)
    y, sigma = torch.rand(2, 3, 8, 8), torch.tensor([0.2, 0.7])
    assert torch.equal(denoiser(y, sigma), wanted(y, sigma))
    assert not denoiser.training and not denoiser.network.training
    with pytest.raises(InputError, match="is not class-conditional"):
        dds.load_denoiser(f"improved-diffusion-cifar10:{path}", label=3)
    del state["out.2.bias"]
    torch.save(state, tmp_path / "broken.pt")
    with pytest.raises(ModelError, match=r"does not fit: missing \['out.2.bias'\]"):
        dds.load_denoiser(f"improved-diffusion-cifar10:{tmp_path / 'broken.pt'}")
    with pytest.raises(ModelError, match="no model file"):
        dds.load_denoiser("improved-diffusion-cifar10:nowhere.pt")


def test_layouts_are_those_of_the_published_commands() -> None:
    cifar, imagenet = LAYOUTS["improved-diffusion-cifar10"], LAYOUTS["guided-diffusion-256"]
    assert (cifar.schedule, cifar.steps, cifar.timestep_scale) == ("cosine", 4000, 0.25)
    assert (imagenet.schedule, imagenet.steps, imagenet.timestep_scale) == ("linear", 1000, 1.0)
    assert cifar.shape.outputs == imagenet.shape.outputs == 6  # a learned variance


def test_functions_give_denoisers(functions: str) -> None:
    y, sigma = torch.rand(2, 1, 6, 6), torch.full((2,), 0.3)
    blur = dds.load_denoiser(f"{functions}:blur", input_shape=(1, 6, 6))
    assert isinstance(blur, PixelDenoiser) and blur.sigma_range is None and not blur.clip
    assert torch.equal(blur(y, sigma), torch.nn.functional.avg_pool2d(y, 3, 1, 1))
    assert dds.load_denoiser(f"{functions}:wrapped").sigma_range == (0.1, 0.5)


@pytest.mark.parametrize(
    ("name", "options", "error", "message"),
    [
        ("my_denoisers:noisy", {"input_shape": (1, 6, 6)}, ModelError, "draws noise of its own"),
        ("my_denoisers:bare", {}, ModelError, "bare callable"),
        ("my_denoisers:blur", {"rule": "ceil"}, InputError, "rule and label are of diffusion models"),
        ("my_denoisers:blur", {"label": 1}, InputError, "rule and label are of diffusion models"),
        ("my_denoisers:nothing", {}, ModelError, "cannot import"),
        ("improved-difusion-cifar10", {}, InputError, "Did you mean 'improved-diffusion-cifar10:FILE'"),
        ("fashion-mnist-cnn", {}, InputError, "unknown denoiser"),
        ("diffusers:nowhere", {}, ModelError, "not a readable configuration"),
    ],
)
def test_what_is_no_denoiser_is_refused(functions: str, name: str, options, error, message: str) -> None:
    with pytest.raises(error, match=message):
        dds.load_denoiser(name, **options)


def test_a_classifier_s_file_is_no_denoiser(tmp_path: Path) -> None:
    model = dds.load_model("fashion-mnist-cnn")
    save_model(model, spec_of(model), tmp_path / "net.safetensors")
    with pytest.raises(ModelError, match="holds a classifier"):
        dds.load_denoiser(str(tmp_path / "net.safetensors"))


def test_a_file_of_a_denoiser_trained_here(tmp_path: Path) -> None:
    spec = ModelSpec(arch="small-unet", classes=(), mean=(), std=(), input_shape=(1, 12, 12), sigma_range=(0.1, 1.5))
    made = spec.build().eval()
    for parameter in made.last.parameters():  # which starts at zero
        torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(0))
    save_model(made, spec, tmp_path / "denoiser.safetensors")
    denoiser = dds.load_denoiser(str(tmp_path / "denoiser.safetensors"), input_shape=(1, 12, 12))
    assert isinstance(denoiser, PixelDenoiser) and denoiser.sigma_range == (0.1, 1.5)
    y, sigma = torch.rand(2, 1, 12, 12), torch.tensor([0.2, 0.9])
    assert torch.equal(denoiser(y, sigma), made(y, sigma))
    with pytest.raises(ModelError, match="does not take inputs of shape"):
        dds.load_denoiser(str(tmp_path / "denoiser.safetensors"), input_shape=(3, 12, 12))


SCHEDULER = {"_class_name": "DDPMScheduler", "beta_schedule": "linear", "num_train_timesteps": 100}
UNET = {"_class_name": "UNet2DModel"}


def folder(path: Path, unet: object = UNET, scheduler: object = SCHEDULER, flat: bool = False) -> Path:
    """A folder of diffusers without weights, in either arrangement."""
    for name, file, config in (("unet", "config.json", unet), ("scheduler", "scheduler_config.json", scheduler)):
        place = path if flat else path / name
        place.mkdir(parents=True, exist_ok=True)
        (place / file).write_text(config if isinstance(config, str) else json.dumps(config))
    return path


@pytest.mark.parametrize(
    ("unet", "scheduler", "error", "message"),
    [
        (UNET, SCHEDULER, ModelError, "weights in pickle form are not read"),
        ({"_class_name": "UNet2DConditionModel"}, SCHEDULER, ModelError, "expected a UNet2DModel"),
        ({**UNET, "num_class_embeds": 10}, SCHEDULER, InputError, "class-conditional and needs the one label"),
        (UNET, {"_class_name": "EulerAncestralDiscreteScheduler"}, ModelError, "variance-preserving schedule"),
        (UNET, {**SCHEDULER, "rescale_betas_zero_snr": True}, ModelError, "ends in pure noise"),
        (UNET, {**SCHEDULER, "beta_schedule": "sigmoid"}, ModelError, "unknown beta_schedule 'sigmoid'"),
        (UNET, {**SCHEDULER, "prediction_type": "flow"}, ModelError, "unknown prediction_type 'flow'"),
        (UNET, {**SCHEDULER, "beta_start": "x"}, ModelError, "could not convert"),
        (UNET, {**SCHEDULER, "trained_betas": [0.1, 2]}, ModelError, "between 0 and 1"),
        (UNET, {**SCHEDULER, "trained_betas": 3}, ModelError, "not iterable"),
        (UNET, {**SCHEDULER, "num_train_timesteps": None}, ModelError, "schedule in"),
        ("[1]", SCHEDULER, ModelError, "expected an object"),
        ("{", SCHEDULER, ModelError, "not a readable configuration"),
        ("[" * 100_000, SCHEDULER, ModelError, "not a readable configuration"),
    ],
)
@pytest.mark.parametrize("flat", [False, True])
def test_a_folder_that_does_not_fit_is_refused(tmp_path: Path, flat: bool, unet, scheduler, error, message) -> None:
    with pytest.raises(error, match=message):
        dds.load_denoiser(f"diffusers:{folder(tmp_path, unet, scheduler, flat)}")


def test_the_schedule_of_a_folder(tmp_path: Path) -> None:
    read = denoisers.schedule_of
    assert read(SCHEDULER, tmp_path) == (alphas_bar("linear", 100, 1e-4, 0.02), "epsilon")
    cosine = {**SCHEDULER, "beta_schedule": "squaredcos_cap_v2", "prediction_type": "v_prediction"}
    assert read(cosine, tmp_path) == (alphas_bar("cosine", 100), "v")
    scaled = {**SCHEDULER, "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    assert read(scaled, tmp_path)[0] == alphas_bar("scaled_linear", 100, 0.00085, 0.012)
    assert read({**SCHEDULER, "trained_betas": [0.5, 0.5]}, tmp_path)[0] == (0.5, 0.25)


def test_without_diffusers_the_extra_is_named(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "diffusers", None)
    (folder(tmp_path) / "unet" / denoisers.WEIGHTS).touch()
    with pytest.raises(ModelError, match=r"pip install 'ddsmoothing\[diffusers\]'"):
        dds.load_denoiser(f"diffusers:{tmp_path}")


@NEEDS_DIFFUSERS
@pytest.mark.parametrize("labels", [None, 4])
def test_a_folder_of_diffusers(tmp_path: Path, labels: int | None) -> None:
    """Against the library's own schedule and network, image by image."""
    import diffusers

    torch.manual_seed(0)
    unet = diffusers.UNet2DModel(
        sample_size=8,
        in_channels=3,
        out_channels=3,
        layers_per_block=1,
        block_out_channels=(16, 32),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=8,
        num_class_embeds=labels,
    ).eval()
    scheduler = diffusers.DDPMScheduler(num_train_timesteps=200, beta_schedule="linear")
    diffusers.DDPMPipeline(unet, scheduler).save_pretrained(tmp_path)
    label = None if labels is None else 2
    denoiser = dds.load_denoiser(f"diffusers:{tmp_path}", label=label, input_shape=(3, 8, 8))
    abar = scheduler.alphas_cumprod.double()
    y, steps = torch.rand(3, 3, 8, 8), [20, 77, 150]
    sigma = (((1 - abar) / abar).sqrt() / 2)[steps].float()
    found = denoiser(y, sigma)
    for i, t in enumerate(steps):
        x_t = (abar[t].sqrt() * (2 * y[i : i + 1] - 1)).float()
        told = None if label is None else torch.tensor([label])
        step = scheduler.step(unet(x_t, t, class_labels=told).sample, t, x_t)
        torch.testing.assert_close(found[i : i + 1], (step.pred_original_sample + 1) / 2, atol=2e-4, rtol=2e-4)
    weights = tmp_path / "unet" / denoisers.WEIGHTS
    state = {key: value for key, value in unet.state_dict().items() if key != "conv_out.bias"}
    save_file(state, weights)
    with pytest.raises(ModelError, match="does not fit its configuration"):
        dds.load_denoiser(f"diffusers:{tmp_path}", label=label)
    weights.write_bytes(b"\x80\x04.")
    with pytest.raises(ModelError, match="cannot be loaded"):
        dds.load_denoiser(f"diffusers:{tmp_path}", label=label)
