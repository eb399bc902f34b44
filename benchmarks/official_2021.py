"""The official package of 2021, for the benchmarks that compare with it.

The wheel ddsmoothing-python 1.0.0 is fetched by pip and unpacked into a temporary folder under the name
``ddsmoothing_2021``. Its package file, which imports everything, is emptied, and the two functions it takes from scipy
and statsmodels are replaced by the same formulas; nothing else is changed.
"""

from __future__ import annotations

import importlib
import subprocess
import sys
import types
import zipfile
from pathlib import Path

WHEEL = "ddsmoothing-python==1.0.0"
STAND_IN = """from scipy.stats import beta, binomtest


def binom_test(count, total, p):
    return binomtest(int(count), int(total), p).pvalue


def proportion_confint(count, n, alpha, method):
    return beta.ppf(alpha / 2, count, n - count + 1), 1.0
"""


def unpack(folder: Path) -> bool:
    """Make ``ddsmoothing_2021`` importable from this folder; False where the wheel is not there and cannot be had."""
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(folder), WHEEL]
    if not any(folder.glob("*.whl")) and subprocess.run(command, check=False, capture_output=True).returncode:
        return False
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        wheel.extractall(folder / "unpacked")
    package = folder / "unpacked" / "ddsmoothing_2021"
    (folder / "unpacked" / "ddsmoothing").rename(package)
    (package / "__init__.py").write_text("")
    source = (package / "smooth.py").read_text()
    source = source.replace("from scipy.stats import binom_test\n", "")
    source = source.replace("from statsmodels.stats.proportion import proportion_confint\n", STAND_IN)
    (package / "smooth.py").write_text(source)
    sys.path.insert(0, str(folder / "unpacked"))
    return True


def module(name: str) -> types.ModuleType:
    """One of its modules: ``optimization``, ``certificate`` or ``smooth``."""
    return importlib.import_module(f"ddsmoothing_2021.{name}")
