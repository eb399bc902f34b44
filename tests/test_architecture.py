from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import ddsmoothing as dds

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "ddsmoothing"
FILES = sorted(SOURCE.rglob("*.py"))
# An import only points to the left; a room may import from itself.
ROOMS = (
    *("errors", "progress", "labels", "files", "streams", "lattice", "noise", "bounds", "shown", "devices", "modules"),
    *("kernels", "surrogate", "certificate", "claims", "plan", "inputs", "counting", "conversation", "smoothing"),
    *("classifier", "compat2021", "smooth", "data", "models"),
    *("attacks", "sigma", "stateless", "runs", "campaigns", "training", "memory", "verify", "doctor", "analysis"),
    *("tables", "plots"),
    *("report", "cli", "__main__"),
)
WITHOUT_TORCH = (
    *("errors", "progress", "streams", "lattice", "noise", "bounds", "shown", "claims", "plan", "runs"),
    *("verify", "analysis", "tables", "plots", "report"),
)
WITHOUT_FILES = (
    "errors",
    "bounds",
    "shown",
    "progress",
    "conversation",
    "smoothing",
    "plan",
    "lattice",
    "noise",
    "surrogate",
    "certificate",
    "claims",
    "streams",
    "classifier",
    "compat2021",
    "analysis",
)
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__"}
FORBIDDEN_MODULES = {"cPickle", "dill", "joblib", "marshal", "shelve", "cloudpickle"}


