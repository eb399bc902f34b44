"""How the pages of this folder become the site: ``make docs`` runs Sphinx on it, without the network.

The pages stay as they are read on a file browser. What the site needs besides is made here: the list of pages from the
tables of ``index.md``, and a page for every public name.
"""

from __future__ import annotations

import inspect
import logging
import os
import re
from importlib import import_module
from pathlib import Path
from typing import Any, Final

from sphinx.application import Sphinx

import ddsmoothing

HERE: Final = Path(__file__).parent
API: Final = HERE / "api"  # made anew by every build, and so is the next
PROJECT: Final = HERE / "project"
ABOVE: Final = ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")  # pages that stand above this folder
KERNEL: Final = HERE.parent / "build" / "ipython"

project = "ddsmoothing"
author = "The ddsmoothing authors"
project_copyright = author
version = release = ddsmoothing.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.autosummary", "sphinx.ext.napoleon"]
exclude_patterns = ["_static", "_templates", "images"]
templates_path = ["_templates"]

myst_heading_anchors = 4  # links of the form page.md#heading
nb_execution_mode = "auto"
nb_execution_timeout = 300
nb_execution_raise_on_error = True
nb_execution_show_tb = True
nb_execution_in_temp = True
nb_output_stderr = "remove"  # progress

autosummary_generate = True
autosummary_ignore_module_all = False
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
maximum_signature_line_length = 90
toc_object_entries_show_parents = "hide"
napoleon_use_ivar = True
napoleon_use_rtype = False
napoleon_custom_sections = ["References"]

suppress_warnings = ["ref.python"]  # a field of one class that is also one of another

html_theme = "pydata_sphinx_theme"
html_title = f"ddsmoothing {version}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_sidebars = {"**": ["all-pages.html"]}
html_show_sourcelink = False
html_copy_source = False
html_show_search_summary = False  # it would fetch pages, which a browser refuses to pages from files
html_last_updated_fmt = None
html_theme_options: dict[str, Any] = {
    "logo": {"text": "ddsmoothing"},
    "navbar_center": [],
    "navbar_persistent": [],
    "navbar_end": ["search-button", "theme-switcher"],
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": [],
    "show_version_warning_banner": False,
}

# Modules whose public names are not in the ``__all__`` of a package.
MODULES: Final = ("analysis", "attacks", "bounds", "errors", "noise", "plan")
SECTIONS: Final = re.compile(r"^(Raises|References|Returns|Yields): (?=\S)")
NEXT_NAME: Final = re.compile(r"(?<=\S) {3}(?=[\w, *]+: )")


def public_names(module: Any) -> list[str]:
    """What ``__all__`` says, else the functions and classes that the module makes."""
    own = [
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and callable(value) and getattr(value, "__module__", "") == module.__name__
    ]
    return list(getattr(module, "__all__", own))


def ours(module: Any, name: str) -> bool:
    """False for classes and functions of other packages that a module passes on."""
    return str(getattr(getattr(module, name), "__module__", "ddsmoothing")).startswith("ddsmoothing")


def rooms() -> dict[str, list[str]]:
    """Every module with public names, by its name; what stands at the top is not said twice."""
    packages = sorted(path.parent.name for path in Path(ddsmoothing.__file__).parent.glob("*/__init__.py"))
    found = {"ddsmoothing": list(ddsmoothing.__all__)}
    for room in sorted([*packages, *MODULES]):
        module = import_module(f"ddsmoothing.{room}")
        names = [name for name in public_names(module) if name not in ddsmoothing.__all__ and ours(module, name)]
        if names and (room in MODULES or hasattr(module, "__all__")):
            found[module.__name__] = names
    return found


