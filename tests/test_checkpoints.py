"""Checkpoints in the layouts of the field: read by name, as data, with the normalisation they were trained with."""

from __future__ import annotations

import argparse
import collections
import concurrent.futures
import contextlib
import os
import pickle
import re
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

import ddsmoothing as dds
from ddsmoothing.errors import DdsmoothingError, InputError, ModelError
from ddsmoothing.models import Normalize, build_model, load_model, model_hash, spec_of
from ddsmoothing.models.checkpoints import read_checkpoint
from fuzzing import cases, damaged

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
X = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(5))
State = dict[str, torch.Tensor]


def network(arch: str, classes: int = 10) -> nn.Module:
    """A network without our normalising layer, with weights that no other has."""
    torch.manual_seed(len(arch) + classes)
    inner = build_model(arch, num_classes=classes, input_shape=(3, 32, 32), normalize="none", random_weights=True)[1]
    for module in inner.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2.0)
    return inner.eval()


def layer(mean: tuple[float, ...] = MEAN, std: tuple[float, ...] = STD) -> Normalize:
    return Normalize(mean, std)


def prefixed(state: State, prefix: str) -> State:
    return {prefix + key: value for key, value in state.items()}


class Wrapped(nn.Module):
    """As the DDS scripts wrap a network: normalisation by plain tensors, and a softmax at the end."""

    def __init__(self, model: nn.Module, std: tuple[float, ...] = STD) -> None:
        super().__init__()
        self.model, self.softmax = model, nn.Softmax(dim=1)
        self.mean, self.std = torch.tensor(MEAN).view(1, 3, 1, 1), torch.tensor(std).view(1, 3, 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.softmax(self.model((x - self.mean) / self.std))  # type: ignore[no-any-return]


LAYOUTS: dict[str, tuple[str, Callable[[State], Any], dict[str, Any], tuple[tuple[float, ...], tuple[float, ...]]]] = {
    # name: architecture, what is saved, what has to be told, mean and deviation
    "locuslab, CIFAR": (
        "cifar-resnet20",
        lambda s: {"epoch": 90, "arch": "cifar_resnet20", "state_dict": prefixed(s, "1."), "optimizer": {"state": {}}},
        {},
        (MEAN, STD),
    ),
    "locuslab, in parallel": (
        "cifar-resnet20",
        lambda s: {"arch": "cifar_resnet20", "state_dict": prefixed(s, "1.module.")},
        {},
        (MEAN, STD),
    ),
    "Salman, centred": (
        "cifar-resnet20",
        lambda s: {"arch": "cifar_resnet20", "state_dict": prefixed(s, "1.")},
        {"normalize": "center"},
        (MEAN, (1.0, 1.0, 1.0)),
    ),
    "MACER": (
        "cifar-resnet20",
        lambda s: {"net": s, "epoch": 440},
        {"arch": "cifar-resnet20", "normalize": "none"},
        ((0.0,) * 3, (1.0,) * 3),
    ),
    "DDS, CIFAR": (
        "cifar-resnet18-7x7",
        lambda s: {"state_dict": s, "optimizer": {}, "epoch": 3},
        {"arch": "cifar-resnet18-7x7"},
        (MEAN, STD),
    ),
    "DDS package, wide": ("wrn-40-2", lambda s: {"state_dict": s}, {"arch": "wrn-40-2"}, (MEAN, STD)),
    "wrapped, in parallel": (
        "cifar-resnet20",
        lambda s: {"state_dict": prefixed(s, "model.module.")},
        {"arch": "cifar-resnet20"},
        (MEAN, STD),
    ),
    "compiled": ("cifar-resnet20", lambda s: prefixed(s, "_orig_mod."), {"arch": "cifar-resnet20"}, (MEAN, STD)),
    "normaliser's buffers": (
        "cifar-resnet20",
        lambda s: {
            "arch": "cifar_resnet20",
            "state_dict": prefixed(s, "1.")
            | {"0.means": torch.tensor([0.1, 0.2, 0.3]), "0.sds": torch.tensor([0.5] * 3)},
        },
        {},
        ((0.1, 0.2, 0.3), (0.5, 0.5, 0.5)),
    ),
    "a buffer of means": (
        "cifar-resnet20",
        lambda s: {
            "arch": "cifar_resnet20",
            "state_dict": prefixed(s, "1.") | {"0.mean": torch.full((1, 3, 1, 1), 0.5)},
        },
        {},
        ((0.5,) * 3, (1.0,) * 3),
    ),
}


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "older"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout: str, legacy: bool, tmp_path: Path) -> None:
    arch, saved, told, (mean, std) = LAYOUTS[layout]
    net, path = network(arch), tmp_path / "checkpoint.pth.tar"
    torch.save(saved(net.state_dict()), path, _use_new_zipfile_serialization=not legacy)
    loaded, spec = load_model(str(path), **told), None
    expected = net((X - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None])
    assert torch.equal(loaded(X), expected)
    assert not loaded.training
    spec = spec_of(loaded)
    assert spec is not None
    assert (spec.arch, spec.mean, spec.std, len(spec.classes)) == (arch, mean, std, 10)
    assert spec.sigma0 is None


