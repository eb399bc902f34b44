"""What a model does: its classes on keyed noisy copies, drawn again and held against the earlier ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import ddsmoothing as dds
from ddsmoothing.counting.fingerprint import ALLOWED, COPIES, behaviour, check_behaviour, differences
from ddsmoothing.errors import ModelError

L2 = dds.L2Certificate()


def smoothed_of(model: object, **options: object) -> dds.SmoothedClassifier:
    return dds.SmoothedClassifier(model, L2, num_classes=10, **options)  # type: ignore[arg-type]


def test_it_is_a_function_of_model_and_inputs_alone(model: torch.nn.Module, data: dds.Dataset) -> None:
    x = data[:12][0]
    found = behaviour(smoothed_of(model), x)
    assert len(found) == COPIES
    assert set(found) <= set(range(10))
    assert len(set(found)) > 3
    for same in (
        smoothed_of(model, block_size=7),
        smoothed_of(lambda x: model(x)),
        smoothed_of(model, vote="plurality"),
    ):
        assert behaviour(same, x) == found
    assert behaviour(smoothed_of(model), x[:8]) == found  # the first inputs
    one = behaviour(smoothed_of(model), x[:1])
    assert len(one) == COPIES
    assert one[0] == found[0]


def test_another_model_with_the_same_shape_is_refused_by_its_answers(data: dds.Dataset) -> None:
    """A callable that reads its weights elsewhere: no hash sees that they are others now."""
    net = dds.load_model("fashion-mnist-cnn")

    def callable_(x: torch.Tensor) -> torch.Tensor:
        return net(x)

    smoothed, x = smoothed_of(callable_), data[:8][0]
    before = behaviour(smoothed, x)
    check_behaviour(before, behaviour(smoothed, x), "the run in out")
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter) * parameter.std())
    images, labels = data[:500]
    assert float((net(images).argmax(1) == labels).float().mean()) > 0.8  # a good model, but another one
    with pytest.raises(ModelError, match=r"this is not the model of the run in out: \d+ of 64 noisy copies"):
        check_behaviour(before, behaviour(smoothed, x), "the run in out")


def test_rounding_is_no_other_model(model: torch.nn.Module, data: dds.Dataset) -> None:
    x = data[:8][0]
    before, half = behaviour(smoothed_of(model), x), behaviour(smoothed_of(model, precision="bf16"), x)
    check_behaviour(before, half, "the run")


@pytest.mark.parametrize("changed", range(5))
def test_more_than_two_differences_refuse(changed: int) -> None:
    before = tuple(range(10)) * 6
    now = tuple(9 - c if i < changed else c for i, c in enumerate(before))
    assert differences(before, now) == changed
    if changed <= ALLOWED:
        check_behaviour(before, now, "x")
    else:
        with pytest.raises(ModelError, match=f"{changed} of 60"):
            check_behaviour(before, now, "x")


def test_another_number_of_copies_differs_throughout() -> None:
    assert differences((1, 2, 3), (1, 2)) == 3
    assert differences((), ()) == 0


def test_its_noise_is_of_no_certificate(model: torch.nn.Module, data: dds.Dataset) -> None:
    seen: list[torch.Tensor] = []

    def watched(x: torch.Tensor) -> torch.Tensor:
        seen.append(x.flatten(1).clone())
        return model(x)

    x = data[:2][0]
    behaviour(smoothed_of(watched, block_size=COPIES), x)  # no padding
    mine = {row.numpy().tobytes() for row in torch.cat(seen)}
    seen.clear()
    smoothed_of(watched).predict(x, 0.25, n=200, seed=0, ids=[0, 1])
    assert not mine & {row.numpy().tobytes() for row in torch.cat(seen)}
    assert np.unique(list(mine)).size == COPIES
