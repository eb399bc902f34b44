"""Where the 2021 package kept ``Smooth``: the old import goes on working."""

from ddsmoothing.compat2021 import Smooth

__all__ = ["Smooth"]
