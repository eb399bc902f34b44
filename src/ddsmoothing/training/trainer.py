"""A training run: set up or continued, trained by the loop, and written out.

It knows no formula. A folder holds ``config.json``, ``metrics.jsonl``, ``checkpoint.safetensors``, and at the end
``model.safetensors`` (of a model with a frozen part: the other part's file) and for data-dependent training
``sigmas-train.json`` (and ``sigmas-test.json``).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError
from torch import nn

from ddsmoothing.counting.contract import Progress
from ddsmoothing.counting.engine import takes_sigma
from ddsmoothing.data import Dataset, load_data
from ddsmoothing.devices import keep_freed_memory, named_device
from ddsmoothing.errors import RunError
from ddsmoothing.models import load_model, save_model, spec_of
from ddsmoothing.runs.lock import LOCK, Lock
from ddsmoothing.sigma.files import save_sigmas
from ddsmoothing.streams import checked_seed
from ddsmoothing.training.baselines import Baseline, FromFile, Own, Teacher
from ddsmoothing.training.checkpoint import Checkpoint, load_checkpoint, write_whole
from ddsmoothing.training.config import TrainConfig
from ddsmoothing.training.distributed import World, joined
from ddsmoothing.training.init import classes_of, new_model, radii_of_experts, sigmas_from
from ddsmoothing.training.log import BOARD, METRICS, Log
from ddsmoothing.training.loop import BEST, CHECKPOINT, Loop
from ddsmoothing.training.parts import frozen, part_of
from ddsmoothing.training.predictions import predictions_for
from ddsmoothing.training.sweep import sigma_file, sweep

CONFIG, MODEL = "config.json", "model.safetensors"
SIGMAS, TEST_SIGMAS = "sigmas-train.json", "sigmas-test.json"
ENDS = (0.05, 0.95)  # quantiles of data-dependent sigmas that the model's file calls the ends of their range


@dataclass(frozen=True, kw_only=True, eq=False)
class Trained:
    """What a run has come to.

    Attributes:
        path: its folder.   config: its options, with the seed.   model: the network, in eval mode.
        sigma: ``(N,)`` float32, one sigma for each sample of the training split, of the same epoch as the model.
        metrics: one record an epoch.   finished: False where it was stopped; the same call continues it.
    """

    path: Path
    config: TrainConfig
    model: nn.Module
    sigma: torch.Tensor
    metrics: tuple[dict[str, Any], ...]
    finished: bool


def train(
    config: TrainConfig,
    out: str | Path,
    *,
    model: nn.Module | None = None,
    data: Dataset | None = None,
    test: Dataset | None = None,
    teacher: nn.Module | None = None,
    device: str = "auto",
    workers: int = 2,
    tensorboard: bool = False,
    progress: Progress | None = None,
    on_epoch: Callable[[dict[str, Any]], None] | None = None,
    stop: Callable[[], bool] | None = None,
) -> Trained:
    """Train a base classifier, or continue the run that ``out`` holds.

    Args:
        config: everything that the result depends on.
        out: a new or empty folder, or that of the same run.
        model, data, test, teacher: in place of those that the config names; data is the training split. The model is
            trained in place, and its weights are what a new run starts from.
        device: ``auto``, ``cpu``, ``cuda``, ..; under torchrun one device for each process.
        workers: threads that read data.
        tensorboard: write its files too.
        progress: called with samples done.
        on_epoch: called with the record of each epoch, in the process that writes.
        stop: asked after each batch; True saves the place in the epoch and returns.
    Raises: InputError and its kin before anything is written; DataError, ModelError (NaN loss), RunError.
    """
    out = Path(out)
    keep_freed_memory()
    with joined(named_device(device)) as world, ExitStack() as borrowed:
        before = load_checkpoint(out / CHECKPOINT) if (out / CHECKPOINT).exists() else None
        seed = world.share_number(_seed(config, before))
        config = config.model_copy(update={"seed": seed})
        data = load_data(config.data, split="train") if data is None else data
        if config.passes and test is None:
            test = load_data(config.data, split="test")
        told = _labelled(config, data)
        if before is not None:
            _check_same(before, config, told, out)
        model, state = model_to_train(config, seed, data, model, before)
        borrowed.enter_context(frozen(model, config.freeze))
        baseline = _baseline(config, data, teacher, world)
        loop = Loop(config, seed, model, told, world, workers, baseline)
        start(loop, before, state)
        with _Folder(out, loop, before is None, tensorboard) if world.rank == 0 else nullcontext() as folder:
            log = None if folder is None else folder.log
            reported = progress if folder is None else folder.watched(progress)
            if log is not None:
                log.on_epoch = on_epoch
            finished = loop.run(out, log, reported, stop)
            if finished:
                _take_best(loop, out)
            if finished and folder is not None:
                finished = _write_results(loop, out, test, reported, stop)
        return Trained(
            path=out,
            config=config,
            model=loop.model.eval(),
            sigma=loop.table.values.cpu(),
            metrics=() if log is None else log.records,
            finished=finished,
        )


def _seed(config: TrainConfig, before: Checkpoint | None) -> int:
    """The one asked for, else that of the run to be continued, else a new one."""
    if config.seed is None and before is not None:
        return checked_seed(before.position.config.get("seed", -1))
    return checked_seed(config.seed)


def model_to_train(
    config: TrainConfig, seed: int, data: Dataset, model: nn.Module | None, before: Checkpoint | None
) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """The model to train, and the optimizer's state to start with."""
    classes, shape = classes_of(config, data), tuple(data[:1][0].shape[1:])
    if model is not None:
        return model, {}
    source = config if before is None else config.model_copy(update={"init": None, "init_optimizer": False})
    return new_model(source, seed, classes, shape)


