"""Build what would be uploaded, install it where nothing of this checkout is seen, and try it. Uploads nothing.

    python tools/release_check.py             offline: dependencies are those of this interpreter
    python tools/release_check.py --fresh     dependencies are installed too, as a user would
    python tools/release_check.py --upload    what is still missing for an upload is an error
    python tools/release_check.py --keep DIR  what was built is left there, if all is well

``make release-check RELEASE="--fresh --keep dist"`` passes options on.
"""

from __future__ import annotations

import argparse
import email
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import zipfile
from email.message import Message
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[1]
HEADING: Final = re.compile(r"^## \[([^\]]+)\](?: - (\S+))?$", re.MULTILINE)
NEEDED: Final = ("py.typed", "assets/fashion-mnist-cnn.safetensors", "report/certificate.schema.json", "__main__.py")


def project(root: Path = ROOT) -> dict[str, object]:
    """``[project]`` of pyproject.toml."""
    found: dict[str, object] = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    return found


def headings(root: Path = ROOT) -> list[tuple[str, str]]:
    """Versions of the changelog with their dates, newest first; the date of what is not released is empty."""
    return HEADING.findall((root / "CHANGELOG.md").read_text())


def out_of_step(root: Path = ROOT) -> list[str]:
    """What pyproject.toml, CHANGELOG.md and CITATION.cff say differently, one line each."""
    version, citation, found = project(root)["version"], (root / "CITATION.cff").read_text(), []
    cited = dict(re.findall(r"^(version|date-released): \"?([^\"\n]+)\"?$", citation, re.MULTILINE))
    if cited.get("version") != version:
        found.append(f"pyproject.toml says version {version}, CITATION.cff {cited.get('version')}")
    released = [(name, date) for name, date in headings(root) if name != "Unreleased"]
    found += [
        f"CHANGELOG.md: [{name}] has the date {date!r}, expected YYYY-MM-DD"
        for name, date in released
        if not re.fullmatch(r"\d{4}-\d\d-\d\d", date)
    ]
    if [date for _, date in released] != sorted((date for _, date in released), reverse=True):
        found.append("CHANGELOG.md: versions are not in the order of their dates, newest first")
    dates = dict(released)
    if version in dates and cited.get("date-released") != dates[version]:
        found.append(f"CHANGELOG.md dates [{version}] {dates[version]}, CITATION.cff {cited.get('date-released')}")
    if version not in dates and ("Unreleased", "") not in headings(root):
        found.append(f"CHANGELOG.md has neither [{version}] nor [Unreleased]")
    return found


def missing_for_an_upload(root: Path = ROOT) -> list[str]:
    """What a version on a package index must have and a checkout may do without."""
    found, version = [], project(root)["version"]
    if not project(root).get("urls"):
        found.append("pyproject.toml states no [project.urls]")
    images = re.findall(r"!\[[^\]]*\]\((?!https://)([^)]+)\)", (root / "README.md").read_text())
    found += [f"README.md shows {image} by a relative path, which a package index cannot show" for image in images]
    if version not in dict(headings(root)):
        found.append(f"CHANGELOG.md has no dated [{version}]")
    return found


def wrong_metadata(metadata: Message) -> list[str]:
    """Faults of a wheel's METADATA."""
    stated, found = project(), []
    expected = {"Name": stated["name"], "Version": stated["version"], "Requires-Python": stated["requires-python"]}
    expected |= {"License-Expression": "MIT", "Author": "The ddsmoothing authors"}
    found += [
        f"{key} is {metadata[key]!r}, expected {value!r}" for key, value in expected.items() if metadata[key] != value
    ]
    systems = [each for each in metadata.get_all("Classifier", []) if each.startswith("Operating System")]
    if systems != ["Operating System :: POSIX"]:
        found.append(f"classifiers say {systems}, expected POSIX alone: locks of runs need it")
    return found


