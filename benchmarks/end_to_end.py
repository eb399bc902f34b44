"""From an image to its data-dependent certificate: the official code of 2021 against ours, same images and alpha.

    python benchmarks/end_to_end.py                 10 images, 900 official iterations; under ten minutes on two cores
    python benchmarks/end_to_end.py --images 40     (--full is the same)

Official: gradient ascent (900 iterations x 100 samples, step .04), then ``Smooth.certify`` with n0 = 100, n = 100,000
and its batch of 1,000. Ours: the forward-only search, then the exact and the planning sampler, under both votes, in
fp32 and bf16; that the model is a function, which is looked at once for each classifier, is seen before the clock runs.
For ACR sigma is clipped to [.0625, 1] before certification and radii are capped at 2, for both sides.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

import ddsmoothing as dds
import official_2021
from ddsmoothing.plan import Exact, Plan, Sampler, SearchPlan

TWICE = SearchPlan(pilot=128, widths=(12, 7, 5, 4), samples=(24, 48, 96, 192))  # the default's samples
LOW, HIGH, CAP, SIGMA0, ALPHA, N = 0.0625, 1.0, 2.0, 0.25, 0.001, 100_000


def official(model: torch.nn.Module, x: torch.Tensor, y: np.ndarray, iterations: int) -> tuple[float, float, float]:
    """Seconds an image, samples an image and capped ACR of the code of 2021."""
    net = torch.nn.Sequential(model, torch.nn.Softmax(1)).eval()
    certificate = official_2021.module("certificate").L2Certificate(len(x), "cpu")
    start = time.perf_counter()
    theta = official_2021.module("optimization").optimize_isotropic_dds(
        net, x, certificate, 0.04, torch.full((len(x),), SIGMA0), iterations, 100, "cpu"
    )
    sigma = theta.detach().clamp(LOW, HIGH)
    certificate = official_2021.module("certificate").L2Certificate(1000, "cpu")
    radii = []
    for one, s, label in zip(x, sigma, y, strict=True):
        smooth = official_2021.module("smooth").Smooth(model, 10, s, certificate)
        answer, gap = smooth.certify(one, 100, N, ALPHA, 1000, torch.device("cpu"))
        radii.append(float(s) * float(gap) if answer == label else 0.0)
    seconds = (time.perf_counter() - start) / len(x)
    return seconds, 100.0 * iterations + 100 + N, float(np.minimum(radii, CAP).mean())


def ours(
    model: torch.nn.Module,
    x: torch.Tensor,
    y: np.ndarray,
    sampler: Sampler,
    vote: str,
    precision: str = "bf16",
    search: SearchPlan | None = None,
) -> tuple[float, float, float]:
    """The same of our search and certification."""
    smoothed = dds.SmoothedClassifier(
        model, dds.L2Certificate(), num_classes=10, vote=vote, block_size=256, precision=precision
    )
    smoothed.certify(x[:1], SIGMA0, n0=50, n=100, seed=0)  # sees, once, that the model is a function
    start = time.perf_counter()
    limits = {"sigma0": SIGMA0, "sigma_min": LOW, "sigma_max": HIGH, "n": sampler.largest(), "alpha": ALPHA}
    found = dds.search_sigma(smoothed, x, **limits, seed=1, plan=search)
    result = smoothed.certify(x, found, sampler=sampler, alpha=ALPHA, seed=2)
    seconds = (time.perf_counter() - start) / len(x)
    radii = np.where(result.prediction == y, np.minimum(result.radius, CAP), 0.0)
    return seconds, found.forwards + float(result.samples.mean()), float(radii.mean())


def main() -> None:
    """Print a row for each way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=10)
    parser.add_argument("--full", action="store_true", help="40 images")
    parser.add_argument("--iterations", type=int, default=900)
    args = parser.parse_args()
    count = 40 if args.full else args.images
    torch.manual_seed(0)
    model, data = dds.load_model("fashion-mnist-cnn"), dds.load_data("fashion-mnist-sample")
    x, labels = data[np.linspace(0, len(data) - 1, count).astype(int)]
    y = labels.numpy()
    ours(model, x[:2], y[:2], Exact(n0=50, n=500), "pairwise")  # tables and threads, before any clock runs
    rows = {}
    for vote in ("plurality", "pairwise"):
        rows[f"{vote}, exact, n = 100,000, fp32"] = ours(model, x, y, Exact(), vote, "fp32", TWICE)
        for price in (0.2, 0.5):
            rows[f"{vote}, plan at price {price:g}, fp32"] = ours(model, x, y, Plan(price=price), vote, "fp32")
            rows[f"{vote}, plan at price {price:g}, bf16"] = ours(model, x, y, Plan(price=price), vote)
        for n in (10_000, 5_000, 3_000):
            rows[f"{vote}, exact, n = {n:,}, bf16"] = ours(model, x, y, Exact(n=n), vote)
    with tempfile.TemporaryDirectory() as folder:
        if not official_2021.unpack(Path(folder)):
            raise SystemExit("the wheel of 2021 cannot be had here")
        base = official(model, x, y, args.iterations)
    print(f"{count} images, alpha {ALPHA}; {torch.get_num_threads()} threads")
    print(f"{'':46} {'s/image':>8} {'samples':>8} {'ratio':>7} {'ACR':>7} {'change':>7}")
    name = f"official, {args.iterations} iterations + n=100,000"
    print(f"{name:46} {base[0]:8.2f} {base[1]:8,.0f} {'1.0x':>7} {base[2]:7.4f}")
    for name, (seconds, samples, acr) in rows.items():
        change = 100 * (acr / base[2] - 1)
        print(f"{name:46} {seconds:8.3f} {samples:8,.0f} {base[0] / seconds:6.1f}x {acr:7.4f} {change:+6.2f}%")


if __name__ == "__main__":
    main()
