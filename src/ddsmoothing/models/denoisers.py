"""Denoisers by name: the published diffusion models, folders of diffusers, files of ours, ``package.module:function``.

It knows no smoothing and no formulas. Weights are data, matched by name; nothing in a file is run, nothing is fetched.
"""

from __future__ import annotations

import importlib
import json
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn

from ddsmoothing.counting.engine import Engine
from ddsmoothing.errors import InputError, ModelError, extra, unknown
from ddsmoothing.models.checkpoints import load_state, read_checkpoint, split
from ddsmoothing.models.denoised import Denoiser, DiffusionDenoiser, PixelDenoiser
from ddsmoothing.models.diffusion_unet import DiffusionUNet, UNetShape
from ddsmoothing.models.load import is_code, load_model
from ddsmoothing.models.schedules import alphas_bar, from_betas
from ddsmoothing.models.spec import spec_of

DIFFUSERS: Final = "diffusers"
VARIANCE_PRESERVING: Final = ("DDIMScheduler", "DDPMScheduler", "PNDMScheduler")  # what says a schedule of betas
BETAS: Final = {"linear": "linear", "scaled_linear": "scaled_linear", "squaredcos_cap_v2": "cosine"}
PREDICTIONS: Final = {"epsilon": "epsilon", "sample": "sample", "v_prediction": "v"}
WEIGHTS: Final = "diffusion_pytorch_model.safetensors"


@dataclass(frozen=True, kw_only=True)
class Layout:
    """A published network and the schedule that it was trained with.

    Attributes:
        shape: of the network.
        schedule: the schedule's name.
        steps: its timesteps.
        timestep_scale: what the network is told is t times it.
    """

    shape: UNetShape
    schedule: str
    steps: int
    timestep_scale: float = 1.0


SHIPPED: Final = {"fashion-mnist-denoiser": "fashion-mnist-denoiser.safetensors"}
LAYOUTS: Final[dict[str, Layout]] = {
    "improved-diffusion-cifar10": Layout(  # cifar10_uncond_50M_500K
        shape=UNetShape(width=128, factors=(1, 2, 2, 2), blocks=3, attention=(2, 4)),
        schedule="cosine",
        steps=4000,
        timestep_scale=1000 / 4000,
    ),
    "guided-diffusion-256": Layout(  # 256x256_diffusion_uncond
        shape=UNetShape(
            width=256,
            factors=(1, 1, 2, 2, 4, 4),
            blocks=2,
            attention=(8, 16, 32),
            head_channels=64,
            residual_updown=True,
        ),
        schedule="linear",
        steps=1000,
    ),
}


def load_denoiser(
    name: str, *, rule: str = "nearest", label: int | None = None, input_shape: tuple[int, ...] | None = None
) -> Denoiser:
    """A denoiser in eval mode, to be put before a classifier by ``DenoisedClassifier``.

    Args:
        name: ``fashion-mnist-denoiser``, which is shipped; ``improved-diffusion-cifar10:FILE`` or
            ``guided-diffusion-256:FILE``, a published checkpoint; ``diffusers:DIR``, a local folder with a UNet2DModel
            as safetensors and its scheduler's configuration; FILE, a denoiser that this package trained; or
            ``package.module:function``, which is imported and run and gives a ``Denoiser``, or any module called
            ``network(y, sigma)`` with both in [0, 1] units.
        rule: how a diffusion model's timestep is found, ``nearest`` or ``ceil``.
        label: the one class that a class-conditional diffusion model is told.
        input_shape: ``(C, H, W)``: try the denoiser on such an image, and refuse one that draws noise of its own.
    Raises: ModelError, InputError.
    """
    kind, _, place = name.partition(":")
    if kind in LAYOUTS:
        found: Denoiser = _published(kind, Path(place), rule, label)
    elif kind == DIFFUSERS:
        found = _from_folder(Path(place), rule, label)
    elif label is not None or rule != "nearest":
        raise InputError(f"rule and label are of diffusion models given by name or folder, got the denoiser {name!r}.")
    elif name in SHIPPED:
        with as_file(files("ddsmoothing") / "assets" / SHIPPED[name]) as path:
            found = _pixels(str(path))
    elif not is_code(name) and not Path(name).is_file():
        known = [*SHIPPED, *(f"{layout}:FILE" for layout in LAYOUTS), f"{DIFFUSERS}:DIR"]
        raise InputError(unknown("denoiser", name, known) + " Or a file of this package, or package.module:function.")
    else:
        found = _pixels(name)
    if input_shape is not None:
        refuse_noise(found, input_shape)
    return found.eval()


def refuse_noise(denoiser: nn.Module, input_shape: tuple[int, ...]) -> None:
    """Raise ModelError where two passes over one grey image differ, or give no image."""
    grey, sigma = torch.full((1, *input_shape), 0.5), torch.tensor([0.25])
    with Engine(denoiser).open() as (caller,):
        once, again = (caller.answer(grey.clone(), sigma) for _ in range(2))
    if not torch.equal(once, again):
        raise ModelError(
            "the denoiser draws noise of its own: two passes over one image differ (or are NaN). A certificate needs a "
            "function: take one deterministic step in place of stochastic sampling."
        )


