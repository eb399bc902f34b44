"""What the shell completes where a model, a data set or a run stands. It imports nothing heavy: a key was pressed."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import click
from click.shell_completion import CompletionItem

MODELS: Final = ("fashion-mnist-cnn", "fashion-mnist-conditional")
KINDS_OF_MODELS: Final = ("by-sigma:", "onnx:", "timm:", "torchscript:", "torchvision:")
DATA_SETS: Final = ("fashion-mnist-sample",)
KINDS_OF_DATA: Final = ("cifar10:", "fashion-mnist:", "folder:", "imagenet:", "mnist:")
LIBRARIES: Final = ("timm:", "torchvision:")  # whose networks are trained too
ARCHITECTURES: Final = (
    *("cifar-resnet110", "cifar-resnet18", "cifar-resnet18-7x7", "cifar-resnet20", "lenet", "medium-cnn", "resnet50"),
    *("small-cnn", "small-unet", "stride-cnn", "wrn-40-2"),
)
PRESETS: Final = (
    *("cifar10-catrs", "cifar10-consistency", "cifar10-denoised", "cifar10-gaussian", "cifar10-gaussian-dds"),
    *("cifar10-macer", "cifar10-macer-dds", "cifar10-smoothadv", "cifar10-smoothadv-dds", "fashion-mnist-catrs"),
    *(
        "fashion-mnist-conditional",
        "fashion-mnist-denoiser",
        "fashion-mnist-selector",
        "imagenet-catrs",
        "imagenet-denoised",
    ),
    *("imagenet-gaussian", "imagenet-gaussian-dds", "imagenet-macer", "imagenet-macer-dds", "imagenet-smoothadv"),
    "imagenet-smoothadv-dds",
)
OF_TRAINING: Final = {  # options whose values TrainConfig checks, with these values
    "condition": ("channel", "film"),
    "confidence": ("baseline", "own"),
    "freeze": ("denoiser", "classifier"),
    "keep": ("last", "best"),
    "objective": ("gaussian", "smoothadv", "macer", "consistency", "catrs", "selector", "denoiser"),
    "optimizer": ("sgd", "adamw"),
    "precision": ("fp32", "bf16", "fp16"),
    "schedule": ("step", "cosine", "constant"),
}
MARKS: Final = ("header.json", "imported.json")  # a folder with one of these is a run, or others' results


class Names(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """Text that may be one of some names, the beginning of others, or a file. Whoever reads it checks it."""

    name = "text"

    def __init__(self, *names: str, files: bool = True) -> None:
        self._names, self._files = names, files

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return click.STRING.convert(value, param, ctx)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        found = [CompletionItem(name) for name in self._names if name.startswith(incomplete)]
        return [CompletionItem(incomplete, type="file"), *found] if self._files else found


class RunFolder(click.Path):
    """A run folder: runs where there are any, else folders to look into."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The folder; RunError where it is none but holds some."""
        found = Path(str(super().convert(value, param, ctx)))
        if found.is_dir() and not any((found / mark).exists() for mark in MARKS):
            from ddsmoothing.runs.store import load_header, runs_in

            if runs_in(found):
                load_header(found)  # says so
        return found

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        folder, _, begun = incomplete.rpartition("/")
        place = Path(f"{folder}/") if folder or incomplete.startswith("/") else Path()
        try:
            inner = sorted(one for one in place.iterdir() if one.name.startswith(begun) and one.is_dir())
        except OSError:
            inner = []
        runs = [one for one in inner if any((one / mark).exists() for mark in MARKS)]
        return [CompletionItem(str(one)) for one in runs] or [CompletionItem(incomplete, type="dir")]


MODEL_NAME: Final = Names(*MODELS, *KINDS_OF_MODELS)
DATA_NAME: Final = Names(*DATA_SETS, *KINDS_OF_DATA)
ARCHITECTURE: Final = Names(*ARCHITECTURES, *LIBRARIES, files=False)
PRESET: Final = Names(*PRESETS, files=False)
CHOICES: Final = {option: Names(*values, files=False) for option, values in OF_TRAINING.items()}
RUN_FOLDER: Final = RunFolder()
