from __future__ import annotations

import math
from statistics import NormalDist

import pytest
import torch
from torch import nn

from ddsmoothing.attacks import Attack, eot_pgd
from ddsmoothing.certificate import L2Certificate
from ddsmoothing.errors import InputError, ModelError
from ddsmoothing.models.unet import edm_weight
from ddsmoothing.training.catrs import catrs
from ddsmoothing.training.objectives import consistency, denoiser, gaussian, macer, scaled, smoothadv

PHI = NormalDist().inv_cdf
ONES = torch.ones(3)


class Recorder(nn.Module):
    """A smooth model of inputs ``(B, d)`` that remembers what it was given and in which mode."""

    def __init__(self, d: int = 4, classes: int = 3) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        self.w = nn.Parameter(torch.randn(d, classes, generator=generator, dtype=torch.float64))
        self.norm = nn.BatchNorm1d(d, dtype=torch.float64)
        self.seen: list[torch.Tensor] = []
        self.modes: list[bool] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.append(x.detach().clone())
        self.modes.append(self.training)
        return torch.tanh(2 * x) @ self.w


def identity(x: torch.Tensor) -> torch.Tensor:
    """Inputs that are logits."""
    return x


def cross_entropy(logits: list[float], y: int) -> float:
    return math.log(sum(math.exp(z) for z in logits)) - logits[y]


def batch(size: int = 3, copies: int = 2, d: int = 4) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(size, d, generator=generator, dtype=torch.float64)
    noise = 0.3 * torch.randn(size, copies, d, generator=generator, dtype=torch.float64)
    return x, torch.arange(size) % 3, noise


# each copy gets its own image's sigma


def own_sigma(scale: object) -> bool:
    """Does the noise of input i, all its copies, have the scale of input i?"""
    sigma = torch.tensor([0.1, 0.5, 2.0])
    noise = scale(torch.ones(3, 4, 5), sigma)  # type: ignore[operator]
    return all(bool((noise[i] == sigma[i]).all()) for i in range(3))


