"""A classifier that chooses sigma for each query contradicts itself; one with a memory does not.

Class 1 is a narrow strip. Inside it a small sigma gives the largest radius, outside a large one, whose balls cover the
strip. python examples/memory.py
"""

from __future__ import annotations

import numpy as np
import torch

import ddsmoothing as dds
from ddsmoothing.sigma import SigmaPolicy

SIGMAS = (0.05, 0.6)


class Strip(torch.nn.Module):
    """Vectors ``(B, 2)``: class 1 where the first coordinate is within .1 of .5."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inside = ((x[:, 0] - 0.5).abs() < 0.1).double()
        return torch.stack([1 - inside, inside], 1)


def main() -> None:
    """Certify five points both ways, then ask again at points inside the balls that were promised."""
    smoothed = dds.SmoothedClassifier(Strip(), dds.L2Certificate(), num_classes=2)
    x = torch.tensor([[0.1, 0.5], [0.5, 0.5], [0.9, 0.5], [0.47, 0.3], [0.2, 0.4]], dtype=torch.float64)

    def choose(points: torch.Tensor, seed: int) -> np.ndarray:
        return dds.search_sigma(smoothed, points, sigma0=SIGMAS[0], sigma_grid=SIGMAS, seed=seed).sigma

    pointwise = smoothed.certify(x, choose(x, 1), n=2000, seed=2)
    memory = dds.CertifiedMemory.create(
        None,  # a file's name would keep it
        smoothed,
        SigmaPolicy.search(SIGMAS[0], sigma_grid=SIGMAS),
        shape=(2,),
        n=2000,
        dtype="float64",
        transform="none",
        delta=0.01,
    )
    remembered = memory.query(x)
    print("point        pointwise      memory")
    for i, point in enumerate(x.tolist()):
        row = remembered.rows[i]
        print(
            f"{point}  {pointwise.prediction[i]:2d} {pointwise.radius[i]:8.3f}  {row.prediction:2d} {row.radius:8.3f}  "
            f"{row.reason}{'' if row.by is None else f' by region {row.by}'}"
        )

    probes = torch.stack([torch.linspace(0, 1, 21), torch.full((21,), 0.5)], 1).double()
    anew = smoothed.predict(probes, choose(probes, 3), seed=4).prediction
    later = memory.query(probes).prediction
    for name, made, answers in (("pointwise", pointwise, anew), ("memory", remembered, later)):
        broken = 0
        for i in range(len(x)):
            inside = (probes - x[i]).norm(dim=1).numpy() < made.radius[i]
            broken += int((inside & (answers != dds.ABSTAIN) & (answers != made.prediction[i])).sum())
        print(f"{name}: {broken} later answers contradict a ball promised before")
        assert name == "pointwise" or broken == 0


if __name__ == "__main__":
    main()
