"""Progress of sampling, as commands show it."""

from __future__ import annotations

from ddsmoothing.progress import SampleProgress as SampleProgress
