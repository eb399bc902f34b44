"""The 2021 package's smoothed classifier: its calls and its answers, on the same counts. It knows no files."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from ddsmoothing.bounds import check_alpha, check_count, check_feasible
from ddsmoothing.certificate import Certificate, L2Certificate
from ddsmoothing.claims import ABSTAIN, Measurement, Plurality, Tally, measured
from ddsmoothing.classifier import SmoothedClassifier
from ddsmoothing.counting.contract import Request
from ddsmoothing.counting.engine import Engine, takes_sigma
from ddsmoothing.devices import device_of, named_device
from ddsmoothing.errors import InputError
from ddsmoothing.inputs import prepare
from ddsmoothing.streams import Stream


class Smooth:
    """The smoothed classifier of the 2021 package: one input at a time, its calls and its answers.

    Args:
        base_classifier: ``(B, ...)`` to ``(B, K)``.
        num_classes: K.
        sigma: the noise's own parameter, sigma for L2 and the half-width lambda for L1: one number, or a tensor that
            fits one input. A single number with a certificate of ours gets the exact noise of ``SmoothedClassifier``,
            anything else the certificate's own ``sample_noise``.
        certificate: one of ours, or a subclass with ``sample_noise`` and ``compute_gap``.
    """

    ABSTAIN = ABSTAIN

    def __init__(
        self, base_classifier: torch.nn.Module, num_classes: int, sigma: float | torch.Tensor, certificate: Certificate
    ) -> None:
        self.base_classifier, self.num_classes = base_classifier, num_classes
        self.sigma, self.certificate = sigma, certificate

    def certify(
        self, x: torch.Tensor, n0: int, n: int, alpha: float, batch_size: int, device: str | torch.device | None = None
    ) -> tuple[int, float]:
        """``(class, gap)``, the certified radius being ``sigma * gap``; ``(ABSTAIN, 0.0)`` where there is none.

        Args:
            x: one input, without batch dimension.
            n0: samples that choose the class.
            n: samples that bound its probability.
            alpha: failure probability.
            batch_size: rows of one forward pass.
            device: default the model's.
        """
        check_count(n0, "n0")
        check_feasible(n, alpha)
        pilot, fresh = self._measure(x, {Stream.PILOT: n0, Stream.CERTIFY: n}, batch_size, device)
        rule = Plurality()
        top = rule.choose(pilot)
        fresh = replace(fresh, looks=(rule.look(fresh, top, alpha),))
        claim = rule.claim(pilot, fresh, L2Certificate(), alpha)  # of its bounds alone; the gap is the certificate's
        return (ABSTAIN, 0.0) if claim.prediction == ABSTAIN else (top, self.certificate.compute_gap(claim.p_lower))

    def predict(
        self, x: torch.Tensor, n: int, alpha: float, batch_size: int, device: str | torch.device | None = None
    ) -> int:
        """The smoothed classifier's class or ABSTAIN; wrong with probability at most alpha.

        Args:
            x: one input, without batch dimension.
            n: samples.
            alpha: failure probability.
            batch_size: rows of one forward pass.
            device: default the model's.
        """
        check_count(n, "n")
        check_alpha(alpha)
        (fresh,) = self._measure(x, {Stream.PREDICT: n}, batch_size, device)
        return Plurality().answer(fresh, fresh, alpha)

    def _measure(
        self, x: torch.Tensor, wanted: dict[Stream, int], batch_size: int, device: str | torch.device | None
    ) -> list[Measurement]:
        """Class counts ``(K,)`` for each stream.

        The seed comes from torch's global generator, so that ``torch.manual_seed`` repeats results as it did.
        """
        place = device_of(self.base_classifier) or x.device if device is None else named_device(device)
        sigma = torch.as_tensor(self.sigma, dtype=torch.float64)
        names, votes = [stream.name.lower() for stream in wanted], Tally("votes")
        if sigma.numel() != 1 or not hasattr(self.certificate, "noise"):
            counts, std, tv = [self._float_counts(x.to(place), n, batch_size) for n in wanted.values()], 1.0, 0.0
        else:
            std = self.certificate.noise.sigma(float(sigma))
            smoothed = SmoothedClassifier(
                self.base_classifier, self.certificate, num_classes=self.num_classes, block_size=batch_size
            )
            batch = prepare(x[None], None, place, any_range=True)
            requests = [Request(row=0, sigma=std, stream=stream, n=n) for stream, n in wanted.items()]
            counts = smoothed.count(batch, requests, int(torch.randint(2**63 - 1, ())))
            tv = smoothed.tv(batch, 0, std)
        return [replace(measured(name, std, votes, one), tv=tv) for name, one in zip(names, counts, strict=True)]

    def _float_counts(self, x: torch.Tensor, n: int, batch_size: int) -> NDArray[np.int64]:
        counts = np.zeros(self.num_classes, dtype=np.int64)
        theta = torch.as_tensor(self.sigma, device=x.device, dtype=x.dtype)
        if takes_sigma(self.base_classifier):
            raise InputError("a base classifier that takes sigma needs one number and a certificate with a noise.")
        with Engine(self.base_classifier).open() as (caller,):
            for start in range(0, n, batch_size):
                copies = x.expand(min(batch_size, n - start), *x.shape)
                noisy = copies + self.certificate.sample_noise(copies, theta)
                classes = caller.logits(noisy, 1.0, self.num_classes).argmax(1)
                counts += torch.bincount(classes, minlength=self.num_classes).cpu().numpy()
        return counts
