"""L1 certificates from uniform noise: sigma is a standard deviation, lambda = sqrt(3) sigma the half-width.

python examples/l1_certificate.py
"""

from __future__ import annotations

import math

import numpy as np

import ddsmoothing as dds


def main() -> None:
    """Certify ten images at one lambda and at a sigma chosen for each."""
    data = dds.load_data("fashion-mnist-sample")
    x, y = data[:10]
    smoothed = dds.SmoothedClassifier(dds.load_model("fashion-mnist-cnn"), dds.L1Certificate(), num_classes=10)

    fixed = smoothed.certify(x, 0.8 / math.sqrt(3), n=5000, seed=0)  # lambda = 0.8
    sigma = dds.search_sigma(smoothed, x, sigma0=0.5, n=5000, seed=1)
    chosen = smoothed.certify(x, sigma, n=5000, seed=1)
    for name, result in {"lambda 0.8": fixed, "chosen": chosen}.items():
        correct = result.prediction == y.numpy()
        print(f"{name}: {correct.sum()} of {len(result)} right, mean radius {np.mean(correct * result.radius):.3f}")
    print("lambdas chosen:", np.round(chosen.scale, 3))
    print("the largest radius that any number of samples allows is lambda, since R = 2 lambda (p - 1/2)")


if __name__ == "__main__":
    main()
