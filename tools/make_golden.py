"""Make one small file of every kind that the package writes and reads again: ``tests/golden/schemaN``.

    python tools/make_golden.py

N is the schema of run folders that today's code writes. The files are made once, before a release, and then kept:
``tests/test_golden.py`` reads those of every N with the code of its day. ``expected.json`` holds what they say.
"""

from __future__ import annotations

import gzip
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch

import ddsmoothing as dds
from ddsmoothing.cli import app, main
from ddsmoothing.memory import Store
from ddsmoothing.models import ModelSpec, save_model
from ddsmoothing.runs.schema import SCHEMA_VERSION
from ddsmoothing.sigma import load_sigmas
from ddsmoothing.stateless.files import load_offsets, load_pairs
from ddsmoothing.training import train
from ddsmoothing.training.checkpoint import load_checkpoint

ROOT = Path(__file__).parents[1]
GOLDEN = ROOT / "tests" / "golden" / f"schema{SCHEMA_VERSION}"
TAKEN = ("--model", "fashion-mnist-cnn", "--data", "fashion-mnist-sample", "--skip", "250")
VOTES = any(option.name == "vote" for option in app.commands["certify"].params)
RUNS = {
    "fixed": ("--sigma", "0.5", "--n0", "20", "--n", "200"),
    "chosen": ("--data-dependent", "--n-max", "1000"),
    "two-class": ("--norm", "l1", "--lambda", "0.8", "--n0", "20", "--n", "200", "--bound", "two-class"),
    "randomized": ("--sigma", "0.25", "--n0", "20", "--n", "200", "--randomized"),
    "target": ("--sigma", "0.5", "--radii", "0.25,0.5"),
    "offsets": ("--sigma", "0.5", "--n-max", "500", "--offsets", "offsets.json", "--allow-seen"),
}
FITTED = ("--model", "fashion-mnist-cnn", "--data", "fashion-mnist-sample", "--skip", "5", "--n", "32")


def command(*args: str) -> None:
    """One command line that has to succeed."""
    if main(list(args)) != 0:
        raise SystemExit(f"failed: ddsmoothing {' '.join(args)}")


def make_fits() -> None:
    """Class offsets and a pair table."""
    rest = ("--samples", "200", "--seed", "6", "--block-size", "64")
    command("offsets", "fit", *FITTED, *rest, "--sigma", "0.5", "--out", "offsets.json")
    command(
        "pairs", "fit", *FITTED, *rest, "--sigmas", "0.35,0.5", "--n0", "20", "--with-offsets", "--out", "pairs.json"
    )


def make_runs() -> None:
    """Runs of every sampler and bound, a memory, a sigma file and a card, in the working directory."""
    for seed, (name, options) in enumerate(RUNS.items()):
        vote = ("--vote", "plurality") if VOTES and name == "two-class" else ()
        fixed = ("--seed", str(seed), "--block-size", "64", "--no-preflight", "--out", name)
        command("certify", *TAKEN, *options, *vote, *fixed)
    data = ("--data", "fashion-mnist-sample")
    command("memory", "apply", "chosen", *data, "--store", "regions.memory", "--delta", "0.001", "--out", "memory")
    command("memory", "seal", "regions.memory")
    command("optimize", *TAKEN, "--n", "1000", "--seed", "9", "--out", "sigmas.json")
    command("card", "chosen", "--out", "card.json", "--markdown", "card.md")


def make_training() -> None:
    """A checkpoint of a training run, and a model's file."""
    sys.path.insert(0, str(ROOT / "tests"))
    from training_helpers import MOVING, toy_config, toy_data, toy_model

    config = toy_config(epochs=1, data_dependent=MOVING)
    train(config, "trained", model=toy_model(), data=toy_data(), test=toy_data(12, split="test"), device="cpu")
    Path("trained/checkpoint.safetensors").rename("checkpoint.safetensors")
    for left in Path("trained").iterdir():
        left.unlink()
    Path("trained").rmdir()
    spec = ModelSpec(
        arch="training_helpers:toy_model",
        **{"classes": ("left", "middle", "right"), "mean": (), "std": (), "input_shape": (1, 6, 6)},
        training_sigmas=(0.1, 0.4),
    )
    save_model(toy_model(), spec, Path("model.safetensors"))


def said() -> dict[str, Any]:
    """What the files say, read by the code that made them."""
    runs = {}
    for name in (*RUNS, "memory"):
        run = dds.load_run(name)
        runs[name] = {
            **{"ids": run.ids.tolist(), "prediction": run.prediction.tolist(), "label": run.label.tolist()},
            **{"radius": run.radius.tolist(), "sigma": run.sigma.tolist(), "p_lower": run.p_lower.tolist()},
            **{"correct": run.correct.tolist(), "level": run.header.level, "alpha": run.header.alpha},
            **{"seed": run.header.seed, "samples": [row.samples for row in run.rows]},
            "certified_accuracy": dds.certified_accuracy(run, [0.0, 0.25, 0.5]).tolist(),
        }
    store = Store.open(Path("regions.memory"))
    regions = [{"class": one.label, "radius": one.radius} for one in store.regions()]
    state = load_checkpoint(Path("checkpoint.safetensors"))
    model = dds.load_model("model.safetensors", arch="training_helpers:toy_model")
    image, (pairs, _) = torch.linspace(0, 1, 36).reshape(1, 1, 6, 6), load_pairs("pairs.json")
    return {
        "runs": runs,
        "memory": {"sealed": store.sealed, "attempts": store.attempts, "regions": regions},
        "offsets": list(load_offsets("offsets.json")[0].offsets),
        "pairs": {
            **{"sigmas": list(pairs.sigmas), "slots": [list(row) for row in pairs.slots], "pays": pairs.pays},
            "fixed": [one.sigma for one in pairs.fixed],
        },
        "sigmas": {str(i): sigma for i, sigma in load_sigmas("sigmas.json").sigma.items()},
        "checkpoint": {"epoch": state.position.epoch, "sigma": state.sigma.tolist()},
        "model": model(image).squeeze(0).tolist(),
    }


if __name__ == "__main__":
    if GOLDEN.exists():
        raise SystemExit(f"{GOLDEN} is there; such files are kept as they are.")
    GOLDEN.mkdir(parents=True)
    os.chdir(GOLDEN)
    make_fits()
    make_runs()
    make_training()
    Path("expected.json").write_text(json.dumps(said(), indent=1) + "\n")
    memory = Path("regions.memory")  # mostly empty pages
    Path("regions.memory.gz").write_bytes(gzip.compress(memory.read_bytes(), mtime=0))
    memory.unlink()
    for lock in Path().rglob("lock"):
        lock.unlink()
