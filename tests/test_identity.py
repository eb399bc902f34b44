"""The hash of a model: it changes with whatever the model's answers come from, and with nothing else."""

from __future__ import annotations

import copy
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import ddsmoothing as dds
from ddsmoothing import modules
from ddsmoothing.errors import InputError, ModelError
from ddsmoothing.models import model_hash, model_identity


@dataclass
class Options:
    gain: float = 1.0
    names: tuple[str, ...] = ("a", "b")


class Rich(nn.Module):
    """Everything that an answer may come from, and what it does not come from."""

    scale = 1.5

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(3, 2)
        self.register_buffer("kept", torch.ones(2))
        self.register_buffer("unsaved", torch.tensor([0.5, 0.25]), persistent=False)
        self.mean = torch.tensor([0.1, 0.2, 0.3])
        self.array = np.array([1.0, 2.0])
        self.slope, self.mode, self.flag, self.nothing = 0.5, "soft", True, None
        self.schedule = {"sigmas": [0.1, (0.2, torch.tensor(0.3))], 4: {1, 2}}
        self.options = Options()
        self.after = partial(torch.mul, other=2.0)
        self.hidden = [nn.Linear(2, 2)]
        self.lock = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear((x - self.mean) * self.slope) * self.scale + self.kept + self.unsaved


class Other(Rich):
    pass


def change(model: Rich, what: str) -> None:
    with torch.no_grad():
        {
            "weight": lambda: model.linear.weight[0, 0].add_(1e-6),
            "buffer": lambda: model.kept[1].add_(1e-6),
            "buffer that is not saved": lambda: model.unsaved[0].add_(1e-6),
            "plain tensor": lambda: model.mean[2].add_(1e-6),
            "dtype": lambda: setattr(model, "mean", model.mean.double()),
            "array": lambda: model.array.__setitem__(0, 3.0),
            "number": lambda: setattr(model, "slope", 0.5 + 1e-12),
            "number of another type": lambda: setattr(model, "flag", 1),
            "string": lambda: setattr(model, "mode", "hard"),
            "flag": lambda: setattr(model, "flag", False),
            "none": lambda: setattr(model, "nothing", 0),
            "list": lambda: model.schedule["sigmas"].append(0.4),
            "nested tensor": lambda: model.schedule["sigmas"][1][1].mul_(2.0),
            "key": lambda: model.schedule.__setitem__(5, model.schedule.pop(4)),
            "set": lambda: model.schedule[4].add(3),
            "plain object": lambda: setattr(model.options, "gain", 2.0),
            "partial": lambda: setattr(model, "after", partial(torch.mul, other=3.0)),
            "hidden module": lambda: model.hidden[0].bias[0].add_(1e-6),
            "layer's option": lambda: model.linear.register_buffer("extra", torch.zeros(1)),
            "class": lambda: setattr(model, "__class__", Other),
            "hook": lambda: model.linear.register_forward_hook(lambda module, x, out: out * 2),
            "new attribute": lambda: setattr(model, "more", 1),
        }[what]()


CHANGES = [
    *("weight", "buffer", "buffer that is not saved", "plain tensor", "dtype", "array", "number"),
    *("number of another type", "string", "flag", "none", "list", "nested tensor", "key", "set", "plain object"),
    *("partial", "hidden module", "layer's option", "class", "hook", "new attribute"),
]


@pytest.mark.parametrize("what", CHANGES)
def test_the_hash_sees_whatever_answers_come_from(what: str) -> None:
    model = Rich()
    before = model_hash(model)
    assert model_hash(Rich()) == before
    change(model, what)
    assert model_hash(model) != before


def test_a_class_attribute_is_part_of_the_hash(monkeypatch: pytest.MonkeyPatch) -> None:
    before = model_hash(Rich())
    monkeypatch.setattr(Rich, "scale", 1.6)
    assert model_hash(Rich()) != before


def test_modes_gradients_copies_and_layout_are_not_part_of_the_hash() -> None:
    model = Rich()
    before = model_hash(model)
    model.eval()
    model.linear.requires_grad_(False)
    assert model_hash(model) == before
    assert model_hash(copy.deepcopy(model)) == before
    model.linear.weight.data = model.linear.weight.data.t().contiguous().t()
    assert model_hash(model) == before


def test_options_of_layers_are_part_of_the_hash() -> None:
    def net(layer: nn.Module) -> str | None:
        return model_hash(nn.Sequential(layer))

    pairs = [
        (nn.LeakyReLU(0.1), nn.LeakyReLU(0.2)),
        (nn.Dropout(0.1), nn.Dropout(0.2)),
        (nn.MaxPool2d(2), nn.MaxPool2d(3)),
        (nn.GELU(), nn.GELU(approximate="tanh")),
        (nn.BatchNorm1d(2, eps=1e-5), nn.BatchNorm1d(2, eps=1e-3)),
        (nn.Flatten(1), nn.Flatten(0)),
    ]
    for one, other in pairs:
        assert net(one) != net(other)


def test_closures_and_their_contents_are_part_of_the_hash() -> None:
    class Made(nn.Module):
        def __init__(self, function: Callable[[Any], Any]) -> None:
            super().__init__()
            self.function = function

    def times(scale: float) -> Callable[[Any], Any]:
        return lambda z: z * scale

    assert model_hash(Made(times(2.0))) == model_hash(Made(times(2.0)))
    assert model_hash(Made(times(2.0))) != model_hash(Made(times(3.0)))


SOURCES = "from torch import nn\nclass Net(nn.Module):\n    def forward(self, x):\n        return x.flatten(1) * {}\n"


