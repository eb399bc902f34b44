"""``python -m ddsmoothing``: the command line, where its script is not on the path."""

from __future__ import annotations

from ddsmoothing.cli import script

if __name__ == "__main__":
    script()
