"""Workers on Ray: one against two on this machine, the cost of a task, and a simulation of up to 512 workers.

Measured: samples a second of a ResNet-18 on 32 x 32 images with one worker and with two, in turns, one thread each; the
driver's time for a task and for each piece in it, with a model that does nothing. Simulated: the scheduling code itself
(``executors/ledger.py``) in discrete events, with the measured task times and driver times, for the search and the
certification of a run. It takes about three minutes on two quiet cores; ``--seconds 5`` shortens the measurement.
"""

from __future__ import annotations

import argparse
import heapq
import math
import random
import statistics
import time
from collections.abc import Iterator
from itertools import count
from unittest import mock

import numpy as np
import torch
import torchvision

import ddsmoothing as dds
from ddsmoothing.counting import ledger as policy
from ddsmoothing.counting.contract import Request
from ddsmoothing.counting.ledger import IN_HAND, Ledger, Pace, Task
from ddsmoothing.counting.on_ray import RayWorkers
from ddsmoothing.plan import SearchPlan

BLOCK = 42  # rows of one forward pass: one noise block of 3,072 numbers, so that tasks can be small
D = 3 * 32 * 32
ROUNDS = 3
START_SECONDS = 10.0  # of a worker that replaces a lost one
GROUPS = 1  # of inputs, in the simulation
LATENCY = 0.001  # seconds from the driver to a worker and back, in the simulation


def resnet18() -> torch.nn.Module:
    """A ResNet-18 in its form for 32 x 32 images; 0.56 GMAC a sample."""
    torch.manual_seed(0)
    model = torchvision.models.resnet18(num_classes=10)
    model.conv1, model.maxpool = torch.nn.Conv2d(3, 64, 3, 1, 1, bias=False), torch.nn.Identity()
    return model.eval()


class Nothing(torch.nn.Module):
    """Logits without a computation."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1)[:, :10]


def one_against_two(one: RayWorkers, two: RayWorkers, seconds: float) -> list[tuple[int, float]]:
    """Print rates in turns; returns samples and seconds of all tasks with two workers."""
    smoothed = dds.SmoothedClassifier(resnet18(), dds.L2Certificate(), num_classes=10, block_size=BLOCK)
    batch, tasks = smoothed.prepare(torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)), []
    learn = Pace.learn

    def note(pace: Pace, samples: int, taken: float) -> None:
        tasks.append((samples, taken))
        learn(pace, samples, taken)

    def rate(workers: RayWorkers, n: int) -> float:
        requests = [Request(row=row, sigma=0.5, stream=1, n=n // 4) for row in range(4)]
        start = time.perf_counter()
        smoothed.with_workers(workers).count(batch, requests, 0)
        return 4 * (n // 4) / (time.perf_counter() - start)

    n = int(seconds * rate(one, 8 * BLOCK))  # also warms up
    n = int(seconds * rate(one, n))
    rate(two, n)
    found = []
    with mock.patch.object(Pace, "learn", note):
        for _ in range(ROUNDS):
            before = len(tasks)
            alone = rate(one, n)
            del tasks[before:]
            found.append((alone, rate(two, n)))
    print(f"ResNet-18, {D} numbers, passes of {BLOCK}, {n} samples a time, one thread a worker", flush=True)
    print("   1 worker  2 workers  ratio")
    for a, b in found:
        print(f"{a:9.1f}/s {b:8.1f}/s  {b / a:5.2f}", flush=True)
    print(f"median ratio {statistics.median(b / a for a, b in found):.2f}")
    return tasks


def driver_costs(workers: RayWorkers) -> tuple[float, float, float]:
    """Driver's processor seconds for a task and for a piece in one, and wall seconds of a task by turns."""
    empty = dds.SmoothedClassifier(Nothing(), dds.L2Certificate(), num_classes=10, block_size=1)
    batch = empty.prepare(torch.zeros(1, 16))
    found = {}
    for pieces in (1, 64):
        there = empty.with_block_size(pieces).with_workers(workers)
        requests = [Request(row=0, sigma=0.5, stream=1, n=1, first_block=i) for i in range(1500 * min(pieces, 8))]
        tasks = len(requests) / pieces
        with mock.patch.object(policy, "TASK_SECONDS", 0.0), mock.patch.object(policy, "SPREAD", 1e9):
            there.count(batch, requests[: 20 * pieces], 0)
            start, used = time.perf_counter(), time.process_time()
            there.count(batch, requests, 0)
            found[pieces] = ((time.process_time() - used) / tasks, (time.perf_counter() - start) / tasks)
    piece = max(0.0, (found[64][0] - found[1][0]) / 63)
    task = found[1][0] - piece
    print(f"driver: {1e3 * task:.2f} ms a task and {1e6 * piece:.0f} us a piece; ", end="")
    print(f"{1e3 * found[1][1]:.2f} ms of wall time a task with an empty model", flush=True)
    return task, piece, found[1][1]


