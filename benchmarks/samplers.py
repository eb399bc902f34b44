"""How many samples each sampler takes for which radius, and what each bound gains, on the pA of a real run.

    python benchmarks/samplers.py

200 Fashion-MNIST test images are counted once with 20,000 samples at each of three sigmas and at the sigma that the
search chooses; their shares of the top class stand for the true pA. The production samplers then talk to simulated
counts with that pA (three repetitions), so that the comparison itself costs no forward pass.
"""

from __future__ import annotations

import argparse

import numpy as np
from scipy.special import ndtri

import ddsmoothing as dds
from ddsmoothing.bounds import clopper_pearson_lower, randomized_lower, top_two_bounds
from ddsmoothing.claims import measured, rule_for
from ddsmoothing.plan import Exact, Plan, Question, Sampler, Target

ALPHA, REPEATS, REFERENCE = 0.001, 3, 20_000
RULE = rule_for("plurality", "one-class")


def gap(p: float) -> float:
    """Radius at sigma 1."""
    return float(ndtri(p))


def talk(sampler: Sampler, p: float, rng: np.random.Generator) -> tuple[float, int]:
    """Gap certified and samples taken in one conversation with Bernoulli counts."""
    conversation = sampler.converse(Question(ALPHA, RULE, 2, None, gap, False))
    samples, wish = 0, next(conversation)
    while True:
        answer = []
        for draw in wish:
            hits = int(rng.binomial(draw.n, p))
            samples += draw.n
            counts = np.array([hits, draw.n - hits])
            answer.append(measured(draw.stream.name.lower(), 1.0, draw.tally, counts))
        try:
            wish = conversation.send(answer)
        except StopIteration as end:
            found = end.value
            right = int(np.argmax(found.pilot.votes)) == 0
            looks = () if found.fresh is None else found.fresh.looks
            lower = max((clopper_pearson_lower(look.counts[0], look.n, look.alpha) for look in looks), default=0.0)
            return (max(0.0, gap(lower)) if right and lower > 0.5 else 0.0), samples


def compare(name: str, p: np.ndarray, sigma: np.ndarray) -> None:
    """A row for each sampler."""
    print(f"{name}: {len(p)} images")
    exact: tuple[float, float] | None = None
    samplers: dict[str, tuple[Sampler, float | None]] = {"exact n=100,000": (Exact(), None)}
    samplers |= {f"plan, price {c}": (Plan(price=c), None) for c in (0.05, 0.1, 0.2, 0.5)}
    for label, (sampler, _) in samplers.items():
        rng = np.random.default_rng(0)
        pairs = [talk(sampler, float(q), rng) for _ in range(REPEATS) for q in p]
        radius = np.array([pair[0] for pair in pairs]) * np.tile(sigma, REPEATS)
        samples = float(np.mean([pair[1] for pair in pairs]))
        exact = exact or (float(radius.mean()), samples)
        loss = 100 * (1 - radius.mean() / exact[0])
        print(f"  {label:24} samples {samples:9,.0f}  {exact[1] / samples:6.1f}x fewer   ACR loss {loss:5.2f} %")
    for r in (0.25, 0.5, 1.0):
        rng = np.random.default_rng(0)
        pairs = [
            (*talk(Target(radii=(r / s,)), float(q), rng), s) for _ in range(2) for q, s in zip(p, sigma, strict=True)
        ]
        samples = float(np.mean([pair[1] for pair in pairs]))
        share = 100 * np.mean([pair[0] * pair[2] >= r * (1 - 1e-9) for pair in pairs])
        fewer = 100_100 / samples
        print(f"  target, radius {r:<9} samples {samples:9,.0f}  {fewer:6.1f}x fewer   certified {share:.1f} %")


def bounds(counts: np.ndarray, sigma: np.ndarray) -> None:
    """Mean radius of the three bounds from the same counts; the coin is drawn once an image."""
    rng = np.random.default_rng(0)
    total: dict[str, list[float]] = {"one-class": [], "two-class": [], "randomised": []}
    for row, s in zip(counts, sigma, strict=True):
        order = np.sort(row)
        top, other, n = int(order[-1]), int(order[-2]), int(row.sum())
        plain = clopper_pearson_lower(top, n, ALPHA)
        lower, upper = top_two_bounds(clopper_pearson_lower(top, n, 0.9 * ALPHA), other, n, ALPHA, "two-class", 0.0)
        drawn = randomized_lower(top, n, ALPHA, 1.0 - float(rng.random()))
        total["one-class"].append(s * max(0.0, gap(plain)))
        total["two-class"].append(s * max(0.0, (gap(lower) - gap(upper)) / 2))
        total["randomised"].append(s * max(0.0, gap(drawn)))
    base = np.mean(total["one-class"])
    for name, values in total.items():
        print(f"  bound {name:12} mean radius {np.mean(values):.4f}  {100 * (np.mean(values) / base - 1):+.2f} %")


def main() -> None:
    """Count once, then compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=200)
    args = parser.parse_args()
    model, data = dds.load_model("fashion-mnist-cnn"), dds.load_data("fashion-mnist-sample")
    x, _ = data[np.linspace(0, len(data) - 1, args.images).astype(int)]
    smoothed = dds.SmoothedClassifier(model, dds.L2Certificate(), num_classes=10, vote="plurality", precision="bf16")
    chosen = dds.search_sigma(smoothed, x, sigma0=0.346, seed=5).sigma
    for name, sigma in {"sigma 0.25": 0.25, "sigma 0.5": 0.5, "sigma 1": 1.0, "data-dependent sigma": chosen}.items():
        counts = smoothed.predict(x, sigma, n=REFERENCE, seed=6).counts
        each = np.broadcast_to(np.asarray(sigma, dtype=float), (len(x),))
        share = (counts.max(1) + 0.5) / (REFERENCE + 1)
        compare(name, share, each)
        bounds(counts, each)


if __name__ == "__main__":
    main()
