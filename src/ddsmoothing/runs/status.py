"""How far a run is, read from its folder while another process may be writing to it. It locks and changes nothing."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final, Literal

from ddsmoothing.counting.kept import read_counts
from ddsmoothing.errors import DdsmoothingError
from ddsmoothing.files import whole_lines
from ddsmoothing.plan import SAMPLERS, SearchPlan
from ddsmoothing.runs.lock import owner_of
from ddsmoothing.runs.schema import Header
from ddsmoothing.runs.store import EVENTS, finished_rows, load_header

State = Literal["finished", "running", "stopped", "died"]
FAILURES: Final = ("failed", "retry", "worker lost")


@dataclass(frozen=True, kw_only=True)
class Status:
    """How far a run is.

    Attributes:
        state: ``died`` where a writer ended without freeing the folder.   owner: who writes, or wrote when it died.
        done, inputs: finished ones, and all.   kept: samples of inputs in progress that are on disk.
        samples_per_second: of the last session, None before it kept anything.
        ends: when the last input is expected at that speed, UTC; ``at_most`` where no input of this session is finished
            yet, so that each is taken for the most samples. None unless running.
        failures: events of the last session that were failures, with their times.   last: time of the last event.
    """

    path: Path
    state: State
    owner: str | None
    done: int
    inputs: int
    kept: int
    samples_per_second: float | None
    ends: str | None
    at_most: bool
    failures: tuple[dict[str, Any], ...]
    last: str | None


def status_of(folder: str | Path) -> Status:
    """Read how far a run is.

    Raises: RunError where the folder holds no run, or one that cannot be read.
    """
    path = Path(folder)
    header = load_header(path)
    done, events = finished_rows(path), _last_session(path)
    kept = sum(line.n for line in read_counts(path, header.num_classes))
    held = owner_of(path)
    alive = held is not None and (held[0].alive(held[1]) if held[0] is not None else False)
    state: State = "running" if alive else "finished" if done >= header.subset.size else "died" if held else "stopped"
    rate, each, at_most = _speed(header, events)
    ends = None
    if state == "running" and rate and each:
        left = max(0.0, (header.subset.size - done) * each - kept) / rate
        ends = max(datetime.now(UTC), events[-1]["time"] + timedelta(seconds=left))
    return Status(
        path=path,
        state=state,
        owner=None if held is None or held[0] is None else str(held[0]),
        done=done,
        inputs=header.subset.size,
        kept=kept,
        samples_per_second=rate,
        ends=None if ends is None else _text(ends),
        at_most=at_most,
        failures=tuple(event | {"time": _text(event["time"])} for event in events if event["event"] in FAILURES),
        last=_text(events[-1]["time"]) if events else None,
    )


def _last_session(folder: Path) -> list[dict[str, Any]]:
    """The events since the last start, their times parsed; lines that are none are left out."""
    try:
        lines = whole_lines(folder / EVENTS)
    except OSError:
        return []
    events: list[dict[str, Any]] = []
    for line in lines:
        try:
            event = json.loads(line)
            event["time"] = datetime.fromisoformat(event["time"]).astimezone(UTC)
            if event["event"] == "start":
                events.clear()
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
            continue
        events.append(event)
    return events


def _speed(header: Header, events: list[dict[str, Any]]) -> tuple[float | None, float | None, bool]:
    """Samples a second and samples an input in a session, and whether the latter is but the most that it can be."""
    if not events or events[0]["event"] != "start":
        return None, None, False
    try:
        moves = [event for event in events if event["event"] in ("counts", "rows")]
        seconds = (moves[-1]["time"] - events[0]["time"]).total_seconds() if moves else 0.0
        rate = moves[-1]["samples"] / seconds if seconds > 0.0 else None
        rows = [event for event in moves if event["event"] == "rows"]
        if rows:
            return rate, rows[-1]["samples"] / sum(event["inputs"] for event in rows), False
        most = SAMPLERS[header.sampler](**header.sampler_options).largest()
        return rate, most + (SearchPlan().forwards if header.sigma_policy == "search" else 0), True
    except (DdsmoothingError, KeyError, TypeError, ArithmeticError):  # a file may say anything
        return None, None, False


def _text(time: datetime) -> str:
    return time.isoformat(timespec="seconds")
