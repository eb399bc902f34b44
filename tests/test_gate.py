"""The one gate to a base classifier: threads, calls at the same time, what models raise; nobody goes round it."""

from __future__ import annotations

import ast
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import nn

import ddsmoothing as dds
from ddsmoothing.counting.contract import Request
from ddsmoothing.counting.engine import Engine, no_grad_logits
from ddsmoothing.counting.replicas import Replicas
from ddsmoothing.devices import torch_threads, untouched
from ddsmoothing.errors import ModelError
from ddsmoothing.models import probe_classes
from ddsmoothing.smooth import Smooth

SOURCE = Path(dds.__file__).parent
L2 = dds.L2Certificate()
X = torch.full((4, 6), 128, dtype=torch.uint8)


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def counts_of(model: Any, *, workers: int, n: int = 200) -> list[list[int]]:
    with threads(workers):
        smoothed = dds.SmoothedClassifier(model, L2, num_classes=2, block_size=8)
        requests = [Request(row=row, sigma=0.25, stream=1, n=n) for row in range(len(X))]
        return [counts.tolist() for counts in smoothed.count(smoothed.prepare(X), requests, 3)]


def answer(x: torch.Tensor) -> torch.Tensor:
    return torch.stack([x.flatten(1).sum(1) - 3.0, x.flatten(1)[:, 0] - 0.5], 1)


def wait() -> None:
    time.sleep(0.001)  # so that another thread comes in between


# state between two lines of forward