def _published(kind: str, path: Path, rule: str, label: int | None) -> DiffusionDenoiser:
    """A published checkpoint, loaded by name."""
    layout = LAYOUTS[kind]
    network, file = DiffusionUNet(layout.shape), read_checkpoint(path)
    load_state(network, split(file.state)[1], file.name)
    if label is not None:
        raise InputError(f"{kind} is not class-conditional; leave the label out.")
    table = alphas_bar(layout.schedule, layout.steps)
    return DiffusionDenoiser(network, table, rule=rule, timestep_scale=layout.timestep_scale)


def _pixels(name: str) -> Denoiser:
    """What a file of ours or a function gives, in [0, 1] units."""
    found = load_model(name)
    if isinstance(found, Denoiser):
        return found
    spec = spec_of(found)
    if spec is not None and spec.classes:
        raise ModelError(f"{name} holds a classifier ({spec.arch}), expected a denoiser; it belongs to --classifier.")
    if not isinstance(found, nn.Module):
        raise ModelError(f"{name} gave a bare callable, expected a torch.nn.Module.")
    return PixelDenoiser(found)


class _FromDiffusers(nn.Module):
    """A UNet2DModel, called as the other networks are."""

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, x: torch.Tensor, t: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
        return self.unet(x, t, class_labels=labels, return_dict=False)[0]  # type: ignore[no-any-return]


def _from_folder(folder: Path, rule: str, label: int | None) -> DiffusionDenoiser:
    """A folder as diffusers saves a pipeline (``unet``, ``scheduler``), or with all files in one place."""
    unet = folder / "unet" if (folder / "unet").is_dir() else folder
    place = folder / "scheduler" if (folder / "scheduler").is_dir() else folder
    config, schedule = _json(unet / "config.json"), _json(place / "scheduler_config.json")
    if config.get("_class_name") != "UNet2DModel":
        raise ModelError(f"{unet} holds a {config.get('_class_name')!r}, expected a UNet2DModel.")
    table, prediction = schedule_of(schedule, place)
    conditional = config.get("class_embed_type") is not None or config.get("num_class_embeds") is not None
    if conditional != (label is not None):
        need = "class-conditional and needs the one label it is told" if conditional else "not told any label"
        raise InputError(f"the network in {unet} is {need}, got label={label}.")
    if not (unet / WEIGHTS).is_file():
        raise ModelError(
            f"there is no {WEIGHTS} in {unet}; weights in pickle form are not read, save them as safetensors."
        )
    network = _FromDiffusers(_unet(unet))
    return DiffusionDenoiser(network, table, prediction=prediction, rule=rule, label=label)


def _unet(folder: Path) -> nn.Module:
    """The network of a folder, all of whose weights were found."""
    try:
        library = importlib.import_module("diffusers")
    except ImportError as error:
        raise ModelError(f"{DIFFUSERS}:DIR needs the package diffusers: {extra('diffusers')}.") from error
    try:
        network, found = library.UNet2DModel.from_pretrained(
            str(folder), use_safetensors=True, local_files_only=True, low_cpu_mem_usage=False, output_loading_info=True
        )
    except (OSError, RuntimeError, ValueError, TypeError, KeyError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ModelError(f"the network in {folder} cannot be loaded: {reason}") from error
    wrong = [*found["missing_keys"], *found["unexpected_keys"], *found["mismatched_keys"]]
    if wrong:
        raise ModelError(f"{folder / WEIGHTS} does not fit its configuration: {len(wrong)} tensors, {wrong[0]} first.")
    return network  # type: ignore[no-any-return]


def schedule_of(config: dict[str, Any], folder: Path) -> tuple[tuple[float, ...], str]:
    """``abar_t`` and what the network predicts, from a scheduler's configuration."""
    name = str(config.get("_class_name"))
    if name not in VARIANCE_PRESERVING:
        known = ", ".join(VARIANCE_PRESERVING)
        raise ModelError(
            f"{folder} has a {name}, expected one that tells a variance-preserving schedule of betas ({known}); "
            "one step is taken, whatever it samples with."
        )
    if config.get("rescale_betas_zero_snr"):
        raise ModelError(f"the schedule in {folder} ends in pure noise (rescale_betas_zero_snr), which no sigma has.")
    betas, kind = config.get("trained_betas"), str(config.get("beta_schedule", "linear"))
    prediction = str(config.get("prediction_type", "epsilon"))
    for value, known_values, what in ((kind, BETAS, "beta_schedule"), (prediction, PREDICTIONS, "prediction_type")):
        if value not in known_values:
            raise ModelError(f"the schedule in {folder}: {unknown(what, value, known_values)}")
    try:
        if betas is not None:
            return from_betas([float(beta) for beta in betas]), PREDICTIONS[prediction]
        ends = float(config.get("beta_start", 1e-4)), float(config.get("beta_end", 0.02))
        return alphas_bar(BETAS[kind], int(config.get("num_train_timesteps", 1000)), *ends), PREDICTIONS[prediction]
    except (TypeError, ValueError) as error:
        raise ModelError(f"the schedule in {folder}: {error}") from error


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path} is not a readable configuration: {type(error).__name__}.") from error
    if not isinstance(found, dict):
        raise ModelError(f"{path} holds {type(found).__name__}, expected an object.")
    return found