def imports(path: Path) -> set[str]:
    """Every module a file imports, also inside functions, but not for type checking alone."""
    tree = ast.parse(path.read_text())
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    found: set[str] = set()
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def room(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def calls(tree: ast.AST) -> list[tuple[str, ast.Call]]:
    return [(ast.unparse(node.func), node) for node in ast.walk(tree) if isinstance(node, ast.Call)]


def test_public_names() -> None:
    assert dds.__all__ == sorted(dds.__all__)
    assert len(set(dds.__all__)) == len(dds.__all__)
    for name in dds.__all__:
        value = getattr(dds, name)
        assert name == "ABSTAIN" or value.__name__ == name
        assert name in dir(dds)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        dds.nothing  # noqa: B018


def test_help_starts_with_the_names_of_the_main_job_in_order() -> None:
    text = dds.__doc__ or ""
    names = re.findall(r"^    ([\w.]+)  ", text, re.MULTILINE)
    assert len(names) == 10
    for name in names:
        value = dds
        for part in name.split("."):
            value = getattr(value, part)
    assert names.index("SmoothedClassifier") < names.index("search_sigma") < names.index("certify_run")


NAMES = """
import sys
import ddsmoothing
names = dir(ddsmoothing)
assert names == sorted({*ddsmoothing.__all__, "__version__"}), names
assert not {"torch", "numpy", "scipy"} & set(sys.modules)
"""


def test_names_are_listed_without_an_import() -> None:
    done = subprocess.run([sys.executable, "-c", NAMES], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


FEW = 2  # parameters that one sentence explains


def described() -> list[tuple[str, object]]:
    """Public names, and the methods of public classes that are ours."""
    found: list[tuple[str, object]] = []
    for name in sorted(set(dds.__all__) - {"ABSTAIN"}):
        value = getattr(dds, name)
        found.append((name, value))
        for key, member in inspect.getmembers(value) if inspect.isclass(value) else ():
            ours = inspect.isroutine(member) and str(getattr(member, "__module__", "")).startswith("ddsmoothing")
            if ours and not key.startswith("_"):
                found.append((f"{name}.{key}", member))
    return found


@pytest.mark.parametrize(("name", "value"), described(), ids=lambda value: value if isinstance(value, str) else "")
def test_docstrings_have_one_parameter_a_line(name: str, value: object) -> None:
    """Two on a line cannot be found by who looks down the left edge, and a missing one not at all."""
    text = inspect.getdoc(value) or ""
    assert text, "no docstring"
    assert not re.findall(r"\S   +`*\w[\w, ]*:", text)
    block = re.search(r"^( *)(Args|Attributes):\n((?:\1 +.*\n?)+)", text, re.MULTILINE)
    if block is None:
        asked = inspect.signature(value).parameters if inspect.isroutine(value) else ()  # type: ignore[arg-type]
        assert len([one for one in asked if one not in ("self", "cls")]) <= FEW, "no Args"
        return
    margin = re.match(" *", block[3])[0]  # type: ignore[index]
    names = re.findall(rf"^{margin}(\w.*?):", block[3], re.MULTILINE)
    assert all(re.fullmatch(r"\w+", one) for one in names), names
    if block[2] == "Args":
        wanted = [one for one in inspect.signature(value).parameters if one not in ("self", "cls")]  # type: ignore[arg-type]
        assert [one for one in wanted if one not in names] == []


def test_names_of_the_main_job_are_public() -> None:
    wanted = {"load_model", "load_data", "SmoothedClassifier", "L2Certificate", "L1Certificate", "search_sigma"}
    assert wanted | {"load_run", "acr", "certified_accuracy"} <= set(dds.__all__)


def test_every_room_is_in_the_table() -> None:
    assert {room(path) for path in FILES} - {"__init__"} <= set(ROOMS)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_point_left(path: Path) -> None:
    here = room(path)
    if here == "__init__":
        return
    for name in imports(path):
        parts = name.split(".")
        if parts[0] == "ddsmoothing" and len(parts) > 1 and parts[1] in ROOMS:
            assert ROOMS.index(parts[1]) <= ROOMS.index(here), name


def test_modules_of_a_room_do_not_import_in_a_circle() -> None:
    names = {".".join(["ddsmoothing", *path.relative_to(SOURCE).with_suffix("").parts]): path for path in FILES}
    edges = {name: imports(path) & names.keys() for name, path in names.items()}
    done: set[str] = set()
    while ready := {name for name in names.keys() - done if edges[name] - {name} <= done}:
        done |= ready
    assert done == names.keys()


def test_the_pure_core_knows_neither_torch_nor_files() -> None:
    for path in FILES:
        tops = {name.split(".")[0] for name in imports(path)}
        if room(path) in WITHOUT_TORCH:
            assert "torch" not in tops, path
        if room(path) in WITHOUT_FILES:
            assert not tops & {"pathlib", "io", "os", "shutil", "click"}, path
            assert "open" not in {name for name, _ in calls(ast.parse(path.read_text()))}, path
        assert room(path) == "plots" or "matplotlib" not in tops, path
        assert room(path) == "cli" or "click" not in tops, path
        assert room(path) in ("cli", "sigma", "progress") or "rich" not in tops, path


LIGHT = (
    *("streams", "noise", "bounds", "certificate", "claims", "plan", "counting.contract", "counting.kept"),
    *("runs", "runs.status", "runs.merge", "runs.rejudge", "memory.rules", "memory.store", "memory.verify"),
    *("verify", "analysis", "tables", "report.claims", "report.card"),
)
NO_TORCH = """
import importlib, importlib.abc, sys

class NoTorch(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "torch":
            raise ModuleNotFoundError("there is no torch here", name="torch")

sys.meta_path.insert(0, NoTorch())
for name in sys.argv[1:]:
    importlib.import_module(f"ddsmoothing.{name}")
"""


def test_what_reads_and_judges_needs_no_torch() -> None:
    """In a process that cannot import it, not by reading imports."""
    done = subprocess.run([sys.executable, "-c", NO_TORCH, *LIGHT], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    heavy = subprocess.run([sys.executable, "-c", NO_TORCH, "classifier"], capture_output=True, text=True, check=False)
    assert "there is no torch here" in heavy.stderr  # the process is what it should be


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_no_file_runs_what_it_reads(path: Path) -> None:
    names = imports(path)
    assert not {name.split(".")[0] for name in names} & FORBIDDEN_MODULES
    tree = ast.parse(path.read_text())
    pickled = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert {name for name in names | pickled if name.startswith("pickle.")} <= {"pickle.UnpicklingError"}
    for name, call in calls(tree):
        assert name not in FORBIDDEN_CALLS
        options = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        if name == "torch.load":
            assert options.get("weights_only") == "True"
        if name in ("np.load", "numpy.load"):
            assert options.get("allow_pickle") == "False"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_no_global_state(path: Path) -> None:
    for name, _ in calls(ast.parse(path.read_text())):
        assert name not in {"torch.manual_seed", "np.random.seed", "random.seed", "torch.set_default_dtype"}
        assert not re.fullmatch(r"np\.random\.(rand|randn|randint|normal|uniform)", name)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_files_are_short_and_say_what_they_are(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= 350
    assert ast.get_docstring(ast.parse(text))


def test_the_package_is_typed() -> None:
    assert (SOURCE / "py.typed").exists()
