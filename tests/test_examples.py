"""The examples run as scripts; the blocks of README.md and docs/*.md run in order, page by page, in an empty folder.

Blocks marked ``python`` share one namespace a page. Blocks marked ``sh`` are commands of ours or go to the shell. Cells
of the tutorials are such blocks too; the site runs them once more, as notebooks. Other blocks (``console``, ``text``)
are only shown.
"""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from ddsmoothing.cli import main

ROOT = Path(__file__).parents[1]
BY_HAND = {"imagenet_efficientnet"}  # needs packages with weights and photographs, and minutes
EXAMPLES = sorted(path for path in (ROOT / "examples").glob("*.py") if path.stem not in BY_HAND)
MADE = ROOT / "docs" / "project"  # by a build of the site
PAGES = [ROOT / "README.md", *(page for page in sorted((ROOT / "docs").rglob("*.md")) if page.parent != MADE)]
BLOCK = re.compile(r"^```(?:\{code-cell\} )?(\w+)\n(?:%%sh\n)?(.*?)^```$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\(([^)#\s]+)(?:#([\w-]+))?\)|\]\(#([\w-]+)\)")


def environment():
    """Ours, with this interpreter's commands first on the path and one thread, since tests run side by side."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    return {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"}


def run_sh(code):
    lines = code.replace("\\\n", " ").splitlines()
    if all(line.startswith("ddsmoothing ") for line in lines) and not set("|&;<>$") & set(code):
        for line in lines:
            assert main(shlex.split(line)[1:]) == 0, line
    else:
        subprocess.run(["sh", "-e", "-c", code], check=True, env=environment())


def anchors(page):
    headings = re.findall(r"^#+ (.+)$", BLOCK.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_there_is_something_to_run():
    assert len(EXAMPLES) >= 3
    assert sum(bool(BLOCK.search(page.read_text())) for page in PAGES) >= 5


@pytest.mark.parametrize("script", EXAMPLES, ids=lambda path: path.stem)
def test_example_runs(script, tmp_path):
    done = subprocess.run(
        [sys.executable, "-W", "error", str(script)], cwd=tmp_path, env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_blocks_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, ""])  # as the command has it
    namespace = {"__name__": "__main__"}
    text = page.read_text()
    for block in BLOCK.finditer(text):
        language, code = block.groups()
        if language == "python":
            padding = "\n" * text.count("\n", 0, block.start(2))  # so that a traceback names the page's line
            exec(compile(padding + code, str(page), "exec"), namespace)
        elif language == "sh":
            run_sh(code)


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md"], ids=lambda path: path.stem)
def test_links_lead_somewhere(page):
    for target, anchor, own in LINK.findall(page.read_text()):
        if target.startswith(("http:", "https:")):
            continue
        place = page.parent / target if target else page
        assert place.exists(), target
        if anchor or own:
            assert (anchor or own) in anchors(place), f"{target}#{anchor or own}"
