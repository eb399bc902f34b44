"""What is counted of logits: votes, wins of one class, duels of all. It draws nothing and runs no model.

Class a beats b on a sample iff its logit is larger, or equal and a < b, on the tensor that argmax reads: exactly one of
the two wins, and the class of a sample beats all others.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from ddsmoothing.counting.contract import DUELS, WINS, Request, tally_shape
from ddsmoothing.errors import InputError

LARGEST_DUELS: Final = 2**18  # pairs compared at once


class Tallies:
    """Sums over samples for some requests, on the device where the logits are.

    Args:
        requests: whose samples will be added.   num_classes: K.   device: of the logits.
    Raises: InputError for an anchor that is no class.
    """

    def __init__(self, requests: Sequence[Request], num_classes: int, device: torch.device) -> None:
        for request in requests:
            if request.anchor is not None and not 0 <= request.anchor < num_classes:
                raise InputError(f"the anchor is {request.anchor}, expected a class from 0 to {num_classes - 1}.")
        self._classes, self._requests = num_classes, requests
        self._votes = torch.zeros(len(requests) * num_classes, dtype=torch.int64, device=device)
        anchors = [-1 if request.anchor is None else request.anchor for request in requests]
        self._anchors = torch.tensor(anchors, dtype=torch.int64, device=device)
        self._columns = torch.arange(num_classes, device=device)
        self._kinds = {request.tally for request in requests}
        duels = [request.tally == DUELS for request in requests]
        self._duelling = torch.tensor(duels, device=device)
        size = (len(requests) if WINS in self._kinds else 0, num_classes)
        self._wins = torch.zeros(size, dtype=torch.int64, device=device)
        size = (len(requests) if DUELS in self._kinds else 0, num_classes * num_classes)
        self._larger = torch.zeros(size, dtype=torch.int64, device=device)
        self._ones = torch.ones(0, dtype=torch.int64, device=device)

    def add(self, logits: torch.Tensor, owner: torch.Tensor) -> None:
        """Count the samples of one pass: logits ``(rows, K)``, owner ``(rows,)`` the request of each."""
        if len(self._ones) < len(owner):
            self._ones = torch.ones(len(owner), dtype=torch.int64, device=owner.device)
        self._votes.index_add_(0, owner * self._classes + logits.argmax(1), self._ones[: len(owner)])
        if WINS in self._kinds:
            anchor = self._anchors[owner]
            own = logits.gather(1, anchor.clamp_min(0)[:, None])
            beaten = (logits < own) | ((logits == own) & (self._columns >= anchor[:, None]))
            self._wins.index_add_(0, owner, (beaten & (anchor >= 0)[:, None]).long())
        if DUELS in self._kinds:
            rows = self._rows_in_duels(owner)
            for part in torch.split(rows, max(1, LARGEST_DUELS // self._classes**2)):
                larger = logits[part][:, :, None] > logits[part][:, None, :]
                self._larger.index_add_(0, owner[part], larger.flatten(1).long())

    def _rows_in_duels(self, owner: torch.Tensor) -> torch.Tensor:
        """Without waiting for the device where all of them are."""
        if self._kinds == {DUELS}:
            return torch.arange(len(owner), device=owner.device)
        return torch.nonzero(self._duelling[owner])[:, 0]

    def found(self) -> list[NDArray[np.int64]]:
        """What each request asked for; see ``Request``."""
        votes = self._votes.reshape(-1, self._classes).cpu().numpy()
        wins, larger = self._wins.cpu().numpy(), self._larger.cpu().numpy()
        results = []
        for i, request in enumerate(self._requests):
            if request.tally == WINS:
                results.append(np.stack([votes[i], wins[i]]))
            elif request.tally == DUELS:
                won = np.tril(larger[i].reshape(tally_shape(DUELS, self._classes)), -1)  # of a > b, by more alone
                results.append(won + np.triu(votes[i].sum() - won.T, 1) + np.diag(votes[i]))
            else:
                results.append(votes[i])
        return results
