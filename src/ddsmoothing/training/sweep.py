"""After training: the paper's sweep, which moves the sigmas of the test split by one ascent step in each pass.

Labels are not used. The sigma file is written after every pass; a sweep that was stopped goes on from it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from ddsmoothing.counting.contract import Progress
from ddsmoothing.data import Dataset
from ddsmoothing.errors import InputError
from ddsmoothing.models import model_identity
from ddsmoothing.sigma.files import SigmaFile, load_sigmas, save_sigmas
from ddsmoothing.training.config import DataDependent, TrainConfig
from ddsmoothing.training.init import sigmas_from
from ddsmoothing.training.keyed import Purpose
from ddsmoothing.training.sigma_table import SigmaTable


def sweep(
    model: nn.Module,
    test: Dataset,
    config: TrainConfig,
    out: Path,
    progress: Progress | None = None,
    stop: Callable[[], bool] | None = None,
) -> bool:
    """Move the sigmas of all test samples ``config.passes`` times, into the sigma file ``out``; False if stopped.

    Raises: InputError where ``out`` was made for another model or data set.
    """
    asked = config.data_dependent or DataDependent()
    device = next(model.parameters()).device
    table, done = _started(model, test, config, out)
    ids = torch.arange(len(test))
    for number in range(done, config.passes):
        for part in torch.split(ids, config.batch):
            x = test[part.numpy()][0].to(device)
            table.move(model, x, part.to(device), asked, 1, (config.seed or 0, Purpose.SWEEP, number))
            if progress is not None:
                progress(len(part))
            if stop is not None and stop():
                return False
        save_sigmas(sigma_file(model, test, config, table.values, ids, number + 1), out)
    return True


def _started(model: nn.Module, test: Dataset, config: TrainConfig, out: Path) -> tuple[SigmaTable, int]:
    """The table where the sweep stands, and the passes that are done."""
    asked = config.data_dependent or DataDependent()
    start = torch.full((len(test),), asked.sigma0_test or config.sigma_start, device=next(model.parameters()).device)
    if not out.exists():
        start = start if config.sigma_init is None else sigmas_from(config.sigma_init, test, start)
        return SigmaTable(start, *config.sigma_bounds), 0
    before = load_sigmas(out)
    before.check(test.fingerprint(), model_identity(model), "l2")
    passes = before.options.get("passes")
    if not isinstance(passes, int) or len(before.sigma) != len(test):
        raise InputError(f"{out} is not the file of a sweep; remove it to start anew.")
    return SigmaTable(torch.tensor(before.of(list(range(len(test))))).to(start), *config.sigma_bounds), passes


def sigma_file(
    model: nn.Module, data: Dataset, config: TrainConfig, values: torch.Tensor, ids: torch.Tensor, passes: int = 0
) -> SigmaFile:
    """Sigmas of these samples, bound to the data set and the trained model."""
    asked = config.data_dependent or DataDependent()
    found = values[ids.to(values.device)].tolist()
    return SigmaFile(
        data=data.fingerprint(),
        model=model_identity(model),
        norm="l2",
        method="training",
        options={**asked.model_dump(mode="json"), "epochs": config.epochs, "passes": passes},
        seed=config.seed,
        sigma=dict(zip(ids.tolist(), found, strict=True)),
    )