def test_a_wrong_normalisation_would_be_seen(tmp_path: Path) -> None:
    net = network("cifar-resnet20")
    torch.save({"net": net.state_dict()}, tmp_path / "macer.pth")
    right, wrong = (
        load_model(str(tmp_path / "macer.pth"), arch="cifar-resnet20", normalize=n) for n in ("none", "auto")
    )
    assert torch.equal(right(X), net(X))
    assert not torch.allclose(wrong(X), net(X), atol=0.1)
    assert model_hash(right) != model_hash(wrong)


@pytest.mark.parametrize("std", [STD, (1.0, 1.0, 1.0)], ids=["normalised", "centred"])
def test_a_softmax_at_the_end_is_left_off(std: tuple[float, ...], tmp_path: Path) -> None:
    """The network that was trained gave probabilities; what is loaded gives their logits."""
    net = network("cifar-resnet18-7x7")
    trained = Wrapped(net, std).eval()
    torch.save({"state_dict": trained.state_dict()}, tmp_path / "dds.pth.tar")
    normalize = "auto" if std == STD else "center"
    loaded = load_model(str(tmp_path / "dds.pth.tar"), arch="cifar-resnet18-7x7", normalize=normalize)
    logits = loaded(X)
    assert torch.allclose(torch.softmax(logits, 1), trained(X), atol=1e-6)
    assert not torch.allclose(logits.sum(1), torch.ones(len(X)), atol=0.1)