def test_the_code_of_a_models_own_class_is_part_of_the_hash(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    found = []
    for name, factor in (("one_net", 1), ("two_net", 2)):
        (tmp_path / f"{name}.py").write_text(SOURCES.format(factor))
        kind = __import__(name).Net
        kind.__module__ = "net"  # so that the code alone differs
        monkeypatch.setitem(sys.modules, "net", sys.modules[name])
        found.append(model_hash(kind()))
    assert found[0] != found[1]


IN_A_PROCESS = """
import sys; sys.path.insert(0, sys.argv[1])
import torch, ddsmoothing as dds
from ddsmoothing.models import model_hash
from test_identity import Rich
class Plain: pass
model = Rich(); model.thing = Plain(); model.sample = object(); model.call = model.forward
print(model_hash(model), model_hash(dds.load_model("fashion-mnist-cnn")), hex(id(model)))
"""


def test_the_hash_is_the_same_in_every_process() -> None:
    """No address and no order of a set is in it; here an object of no state, a bound method, and one of C."""
    from pathlib import Path

    def once() -> list[str]:
        command = [sys.executable, "-c", IN_A_PROCESS, str(Path(__file__).parent)]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=100).stdout.split()

    one, other = once(), once()
    assert one[:2] == other[:2]
    assert one[1] == model_hash(dds.load_model("fashion-mnist-cnn"))


def test_locks_and_generators_do_not_change_the_hash() -> None:
    model = Rich()
    model.lock = threading.Lock()
    first = model_hash(model)
    model.lock = threading.Lock()
    assert model_hash(model) == first


def test_tied_weights_and_circles_are_hashed_once() -> None:
    model = Rich()
    model.myself = [model]
    model.tied = model.linear.weight
    assert model_hash(model) == model_hash(copy.deepcopy(model))


def quantised() -> nn.Module:
    engines = torch.backends.quantized.supported_engines
    if "qnnpack" not in engines and "fbgemm" not in engines:
        pytest.skip("torch has no quantised layers here")
    return torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(3, 2)), {nn.Linear}, dtype=torch.qint8)


UNREADABLE: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "quantised": (quantised, "cannot be read for its hash"),
    "lazy": (lambda: nn.LazyLinear(2), "lazy"),
    "meta": (lambda: nn.Linear(3, 2, device="meta"), "on the device meta"),
    "sparse": (lambda: holding(torch.eye(3).to_sparse()), "sparse_coo"),
    "objects": (lambda: holding(np.array([object()])), "ndarray"),
}


def holding(value: Any) -> nn.Module:
    model = nn.Linear(3, 2)
    model.value = value
    return model


@pytest.mark.filterwarnings("ignore")  # torch says that its quantisation moves
@pytest.mark.parametrize("kind", UNREADABLE)
def test_modules_whose_numbers_cannot_be_read_are_named_in_one_line(kind: str) -> None:
    make, message = UNREADABLE[kind]
    with pytest.raises(ModelError, match=message) as found:
        model_hash(make())
    assert "\n" not in str(found.value)
    assert "--model-id" in str(found.value)


class ExtraState(nn.Module):
    def __init__(self, state: Any) -> None:
        super().__init__()
        self.state = state

    def get_extra_state(self) -> Any:
        return self.state

    def set_extra_state(self, state: Any) -> None:
        self.state = state


def test_extra_state_is_hashed_by_its_attributes() -> None:
    assert model_hash(ExtraState({"a": 1})) == model_hash(ExtraState({"a": 1}))
    assert model_hash(ExtraState({"a": 1})) != model_hash(ExtraState({"a": 2}))


@pytest.mark.filterwarnings("ignore")  # torch.jit is deprecated
def test_scripted_and_exported_modules_have_a_hash_of_their_code() -> None:
    class Scaled(nn.Module):
        def __init__(self, scale: float, shift: float) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.scale, self.shift, self.linear = scale, torch.tensor([shift]), nn.Linear(3, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.linear(x) * self.scale + self.shift

    def exported(scale: float, shift: float) -> nn.Module:
        return torch.export.export(Scaled(scale, shift).eval(), (torch.zeros(4, 3),)).module()

    for make in (lambda *values: torch.jit.script(Scaled(*values)), exported):
        assert model_hash(make(1.0, 0.0)) == model_hash(make(1.0, 0.0))
        assert len({model_hash(make(*values)) for values in ((1.0, 0.0), (2.0, 0.0), (1.0, 1.0))}) == 3


def test_a_compiled_module_has_one_hash() -> None:
    assert model_hash(torch.compile(Rich(), backend="eager")) == model_hash(torch.compile(Rich(), backend="eager"))
    other = Rich()
    change(other, "weight")
    assert model_hash(torch.compile(Rich(), backend="eager")) != model_hash(torch.compile(other, backend="eager"))


def test_a_model_that_holds_a_data_set_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """And what was looked at is counted, not timed: the limit stops it at the first thing beyond."""
    monkeypatch.setattr(modules, "LARGEST", 2_000)
    data_set = nn.Linear(3, 2)
    data_set.data = [str(i) for i in range(2_100)]
    with pytest.raises(ModelError, match=r"holds more than 2,000 things \(at '\.data"):
        model_hash(data_set)
    data_set.data = data_set.data[:1_500]
    assert model_hash(data_set)


def test_an_identity_holds_the_hash_and_the_id() -> None:
    model = Rich()
    assert model_identity(model) == f"sha256:{model_hash(model)}"
    assert model_identity(model, "run 3") == f"sha256:{model_hash(model)} id:run 3"
    assert model_identity(lambda x: x, "f") == "id:f"
    with pytest.raises(InputError, match="--model-id"):
        model_identity(lambda x: x)
