"""A process that ends without any clean-up, for tests of what a crash leaves behind."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any


def forked(work: Callable[[], Any]) -> int:
    """Run ``work`` in a forked process; returns its number."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
        except BaseException as error:
            os.write(2, f"{type(error).__name__}: {error}\n".encode())
            os._exit(1)
        os._exit(0)
    return pid