def test_imagenet_in_parallel(tmp_path: Path) -> None:
    """A ResNet-50 as Cohen and Salman saved it, with the number of classes that its last layer has."""
    models = pytest.importorskip("torchvision.models")
    net = models.resnet50(num_classes=12).eval()
    torch.save({"arch": "resnet50", "state_dict": prefixed(net.state_dict(), "1.module.")}, tmp_path / "c.pth.tar")
    loaded, x = load_model(str(tmp_path / "c.pth.tar")), X[:1].repeat(1, 1, 3, 3)
    mean, std = (torch.tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    assert torch.equal(loaded(x), net((x - mean) / std))
    spec = spec_of(loaded)
    assert spec is not None
    assert len(spec.classes) == 12


def test_a_whole_model_of_ours(tmp_path: Path) -> None:
    """With the normalisation that its buffers say, by torch.save and by safetensors without metadata."""
    for arch, shape in (("small-cnn", (1, 28, 28)), ("cifar-resnet20", (3, 32, 32))):
        ours = build_model(arch, num_classes=3, input_shape=shape, normalize="none", random_weights=True).eval()
        ours[0].mean.fill_(0.25)
        torch.save(ours.state_dict(), tmp_path / "whole.pt")
        save_file(ours.state_dict(), tmp_path / "whole.safetensors")
        for name in ("whole.pt", "whole.safetensors"):
            x = torch.rand(2, *shape)
            loaded = load_model(str(tmp_path / name), arch=arch, num_classes=3)
            assert torch.equal(loaded(x), ours(x))
            named = load_model(arch, weights=tmp_path / name, num_classes=3)
            assert torch.equal(named(x), ours(x))


def test_what_a_file_does_not_say_has_to_be_told(tmp_path: Path) -> None:
    net, path = network("cifar-resnet20"), tmp_path / "net.pt"
    torch.save(net.state_dict(), path)
    with pytest.raises(ModelError, match="its architecture is unknown; give --arch"):
        load_model(str(path))
    torch.save({"arch": "resnet9000", "state_dict": net.state_dict()}, path)
    with pytest.raises(ModelError, match="unknown architecture 'resnet9000'"):
        load_model(str(path))
    assert torch.equal(load_model(str(path), arch="cifar-resnet20", normalize="none")(X), net(X))


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    state, path = dict(network("cifar-resnet20").state_dict()), tmp_path / "net.pt"
    del state["fc.bias"], state["bn1.weight"]
    state |= {"extra": torch.zeros(1), "conv1.weight": torch.zeros(16, 1, 3, 3)}
    torch.save(prefixed(state, "1.module."), path)
    with pytest.raises(ModelError) as error:
        load_model(str(path), arch="cifar-resnet20")
    text = str(error.value)
    assert "missing ['bn1.weight', 'fc.bias'], unexpected ['extra'], other shape ['conv1.weight']" in text
    assert "\n" not in text
    torch.save(network("cifar-resnet20").state_dict(), path)
    with pytest.raises(ModelError, match=r"missing \[.*\] and \d+ more"):
        load_model(str(path), arch="cifar-resnet110")


def test_weights_are_never_matched_by_position(tmp_path: Path) -> None:
    """The same tensors under names in another order give the same network; under swapped names another one."""
    net, path = network("cifar-resnet20"), tmp_path / "net.pt"
    state = net.state_dict()
    torch.save(dict(reversed(list(state.items()))), path)
    told = {"arch": "cifar-resnet20", "normalize": "none"}
    assert torch.equal(load_model(str(path), **told)(X), net(X))
    one, other = "layer1.0.conv1.weight", "layer1.0.conv2.weight"
    torch.save({**state, one: state[other], other: state[one]}, path)
    assert not torch.equal(load_model(str(path), **told)(X), net(X))


def test_weights_for_the_code_of_a_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = """
from torch import nn
def build(): return nn.Linear(4, 2)
def layers(): return nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
def bare(): return lambda x: x
"""
    (tmp_path / "checkpoint_nets.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    torch.save(prefixed(nn.Linear(4, 2).state_dict(), "module."), tmp_path / "net.pt")
    loaded = load_model(str(tmp_path / "net.pt"), arch="checkpoint_nets:build")
    assert torch.equal(loaded.weight, torch.load(tmp_path / "net.pt", weights_only=True)["module.weight"])
    with pytest.raises(ModelError, match="bare callable"):
        load_model(str(tmp_path / "net.pt"), arch="checkpoint_nets:bare")
    layers = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))  # whose names look like those of a normalised network
    torch.save(layers.state_dict(), tmp_path / "layers.pt")
    again, x = load_model(str(tmp_path / "layers.pt"), arch="checkpoint_nets:layers"), torch.rand(2, 4)
    assert torch.equal(again(x), layers(x))


# damage and malice