def tiled(noise: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """What four scripts of 2021 do: sigmas tiled (s0 s1 s2 s0 ..) against interleaved copies (x0 x0 x0 x0 x1 ..)."""
    copies = noise.shape[1]
    return (noise.flatten(0, 1) * sigma.repeat(copies)[:, None]).reshape(noise.shape)


def test_each_copy_has_the_sigma_of_its_image_and_tiling_is_rejected() -> None:
    assert own_sigma(scaled)
    assert not own_sigma(tiled)


def test_copies_go_through_the_model_in_one_pass_interleaved() -> None:
    x, y, noise = batch()
    model = Recorder()
    gaussian(model, x, y, noise, ONES)
    assert len(model.seen) == 1
    for i in range(3):
        for j in range(2):
            assert torch.equal(model.seen[0][2 * i + j], x[i] + noise[i, j])


# Gaussian


def test_gaussian_is_the_mean_cross_entropy_of_all_copies() -> None:
    x = torch.tensor([[0.0, 0.0], [1.0, -1.0]], dtype=torch.float64)
    noise = torch.tensor([[[1.0, 0.0], [0.0, 2.0]], [[0.5, 0.5], [-1.0, 1.0]]], dtype=torch.float64)
    loss = gaussian(identity, x, torch.tensor([0, 1]), noise, ONES[:2])
    by_hand = (
        cross_entropy([1, 0], 0) + cross_entropy([0, 2], 0) + cross_entropy([1.5, -0.5], 1) + cross_entropy([0, 0], 1)
    ) / 4
    assert float(loss.value) == pytest.approx(by_hand, rel=1e-12)
    first = (1 / (1 + math.exp(-1)) + 1 / (1 + math.exp(2))) / 2
    assert float(loss.log_probs[0, 0]) == pytest.approx(math.log(first), rel=1e-12)
    assert torch.equal(loss.noisy, x + noise[:, 0])


# SmoothAdv


def test_smoothadv_moves_straight_on_a_linear_model_and_its_loss_is_that_at_the_moved_point() -> None:
    w = torch.tensor([[3.0, 0.0], [0.0, 4.0]], dtype=torch.float64)
    x, y = torch.full((2, 2), 0.5, dtype=torch.float64), torch.tensor([0, 1])
    noise = torch.tensor([[[0.1, 0.0], [0.0, -0.1]], [[0.2, 0.1], [0.0, 0.0]]], dtype=torch.float64)
    model = nn.Linear(2, 2, bias=False, dtype=torch.float64)
    model.weight.data = w
    loss = smoothadv(model, x, y, noise, ONES[: len(x)], attacked=model, epsilon=0.1, steps=2)
    away = torch.tensor([3.0, -4.0], dtype=torch.float64) / 5  # logit 0 minus logit 1 grows this way
    moved = torch.stack([x[0] - 0.1 * away, x[1] + 0.1 * away])
    by_hand = gaussian(model, moved, y, noise, ONES[:2])
    assert float(loss.value.detach()) == pytest.approx(float(by_hand.value.detach()), rel=1e-5)
    assert torch.allclose(loss.noisy, by_hand.noisy, atol=1e-6)


@pytest.mark.parametrize("copies", [1, 3])
def test_the_attack_and_the_loss_see_the_same_noise_and_one_point_for_all_copies(copies: int) -> None:
    x, y, noise = batch(copies=copies)
    model = Recorder().train()
    smoothadv(model, x, y, noise, ONES[: len(x)], attacked=model, epsilon=0.2, steps=2)
    assert len(model.seen) == 3  # two steps and the loss
    assert model.modes == [False, False, True]
    assert torch.allclose(model.seen[0].reshape(noise.shape), x[:, None] + noise)
    shift = model.seen[-1].reshape(noise.shape) - noise - x[:, None]
    assert torch.allclose(shift, shift[:, :1].expand_as(shift))
    assert float(shift[:, 0].norm(dim=1).max()) <= 0.2
    point = x + shift[:, 0]
    assert float(point.min()) >= 0.0
    assert float(point.max()) <= 1.0


def test_the_attack_follows_the_gradient_of_one_softmax_not_two() -> None:
    x, y, noise = batch(size=6, copies=4)
    model = Recorder()
    attack = Attack(steps=1, samples=4, step=2.0, restarts=1, keep="last")
    found = eot_pgd(model, x, y, sigma=1.0, radius=0.05, certificate=L2Certificate(), attack=attack, noise=noise)

    def direction(times: int) -> torch.Tensor:
        point = x.clone().requires_grad_(True)
        probs = model((point[:, None] + noise).flatten(0, 1))
        for _ in range(times):
            probs = probs.softmax(1)
        mean = probs.reshape(6, 4, -1).mean(1)
        (gradient,) = torch.autograd.grad(-mean.gather(1, y[:, None]).log().sum(), point)
        return gradient / gradient.norm(dim=1, keepdim=True)

    assert torch.allclose(found, x + 0.05 * direction(1), atol=1e-6)
    assert not torch.allclose(found, x + 0.05 * direction(2), atol=1e-6)


def test_smoothadv_with_nothing_to_move_is_gaussian() -> None:
    x, y, noise = batch()
    model = Recorder()
    plain = gaussian(model, x, y, noise, ONES).value
    for epsilon, steps in ((0.0, 2), (0.2, 0)):
        assert torch.equal(
            smoothadv(model, x, y, noise, ONES[: len(x)], attacked=model, epsilon=epsilon, steps=steps).value, plain
        )


def test_an_attack_that_keeps_the_last_point_costs_no_further_pass() -> None:
    x, y, noise = batch()
    with pytest.raises(InputError, match="with 1 restart"):
        Attack(keep="last", restarts=2)
    with pytest.raises(InputError, match="expected keep"):
        Attack(keep="first")
    passes = {}
    for keep in ("last", "best"):
        model = Recorder()
        attack = Attack(steps=3, samples=2, restarts=1, keep=keep)
        eot_pgd(model, x, y, sigma=1.0, radius=0.1, certificate=L2Certificate(), attack=attack, noise=noise)
        passes[keep] = len(model.seen)
    assert passes == {"last": 3, "best": 4}


# MACER


def macer_by_hand(
    logits: list[list[list[float]]], y: list[int], sigma: list[float], weight: float, gamma: float, beta: float
) -> float:
    """Algorithm 1 of the paper for logits [input][copy][class], in plain Python."""
    total = 0.0
    for rows, label, s in zip(logits, y, sigma, strict=True):

        def mean_softmax(factor: float, rows: list[list[float]] = rows) -> list[float]:
            soft = []
            for row in rows:
                e = [math.exp(factor * z) for z in row]
                soft.append([v / sum(e) for v in e])
            return [sum(column) / len(soft) for column in zip(*soft, strict=True)]

        total -= math.log(mean_softmax(1.0)[label])
        q = mean_softmax(beta)
        if max(q) == q[label]:
            gap = PHI(q[label]) - PHI(max(v for c, v in enumerate(q) if c != label))
            total += weight * s / 2 * max(0.0, gamma - gap)
    return total / len(y)


CASES = {
    "right": ([[[0.2, 0.0, -0.1]]], [0]),
    "wrong": ([[[0.2, 0.0, -0.1]]], [1]),
    "two copies": ([[[0.2, 0.0, -0.1], [-0.1, 0.1, 0.0]]], [0]),
    "beyond the hinge": ([[[1.0, 0.0, 0.0]]], [0]),
    "mixed": (
        [[[0.2, 0.0, 0.1], [0.3, 0.1, 0.0]], [[0.0, 0.3, 0.1], [0.1, 0.0, 0.2]], [[0.4, 0.5, 0.0]] * 2],
        [0, 0, 1],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_macer_is_what_the_paper_says(case: str) -> None:
    logits, y = CASES[case]
    sigma, options = [0.25, 0.5, 1.0][: len(y)], {"weight": 12.0, "gamma": 4.0, "beta": 8.0}
    noise = torch.tensor(logits, dtype=torch.float64)
    x = torch.zeros(len(y), 3, dtype=torch.float64)
    loss = macer(identity, x, torch.tensor(y), noise, torch.tensor(sigma, dtype=torch.float64), **options)
    assert float(loss.value) == pytest.approx(macer_by_hand(logits, y, sigma, **options), rel=1e-9)
    if case == "beyond the hinge":
        assert float(loss.value) == pytest.approx(cross_entropy([1, 0, 0], 0), rel=1e-9)


def test_macer_has_the_gradient_of_its_value() -> None:
    logits, y = CASES["mixed"]
    noise = torch.tensor(logits, dtype=torch.float64)
    sigma = torch.tensor([0.25, 0.5, 1.0], dtype=torch.float64)

    def value(x: torch.Tensor) -> torch.Tensor:
        return macer(identity, x, torch.tensor(y), noise, sigma, weight=12.0, gamma=4.0, beta=8.0).value

    assert torch.autograd.gradcheck(value, torch.zeros(3, 3, dtype=torch.float64).requires_grad_(True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_macer_stays_finite_where_the_softmax_saturates(dtype: torch.dtype) -> None:
    x = torch.tensor([[50.0, 0.0, -3.0], [0.0, 0.0, 60.0], [0.01, 0.0, 0.0]], dtype=dtype, requires_grad=True)
    noise = torch.zeros(3, 2, 3, dtype=dtype)
    loss = macer(identity, x, torch.tensor([0, 1, 0]), noise, torch.full((3,), 0.5), weight=12.0, gamma=8.0, beta=16.0)
    loss.value.backward()
    assert x.grad is not None
    assert bool(torch.isfinite(loss.value))
    assert bool(torch.isfinite(x.grad).all())
    assert bool((x.grad[2] != 0).any())


def test_macer_with_no_weight_is_cross_entropy_of_the_mean_softmax() -> None:
    x, y, noise = batch()
    model = Recorder()
    loss = macer(model, x, y, noise, ONES, weight=0.0, gamma=8.0, beta=16.0)
    probs = model((x[:, None] + noise).flatten(0, 1)).softmax(1).reshape(3, 2, 3).mean(1)
    assert loss.value.item() == pytest.approx(-probs.gather(1, y[:, None]).log().mean().item(), rel=1e-9)


def test_a_model_of_another_shape_is_an_error() -> None:
    x, y, noise = batch()
    with pytest.raises(ModelError, match="returned"):
        gaussian(lambda x: x[:, 0], x, y, noise, ONES)


# consistency


def consistency_by_hand(logits: list[list[list[float]]], y: list[int], weight: float, eta: float) -> float:
    """The paper's formula for logits [input][copy][class], in plain Python."""
    total = 0.0
    for rows, label in zip(logits, y, strict=True):
        each = []
        for row in rows:
            e = [math.exp(z) for z in row]
            each.append([v / sum(e) for v in e])
        mean = [sum(column) / len(each) for column in zip(*each, strict=True)]
        total += sum(-math.log(p[label]) for p in each) / len(each)
        total += weight * sum(a * math.log(a / b) for p in each for a, b in zip(mean, p, strict=True)) / len(each)
        total -= eta * sum(a * math.log(a) for a in mean)
    return total / len(y)


def test_consistency_is_what_the_paper_says() -> None:
    logits, y = CASES["mixed"]
    noise, x = torch.tensor(logits, dtype=torch.float64), torch.zeros(3, 3, dtype=torch.float64)
    for weight, eta in ((20.0, 0.5), (10.0, 0.0), (0.0, 0.5)):
        loss = consistency(identity, x, torch.tensor(y), noise, ONES, weight=weight, eta=eta)
        assert float(loss.value) == pytest.approx(consistency_by_hand(logits, y, weight, eta), rel=1e-9)
    swapped = [[[p[0], p[1], p[2]] for p in reversed(rows)] for rows in logits]  # the order of copies is no matter
    again = consistency(
        identity, x, torch.tensor(y), torch.tensor(swapped, dtype=torch.float64), ONES, weight=20.0, eta=0.5
    )
    assert float(again.value) == pytest.approx(consistency_by_hand(logits, y, 20.0, 0.5), rel=1e-9)


def test_the_divergence_of_consistency_is_from_the_mean_to_each_copy() -> None:
    logits = [[[2.0, 0.0, -1.0], [-1.0, 3.0, 0.0]]]
    p = torch.tensor(logits, dtype=torch.float64)
    found = consistency(identity, torch.zeros(1, 3), torch.tensor([0]), p, ONES[:1], weight=1.0, eta=0.0).value
    assert float(found) == pytest.approx(consistency_by_hand(logits, [0], 1.0, 0.0), rel=1e-9)
    soft = p.softmax(2)
    mean = soft.mean(1, keepdim=True)
    other_way = (soft * (soft / mean).log()).sum(2).mean() - soft[..., 0].log().mean()
    assert float(found) != pytest.approx(float(other_way), rel=1e-2)


def test_consistency_has_the_gradient_of_its_value_and_one_copy_is_gaussian_with_entropy() -> None:
    logits, y = CASES["mixed"]
    noise = torch.tensor(logits, dtype=torch.float64)

    def value(x: torch.Tensor) -> torch.Tensor:
        return consistency(identity, x, torch.tensor(y), noise, ONES, weight=10.0, eta=0.5).value

    assert torch.autograd.gradcheck(value, torch.zeros(3, 3, dtype=torch.float64).requires_grad_(True))
    x, y_, one = batch(copies=1)
    model = Recorder()
    loss = consistency(model, x, y_, one, ONES, weight=10.0, eta=0.0).value
    assert float(loss.detach()) == pytest.approx(float(gaussian(model, x, y_, one, ONES).value.detach()), rel=1e-12)


# soft targets


def test_gaussian_with_targets_is_their_cross_entropy() -> None:
    x, y, noise = batch()
    targets = torch.tensor([[0.7, 0.2, 0.1], [0.0, 1.0, 0.0], [0.2, 0.2, 0.6]], dtype=torch.float64)
    model = Recorder()
    loss = gaussian(model, x, y, noise, ONES, targets=targets).value
    log = model((x[:, None] + noise).flatten(0, 1)).log_softmax(1).reshape(3, 2, 3)
    assert loss.item() == pytest.approx(-(targets[:, None] * log).sum(2).mean().item(), rel=1e-9)
    hard = torch.eye(3, dtype=torch.float64)[y]
    assert gaussian(model, x, y, noise, ONES, targets=hard).value.item() == pytest.approx(
        gaussian(model, x, y, noise, ONES).value.item(), rel=1e-9
    )


# a denoiser


def test_the_denoisers_error_is_weighted_by_its_own_samples_sigma() -> None:
    x, noise = (
        torch.zeros(2, 1, 1, 2),
        torch.tensor([[[[[0.1, 0.3]]], [[[0.2, 0.0]]]], [[[[1.0, 1.0]]], [[[0.0, 2.0]]]]]),
    )
    sigma = torch.tensor([0.25, 1.0])

    class Keeps(nn.Module):
        takes_sigma = True

        def forward(self, y: torch.Tensor, told: torch.Tensor) -> torch.Tensor:
            assert told.tolist() == [0.25, 0.25, 1.0, 1.0]
            return y

    loss = denoiser(Keeps(), x, noise, sigma)
    weights = [16 + 1 / 0.25**2, 16 + 1.0]
    errors = [[(0.01 + 0.09) / 2, 0.04 / 2], [1.0, 4.0 / 2]]
    by_hand = sum(w * sum(e) for w, e in zip(weights, errors, strict=True)) / 4
    assert float(loss.value) == pytest.approx(by_hand, rel=1e-6)
    assert loss.log_probs is None
    with pytest.raises(ModelError, match="denoiser returned"):
        denoiser(lambda y: y[:, 0], x, noise, sigma)


def test_the_denoisers_loss_has_the_gradient_of_its_value() -> None:
    net = nn.Conv2d(1, 1, 3, padding=1, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(2, 1, 4, 4, generator=generator, dtype=torch.float64)
    noise = torch.randn(2, 3, 1, 4, 4, generator=generator, dtype=torch.float64)

    def value(weight: torch.Tensor) -> torch.Tensor:
        def model(y: torch.Tensor) -> torch.Tensor:
            return nn.functional.conv2d(y, weight, padding=1)

        found = model((x[:, None] + noise).flatten(0, 1))
        error = (found - x.repeat_interleave(3, 0)).square().flatten(1).mean(1)
        return (error * edm_weight(torch.tensor([0.3, 0.9])).repeat_interleave(3)).mean()

    net.bias.data.zero_()  # type: ignore[union-attr]
    loss = denoiser(net, x, noise, torch.tensor([0.3, 0.9])).value
    (gradient,) = torch.autograd.grad(loss, net.weight)
    step = torch.zeros_like(net.weight)
    for place in ((0, 0, 0, 0), (0, 0, 1, 1), (0, 0, 2, 1)):
        step.zero_()
        step[place] = 1e-4
        slope = (value(net.weight.detach() + step) - value(net.weight.detach() - step)) / 2e-4
        assert float(gradient[place]) == pytest.approx(float(slope), rel=1e-4)


# networks that are told sigma


class Told(nn.Module):
    """Remembers which sigma it was told for which input: logits depend on both."""

    takes_sigma = True

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(4, 3, generator=torch.Generator().manual_seed(5), dtype=torch.float64))
        self.told: list[torch.Tensor] = []

    def forward(self, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        assert sigma.dtype == torch.float32
        assert sigma.shape == x.shape[:1]
        self.told.append(sigma.detach().clone())
        return torch.tanh(x / (1 + sigma[:, None])) @ self.w


@pytest.mark.parametrize("name", ["gaussian", "smoothadv", "macer", "consistency", "catrs"])
def test_each_copy_is_told_its_own_images_sigma(name: str) -> None:
    x, y, noise = batch(copies=4)
    sigma = torch.tensor([0.1, 0.5, 2.0])
    model = Told()
    common = (model, x, y, noise, sigma)
    if name == "gaussian":
        gaussian(*common)
    elif name == "smoothadv":
        smoothadv(*common, attacked=model, epsilon=0.2, steps=2)
    elif name == "macer":
        macer(*common, weight=1.0, gamma=8.0, beta=4.0)
    elif name == "consistency":
        consistency(*common, weight=10.0, eta=0.5)
    else:
        target = torch.full((3, 3), 1 / 3)
        options = {"draw": lambda share: torch.full_like(share, 4).long(), "predict": lambda rows, _: target[rows]}
        catrs(*common, attacked=model, weight=2.0, epsilon=1.0, steps=2, **options)
    passes = {"gaussian": 1, "macer": 1, "consistency": 1, "smoothadv": 3, "catrs": 1 + 2 + 1}
    assert len(model.told) == passes[name]
    for told in model.told:
        assert torch.equal(told, sigma.repeat_interleave(4))
        assert not torch.equal(told, sigma.repeat(4))  # tiled