class InAttribute(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.features = answer(x)
        wait()
        return self.features


class InList(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.kept: list[Any] = [None]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.kept[0] = answer(x)
        wait()
        return self.kept[0]


class Holder:
    value: torch.Tensor


class InObject(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.holder = Holder()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.holder.value = answer(x)
        wait()
        return self.holder.value


class InHiddenModule(nn.Module):
    """A module in a plain list, which ``modules()`` does not know."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = {"inside": [InAttribute()]}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.parts["inside"][0](x)


class InChildOfParent(nn.Module):
    """A child that writes into its parent."""

    def __init__(self) -> None:
        super().__init__()
        self.child = nn.Identity()
        self.child.parent = [self]
        self.child.forward = self.keep

    def keep(self, x: torch.Tensor) -> torch.Tensor:
        self.child.parent[0].kept = answer(x)
        wait()
        return self.kept

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.child(x)


class Hook:
    def __call__(self, module: nn.Module, inputs: Any, out: torch.Tensor) -> None:
        self.out = out


class InHookObject(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.hook = nn.Identity(), Hook()
        self.body.register_forward_hook(self.hook)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.body(answer(x))
        wait()
        return self.hook.out


class InHookMethod(InHookObject):
    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.body, self.hook = nn.Identity(), Hook()
        self.body.register_forward_hook(self.keep)

    def keep(self, module: nn.Module, inputs: Any, out: torch.Tensor) -> None:
        self.hook.out = out


EVERYWHERE: dict[str, torch.Tensor] = {}


def keep_everywhere(module: nn.Module, inputs: Any, out: torch.Tensor) -> None:
    EVERYWHERE["out"] = out


class InHookFunction(nn.Module):
    """As notebooks do it: a global dictionary, filled by a hook."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Identity()
        self.body.register_forward_hook(keep_everywhere)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.body(answer(x))
        wait()
        return EVERYWHERE["out"]


class InClosure(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        box: list[Any] = [None]

        def write(value: torch.Tensor) -> None:
            box[0] = value

        self.write, self.read = write, lambda: box[0]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.write(answer(x))
        wait()
        return self.read()


class BehindALock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with self.lock:
            self.features = answer(x)
        wait()
        return self.features


def in_function() -> Callable[[torch.Tensor], torch.Tensor]:
    module = InAttribute()
    return lambda x: module(x)


COPIED = [InAttribute, InList, InObject, InHiddenModule, InChildOfParent, InHookObject, InHookMethod]
ALONE = [InHookFunction, InClosure, BehindALock, in_function]


@pytest.mark.parametrize("kind", COPIED + ALONE, ids=lambda kind: kind.__name__)
def test_threads_do_not_mix_what_a_model_keeps(kind: Callable[[], Any]) -> None:
    assert counts_of(kind(), workers=4) == counts_of(answer, workers=1)


@pytest.mark.parametrize("kind", COPIED + ALONE, ids=lambda kind: kind.__name__)
def test_calls_at_the_same_time_do_not_mix_what_a_model_keeps(kind: Callable[[], Any]) -> None:
    """Two threads of a server that share one model, each counting by one thread."""
    model, wanted = kind(), counts_of(answer, workers=1)
    with threads(1):
        found = at_once(lambda: counts_of(model, workers=1), 3)
    assert found == [wanted] * 3


def test_hooks_on_all_modules_let_one_thread_run() -> None:
    hook = nn.modules.module.register_module_forward_hook(keep_everywhere)
    try:
        assert Replicas(InAttribute(), 2).alone == "hooks on all modules are registered"
    finally:
        hook.remove()
    assert Replicas(InAttribute(), 2).alone is None


@pytest.mark.parametrize("kind", COPIED + ALONE, ids=lambda kind: kind.__name__)
def test_who_runs_side_by_side(kind: Callable[[], Any]) -> None:
    replicas = Replicas(kind(), 3)
    assert len(replicas.copies) == (0 if kind in ALONE else 3)
    assert (replicas.alone is None) == (kind in COPIED)


def at_once(call: Callable[[], Any], count: int) -> list[Any]:
    """What several threads get that begin at the same time."""
    found: list[Any] = [None] * count
    gate = threading.Barrier(count)

    def one(i: int) -> None:
        gate.wait()
        found[i] = call()

    pool = [threading.Thread(target=one, args=(i,)) for i in range(count)]
    for thread in pool:
        thread.start()
    for thread in pool:
        thread.join()
    return found


def test_copies_share_their_numbers_and_nothing_else() -> None:
    net = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).train()
    net[0].mean, net[0].options = torch.zeros(3), {"a": [1]}
    net[2].weight = nn.Parameter(net[2].weight.detach())
    one, other = Replicas(net, 2).copies
    for name, tensor in (*net.named_parameters(), *net.named_buffers()):
        for copy in (one, other):
            assert (
                copy.get_parameter(name) is tensor
                if isinstance(tensor, nn.Parameter)
                else copy.get_buffer(name) is tensor
            )
    assert one[0].mean is other[0].mean is net[0].mean
    assert one[0].options is not other[0].options
    assert not any(module.training for module in one.modules())
    assert all(module.training for module in net.modules())
    assert type(one) is type(net)
    assert one[0] is not net[0]


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(6, 8, batch_first=True), nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.lstm(x[:, None].repeat(1, 3, 1))[0][:, -1])


class Attending(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(6, 2, batch_first=True)
        self.encoder, self.head = nn.TransformerEncoder(layer, 1), nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.encoder(x[:, None].repeat(1, 3, 1))[:, 0])


NETS: dict[str, Callable[[], nn.Module]] = {
    "lstm": Recurrent,
    "transformer": Attending,
    "weight norm": lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(6, 2))),
    "old weight norm": lambda: nn.Sequential(nn.utils.weight_norm(nn.Linear(6, 2))),
    "spectral norm": lambda: nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(6, 2))),
    "old spectral norm": lambda: nn.Sequential(nn.utils.spectral_norm(nn.Linear(6, 2))),
    "orthogonal": lambda: nn.Sequential(nn.utils.parametrizations.orthogonal(nn.Linear(6, 6)), nn.Linear(6, 2)),
    "shipped architecture": lambda: dds.models.build_model(
        "cifar-resnet20", num_classes=2, input_shape=(3, 8, 8), random_weights=True
    ),
}


@pytest.mark.filterwarnings("ignore")  # torch says that the old norms go
@pytest.mark.parametrize("kind", NETS)
def test_common_networks_run_side_by_side_and_as_themselves(kind: str) -> None:
    torch.manual_seed(0)
    net = NETS[kind]().eval()
    x = torch.rand(5, 6) if kind != "shipped architecture" else torch.rand(5, 3, 8, 8)
    copies = Replicas(net, 2).copies
    assert len(copies) == 2
    with torch.inference_mode():
        for copy in copies:
            assert torch.equal(copy(x), net(x))