def test_code_that_a_checkpoint_names_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    marker = tmp_path / "was-run"
    (tmp_path / "named_nets.py").write_text(f"import os\nos.mkdir({str(marker)!r})\nbuild = None\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    torch.save({"arch": "named_nets:build", "state_dict": nn.Linear(4, 2).state_dict()}, tmp_path / "net.pt")
    for call in (lambda name: load_model(name), lambda name: load_model("cifar-resnet20", weights=Path(name))):
        with pytest.raises(ModelError, match=r"its architecture is unknown; give --arch|does not fit"):
            call(str(tmp_path / "net.pt"))
    assert not marker.exists()
    with pytest.raises(ModelError, match="named_nets:build gave"):
        load_model(str(tmp_path / "net.pt"), arch="named_nets:build")
    assert marker.exists()  # the trap works


class Evil:
    """Makes a folder when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "older"])
def test_code_in_a_checkpoint_is_not_run(legacy: bool, tmp_path: Path) -> None:
    state, marker, path = dict(network("cifar-resnet20").state_dict()), tmp_path / "was-run", tmp_path / "net.pt"
    for evil in (Evil(marker), {"state_dict": state, "optimizer": Evil(marker)}, {**state, "evil": Evil(marker)}):
        torch.save(evil, path, _use_new_zipfile_serialization=not legacy)
        with pytest.raises(ModelError, match=r"it names posix\.mkdir.*can run code") as error:
            load_model(str(path), arch="cifar-resnet20")
        assert "\n" not in str(error.value)
    path.write_bytes(pickle.dumps(Evil(marker)))
    with pytest.raises(ModelError, match="can run code"):
        load_model(str(path), arch="cifar-resnet20")
    torch.save(network("cifar-resnet20"), path)  # a whole module: its class would be imported
    with pytest.raises(ModelError, match="can run code"):
        load_model(str(path), arch="cifar-resnet20")
    assert not marker.exists()


@pytest.mark.parametrize(
    "content",
    [
        {},
        [],
        3,
        torch.zeros(3),
        {"state_dict": {}},
        {"state_dict": {"a": 1}},
        {"net": {1: torch.zeros(1)}},
        {"state_dict": {"conv1.weight": torch.eye(3).to_sparse()}},
        {"state_dict": {"conv1.weight": torch.zeros(2, dtype=torch.complex64)}},
    ],
    ids=repr,
)
def test_no_weights(content: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "net.pt")
    with pytest.raises(ModelError, match="holds no state dict"):
        load_model(str(tmp_path / "net.pt"), arch="cifar-resnet20")


def test_a_folder_or_nothing_in_place_of_a_file(tmp_path: Path) -> None:
    for name in (tmp_path, tmp_path / "none.pt", tmp_path / "none.pth.tar"):
        with pytest.raises(ModelError, match="no model file at"):
            load_model(str(name), arch="cifar-resnet20")


TINY = {"arch": "small-cnn", "num_classes": 2, "input_shape": (1, 4, 4)}


STRUCTURE = re.compile(rb"PK|data\.pkl|\x80\x02|ctorch|ccollections|X.\x00\x00\x00")  # of a file of torch.save


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder, files = tmp_path_factory.mktemp("sound"), {}
    state = build_model("small-cnn", num_classes=2, input_shape=(1, 4, 4), random_weights=True).state_dict()
    for legacy in (False, True):
        path = folder / f"{legacy}.pt"
        torch.save({"arch": "small-cnn", "state_dict": state}, path, _use_new_zipfile_serialization=not legacy)
        files[path.name] = path.read_bytes()
        assert load_model(str(path), **TINY) is not None
    return files


@cases(300)
@given(data=st.data())
def test_damaged_checkpoints(
    sound: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """A network, or an error of ours in one line; never anything else."""
    name = data.draw(st.sampled_from(sorted(sound)))
    path = tmp_path_factory.getbasetemp() / f"fuzz-{name}"
    structure = [match.start() for match in STRUCTURE.finditer(sound[name])]
    path.write_bytes(data.draw(damaged(sound[name], structure)))
    with contextlib.suppress(DdsmoothingError):
        try:
            loaded = load_model(str(path), **TINY)
        except DdsmoothingError as error:
            assert str(error).count("\n") == 0
            raise
        assert isinstance(loaded, nn.Module)


def test_the_shipped_model_takes_no_architecture() -> None:
    assert dds.load_model("fashion-mnist-cnn", arch="small-cnn") is not None  # what it is
    with pytest.raises(InputError, match="got --arch"):
        dds.load_model("fashion-mnist-cnn", arch="wrn-40-2")


# several sets of weights, and what stands beside them


def loaded_as(path: Path, **options: Any) -> nn.Module:
    return load_model(str(path), arch="cifar-resnet20", normalize="none", **options)


AVERAGED = ["state_dict_ema", "model_ema", "ema", "ema_state_dict", "swa_model", "params_ema", "averaged_model", "EMA"]


@pytest.mark.parametrize("name", AVERAGED)
def test_averaged_weights_beside_others_are_asked_for(name: str, tmp_path: Path) -> None:
    """The raw ones were loaded without a word."""
    raw, mean, path = network("cifar-resnet20"), network("cifar-resnet20"), tmp_path / "net.pt"
    with torch.no_grad():
        mean.fc.bias.add_(1.0)
    torch.save({"state_dict": raw.state_dict(), name: mean.state_dict(), "epoch": 3}, path)
    message = rf"several sets of weights: .*'state_dict'.*of which '{name}' look averaged; say which with --weights-key"
    with pytest.raises(ModelError, match=message):
        loaded_as(path)
    assert torch.equal(loaded_as(path, weights_key=name)(X), mean(X))
    assert torch.equal(loaded_as(path, weights_key="state_dict")(X), raw(X))
    named = load_model("cifar-resnet20", weights=path, weights_key=name, normalize="none")
    assert torch.equal(named(X), mean(X))
    torch.save({name: mean.state_dict(), "epoch": 3}, path)  # the only ones
    assert torch.equal(loaded_as(path)(X), mean(X))


def test_averaged_weights_deeper_down(tmp_path: Path) -> None:
    raw, path = network("cifar-resnet20").state_dict(), tmp_path / "net.ckpt"
    torch.save({"state_dict": raw, "callbacks": {"EMA": raw}, "optimizer": {"state": {0: raw}}}, path)
    with pytest.raises(ModelError, match=r"'callbacks\.EMA', 'state_dict', of which 'callbacks\.EMA' look averaged"):
        loaded_as(path)
    assert loaded_as(path, weights_key="callbacks.EMA") is not None


def test_torchs_own_average_is_a_set_like_others(tmp_path: Path) -> None:
    net, path = network("cifar-resnet20"), tmp_path / "net.pt"
    torch.save(torch.optim.swa_utils.AveragedModel(net).state_dict(), path)
    assert torch.equal(loaded_as(path)(X), net(X))


def test_one_known_place_is_taken_beside_other_tensors(tmp_path: Path) -> None:
    net, path = network("cifar-resnet20"), tmp_path / "net.pt"
    state = net.state_dict()
    for place in ("state_dict", "model_state_dict", "net", "model", "weights", "params"):
        torch.save({place: state, "normalizer": {"mean": torch.zeros(3)}}, path)
        assert torch.equal(loaded_as(path)(X), net(X))
    for content, names in (
        ({"net": state, "model": state}, "'model', 'net'"),
        ({"generator": state, "discriminator": state}, "'discriminator', 'generator'"),
    ):
        torch.save(content, path)
        with pytest.raises(ModelError, match=f"several sets of weights: {names}; say which"):
            loaded_as(path)


@pytest.mark.parametrize("kind", ["pt", "safetensors"])
def test_a_key_may_be_what_names_begin_with(kind: str, tmp_path: Path) -> None:
    """Averaged weights under a prefix of one state dict never load by themselves; what would fit is named."""
    raw, mean, path = network("cifar-resnet20"), network("cifar-resnet20"), tmp_path / f"net.{kind}"
    with torch.no_grad():
        mean.fc.bias.add_(1.0)
    state = prefixed(raw.state_dict(), "model.") | prefixed(mean.state_dict(), "ema.") | {"loss.weight": torch.zeros(2)}
    torch.save({"state_dict": state}, path) if kind == "pt" else save_file(state, path)
    with pytest.raises(ModelError, match="Names that begin with ema or model would fit; say so with --weights-key"):
        loaded_as(path)
    assert torch.equal(loaded_as(path, weights_key="ema")(X), mean(X))
    assert torch.equal(loaded_as(path, weights_key="model")(X), raw(X))
    with pytest.raises(ModelError, match=r"no weights 'em', expected one of \['ema', 'loss', 'model'\]"):
        loaded_as(path, weights_key="em")


def test_a_key_where_there_is_nothing_to_choose(tmp_path: Path, cli: Callable[..., Any]) -> None:
    for name in ("fashion-mnist-cnn", "cifar-resnet20", "os:getcwd"):
        with pytest.raises(InputError, match="--weights-key is for files of weights"):
            load_model(name, weights_key="ema", random_weights=name == "cifar-resnet20")
    ours = build_model("small-cnn", num_classes=2, input_shape=(1, 4, 4), random_weights=True)
    dds.models.save_model(ours, spec_of(ours), tmp_path / "ours.safetensors")  # type: ignore[attr-defined]
    with pytest.raises(ModelError, match="holds one set of weights; leave --weights-key out"):
        load_model(str(tmp_path / "ours.safetensors"), weights_key="ema")
    path = tmp_path / "net.pt"
    torch.save({"state_dict": ours.state_dict(), "ema": ours.state_dict()}, path)
    np.savez(tmp_path / "x.npz", x=np.zeros((2, 1, 4, 4), np.uint8), y=np.zeros(2, int))
    command = ("predict", "--model", path, "--arch", "small-cnn", "--num-classes", 2, "--data", tmp_path / "x.npz")
    command += ("--sigma", 0.25, "--n", 20, "--seed", 0)
    assert "--weights-key" in cli(*command).err
    assert cli(*command, "--weights-key", "ema").code == 0


@pytest.mark.parametrize("prefix", ["net.", "network.", "model.net.", "module.net.", "net.module.", "_orig_mod.net."])
def test_names_of_what_wraps_a_network_are_left_off(prefix: str, tmp_path: Path) -> None:
    net, path = network("cifar-resnet20"), tmp_path / "net.pt"
    torch.save({"state_dict": prefixed(net.state_dict(), prefix)}, path)
    assert torch.equal(loaded_as(path)(X), net(X))


class Hyper(dict):  # type: ignore[type-arg]
    """As Lightning keeps its options."""


Hyper.__module__, Hyper.__qualname__ = "pytorch_lightning.utilities.parsing", "AttributeDict"


def of_lightning(**more: Any) -> dict[str, Any]:
    """What stands in a checkpoint of Lightning beside the weights."""
    options = argparse.Namespace(lr=np.float64(0.1), seeds=[np.int64(3), np.bool_(True)], out=Path("runs/a"))
    return {
        "epoch": 3,
        "pytorch-lightning_version": "2.4.0",
        "hyper_parameters": {"lr": np.float32(0.1), "options": options, "table": np.arange(6.0).reshape(2, 3), **more},
        "args": options,
        "losses": collections.defaultdict(list, {"train": [np.float64(0.5)]}),
        "callbacks": {"ModelCheckpoint{'monitor': None}": {"best": torch.tensor(0.5), "path": Path("a.ckpt")}},
        "optimizer_states": [{"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": np.float64(0.1)}]}],
    }


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "older"])
def test_options_of_training_runs_are_left_unread(
    legacy: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither imported nor made: none of these classes is touched, whatever the file says of them."""
    net, path = network("cifar-resnet20"), tmp_path / "last.ckpt"
    module = types.ModuleType("pytorch_lightning.utilities.parsing")
    module.AttributeDict = Hyper  # type: ignore[attr-defined]
    for name in ("pytorch_lightning", "pytorch_lightning.utilities"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    saved = of_lightning(inner=Hyper(width=np.int32(3))) | {"state_dict": prefixed(net.state_dict(), "net.")}
    torch.save(saved, path, _use_new_zipfile_serialization=not legacy)
    monkeypatch.delitem(sys.modules, module.__name__)
    made: list[object] = []
    monkeypatch.setattr(argparse.Namespace, "__init__", lambda *args, **_: made.append(args))
    before = set(torch.serialization.get_safe_globals())
    assert torch.equal(loaded_as(path)(X), net(X))
    assert not made
    assert module.__name__ not in sys.modules
    assert set(torch.serialization.get_safe_globals()) == before


def test_names_that_are_left_out_still_run_nothing(tmp_path: Path) -> None:
    """A stand-in takes any arguments and any state and keeps none of them; other names are refused as before."""

    class Posing:
        """Calls a harmless name with what would do harm, if it were that name."""

        def __init__(self, call: Any, *arguments: Any) -> None:
            self.call, self.arguments = call, arguments

        def __reduce__(self) -> Any:
            return self.call, self.arguments, {"__class__": "os.system", "x": 1}

    state, path, marker = dict(network("cifar-resnet20").state_dict()), tmp_path / "net.pt", tmp_path / "was-run"
    for posing in (
        Posing(argparse.Namespace),
        Posing(type(Path()), "a", "b"),
        Posing(np.dtype, "O", False, True),
        {"a": np.arange(3), "b": Posing(argparse.Namespace)},
    ):
        torch.save({"state_dict": state, "hyper_parameters": posing}, path)
        assert loaded_as(path) is not None
    for evil in (Evil(marker), {"a": argparse.Namespace(x=Evil(marker))}, Posing(getattr, "a", "upper")):
        torch.save({"state_dict": state, "hyper_parameters": evil}, path)
        with pytest.raises(ModelError, match="can run code"):
            loaded_as(path)
    torch.save({"state_dict": {**state, "fc.bias": np.zeros(10)}}, path)  # no tensor, whatever it was
    with pytest.raises(ModelError, match="holds no state dict"):
        loaded_as(path)
    assert not marker.exists()


def test_files_are_read_side_by_side(tmp_path: Path) -> None:
    """The list of names that torch keeps is one for all threads."""
    net, path = network("cifar-resnet20"), tmp_path / "net.ckpt"
    torch.save(of_lightning() | {"state_dict": net.state_dict()}, path)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: read_checkpoint(path).state["fc.bias"], range(32)))
    assert all(torch.equal(one, net.fc.bias) for one in found)
