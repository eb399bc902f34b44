"""What tests over damaged files share: how many cases, and how bytes are damaged."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st

TIMES = int(os.environ.get("FUZZ_TIMES", "1"))  # more cases, by hand


def cases(number: int) -> Callable[[Any], Any]:
    """So many cases, the same ones every time."""
    return settings(
        max_examples=TIMES * number,
        deadline=None,
        derandomize=True,
        database=None,
        phases=(Phase.generate,),  # shrinking a failure would take minutes
        suppress_health_check=list(HealthCheck),
    )


@st.composite
def damaged(draw: st.DrawFn, data: bytes, structure: Sequence[int] = ()) -> bytes:
    """Bytes that are cut, flipped, repeated or overwritten, or quite other ones.

    Half of the damage lies behind the places of structure, if there are any, and less is cut off then.
    """
    if draw(st.integers(0, 19)) == 0:
        return draw(st.binary(max_size=200))
    out = bytearray(data)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, len(out) - 1)))
        if structure and draw(st.booleans()):
            at = min(max(0, len(out) - 1), draw(st.sampled_from(structure)) + draw(st.integers(0, 40)))
        what = draw(st.integers(0, 5))
        if what == 0 and (not structure or draw(st.integers(0, 3)) == 0):
            del out[at:]
        elif what == 1:
            del out[at : at + draw(st.integers(1, 16))]
        elif what == 2:
            out[at:at] = draw(st.binary(min_size=1, max_size=16))
        elif what == 3:
            out[at:at] = out[at : at + 64]
        elif out:
            out[min(at, len(out) - 1)] = draw(st.integers(0, 255))
    return bytes(out)