def write_api() -> None:
    """A page for each module with public names, and under it one for each name."""
    API.mkdir(exist_ok=True)
    for old in API.rglob("*.rst"):
        old.unlink()
    for name, names in rooms().items():
        summary = (inspect.getdoc(import_module(name)) or "").split("\n\n")[0]
        lines = [name, "=" * len(name), "", summary, "", f".. currentmodule:: {name}", ""]
        lines += [".. autosummary::", "   :toctree: .", "   :nosignatures:", "", *(f"   {each}" for each in names)]
        (API / f"{name}.rst").write_text("\n".join(lines) + "\n")
    pages = "\n".join(f"   {name}" for name in rooms())
    title = "Public names"
    (API / "index.rst").write_text(f"{title}\n{'=' * len(title)}\n\n.. toctree::\n   :maxdepth: 2\n\n{pages}\n")


def write_project() -> None:
    """The pages that stand above this folder, with their links as they are from here."""
    PROJECT.mkdir(exist_ok=True)
    for name in ABOVE:
        (PROJECT / name).write_text((HERE.parent / name).read_text().replace("](docs/", "](../"))


def write_kernel() -> None:
    """Tutorials print what a pipe would see: no colours, and nothing about the kernel itself."""
    off = "import os; [os.environ.pop(name, None) for name in ('CLICOLOR', 'CLICOLOR_FORCE', 'FORCE_COLOR')]"
    (KERNEL / "profile_default").mkdir(parents=True, exist_ok=True)
    config = f"c.InteractiveShellApp.exec_lines = [{off!r}]\nc.IPKernelApp.log_level = 40\n"
    (KERNEL / "profile_default" / "ipython_kernel_config.py").write_text(config)
    os.environ["IPYTHONDIR"] = str(KERNEL)


def add_list_of_pages(app: Sphinx, page: str, source: list[str]) -> None:
    """Every page that a table of ``index.md`` names becomes part of the list at the side, by the table's heading."""
    source[0] = re.sub(rf"\]\(\.\./(?=(?:{'|'.join(ABOVE)}))", "](project/", source[0])
    if page != "index":
        return
    parts = re.split(r"^## (.+)$", source[0], flags=re.MULTILINE)[1:]
    for heading, text in zip(parts[::2], parts[1::2], strict=True):
        pages = re.findall(r"^\| \[[^\]]+\]\(([\w/.-]+)\.md\)", text, re.MULTILINE)
        pages += ["api/index"] if heading == "Reference" else []
        source[0] += f"\n```{{toctree}}\n:hidden:\n:caption: {heading}\n\n" + "\n".join(pages) + "\n```\n"


def one_parameter_a_line(app: Sphinx, kind: str, name: str, value: Any, options: Any, lines: list[str]) -> None:
    """Before napoleon reads a docstring: ``a: one.   b: two.`` becomes two lines, ``Raises: X`` a paragraph.

    A constant has no docstring but that of its type, which is left out; of a dictionary the keys are named.
    """
    found: list[str] = []
    if kind == "data":
        keys = ", ".join(f"``{key}``" for key in value) if isinstance(value, dict) else ""
        short = f"``{value!r}``" if isinstance(value, (int, float, str)) else f"A value of ``{type(value).__name__}``."
        lines[:] = [f"Keys: {keys}." if keys else short]
        return
    for line in lines:
        indent = line[: len(line) - len(line.lstrip())]
        if SECTIONS.match(line):
            found += ["", SECTIONS.sub(r"**\1:** ", line)]
        else:
            first, *more = NEXT_NAME.split(line) if indent else [line]
            found += [first, *(indent[:4] + each for each in more)]
    lines[:] = found


def tell_docstrings_apart(record: logging.LogRecord) -> bool:
    """Pages have no warnings at all; those of docstrings, which are written for ``help()`` first, are shown only."""
    place, said = str(getattr(record, "location", "")), record.getMessage()
    if not any(mark in place + said for mark in ("docstring of ", "<autosummary>")):
        return True
    print(f"not an error: {place} {said}", flush=True)
    return False


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    for handler in logging.getLogger("sphinx").handlers:
        if handler.level >= logging.WARNING:
            handler.filters.insert(0, tell_docstrings_apart)  # before the filter that counts warnings as errors
    write_api()  # before Sphinx looks which pages there are
    write_project()
    write_kernel()
    app.connect("source-read", add_list_of_pages)
    app.connect("autodoc-process-docstring", one_parameter_a_line, priority=100)  # before napoleon