def _labelled(config: TrainConfig, data: Dataset) -> Dataset:
    """The data with what is to be told apart: classes, or for a selector the expert with the largest radius."""
    if config.objective != "selector":
        return data
    return replace(data, y=radii_of_experts(config, data).argmax(1).numpy(), classes=None)


def _baseline(config: TrainConfig, data: Dataset, teacher: nn.Module | None, world: World) -> Baseline | None:
    """Where smoothed predictions come from, for CAT-RS, and soft labels, for a selector."""
    if config.objective == "selector":
        return FromFile((radii_of_experts(config, data) / config.selector.temperature).softmax(1))
    if config.objective != "catrs":
        return None
    classes = classes_of(config, data)
    if config.predictions is not None:
        return FromFile(predictions_for(config.predictions, data, classes).votes)
    if config.teacher is None:
        return Own(len(data), classes, config.catrs.decay, world.device)
    found = load_model(config.teacher, input_shape=tuple(data[:1][0].shape[1:])) if teacher is None else teacher
    return Teacher(found.to(world.device), config.catrs.teacher_copies)


def start(loop: Loop, before: Checkpoint | None, state: dict[str, torch.Tensor]) -> None:
    """Bring the loop to the place where it starts or goes on. Nothing is written."""
    config = loop.config
    if before is not None:
        loop.restore(before)
        return
    if state:
        loop.load(loop.model.state_dict(), state)
    if config.sigma_init is not None:
        loop.table.values = sigmas_from(config.sigma_init, loop.data, loop.table.values)


def _check_same(before: Checkpoint, config: TrainConfig, data: Dataset, out: Path) -> None:
    """RunError naming what differs from the run in ``out``; an option that did not exist then has its default."""
    old, new = before.position.config, config.model_dump(mode="json")
    with suppress(ValidationError):  # of another version, perhaps; then it differs
        old = TrainConfig.model_validate(old).model_dump(mode="json")
    names = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
    details = [f"{key} was {old.get(key)}, now {new.get(key)}" for key in names[:3]]
    if before.position.data != data.fingerprint():
        details.append(f"its data set was {before.position.data}, now {data.fingerprint()}")
    if details:
        raise RunError(
            f"{out} holds another training run ({'; '.join(details)}). Give another --out, or the same options to "
            "continue it."
        )