def test_tied_weights_and_circles_survive_in_copies() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(2, 2), nn.Linear(2, 2)
            self.two.weight = self.one.weight
            self.me = [self]

    (copy,) = Replicas(Tied(), 1).copies
    assert copy.one.weight is copy.two.weight
    assert copy.me[0] is copy


@pytest.mark.parametrize("workers", [1, 3])
def test_the_callers_attributes_are_left_as_they_were(workers: int) -> None:
    for kind in (InAttribute, InList, InObject, BehindALock):
        model = kind()
        counts_of(model, workers=workers)
        assert not hasattr(model, "features")
        assert getattr(model, "kept", [None]) == [None]
        assert not hasattr(getattr(model, "holder", Holder()), "value")


class WritesBuffer(nn.Module):
    """Its answers do not depend on what it writes, but nobody can know that."""

    cache: ClassVar[list[int]] = []

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.register_buffer("seen", torch.zeros(2))
        self.plain, self.array = torch.zeros(2), np.zeros(2)
        self.weight = nn.Parameter(torch.zeros(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.how == "buffer in place":
            self.seen.add_(1)
        elif self.how == "buffer behind autograd's back":
            self.seen.data[0] += 1
        elif self.how == "buffer replaced":
            self.seen = self.seen + 1
        elif self.how == "plain tensor":
            self.plain[0] += 1
        elif self.how == "array":
            self.array[0] += 1
        elif self.how == "parameter":
            self.weight.add_(1)
        elif self.how == "list of the class":
            self.cache.append(1)
        return answer(x)


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize(
    ("how", "name"),
    [
        ("buffer in place", "seen"),
        ("buffer behind autograd's back", "seen"),
        ("buffer replaced", "seen"),
        ("plain tensor", "plain"),
        ("array", "array"),
        ("parameter", "weight"),
        ("list of the class", "WritesBuffer:cache"),
    ],
)
def test_a_pass_that_writes_where_all_see_it_is_named(how: str, name: str, workers: int) -> None:
    with pytest.raises(ModelError, match=f"writes into {name}"):
        counts_of(WritesBuffer(how), workers=workers)
    counts_of(WritesBuffer("not at all"), workers=workers)


def test_statistics_of_a_hidden_batch_norm_in_training_mode_are_noticed() -> None:
    class Hidden(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norms = [nn.BatchNorm1d(6).train()]

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return answer(self.norms[0](x))

    with pytest.raises(ModelError, match=r"writes into norms\[0\]\.running_mean"):
        counts_of(Hidden(), workers=2)


# two calls at the same time on one module


class Dropping(nn.Module):
    """Sure of class 1 in eval mode; in training mode dropout and batch statistics decide."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.drop = nn.BatchNorm1d(6), nn.Dropout(0.9)
        self.modes: set[bool] = set()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        SEEN.append(self.training)
        wait()
        kept = self.drop(torch.ones(len(x), 1))
        self.norm(x)
        return torch.cat([1.0 - kept, kept - 0.5], 1)


SEEN: list[bool] = []


@pytest.mark.parametrize("model", ["module", "scripted like"])
def test_two_calls_at_once_both_see_eval_mode_and_the_last_one_puts_it_back(model: str) -> None:
    net = Dropping().train()
    if model != "module":
        net.lock = threading.Lock()  # no private copies
    net.drop.eval()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    SEEN.clear()
    found = at_once(lambda: counts_of(net, workers=1, n=24), 4)
    assert found == [[[0, 24]] * 4] * 4
    assert set(SEEN) == {False}
    assert [module.training for module in net.modules()] == [True, True, False]
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert all(p.requires_grad for p in net.parameters())


def test_loans_that_overlap_are_given_back_by_the_last() -> None:
    backbone = nn.Linear(2, 2).train()
    backbone.bias.requires_grad_(False)
    one, other = nn.Sequential(backbone).train(), nn.Sequential(backbone, nn.Dropout()).train()
    first, second, third = untouched(one), untouched(other), untouched(one)
    with first:
        second.__enter__()
        third.__enter__()
        backbone.extra = 1
    assert (one.training, other.training, backbone.training) == (False, False, False)
    assert not backbone.weight.requires_grad
    third.__exit__(None, None, None)
    assert (one.training, backbone.training) == (True, False)
    second.__exit__(None, None, None)
    assert (one.training, other.training, backbone.training) == (True, True, True)
    assert (backbone.weight.requires_grad, backbone.bias.requires_grad) == (True, False)
    assert not hasattr(backbone, "extra")


def test_a_loan_is_given_back_where_its_user_fails() -> None:
    net = nn.Linear(2, 2).train()
    with pytest.raises(ZeroDivisionError), untouched(net), untouched(net):
        raise ZeroDivisionError
    assert net.training
    assert net.weight.requires_grad


def test_thread_settings_are_put_back_in_every_order() -> None:
    with threads(3):
        with torch_threads(2), torch_threads(1):
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 3
        inside, leave = threading.Barrier(2), threading.Event()
        found: list[int] = []

        def first() -> None:
            with torch_threads(1):
                inside.wait()
                leave.wait()
            found.append(torch.get_num_threads())

        def second() -> None:
            inside.wait()
            found.append(torch.get_num_threads())  # a new thread takes over what is in force
            with torch_threads(1):
                leave.set()
                other.join()
            found.append(torch.get_num_threads())

        other = threading.Thread(target=first)
        late = threading.Thread(target=second)
        other.start()
        late.start()
        late.join()
        assert found == [1, 3, 3]
        fresh: list[int] = []
        third = threading.Thread(target=lambda: fresh.append(torch.get_num_threads()))
        third.start()
        third.join()
        assert fresh == [3]
        assert torch.get_num_threads() == 3


# what models raise and return


class Fails(nn.Module):
    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise self.error


def exported() -> nn.Module:
    """An exported module refuses ``eval()`` and ``train()``."""
    net = nn.Sequential(nn.Linear(6, 2), nn.Dropout())
    batch = torch.export.Dim("batch")
    return torch.export.export(net.eval(), (torch.zeros(3, 6),), dynamic_shapes=({0: batch},)).module()


NOT_LOGITS: dict[str, tuple[Any, str]] = {
    "key": (Fails(KeyError("label")), "KeyError: 'label'"),
    "value": (Fails(ValueError("wrong image size\nsecond line")), "ValueError: wrong image size"),
    "assertion": (Fails(AssertionError()), "AssertionError"),
    "memory": (Fails(MemoryError()), "MemoryError; try a smaller block size"),
    "memory of a device": (Fails(torch.OutOfMemoryError("CUDA out of memory")), "out of memory; try a smaller block"),
    "not implemented": (nn.Module(), "NotImplementedError"),
    "another size": (nn.Linear(5, 2), r"does not take inputs of shape \(8, 6\): RuntimeError: mat1"),
    "sparse": (lambda x: answer(x).to_sparse(), "a tensor that is torch.sparse_coo"),
    "bool": (lambda x: answer(x) > 0, "a tensor that is torch.bool"),
    "complex": (lambda x: answer(x) + 0j, "a tensor that is torch.complex64"),
    "nested": (lambda x: torch.nested.nested_tensor(list(answer(x))), "a tensor that is nested"),
    "another device": (lambda x: answer(x).to("meta"), "answered on meta to inputs on cpu"),
    "overflow": (lambda x: answer(x).double() * 1e308 * 10, "NaN or infinite logits"),
    "half overflow": (lambda x: (answer(x) * 1e6).half(), "NaN or infinite logits"),
    "list": (lambda x: answer(x).tolist(), "returned list for 8 inputs, expected logits"),
    "dictionary": (lambda x: {"loss": 0, "logits": answer(x)}, r"returned dict .* picked\(model, 'logits'\)"),
    "other dictionary": (lambda x: {"scores": answer(x)}, r"returned dict .* picked\(model, 'scores'\)"),
    "tuple": (lambda x: (answer(x), 0), r"returned tuple .* picked\(model, '0'\)"),
    "lazy": (nn.LazyLinear(2), "weight has no shape yet"),
    "meta": (nn.Linear(6, 2, device="meta"), "weight is on the device meta"),
}


@pytest.mark.filterwarnings("ignore")  # torch says that sparse and nested tensors are new
@pytest.mark.parametrize("kind", NOT_LOGITS)
def test_whatever_a_model_does_wrong_is_one_line(kind: str) -> None:
    model, message = NOT_LOGITS[kind]
    with pytest.raises(ModelError, match=message) as found:
        counts_of(model, workers=2)
    assert "\n" not in str(found.value)
    with pytest.raises(ModelError):
        probe_classes(model, torch.zeros(8, 6))


@pytest.mark.filterwarnings("ignore")
def test_exported_modules_are_counted() -> None:
    with threads(2):
        smoothed = dds.SmoothedClassifier(exported(), L2, num_classes=2, block_size=8)
        assert smoothed.predict(X, 0.25, n=100, seed=0).prediction.shape == (4,)


def test_a_model_that_cannot_be_cast_is_one_line() -> None:
    with pytest.raises(ModelError, match=r"in another precision or form: TypeError: cannot pickle '_thread\.lock'"):
        dds.SmoothedClassifier(BehindALock(), L2, num_classes=2, precision="bf16")


def test_a_wrong_answer_in_one_thread_ends_the_others() -> None:
    def sometimes(x: torch.Tensor) -> torch.Tensor:
        return answer(x) if float(x[0, 0]) < 0.9 else answer(x) * torch.nan

    class Sometimes(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return sometimes(x)

    with pytest.raises(ModelError, match="NaN or infinite"):
        counts_of(Sometimes(), workers=4, n=2000)


@pytest.mark.parametrize("sigma", [0.25, torch.full((6,), 0.25)])
def test_nan_logits_are_refused_on_every_path_of_the_2021_classifier(sigma: Any) -> None:
    smooth = Smooth(lambda x: answer(x) * torch.nan, 2, sigma, L2)
    with pytest.raises(ModelError, match="NaN or infinite"):
        smooth.certify(X[0].float() / 255, 10, 100, 0.01, 16)
    with pytest.raises(ModelError, match="NaN or infinite"):
        smooth.predict(X[0].float() / 255, 100, 0.01, 16)


# sigma


class AtSigma(nn.Module):
    takes_sigma = True

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        CALLS.append((x.dtype, sigma.dtype, sigma.tolist()))
        return torch.stack([sigma, 0.4 * torch.ones_like(sigma)], 1) * self.scale.float()


CALLS: list[tuple[torch.dtype, torch.dtype, list[float]]] = []


def test_every_row_comes_with_its_own_sigma_and_padding_with_one() -> None:
    CALLS.clear()
    requests = [Request(row=i % 4, sigma=sigma, stream=1, n=5) for i, sigma in enumerate((0.25, 0.5, 0.397, 1.5))]
    smoothed = dds.SmoothedClassifier(AtSigma(), L2, num_classes=2, block_size=8)
    with threads(1):
        found = smoothed.count(smoothed.prepare(X), requests, 0)
    assert [counts.tolist() for counts in found] == [[0, 5], [5, 0], [0, 5], [5, 0]]
    sigmas = torch.tensor([sigma for _, _, row in CALLS for sigma in row])
    assert torch.equal(sigmas, torch.tensor([0.25] * 5 + [0.5] * 5 + [0.397] * 5 + [1.5] * 5 + [1.0] * 4))


def test_sigma_is_never_cast_to_half_precision() -> None:
    CALLS.clear()
    smoothed = dds.SmoothedClassifier(AtSigma(), L2, num_classes=2, block_size=8, precision="bf16")
    smoothed.count(smoothed.prepare(X), [Request(row=0, sigma=0.397, stream=1, n=8)], 0)
    assert {(x, sigma) for x, sigma, _ in CALLS} == {(torch.bfloat16, torch.float32)}
    assert torch.equal(torch.tensor(CALLS[0][2]), torch.full((8,), 0.397))


def test_logits_of_one_pass_leave_inputs_and_model_as_they_came() -> None:
    net = nn.Sequential(nn.Linear(6, 2), nn.Dropout(0.5)).train()
    x = torch.rand(5, 6)
    before = x.clone()
    logits = Engine(net).logits(x, 0.5, 2)
    assert logits.shape == (5, 2)
    assert torch.equal(logits, no_grad_logits(net, x, torch.full((5,), 0.5)))
    assert torch.equal(x, before)
    assert net.training
    with pytest.raises(ModelError, match=r"\(5, 2\) for 5 inputs, expected logits of shape \(5, 3\); is num_classes=3"):
        Engine(net).logits(x, 0.5, 3)

    def greedy(x: torch.Tensor) -> torch.Tensor:
        return answer(x.zero_())

    Engine(greedy).logits(x, 0.5)
    assert torch.equal(x, before)


def test_logits_may_stand_in_a_loss() -> None:
    """They are no tensors of inference mode, which autograd refuses."""
    net, x = nn.Linear(6, 2), torch.rand(5, 6)
    targets = no_grad_logits(net, x, 0.5).softmax(1)
    nn.functional.cross_entropy(net(x), targets).backward()
    assert net.weight.grad is not None
    assert not targets.requires_grad


def test_answers_of_a_denoiser_pass_the_gate_unchecked() -> None:
    class Half(nn.Module):
        takes_sigma = True

        def forward(self, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
            return x / sigma[:, None, None, None]

    images = torch.rand(3, 1, 2, 2)
    with Engine(Half()).open() as (caller,):
        assert torch.equal(caller.answer(images.clone(), 0.5), images * 2)


# nobody goes round the gate

GATE = "counting/engine.py"
OTHERS = {  # who may call models all the same
    "attacks.py": "gradients",
    "sigma/ascent.py": "gradients",
    "training/objectives.py": "gradients",
    "training/loop.py": "statistics of batch normalisation, which are to change",
    "training/parts.py": "the same",
    "counting/ahead.py": "only noise",
    "counting/device.py": "the passes of a caller of the gate",
    "models/denoised.py": "one part of a module by another",
}
MODELS = re.compile(r"(^|\.)_?(model|base_classifier|classifier|network|net|attacked)$")


def outside_forward(tree: ast.AST) -> Iterator[ast.AST]:
    """Everything but the bodies of ``forward``, where one module calls another."""
    for child in ast.iter_child_nodes(tree):
        if not (isinstance(child, ast.FunctionDef) and child.name == "forward"):
            yield child
            yield from outside_forward(child)


def calls_of_models(tree: ast.AST) -> set[str]:
    """What looks like a call of a model, or like the ways to call one without gradients."""
    own = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    called = {ast.unparse(node.func) for node in outside_forward(tree) if isinstance(node, ast.Call)}
    called |= {ast.unparse(each) for node in ast.walk(tree) for each in getattr(node, "decorator_list", ())}
    modes = {"torch.no_grad", "torch.inference_mode", "torch.no_grad()", "torch.inference_mode()"}
    return {name for name in called if name in modes or name.startswith("at_sigma(") or MODELS.search(name)} - own


@pytest.mark.parametrize(
    "code",
    [
        "def f(model, x):\n    return model(x)",
        "class A:\n    def f(self, x):\n        return self._model(x)",
        "def f(smoothed, x):\n    return smoothed.model(x).argmax(1)",
        "def f(m, x, s):\n    return at_sigma(m, s)(x)",
        "with torch.no_grad():\n    pass",
        "@torch.inference_mode()\ndef f(): pass",
    ],
)
def test_a_call_of_a_model_is_seen(code: str) -> None:
    assert calls_of_models(ast.parse(code))


def test_nobody_calls_a_model_without_gradients_but_the_gate() -> None:
    files = {path.relative_to(SOURCE).as_posix(): path for path in SOURCE.rglob("*.py")}
    found = {name: calls for name, path in files.items() if (calls := calls_of_models(ast.parse(path.read_text())))}
    assert {name: calls for name, calls in found.items() if name not in OTHERS} == {GATE: found[GATE]}
    assert set(OTHERS) <= set(found)


def test_copies_of_the_shipped_network_are_made() -> None:
    """So that it runs in several threads, as before."""
    assert Replicas(dds.load_model("fashion-mnist-cnn"), 2).alone is None
    assert Engine(dds.load_model("fashion-mnist-cnn")).alone is None
