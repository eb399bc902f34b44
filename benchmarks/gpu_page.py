"""Tables of docs/on-a-gpu.md from what ``gpu.py`` found on each card.

python benchmarks/gpu_page.py    reads results/gpu-CARD.json and writes the page's tables
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import paper_table
from ddsmoothing.tables import Table, markdown

RESULTS, PAGE = Path(__file__).parent / "results", Path(__file__).parents[1] / "docs" / "on-a-gpu.md"
START, END = "<!-- python benchmarks/gpu_page.py -->\n", "<!-- end -->\n"


def of_card(found: dict[str, Any]) -> str:
    """What one card gave, in Markdown."""
    machine = found["machine"]
    head = f"### {machine['card']}\n\ntorch {machine['torch']}, {machine['cpus']} CPU cores.\n"
    return "\n".join([head, identity(found), markdown([noise(found), rates(found), whole(found)])])


def identity(found: dict[str, Any]) -> str:
    """How many integers, floats and counts differed from the CPU's, in sentences."""
    drawn, counted = found["identity"], found["counts"]
    wrong = sum(value for name, value in drawn.items() if name.startswith("d="))
    by_block = {name: n for name, n in counted.items() if " rows" in name}
    by_device = [n for name, n in counted.items() if name.endswith("the CPU answers otherwise")]
    other = 100 * drawn["share of pixels that tensor / 255 makes other floats"]
    return (
        f"Of {drawn['integers compared']:,} integers, and of as many floats in each of three types, {wrong} differed "
        f"from the CPU's.\n`tensor / 255` makes {other:.0f} % of pixels other floats on this card; ours makes none. "
        f"The shipped network's\ncounts in {len(by_block)} runs with five block sizes, in fp32 and bf16, differed by "
        f"{sum(by_block.values())} of 80,000 samples, from the\nCPU's by {sum(by_device)} of 32,000.\n"
    )


def noise(found: dict[str, Any]) -> Table:
    """Picoseconds a coordinate: kernels alone and as called."""
    cells = {name: value for name, value in found["noise"].items() if isinstance(value, dict)}
    lines = []
    for name, value in cells.items():
        d, sigma = name.removeprefix("noise ps, d=").split(", sigma ")
        lines.append((f"{int(d):,}", sigma, f"{value['kernels']:.1f}", f"{value['as called']:.1f}"))
    cpu = found["noise"]["noise of one CPU thread, ps, sigma 0.25"]
    return Table(
        title=f"Exact noise, picoseconds a coordinate; one thread of this machine's CPU: {cpu:,}",
        columns=("numbers in an input", "sigma", "kernels alone", "as called by this process"),
        rows=tuple(lines),
        notes=("The difference is this process preparing launches, which it does while the card runs the model.",),
    )


def rates(found: dict[str, Any]) -> Table:
    """Samples a second, bare and ours."""
    lines = []
    for name, value in found["rates"].items():
        if isinstance(value, dict):
            network, form, rows = name.split(", ")
            bare = " to ".join(f"{one:,}" for one in sorted(set(value["bare"])))
            share = f"{int(1000 * value['share of bare']) / 10:.1f}"
            lines.append((network, form, rows.split()[0], bare, f"{value['ours']:,}", share))
    return Table(
        title="Samples a second: the bare forward pass before and after, ours with noise and counting",
        columns=("network", "form", "rows of a pass", "bare", "ours", "ours, % of bare"),
        rows=tuple(lines),
    )


def whole(found: dict[str, Any]) -> Table:
    """Seconds of whole certificates, ours and the official code's."""
    lines = [(name.removesuffix(", seconds"), f"{value:.3f}", "-") for name, value in _numbers(found["certificates"])]
    for name, value in found["end to end"].items():
        if isinstance(value, dict):
            title = "code of 2021, 900 iterations + n = 100,000" if name == "official" else f"ours, {name}"
            lines.append((title, f"{value['seconds an image']:.4f}", f"{int(1000 * value['ACR']) / 1000:.3f}"))
    return Table(
        title="Seconds of one certificate; then from an image to its data-dependent certificate, small CNN",
        columns=("what", "seconds", "ACR, radii capped at 2"),
        rows=tuple(lines),
    )


def _numbers(stage: dict[str, Any]) -> list[tuple[str, float]]:
    return [(name, value) for name, value in stage.items() if name.endswith("seconds")]


def text() -> str:
    """What every card gave whose results are kept."""
    return "\n".join(of_card(json.loads(file.read_text())) for file in sorted(RESULTS.glob("gpu-*.json")))


if __name__ == "__main__":
    paper_table.write_page(PAGE, text(), START, END)