class _Folder:
    """The folder of a run, held for this process while inside; made if it is not there.

    Attributes:
        log: of the epochs.
    """

    def __init__(self, out: Path, loop: Loop, new: bool, tensorboard: bool) -> None:
        try:
            out.mkdir(parents=True, exist_ok=True)
            if new and {path.name for path in out.iterdir()} - {CONFIG, METRICS, BOARD, LOCK}:
                raise RunError(f"{out} exists and holds no checkpoint; give another --out, or empty it.")
            self._lock = Lock(out)
        except OSError as error:
            raise RunError(f"cannot write to {out}: {error.strerror}. Choose another --out.") from error
        try:
            self.log = Log(out, loop.epoch, tensorboard)
            write_whole(out / CONFIG, (loop.config.model_dump_json(indent=2) + "\n").encode())
        except BaseException:
            self._lock.release()
            raise

    def __enter__(self) -> _Folder:
        return self

    def __exit__(self, kind: object, error: object, at: object) -> None:
        self.log.close()
        self._lock.release()

    def watched(self, progress: Progress | None) -> Progress:
        """The progress that also gives the lock's sign of life."""

        def report(samples: int) -> None:
            self._lock.stamp()
            if progress is not None:
                progress(samples)

        return report


def _take_best(loop: Loop, out: Path) -> None:
    """Weights and sigmas of the best epoch, where those are wanted: both from one file."""
    if loop.config.keep == "best":
        best = load_checkpoint(out / BEST)
        loop.load(best.model, {})
        loop.table.values = best.sigma.to(loop.table.values)


def _write_results(
    loop: Loop, out: Path, test: Dataset | None, progress: Progress | None, stop: Callable[[], bool] | None
) -> bool:
    """The model's file and the sigma files; False if the sweep over the test split was stopped."""
    config, model = loop.config, loop.model
    save_part(loop, model, out / MODEL)
    if config.freeze is not None:
        name = "denoiser" if config.freeze == "classifier" else "classifier"
        save_part(loop, part_of(model, name), out / f"{name}.safetensors")
    if config.data_dependent is None:
        return True
    ids = torch.cat([loop.batches.training, loop.batches.held_out]).sort().values
    save_sigmas(sigma_file(model, loop.data, config, loop.table.values, ids), out / SIGMAS)
    return test is None or sweep(model, test, config, out / TEST_SIGMAS, progress, stop)


def save_part(loop: Loop, model: nn.Module, path: Path) -> None:
    """The file of a model, or of the part of one that was trained, if it is known what it is."""
    spec = spec_of(model)
    if spec is None and isinstance(inner := getattr(model, "network", None), nn.Module):  # what a denoiser wraps
        model, spec = inner, spec_of(inner)
    if spec is None:
        return
    told = _range(loop) if takes_sigma(model) else None
    known: dict[str, Any] = {"training_sigmas": _training_sigmas(loop), "sigma_range": told}
    names = loop.data.classes
    if names is not None and len(names) == len(spec.classes):
        known["classes"] = names
    spec = spec.model_copy(update=known)
    model.spec = spec  # type: ignore[assignment]
    save_model(model, spec, path)


def _training_sigmas(loop: Loop) -> tuple[float, ...]:
    """What the model's file says of the noise: one sigma, the ends of a range, or those of data-dependent sigmas."""
    if isinstance(loop.config.sigma, tuple):
        return loop.config.sigma
    if loop.config.data_dependent is None:
        return (loop.config.sigma,)
    return tuple(float(f"{s:.4g}") for s in np.quantile(loop.table.values[loop.batches.training].cpu().numpy(), ENDS))


def _range(loop: Loop) -> tuple[float, float] | None:
    """The least and the largest sigma that the network was told; None where they are the same."""
    if isinstance(loop.config.sigma, tuple):
        return loop.config.sigma
    told = [loop.config.sigma, *loop.table.values[loop.batches.training].tolist()]
    low, high = float(f"{min(told):.4g}"), float(f"{max(told):.4g}")
    return (low, high) if low < high else None