class Simulation:
    """A cluster in discrete events. Workers compute side by side; the driver handles one thing at a time.

    Args:
        workers: how many.   rate: samples a second of one.   jitter: factors on its times.
        costs: driver's seconds for a task and for a piece in one.
        slow: share of the workers that take four times as long.   mtbf: seconds between losses of one worker.
    """

    def __init__(
        self, workers: int, rate: float, jitter: list[float], costs: tuple[float, float], slow: float, mtbf: float
    ) -> None:
        self.random = random.Random(workers)
        self.rates = [rate / (4.0 if i < slow * workers else 1.0) for i in range(workers)]
        self.jitter, self.costs, self.mtbf = jitter, costs, mtbf
        self.paces = [Pace() for _ in range(workers)]
        self.hands: list[list[Task]] = [[] for _ in range(workers)]  # as the driver sees them
        self.queues: list[list[Task]] = [[] for _ in range(workers)]  # as they are; the first one is in work
        self.up, self.epoch = [True] * workers, [0] * workers
        self.now = self.driver = self.driven = 0.0
        self.losses = 0
        self.events: list[tuple[float, int, str, int, int, Task | None, float]] = []
        self.order = count()
        for worker in range(workers):
            self._fail(worker)

    def _at(self, when: float, kind: str, worker: int, task: Task | None = None, seconds: float = 0.0) -> None:
        epoch = self.epoch[worker]
        heapq.heappush(self.events, (when, next(self.order), kind, worker, epoch, task, seconds))

    def _fail(self, worker: int) -> None:
        if self.mtbf < math.inf:
            self._at(self.now + self.random.expovariate(1.0 / self.mtbf), "lost", worker)

    def _drive(self, task: Task) -> float:
        """The driver is busy with a task; returns when it is done with it. Half is for sending, half for settling."""
        seconds = (self.costs[0] + self.costs[1] * len(task.parts)) / 2
        self.driver, self.driven = max(self.driver, self.now) + seconds, self.driven + seconds
        return self.driver

    def _work(self, worker: int, when: float) -> None:
        task = self.queues[worker][0]
        rows = -(-task.samples // BLOCK) * BLOCK
        seconds = rows / self.rates[worker] * self.random.choice(self.jitter)
        self._at(when + seconds, "done", worker, task, seconds)

    def _send(self, ledger: Ledger, worker: int, most: int) -> None:
        hand = self.hands[worker]
        while self.up[worker] and len(hand) < most:
            in_hand = sum(task.samples for task in hand)
            task = ledger.lend(self.paces[worker], in_hand, sum(self.up), self.now)
            if task is None:
                return
            hand.append(task)
            self.queues[worker].append(task)
            arrives = self._drive(task) + LATENCY
            if len(self.queues[worker]) == 1:
                self._work(worker, arrives)

    def _send_all(self, ledger: Ledger) -> None:
        for most in range(1, IN_HAND + 1):
            for worker in range(len(self.up)):
                self._send(ledger, worker, most)

    def call(self, requests: list[Request]) -> None:
        """One call of ``count``: it ends when everything that was asked for is there."""
        ledger = Ledger(D, requests, 1, BLOCK)
        self._send_all(ledger)
        poll = self.now + 1.0
        while not ledger.finished:
            self.now, _, kind, worker, epoch, task, seconds = heapq.heappop(self.events)
            if epoch != self.epoch[worker]:
                continue
            if kind == "done" and task is not None:
                self.queues[worker].pop(0)
                if self.queues[worker]:
                    self._work(worker, self.now)
                self._at(self._drive(task) + LATENCY, "back", worker, task, seconds)
            elif kind == "back" and task is not None:
                self.hands[worker].remove(task)
                self.paces[worker].learn(task.samples, seconds)
                ledger.settle(task, np.zeros((len(task.parts), 1), dtype=np.int64))
                self._send(ledger, worker, IN_HAND)
            elif kind == "lost":
                self._lose(ledger, worker)
            elif kind == "ready":
                self.up[worker] = True
                self._fail(worker)
                self._send(ledger, worker, IN_HAND)
            if self.now >= poll:  # late tasks
                poll = self.now + 1.0
                self._send_all(ledger)

    def _lose(self, ledger: Ledger, worker: int) -> None:
        self.losses += 1
        self.epoch[worker] += 1
        self.up[worker], self.paces[worker] = False, Pace()
        for task in self.hands[worker]:
            ledger.lost(task)
        self.hands[worker], self.queues[worker] = [], []
        self._at(self.now + START_SECONDS, "ready", worker)
        self._send_all(ledger)


def calls_of(inputs: int, n: int) -> Iterator[list[Request]]:
    """The calls of one group of a data-dependent run: search round by round, then certification, in units of a run."""
    plan = SearchPlan()
    for width, n_each in [(1, plan.pilot), *zip(plan.widths, plan.samples, strict=True)]:
        yield [Request(row=row, sigma=0.5, stream=2, n=n_each) for row in range(inputs) for _ in range(width)]
    rows = 2 * BLOCK // (2**17 // D) * (2**17 // D)
    yield [
        Request(row=row, sigma=0.5, stream=1, n=min(rows, n - start), first_block=start)
        for row in range(inputs)
        for start in range(0, n, rows)
    ]


def simulate(workers: int, group: int, rate: float, jitter: list[float], costs: tuple[float, float]) -> None:
    """Print the efficiency of some groups of a run: samples of all, over what the workers could have counted."""
    line = f"{workers:7} {group:6}"
    for slow, mtbf in ((0.0, math.inf), (0.1, math.inf), (0.0, 600.0), (0.1, 600.0)):
        simulation, samples = Simulation(workers, rate, jitter, costs, slow, mtbf), 0
        for _ in range(GROUPS):
            for requests in calls_of(group, 10_100):
                samples += sum(request.n for request in requests)
                simulation.call(requests)
        could = simulation.now * sum(simulation.rates)
        line += f" {samples / could:10.0%}"
    print(f"{line}   {simulation.driven / simulation.now:6.1%} {simulation.losses:7}", flush=True)


def main() -> None:
    """Measure, then simulate."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=15.0, help="of one measurement with one worker")
    seconds = parser.parse_args().seconds
    import ray

    ray.init(num_cpus=3, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        with RayWorkers(workers=1) as one, RayWorkers(workers=2) as two:
            tasks = one_against_two(one, two, seconds)
            task, piece, _ = driver_costs(two)
    finally:
        ray.shutdown()
    full = [(samples, taken) for samples, taken in tasks if 2 * samples >= max(s for s, _ in tasks)]
    rate = sum(s for s, _ in full) / sum(t for _, t in full)
    jitter = [taken * rate / samples for samples, taken in full]
    spread = statistics.pstdev(jitter)
    print(f"simulated: {rate:.0f} samples/s a worker, times +-{spread:.0%}, n=10,000, search and certification;")
    print("efficiency; slow: a tenth of the workers takes four times as long; lost: each once in 10 minutes on average")
    print("workers  group      plain       slow       lost       both   driver  losses")
    for workers in (8, 64, 512):
        for group in sorted({64, max(64, 2 * workers)}):
            simulate(workers, group, rate, jitter, (task, piece))


if __name__ == "__main__":
    main()
