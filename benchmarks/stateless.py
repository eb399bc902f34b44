"""Stateless rules on Fashion-MNIST at equal total forward passes, all of them from one draw of counts.

    python benchmarks/stateless.py --data fashion-mnist:/usr/share/datasets/fashion-mnist

Test images 5, 55, 105, .. (no design was chosen on them). At each sigma who beats whom is counted on 100 samples that
choose the class and on 8 parts of 250 fresh ones, so that a rule with several sigmas takes as many samples in all as a
fixed sigma. Radii count up to the largest one without offsets. Offsets and tables are fitted on training images. An
interrupted run continues.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

import ddsmoothing as dds
from ddsmoothing.claims import Look, Measurement, PairTable, Pairwise, Plurality, Rule, Tally, measured, rule_for
from ddsmoothing.counting.contract import DUELS, Request
from ddsmoothing.stateless.counts import own_phis
from ddsmoothing.stateless.offsets import ascended
from ddsmoothing.stateless.tables import table_ascended
from ddsmoothing.streams import SLOT_BLOCKS, Stream

SIGMAS, ALPHA, K = (0.5, 0.7, 1.0, 1.2), 0.001, 10
PILOT, PART, PARTS = 100, 250, 8
RADII = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0)
FIRST, STEP, GROUP = 5, 50, 10
SEED, FIT_IMAGES, FIT_SAMPLES = 20, 1200, 96
L2 = dds.L2Certificate()


def fitted(smoothed: dds.SmoothedClassifier, data: str, path: Path) -> dict[str, object]:
    """Offsets of each sigma, and the slots of tables without and with offsets; fitted on training images."""
    if path.exists():
        return json.loads(path.read_text())
    train = dds.load_data(data, split="train")
    ids = list(range(0, len(train), len(train) // FIT_IMAGES))[:FIT_IMAGES]
    x, y = train[ids]
    own = own_phis(smoothed, x, y, SIGMAS, FIT_SAMPLES, SEED, ids)
    found: dict[str, object] = {"images": len(ids), "samples": FIT_SAMPLES, "offsets": {}, "tables": {}}
    for k, sigma in enumerate(SIGMAS):
        found["offsets"][str(sigma)] = ascended(own.phi[:, k], own.y, float(own.caps[k]), sigma, 1.0, K)
    for weight in (0.5, 1.0, 3.0):
        slots = table_ascended(own, np.arange(K), SIGMAS.index(1.0), 1.0, weight)
        phi = own.phi[np.arange(len(y))[:, None], slots[own.y], np.arange(K)]
        offsets = ascended(phi, own.y, float(own.caps.max()), 1.0, weight, K)
        found["tables"][str(weight)] = {"slots": slots.tolist(), "offsets": offsets}
    path.write_text(json.dumps(found, indent=1))
    return found


def drawn(smoothed: dds.SmoothedClassifier, x: torch.Tensor, ids: list[int], path: Path) -> np.ndarray:
    """``(B, S, 1 + PARTS, K, K)`` duels, votes on the diagonal, from the file as far as it goes."""
    done = list(np.load(path)["counts"]) if path.exists() else []
    for start in range(len(done), len(ids), GROUP):
        batch = smoothed.prepare(x[start : start + GROUP], ids[start : start + GROUP])
        blocks = -(-PART // max(1, 2**17 // batch.d))
        requests = []
        for row in range(len(batch)):
            for k, sigma in enumerate(SIGMAS):
                one = Request(
                    row=row, sigma=sigma, stream=Stream.PILOT, n=PILOT, first_block=k * SLOT_BLOCKS, tally=DUELS
                )
                requests.append(one)
                for part in range(PARTS):
                    first = k * SLOT_BLOCKS + part * blocks
                    requests.append(replace(one, stream=Stream.CERTIFY, n=PART, first_block=first))
        counts = np.stack(smoothed.count(batch, requests, SEED)).astype(np.uint8)
        done += list(counts.reshape(len(batch), len(SIGMAS), 1 + PARTS, K, K))
        np.savez_compressed(path, counts=np.array(done))
        print(f"counted {len(done)}/{len(ids)} images", flush=True)
    return np.array(done).astype(np.int64)


def pilot_of(rule: Rule, counts: np.ndarray, k: int) -> Measurement:
    """What chose the class at one sigma."""
    return replace(measured("pilot", SIGMAS[k], rule.pilot_tally(K), counts), slot=k)


def fresh_of(counts: np.ndarray, k: int, top: int, parts: slice) -> Measurement:
    """The wins of a class on these parts."""
    total = counts[1:][parts].sum(0)
    n = int(total.diagonal().sum())
    wins = total[top].copy()
    wins[top] = n
    return measured("certify", SIGMAS[k], Tally("wins", top), np.stack([total.diagonal(), wins]), slot=k)


def fixed(rule: Rule, k: int, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Predictions and radii of every image at one sigma, all parts."""
    found = []
    for image in counts[:, k]:
        pilot = measured(
            "pilot", SIGMAS[k], Tally(DUELS) if rule.vote == "plurality" else rule.pilot_tally(K), image[0]
        )
        top = rule.choose(pilot)
        fresh = fresh_of(image, k, top, slice(None))
        looks = (Look(fresh.n, rule.counts(fresh, top), ALPHA),)
        found.append(rule.claim_of(top, replace(fresh, looks=looks), L2, ALPHA))
    return np.array([one.prediction for one in found]), np.array([one.radius for one in found])


