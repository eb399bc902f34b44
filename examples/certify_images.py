"""Certify eight real images at a sigma chosen for each, then a subset as run folders with a table and a plot.

python examples/certify_images.py [FOLDER]
"""

from __future__ import annotations

import sys
from pathlib import Path

import ddsmoothing as dds
from ddsmoothing.campaigns import CertifyRequest, certify_run
from ddsmoothing.plots import plot_certified_accuracy
from ddsmoothing.sigma import SigmaPolicy


def main(out: Path) -> None:
    """Print certificates, then write two run folders and a figure to ``out``."""
    model = dds.load_model("fashion-mnist-cnn")
    data = dds.load_data("fashion-mnist-sample")
    smoothed = dds.SmoothedClassifier(model, dds.L2Certificate(), num_classes=10)

    x, y = data[:8]
    sigma = dds.search_sigma(smoothed, x, sigma0=0.25, sigma_min=0.0625, sigma_max=1.0, seed=0)
    result = smoothed.certify(x, sigma, n0=100, n=10_000, alpha=0.001, seed=0)
    print("label  class   sigma   radius   p_lower")
    for row in zip(y.tolist(), result.prediction, result.sigma, result.radius, result.p_lower, strict=True):
        print("{:5d}  {:5d}  {:6.3f}  {:7.4f}  {:8.5f}".format(*row))

    # Run folders keep the counts behind every radius. Seeds differ, so the two runs share no noise.
    policies = {"fixed": SigmaPolicy.fixed(0.25), "chosen": SigmaPolicy.search(0.25)}
    runs = [
        certify_run(
            smoothed,
            data,
            CertifyRequest(policy, n=1000, skip=50, seed=seed),
            out / name,
            model_name="fashion-mnist-cnn",
        )
        for seed, (name, policy) in enumerate(policies.items())
    ]
    for run in runs:
        accuracy = dds.certified_accuracy(run, [0.0, 0.5])
        print(f"{run.name}: {len(run)} images, certified at 0 and 0.5: {accuracy}, ACR {dds.acr(run):.3f}")
    print("figure:", plot_certified_accuracy(runs, out)[0])


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "certify-images"))
