"""CAT-RS: its loss against plain Python, its attack against finite differences; wrong variants are rejected."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from scipy.stats import binom, chisquare
from torch import nn

from ddsmoothing.errors import ModelError
from ddsmoothing.training.baselines import FromFile, Own, Samples, Teacher
from ddsmoothing.training.catrs import catrs, divergence, moved_noise, smallest
from ddsmoothing.training.keyed import Purpose, binomial, keys, normal

D = 12


class Net(nn.Module):
    """A smooth model of inputs ``(B, D)`` to three logits, which remembers its modes and whether it was frozen."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.w = nn.Parameter(torch.randn(D, 3, generator=generator, dtype=torch.float64))
        self.modes: list[tuple[bool, bool]] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.modes.append((self.training, self.w.requires_grad))
        return torch.tanh(x) @ self.w


def batch(size: int = 3, m: int = 4, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Inputs, noise of each input's own sigma, those sigmas, and smoothed predictions."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(size, D, generator=generator, dtype=torch.float64)
    sigma = torch.tensor([0.2, 0.5, 1.5], dtype=torch.float64)[:size]
    noise = torch.randn(size, m, D, generator=generator, dtype=torch.float64) * sigma[:, None, None]
    target = torch.rand(size, 3, generator=generator, dtype=torch.float64) + 0.1
    return x, noise, sigma, target / target.sum(1, keepdim=True)


# the loss


def log_softmax(row: list[float]) -> list[float]:
    total = math.log(sum(math.exp(z) for z in row))
    return [z - total for z in row]


def by_hand(
    logits: list[list[list[float]]],
    y: list[int],
    kept: list[int],
    target: list[list[float]],
    sigma: list[float],
    weight: float,
    largest: bool = False,
) -> float:
    """The formula for logits [input][copy][class] without an attack, in plain Python."""
    total = 0.0
    for rows, label, k, p, s in zip(logits, y, kept, target, sigma, strict=True):
        losses = sorted((-log_softmax(row)[label] for row in rows), reverse=largest)
        total += sum(losses[:k]) / len(rows)
        if k == len(rows):
            total += (
                weight
                * s
                * max(sum(a * (math.log(a) - b) for a, b in zip(p, log_softmax(row), strict=True)) for row in rows)
            )
    return total / len(y)


def loss_of(kept: list[int], sigma: list[float], weight: float) -> tuple[float, dict[str, Any]]:
    _, noise, _, target = batch()
    logits, y = noise[:, :, :3], torch.tensor([0, 2, 1])
    found = catrs(
        lambda z: z,
        torch.zeros(3, 3, dtype=torch.float64),
        y,
        logits,
        torch.tensor(sigma),
        attacked=lambda z: z,
        draw=lambda share: torch.tensor(kept),
        predict=lambda rows, _: target[rows],
        weight=weight,
        epsilon=1.0,
        steps=0,
    )
    case = {"logits": logits.tolist(), "y": y.tolist(), "target": target.tolist(), "sigma": sigma, "weight": weight}
    return float(found.value), case


@pytest.mark.parametrize("kept", [[1, 2, 3], [4, 1, 2], [4, 4, 4], [2, 2, 2]])
def test_the_loss_is_what_the_paper_says(kept: list[int]) -> None:
    for sigma, weight in (([0.25, 0.25, 0.25], 2.0), ([0.1, 0.5, 2.0], 2.0), ([1.0, 1.0, 1.0], 0.0)):
        found, case = loss_of(kept, sigma, weight)
        assert found == pytest.approx(by_hand(kept=kept, **case), rel=1e-9)
        if max(kept) < 4 or min(kept) < 4:  # the largest in place of the smallest is another loss, and rejected
            assert found != pytest.approx(by_hand(kept=kept, largest=True, **case), rel=1e-3)


def test_at_the_papers_sigmas_lambda_is_the_papers() -> None:
    for sigma, weight in ((0.25, 0.5), (0.5, 1.0), (1.0, 2.0)):
        found, case = loss_of([4, 4, 4], [sigma] * 3, 2.0)
        assert found == pytest.approx(
            by_hand(kept=[4, 4, 4], **{**case, "sigma": [1.0] * 3, "weight": weight}), rel=1e-9
        )


def test_the_k_smallest_are_summed_and_divided_by_m() -> None:
    losses = torch.tensor([[3.0, 1.0, 2.0, 5.0], [4.0, 4.0, 1.0, 2.0]])
    assert smallest(losses, torch.tensor([1, 3])).tolist() == pytest.approx([1 / 4, 7 / 4])
    assert smallest(losses, torch.tensor([4, 4])).tolist() == pytest.approx([11 / 4, 11 / 4])
    infinite = torch.tensor([[1.0, torch.inf]], requires_grad=True)
    value = smallest(infinite, torch.tensor([1]))
    assert float(value.detach()) == 0.5
    (gradient,) = torch.autograd.grad(value.sum(), infinite)
    assert gradient.tolist() == [[0.5, 0.0]]


def test_the_divergence_is_that_from_the_prediction_and_takes_zeros() -> None:
    logits = torch.tensor([[[1.0, 0.0, -1.0], [0.0, 3.0, 0.0]]], dtype=torch.float64)
    target = torch.tensor([[0.75, 0.25, 0.0]], dtype=torch.float64)
    p = logits.softmax(2)[0]
    expected = [sum(a * math.log(a / b) for a, b in zip([0.75, 0.25], row.tolist(), strict=False)) for row in p]
    assert divergence(target, logits)[0].tolist() == pytest.approx(expected)


def test_the_share_of_right_copies_or_the_prediction_decides_and_one_copy_is_always_kept() -> None:
    x, noise, sigma, target = batch()
    net, seen = Net(), []
    y = net(x).argmax(1)

    def draw(share: torch.Tensor) -> torch.Tensor:
        seen.append(share)
        return torch.zeros(3, dtype=torch.int64)

    options: dict[str, Any] = {"attacked": net, "draw": draw, "predict": lambda rows, _: target[rows]}
    options |= {"weight": 2.0, "epsilon": 1.0, "steps": 2}
    loss = catrs(net, x, y, noise, sigma, **options)
    votes = net((x[:, None] + noise).flatten(0, 1)).argmax(1).reshape(3, 4)
    assert seen[0].tolist() == (votes == y[:, None]).double().mean(1).tolist()
    single = nn.functional.cross_entropy(
        net((x[:, None] + noise).flatten(0, 1)), y.repeat_interleave(4), reduction="none"
    ).reshape(3, 4)
    assert float(loss.value.detach()) == pytest.approx(float(single.amin(1).mean().detach()) / 4)
    catrs(net, x, y, noise, sigma, by_prediction=True, **options)
    assert torch.equal(seen[1], target.gather(1, y[:, None])[:, 0])


def test_the_loss_has_the_gradient_of_its_value() -> None:
    x, noise, sigma, target = batch()
    y = torch.tensor([0, 2, 1])

    def value(w: torch.Tensor) -> torch.Tensor:
        return catrs(
            lambda z: torch.tanh(z) @ w,
            x,
            y,
            noise,
            sigma,
            attacked=lambda z: torch.tanh(z) @ w,
            draw=lambda share: torch.tensor([4, 2, 4]),
            predict=lambda rows, _: target[rows],
            weight=2.0,
            epsilon=1.0,
            steps=0,
        ).value

    w = Net().w.detach().clone().requires_grad_(True)
    assert torch.autograd.gradcheck(value, w)


# the attack


def moments(noise: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return noise.mean(-1), noise.std(-1, correction=0)


def keeps_moments(attack: Callable[..., torch.Tensor]) -> bool:
    """Does noise that was moved look as the noise of its own input did: its mean and standard deviation?"""
    x, noise, sigma, target = batch()
    moved = attack(Net(), x, noise, sigma, target, epsilon=1.0, steps=4)
    return all(torch.allclose(a, b, atol=1e-9) for a, b in zip(moments(moved), moments(noise), strict=True))


def not_renormalised(
    model: Net,
    x: torch.Tensor,
    noise: torch.Tensor,
    _: torch.Tensor,
    target: torch.Tensor,
    *,
    epsilon: float,
    steps: int,
) -> torch.Tensor:
    moved = noise
    for _step in range(steps):
        moved = moved.detach().requires_grad_(True)
        (g,) = torch.autograd.grad(
            divergence(target, model((x[:, None] + moved).flatten(0, 1)).reshape(*noise.shape[:2], 3)).sum(), moved
        )
        away = moved.detach() + g / g.norm(dim=-1, keepdim=True) * 2 * epsilon / steps - noise
        moved = noise + away * (epsilon / away.norm(dim=-1, keepdim=True)).clamp_max(1)
    return moved.detach()


def renormalised_to_other_sigmas(
    model: Net, x: torch.Tensor, noise: torch.Tensor, *rest: Any, **how: Any
) -> torch.Tensor:
    """Sigmas tiled against interleaved copies: the moved noise is scaled to that of another input."""
    moved = moved_noise(model, x, noise, *rest, **how)
    mean, std = (value.flatten().reshape(noise.shape[1], -1).T[..., None] for value in moments(noise))
    return (moved - moved.mean(-1, keepdim=True)) / moved.std(-1, keepdim=True, correction=0) * std + mean


def test_the_moved_noise_has_the_moments_of_its_own_copy_and_wrong_variants_are_rejected() -> None:
    assert keeps_moments(moved_noise)
    assert not keeps_moments(not_renormalised)
    assert not keeps_moments(renormalised_to_other_sigmas)


def test_one_step_goes_along_the_gradient_of_the_divergence_of_each_copy() -> None:
    """The direction by finite differences; then the shift and scale back, as written in the paper."""
    x, noise, sigma, target = batch(size=2, m=2)
    net = Net()

    def distance(moved: torch.Tensor) -> float:
        logits = net((x[:, None] + moved).flatten(0, 1)).detach().reshape(2, 2, 3)
        return float((target[:, None] * (target[:, None].log() - logits.log_softmax(2))).sum(2).mean(1).sum())

    slope = torch.zeros_like(noise)
    for place in range(noise.numel()):
        step = torch.zeros_like(noise).flatten()
        step[place] = 1e-5
        step = step.reshape(noise.shape)
        slope.view(-1)[place] = (distance(noise + step) - distance(noise - step)) / 2e-5
    unit = slope / slope.norm(dim=-1, keepdim=True)
    for epsilon in (0.1, 0.5):
        away = noise + epsilon * unit  # the step is 2 epsilon long, and is cut to the ball
        mean, std = (value[..., None] for value in moments(noise))
        expected = (away - away.mean(-1, keepdim=True)) / away.std(-1, keepdim=True, correction=0) * std + mean
        found = moved_noise(net, x, noise, sigma, target, epsilon=epsilon, steps=1)
        assert torch.allclose(found, expected, atol=1e-6)
        assert distance(found) > distance(noise)


def test_more_steps_find_worse_noise_within_the_ball_but_for_the_scaling() -> None:
    x, noise, sigma, target = batch()
    net = Net()

    def far(moved: torch.Tensor) -> torch.Tensor:
        return divergence(target, net((x[:, None] + moved).flatten(0, 1)).reshape(3, 4, 3)).mean(1).detach()

    found = moved_noise(net, x, noise, sigma, target, epsilon=0.5, steps=4)
    assert bool((far(found) > far(noise)).all())
    assert float((found - noise).norm(dim=-1).max()) < 0.5 * 1.3
    assert torch.equal(moved_noise(net, x, noise, sigma, target, epsilon=0.5, steps=0), noise)


def test_the_attack_freezes_the_model_in_eval_mode_and_the_loss_sees_it_in_its_own() -> None:
    x, noise, sigma, target = batch()
    net = Net().train()
    catrs(
        net,
        x,
        torch.tensor([0, 1, 2]),
        noise,
        sigma,
        attacked=net,
        draw=lambda share: torch.tensor([4, 1, 4]),
        predict=lambda rows, _: target[rows],
        weight=2.0,
        epsilon=1.0,
        steps=3,
    ).value.backward()
    assert net.modes == [(True, True), *[(False, False)] * 3, (True, True)]
    assert net.w.grad is not None
    assert net.w.requires_grad


def test_no_attack_where_no_input_has_all_copies_right() -> None:
    x, noise, sigma, target = batch()
    net = Net()
    options: dict[str, Any] = {"attacked": net, "draw": lambda share: torch.tensor([3, 1, 2]), "steps": 3}
    catrs(net, x, torch.tensor([0, 1, 2]), noise, sigma, predict=lambda *_: target, weight=2.0, epsilon=1.0, **options)
    assert len(net.modes) == 1


# how many copies are kept


def test_k_is_binomial_and_a_function_of_the_sample() -> None:
    # fixed seed; three tests, each at 1e-4
    ids = torch.arange(20_000)
    for share in (0.25, 0.5, 0.9):
        kept = binomial(keys(1, Purpose.KEPT, 2, 0, ids), 4, torch.full((20_000,), share))
        counts = torch.bincount(kept, minlength=5).numpy()
        assert chisquare(counts, 20_000 * binom(4, share).pmf(range(5))).pvalue > 1e-4
    whole = binomial(keys(1, Purpose.KEPT, 2, 0, ids), 4, torch.full((20_000,), 0.5))
    assert torch.equal(binomial(keys(1, Purpose.KEPT, 2, 0, ids[70:80]), 4, torch.full((10,), 0.5)), whole[70:80])
    sure = binomial(keys(1, Purpose.KEPT, 2, 0, ids), 4, torch.ones(20_000))
    never = binomial(keys(1, Purpose.KEPT, 2, 0, ids), 4, torch.zeros(20_000))
    assert (sure.unique().tolist(), never.unique().tolist()) == ([4], [0])


# where predictions come from


def samples(sigma: torch.Tensor) -> Samples:
    x = torch.rand(3, D, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return Samples(
        ids=torch.tensor([5, 1, 3]), x=x, y=torch.tensor([0, 1, 2]), sigma=sigma, seed=4, epoch=2, weight=1.0
    )


def test_predictions_from_a_file_are_those_of_the_samples_and_sum_to_one() -> None:
    votes = torch.rand(8, 3).softmax(1).half()
    rows = torch.tensor([2, 0])
    found = FromFile(votes).predict(samples(torch.ones(3)), rows, torch.zeros(3, 3))
    assert torch.allclose(found, votes[[3, 5]].float(), atol=1e-3)
    assert torch.allclose(found.sum(1), torch.ones(2), atol=1e-6)


def test_a_teacher_sees_copies_at_each_samples_own_sigma() -> None:
    seen: list[torch.Tensor] = []  # outside the module: the engine may call a replica of it

    class Told(nn.Module):
        takes_sigma = True

        def __init__(self) -> None:
            super().__init__()
            self.net = Net()

        def forward(self, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
            assert not self.training
            seen.extend([x, sigma])
            logits: torch.Tensor = self.net(x)
            return logits

    sigma, teacher = torch.tensor([0.1, 0.5, 2.0]), Told().train()
    given, rows = samples(sigma), torch.tensor([2, 1])
    found = Teacher(teacher, 6).predict(given, rows, torch.zeros(3, 3))
    noise = normal(keys(4, Purpose.TEACHER, 2, 0, torch.tensor([3, 1])), 6, (D,)) * sigma[rows][:, None, None]
    expected = teacher.net((given.x[rows][:, None] + noise).flatten(0, 1)).softmax(1).reshape(2, 6, 3).mean(1)
    assert torch.allclose(found, expected.float(), atol=1e-6)
    assert torch.equal(seen[1], sigma[rows].repeat_interleave(6))
    assert not found.requires_grad
    assert teacher.training


def test_own_votes_start_with_the_first_and_then_move() -> None:
    own = Own(8, 3, 0.75, torch.device("cpu"))
    given = samples(torch.ones(3))
    first, second = torch.eye(3), torch.full((3, 3), 1 / 3)
    every = torch.arange(3)
    assert torch.equal(own.predict(given, every, first), first)
    own.remember(given.ids, first)
    mixed = 0.75 * first + 0.25 * second
    assert torch.allclose(own.predict(given, torch.tensor([1]), second), mixed[1:2])
    own.remember(given.ids, second)
    assert torch.allclose(own.table.values[[5, 1, 3]], mixed)
    assert not bool(own.table.values[[0, 2, 4, 6, 7]].any())
    with pytest.raises(ModelError, match="num_classes is 3"):
        own.predict(given, every, torch.full((3, 4), 0.25))
