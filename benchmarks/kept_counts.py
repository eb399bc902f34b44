"""What certification runs counted, in a small file a row: kept beside the scripts that made them.

It draws nothing and trains nothing. A file holds a run's header and, for each image, label, sigma, the pilot's answer
and all counts; reading it recomputes every radius by another path and refuses one that is too large.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv, ndtri

from ddsmoothing.errors import RunError
from ddsmoothing.runs import Run

CAP = 3.81  # the largest radius of the public rows: sigma 1 at n = 100,000
SAFE, CLOSE = 1e-12, 1e-6  # a claimed radius may lie so far above and below what SciPy makes of its counts


@dataclass(frozen=True, kw_only=True, eq=False)
class Counts:
    """What was counted on B images of K classes, and the certificates that follow.

    Attributes:
        about: the run's header.   id, label, prediction, sigma, radius: ``(B,)``; -1 abstains.
        top: ``(B,)`` the pilot's class by votes, anchor by wins.   votes, wins: ``(B, K)`` of fresh samples.
    """

    about: dict[str, Any]
    id: NDArray[np.int64]
    label: NDArray[np.int64]
    prediction: NDArray[np.int64]
    sigma: NDArray[np.float64]
    radius: NDArray[np.float64]
    top: NDArray[np.int64]
    anchor: NDArray[np.int64]
    votes: NDArray[np.int64]
    wins: NDArray[np.int64]
    samples: NDArray[np.int64]
    stops_at_radius = False

    def __len__(self) -> int:
        return len(self.id)

    @cached_property
    def correct(self) -> NDArray[np.bool_]:
        """``(B,)`` True where the answer is the right class."""
        return self.prediction == self.label

    def quantile(self, k: NDArray[np.int64], n: NDArray[np.int64]) -> NDArray[np.float64]:
        """``Phi^-1`` of the lower bound on a probability; -inf where nothing was counted."""
        lower = np.where(k > 0, betaincinv(np.maximum(k, 1), n - k + 1, self.about["alpha"]), 0.0)
        return ndtri(lower)

    @cached_property
    def recomputed(self) -> NDArray[np.float64]:
        """``(B,)`` radius from the counts, as theory has it: the least margin over all rivals of the anchor."""
        offsets = np.array(self.about["rule"].get("offsets") or np.zeros(self.votes.shape[1]))
        n = np.maximum(self.votes.sum(1), 1)[:, None]
        margin = self.sigma[:, None] * self.quantile(self.wins, n) + offsets[self.anchor][:, None] - offsets[None, :]
        margin[np.arange(len(self)), self.anchor] = np.inf
        return np.maximum(margin.min(1), 0.0)

    def one_class(self) -> Counts:
        """The same samples under a plurality vote and the bound of the published rows."""
        n, k = self.votes.sum(1), self.votes[np.arange(len(self)), self.top]
        radius = np.maximum(self.sigma * self.quantile(k, np.maximum(n, 1)), 0.0)
        return replace(self, radius=radius, prediction=np.where(radius > 0.0, self.top, -1))

    def capped(self) -> Counts:
        """Radii cut at the largest one of the public rows, so that a larger sigma cannot swell their mean."""
        return replace(self, radius=np.minimum(self.radius, CAP))


def save(run: Run, path: Path, searched: int, **more: Any) -> None:
    """Keep a finished run's evidence; searched: samples an image that choosing its sigma took; more: to say of it."""
    if run.partial:
        raise RunError(f"{run.path} is not finished, expected a whole run.")
    none = (0,) * run.header.num_classes
    columns: dict[str, Any] = {
        "id": ([row.id for row in run.rows], np.uint16),
        "label": ([row.label for row in run.rows], np.int8),
        "prediction": ([row.prediction for row in run.rows], np.int8),
        "sigma": ([row.sigma for row in run.rows], np.float64),
        "radius": ([row.radius for row in run.rows], np.float64),
        "top": ([int(np.argmax(row.pilot.votes)) for row in run.rows], np.int8),
        "anchor": ([row.fresh.anchor if row.fresh else 0 for row in run.rows], np.int8),
        "votes": ([row.fresh.votes if row.fresh else none for row in run.rows], np.uint32),
        "wins": ([row.fresh.wins if row.fresh else none for row in run.rows], np.uint32),
        "samples": ([row.samples + searched for row in run.rows], np.uint32),
    }
    about = run.header.model_dump(mode="json") | {"behaviour": None} | more
    path.parent.mkdir(parents=True, exist_ok=True)
    packed = {name: np.array(values, dtype=kind) for name, (values, kind) in columns.items()}
    np.savez_compressed(path, about=np.array(json.dumps(about)), **packed)


def load(path: Path) -> Counts:
    """Read a row's evidence; RunError where a radius is not what its counts give."""
    with np.load(path, allow_pickle=False) as file:
        columns = {name: file[name] for name in file.files if name != "about"}
        whole = {name: values.astype(np.int64) for name, values in columns.items() if values.dtype.kind in "iu"}
        counts = Counts(about=json.loads(str(file["about"])), **columns | whole)
    above = counts.radius - counts.recomputed
    if len(wrong := counts.id[(above > SAFE) | ((above < -CLOSE) & (counts.prediction >= 0))]):
        raise RunError(f"{path}: the radius of input {wrong[0]} is not what its counts give; remake the file.")
    return counts


def joined(parts: list[Counts]) -> Counts:
    """Counts of one row on several sets of images, in the order of the images."""
    order = np.argsort(np.concatenate([part.id for part in parts]))
    columns = [each.name for each in fields(Counts) if each.name != "about"]
    return replace(parts[0], **{name: np.concatenate([getattr(p, name) for p in parts])[order] for name in columns})


def by_images(rows: dict[str, Counts]) -> dict[tuple[int, ...], dict[str, Counts]]:
    """Rows in groups of the same images, the most images first: only within a group are figures to be compared."""
    groups: dict[tuple[int, ...], dict[str, Counts]] = {}
    for name, one in rows.items():
        groups.setdefault(tuple(one.id.tolist()), {})[name] = one
    return dict(sorted(groups.items(), key=lambda group: -len(group[0])))
