"""Version, changelog and citation are in step; the check of a release sees where they are not."""

from __future__ import annotations

import importlib.util
import re
import shutil
import tomllib
from email.message import Message
from pathlib import Path
from types import ModuleType

import pytest
import yaml

import ddsmoothing as dds
from ddsmoothing.errors import extra

ROOT = Path(__file__).parents[1]
STATED = ("pyproject.toml", "CHANGELOG.md", "CITATION.cff", "README.md")


@pytest.fixture(scope="module")
def check() -> ModuleType:
    """``tools/release_check.py``, which is no package."""
    spec = importlib.util.spec_from_file_location("release_check", ROOT / "tools" / "release_check.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The four files, to be changed."""
    for name in STATED:
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def change(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_the_files_are_in_step(check: ModuleType) -> None:
    assert check.out_of_step() == []
    assert check.project()["version"] == dds.__version__


def test_a_release_is_in_step_only_with_its_date(check: ModuleType, copy: Path) -> None:
    version = check.project()["version"]
    name = f"[{version}] - 2030-01-02"
    (copy / "CHANGELOG.md").write_text(f"# Changelog\n\n## [Unreleased]\n\n## {name}\n")
    assert check.out_of_step(copy) == [f"CHANGELOG.md dates [{version}] 2030-01-02, CITATION.cff None"]
    with (copy / "CITATION.cff").open("a") as file:
        file.write("date-released: 2030-01-02\n")
    assert check.out_of_step(copy) == []


@pytest.mark.parametrize(
    ("file", "old", "new", "said"),
    [
        ("CITATION.cff", "\nversion: ", "\nversion: 9", "CITATION.cff 9"),
        ("CHANGELOG.md", "## [Unreleased]", "## [0.0.1] - soon", "expected YYYY-MM-DD"),
        ("CHANGELOG.md", "## [Unreleased]", "## [0.0.1] - 2020-01-01\n\n## [0.0.0] - 2021-01-01", "newest first"),
        ("CHANGELOG.md", "## [Unreleased]", "## [0.0.1] - 2020-01-01", "neither"),
    ],
)
def test_what_is_out_of_step_is_named(check: ModuleType, copy: Path, file: str, old: str, new: str, said: str) -> None:
    change(copy / file, old, new)
    assert any(said in line for line in check.out_of_step(copy))


def test_what_an_upload_lacks_is_named(check: ModuleType, copy: Path) -> None:
    (copy / "README.md").write_text("![here](docs/a.png) ![there](https://example.org/b.png) [text](docs/c.md)")
    (copy / "CHANGELOG.md").write_text("## [Unreleased]\n")
    (copy / "pyproject.toml").write_text('[project]\nname = "x"\nversion = "1.0"\n')
    lines = check.missing_for_an_upload(copy)
    assert len(lines) == 3
    for part, line in zip(("urls", "docs/a.png", "[1.0]"), lines, strict=True):
        assert part in line
    (copy / "README.md").write_text("![there](https://example.org/b.png)")
    (copy / "CHANGELOG.md").write_text("## [1.0] - 2030-01-02\n")
    (copy / "pyproject.toml").write_text('[project]\nversion = "1.0"\nurls = { Home = "https://example.org" }\n')
    assert check.missing_for_an_upload(copy) == []


def test_metadata(check: ModuleType) -> None:
    stated, good = check.project(), Message()
    good["Name"], good["Version"], good["Requires-Python"] = (
        stated["name"],
        stated["version"],
        stated["requires-python"],
    )
    good["License-Expression"], good["Author"] = "MIT", "The ddsmoothing authors"
    good["Classifier"] = "Operating System :: POSIX"
    assert check.wrong_metadata(good) == []
    good["Classifier"] = "Operating System :: OS Independent"
    del good["Author"]
    assert len(check.wrong_metadata(good)) == 2


@pytest.mark.skipif(not (ROOT / "Makefile").exists(), reason="a source distribution has no workflow")
def test_the_workflow_runs_what_a_developer_runs(check: ModuleType) -> None:
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())["jobs"]
    assert set(jobs) == {"linux", "macos", "windows", "docs", "release"}
    runs = {name: [step["run"] for step in job["steps"] if "run" in step] for name, job in jobs.items()}
    assert runs["linux"] == [".ci/run"]
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for name in ("macos", "docs", "release"):
        target = re.match(r"make ([\w-]+)", runs[name][0])
        assert target is not None
        assert target[1] in targets
    versions = jobs["linux"]["strategy"]["matrix"]["python"]
    assert f">={versions[0]}" == check.project()["requires-python"]
    for path in re.findall(r"tests/\w+\.py", " ".join(runs["windows"])):
        assert (ROOT / path).exists()


def test_messages_say_how_to_install_an_extra_in_a_checkout_too() -> None:
    """Until the package is published its name alone leads nowhere."""
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    used = set()
    for path in (ROOT / "src").rglob("*.py"):
        used |= set(re.findall(r"\bextra\('(\w+)'\)", path.read_text()))
    assert used <= set(known)
    assert used == set(known) - {"all"}
    for path in (ROOT / "src").rglob("*.py"):
        assert path.name == "errors.py" or "ddsmoothing[" not in path.read_text(), path
    for path in (*(ROOT / "docs").glob("*.md"), *(ROOT / "docs" / "tutorials").glob("*.*"), ROOT / "README.md"):
        for line in path.read_text().splitlines():
            for name in re.findall(r"ddsmoothing\[(\w+)\]", line):
                assert f".[{name}]" in line and "published" in line, f"{path}: {line}"
    assert extra("onnx") == "pip install 'ddsmoothing[onnx]', or '.[onnx]' in a checkout"