def run(*command: str | Path, cwd: Path) -> str:
    """One command, without this checkout on the path; its output if it succeeded."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run([str(part) for part in command], cwd=cwd, env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"failed: {' '.join(map(str, command))}\n{done.stdout}{done.stderr}")
    return done.stdout


def built(out: Path) -> tuple[Path, Path]:
    """The wheel and the source distribution."""
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, ROOT, cwd=out)
    (wheel,), (source,) = out.glob("*.whl"), out.glob("*.tar.gz")
    run(sys.executable, "-m", "twine", "check", "--strict", wheel, source, cwd=out)
    return wheel, source


def wrong_contents(wheel: Path, source: Path) -> list[str]:
    """Faults of what is packed, and of its metadata."""
    with zipfile.ZipFile(wheel) as files:
        names = files.namelist()
        (described,) = [name for name in names if name.endswith(".dist-info/METADATA")]
        found = wrong_metadata(email.message_from_bytes(files.read(described)))
    found += [f"the wheel has no {name}" for name in NEEDED if f"ddsmoothing/{name}" not in names]
    strange = [name for name in names if not name.startswith(("ddsmoothing/", "ddsmoothing-"))]
    found += [f"the wheel brings {name}" for name in strange[:3]]
    with tarfile.open(source) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}
    wanted = ("CHANGELOG.md", "CITATION.cff", "LICENSE", "docs/index.md", "tests/conftest.py")
    return found + [f"the source distribution has no {name}" for name in wanted if name not in packed]


def installed(wheel: Path, place: Path, fresh: bool) -> Path:
    """The folder of commands of a new environment that holds the wheel."""
    run(sys.executable, "-m", "venv", place, cwd=place.parent)
    commands = place / "bin"
    offline = [] if fresh else ["--no-deps", "--no-index"]
    run(commands / "python", "-m", "pip", "install", "--quiet", *offline, wheel, cwd=place.parent)
    if not fresh:
        borrowed = [path for path in sys.path if path.endswith("site-packages")]
        (site,) = place.glob("lib/python*/site-packages")
        (site / "borrowed.pth").write_text("\n".join(borrowed) + "\n")
    return commands


def tried(commands: Path, place: Path) -> None:
    """README's lines, the demo, and both ways to start the program, in an empty folder."""
    python, version = commands / "python", f"ddsmoothing, version {project()['version']}"
    where = run(python, "-c", "import ddsmoothing; print(ddsmoothing.__file__)", cwd=place).strip()
    if not Path(where).is_relative_to(commands.parent):
        raise SystemExit(f"{where} was imported, not the wheel")
    for start in ([commands / "ddsmoothing"], [python, "-m", "ddsmoothing"]):
        if run(*start, "--version", cwd=place).strip() != version:
            raise SystemExit(f"{start} does not say {version!r}")
    lines = "\n".join(re.findall(r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL))
    (place / "readme.py").write_text(lines)
    run(python, "readme.py", cwd=place)
    run(commands / "ddsmoothing", "demo", "--out", "demo", cwd=place)
    if not (place / "demo" / "report.html").exists():
        raise SystemExit("the demo wrote no report")


def main() -> int:
    """Exit code 1 where something is wrong; each fault is a line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fresh", action="store_true", help="install dependencies too")
    parser.add_argument("--upload", action="store_true", help="what an upload lacks is an error")
    parser.add_argument("--keep", type=Path, help="copy what was built and is well to this folder")
    options = parser.parse_args()
    faults, open_points = out_of_step(), missing_for_an_upload()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        (place / "dist").mkdir()
        (place / "work").mkdir()
        print("building ...", flush=True)
        wheel, source = built(place / "dist")
        faults += wrong_contents(wheel, source)
        print(f"installing {wheel.name} and trying it ...", flush=True)
        tried(installed(wheel, place / "env", options.fresh), place / "work")
        if options.keep and not faults:
            options.keep.mkdir(parents=True, exist_ok=True)
            for file in (wheel, source):
                shutil.copy(file, options.keep)
    for point in open_points:
        print(f"before an upload: {point}")
    for fault in faults:
        print(f"wrong: {fault}")
    return 1 if faults or (options.upload and open_points) else 0


if __name__ == "__main__":
    sys.exit(main())