def pointwise(k_of: np.ndarray, rows: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """For each image the row of the sigma that its pilots chose."""
    at = np.arange(len(k_of))
    return np.stack([row[0] for row in rows])[k_of, at], np.stack([row[1] for row in rows])[k_of, at]


def by_table(table: PairTable, counts: np.ndarray, budget: int) -> tuple[np.ndarray, np.ndarray]:
    """The same for a pair table whose row's sigmas share so many parts; the pilot gives each at least one."""
    found = []
    for image in counts:
        pilots = [pilot_of(table.parts[k], image[k, 0], k) for k in range(len(SIGMAS))]
        top, slots, _ = table.commit(pilots)
        share = table.allocated(pilots, budget * PART, ALPHA)
        parts = dict.fromkeys(slots, 1)
        for _ in range(budget - len(slots)):
            behind = max(slots, key=lambda k: (share[k] - parts[k] * PART, -k))
            parts[behind] += 1
        fresh = [fresh_of(image[k], k, top, slice(0, min(PARTS, m))) for k, m in parts.items()]
        found.append(table.claim(pilots, table.looked(pilots, fresh, ALPHA), L2, ALPHA))
    return np.array([one.prediction for one in found]), np.array([one.radius for one in found])


def main() -> None:
    """Count, then print a row for each rule."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="fashion-mnist:/usr/share/datasets/fashion-mnist")
    parser.add_argument("--folder", type=Path, default=Path(__file__).parent / "results" / "stateless")
    parser.add_argument("--images", type=int, default=200)
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    smoothed = dds.SmoothedClassifier(dds.load_model("fashion-mnist-cnn"), L2, num_classes=K, block_size=256)
    test = dds.load_data(args.data, split="test")
    ids = [FIRST + STEP * i for i in range(args.images)]
    x, labels = test[ids]
    y = labels.numpy()
    fit = fitted(smoothed, args.data, args.folder / "fitted.json")
    counts = drawn(smoothed, x, ids, args.folder / "counts.npz")
    caps = [float(L2.estimate(np.array(sigma), np.array(ALPHA ** (1.0 / (PARTS * PART))))) for sigma in SIGMAS]
    rows: dict[str, tuple[int, tuple[np.ndarray, np.ndarray]]] = {}
    total = PILOT + PARTS * PART
    kinds: dict[str, list[Rule]] = {
        "one-class": [Plurality()] * len(SIGMAS),
        "pairwise": [Pairwise()] * len(SIGMAS),
        "pairwise + offsets": [rule_for("pairwise", offsets=fit["offsets"][str(sigma)]) for sigma in SIGMAS],
    }
    for name, rules in kinds.items():
        for k, (sigma, rule) in enumerate(zip(SIGMAS, rules, strict=True)):
            answers, radii = fixed(rule, k, counts)
            rows[f"{name}, sigma {sigma}"] = (total, (answers, np.minimum(radii, caps[k])))
    budget = PARTS - (len(SIGMAS) - 1) * PILOT // PART  # the pilots at the other sigmas cost as much as a part or more
    for weight, one in fit["tables"].items():
        for name, offsets in (("pair table", None), ("pair table + offsets", tuple(one["offsets"]))):
            slots = tuple(map(tuple, one["slots"]))
            table = PairTable(sigmas=SIGMAS, slots=slots, groups=tuple(range(K)), offsets=offsets)
            cost = len(SIGMAS) * PILOT + budget * PART
            answers, radii = by_table(table, counts, budget)
            rows[f"{name}, weight {weight}"] = (cost, (answers, np.minimum(radii, caps[-1])))
    pilots = counts[:, :, 0]
    supports = np.where(np.eye(K, dtype=bool), PILOT, pilots).min(3)  # (B, S, K) fewest wins of each class
    anchor = supports[:, SIGMAS.index(1.0)].argmax(1)
    shares = (supports[np.arange(len(ids)), :, anchor] + 0.5) / (PILOT + 1.0)
    best = L2.estimate(np.array(SIGMAS), shares).argmax(1)
    for name in ("one-class", "pairwise"):
        chosen = [rows[f"{name}, sigma {sigma}"][1] for sigma in SIGMAS]
        rows[f"pointwise {name} (another level)"] = (len(SIGMAS) * PILOT + PARTS * PART, pointwise(best, chosen))
    print(f"{len(ids)} images, alpha {ALPHA}\n")
    print("| rule | forwards | ACR | abstained | wrong | shirts right |" + "".join(f" {r:g} |" for r in RADII))
    print("|---|" + "---:|" * (5 + len(RADII)))
    for name, (cost, (prediction, radius)) in rows.items():
        right = prediction == y
        head = (
            np.where(right, radius, 0.0).mean(),
            (prediction < 0).mean(),
            ((prediction >= 0) & ~right).mean(),
            right[y == 6].mean(),
        )
        shares = "".join(f" {(right & (radius > r)).mean():.3f} |" for r in RADII)
        print(f"| {name} | {cost:,} |" + "".join(f" {value:.3f} |" for value in head) + shares)
    reference = max((f"pairwise, sigma {s}" for s in SIGMAS), key=lambda key: _radii(rows[key][1], y).mean())
    print(f"\nPaired bootstrap of the mean radius against {reference}, 95 %:\n")
    rng = np.random.default_rng(0)
    for name, (_, row) in rows.items():
        gap = _radii(row, y) - _radii(rows[reference][1], y)
        means = gap[rng.integers(0, len(gap), (4000, len(gap)))].mean(1)
        low, high = np.quantile(means, [0.025, 0.975])
        print(f"- {name}: {gap.mean():+.3f} [{low:+.3f}, {high:+.3f}]")


def _radii(row: tuple[np.ndarray, np.ndarray], y: np.ndarray) -> np.ndarray:
    return np.where(row[0] == y, row[1], 0.0)


if __name__ == "__main__":
    main()
