"""How time and memory grow: against n, the number of inputs, d and K.

    python benchmarks/scaling.py

Each line is a process of its own, so that its peak memory is its own. The model is one linear layer, so that what is
seen is the package's own cost; time should grow in proportion to n and to the number of inputs, and memory not at all
with n.
"""

from __future__ import annotations

import json
import subprocess
import sys

ONE = """
import json, resource, sys, time
import torch
import ddsmoothing as dds
inputs, d, classes, n = (int(word) for word in sys.argv[1:])
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(d, classes)).eval()
x = torch.randint(0, 256, (inputs, d), dtype=torch.uint8)
smoothed = dds.SmoothedClassifier(model, dds.L2Certificate(), num_classes=classes)
smoothed.certify(x[:1], 0.25, n0=10, n=200, seed=0)
start = time.perf_counter()
smoothed.certify(x, 0.25, n0=100, n=n, seed=0)
seconds = time.perf_counter() - start
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(json.dumps({"seconds": seconds, "rate": inputs * (n + 100) / seconds, "peak": peak}))
"""
AXES = {
    "n": [(1, 784, 10, n) for n in (10_000, 100_000, 1_000_000)],
    "inputs": [(b, 784, 10, 10_000) for b in (1, 10, 100)],
    "d": [(4, d, 10, 10_000) for d in (20, 784, 3_072, 12_288)] + [(1, 150_528, 10, 1_000)],
    "K": [(10, 784, k, 10_000) for k in (2, 100, 1_000)],
}


def main() -> None:
    """Print a line for each point."""
    for axis, points in AXES.items():
        print(f"against {axis}")
        for inputs, d, classes, n in points:
            command = [sys.executable, "-c", ONE, *map(str, (inputs, d, classes, n))]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            found = json.loads(done.stdout)
            print(
                f"  {inputs:4} inputs  d={d:<7,} K={classes:<5} n={n:<9,} {found['seconds']:8.2f} s "
                f"{found['rate']:11,.0f} samples/s {found['peak']:7.0f} MB peak",
                flush=True,
            )


if __name__ == "__main__":
    main()
