"""What the forward-only search loses against a dense reference, for several budgets, on real images.

    python benchmarks/search_budget.py --cache reference.npz

The reference counts 4,000 samples at each of 64 sigmas for 200 Fashion-MNIST test images (51 million forward passes,
some 20 minutes on two cores; kept in the cache file, which an interrupted run continues). A sigma is judged by the
reference's estimated certified radius under the same vote (n = 10,000, alpha = .001, class of the pilot), interpolated
in log sigma. The loss is relative to the best sigma of the reference, whose own noise makes it look better than it is.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

import ddsmoothing as dds
from ddsmoothing.counting.contract import DUELS, Request
from ddsmoothing.plan import SearchPlan
from ddsmoothing.sigma.score import certified_scores, supports
from ddsmoothing.streams import Stream

LOW, HIGH, SIGMA0 = 0.0625, 1.5, 0.346
N, ALPHA = 10_000, 0.001
PLANS = {
    "quarter": SearchPlan(pilot=16, widths=(12, 7, 5, 4), samples=(3, 6, 12, 24)),
    "half": SearchPlan(pilot=32, widths=(12, 7, 5, 4), samples=(6, 12, 24, 48)),
    "default": SearchPlan(),
    "fine grid": SearchPlan(pilot=64, widths=(24, 10, 6), samples=(16, 32, 64)),
    "two rounds": SearchPlan(pilot=64, widths=(16, 6), samples=(24, 80)),
    "double": SearchPlan(pilot=128, widths=(12, 7, 5, 4), samples=(24, 48, 96, 192)),
    "four times": SearchPlan(pilot=256, widths=(12, 7, 5, 4), samples=(48, 96, 192, 384)),
}


def reference(smoothed: dds.SmoothedClassifier, x: object, sigmas: np.ndarray, samples: int, path: Path) -> np.ndarray:
    """Duels ``(B, G, K, K)``, from the cache if it holds them."""
    counts = list(np.load(path)["counts"]) if path.exists() else []
    batch = smoothed.prepare(x)
    for row in range(len(counts), len(batch)):
        requests = [Request(row=row, sigma=float(s), stream=Stream.PREDICT, n=samples, tally=DUELS) for s in sigmas]
        counts.append(smoothed.count(batch, requests, 99))
        np.savez_compressed(path, counts=np.array(counts))
        print(f"reference: {row + 1}/{len(batch)} images", flush=True)
    return np.array(counts)


def main() -> None:
    """Print a row for each budget."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=Path("reference.npz"))
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--sigmas", type=int, default=64)
    parser.add_argument("--samples", type=int, default=4000)
    args = parser.parse_args()
    model, data = dds.load_model("fashion-mnist-cnn"), dds.load_data("fashion-mnist-sample")
    x, _ = data[np.linspace(0, len(data) - 1, args.images).astype(int)]
    sigmas = np.geomspace(LOW, HIGH, args.sigmas)
    counts = reference(dds.SmoothedClassifier(model, num_classes=10), x, sigmas, args.samples, args.cache)
    votes = np.diagonal(counts, axis1=-2, axis2=-1)
    print(f"{'vote':10} {'budget':12} {'forwards':>8} {'mean radius':>11} {'loss %':>7} {'at border':>9}")
    for vote, hits in (("plurality", votes), ("pairwise", supports(DUELS, counts))):
        smoothed = dds.SmoothedClassifier(model, num_classes=10, vote=vote)
        scores = certified_scores(smoothed.certificate, hits, votes.sum(2), sigmas)
        for name, plan in PLANS.items():
            found = dds.search_sigma(
                smoothed, x, sigma0=SIGMA0, sigma_min=LOW, sigma_max=HIGH, n=N, alpha=ALPHA, seed=7, plan=plan
            )
            of_class = scores[np.arange(len(x)), :, found.anchor]
            got = [np.interp(np.log(s), np.log(sigmas), row) for s, row in zip(found.sigma, of_class, strict=True)]
            mean, best = np.maximum(got, 0).mean(), np.maximum(of_class.max(1), 0).mean()
            loss, border = 100 * (1 - mean / best), found.at_border.mean()
            print(f"{vote:10} {name:12} {plan.forwards:8} {mean:11.4f} {loss:7.2f} {border:9.2f}", flush=True)


if __name__ == "__main__":
    main()
