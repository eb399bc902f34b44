from __future__ import annotations

import gzip
import json
import pickle
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import ddsmoothing as dds
from ddsmoothing.data import Dataset, read_idx
from ddsmoothing.errors import DataError, InputError, ModelError
from ddsmoothing.models import ModelSpec, model_hash, probe_classes, save_model, spec_of

ROOT = Path(__file__).parents[1]
X = np.arange(2 * 1 * 3 * 3, dtype=np.uint8).reshape(2, 1, 3, 3)
Y = np.array([1, 0])
SPEC = ModelSpec(arch="small-cnn", classes=("a", "b"), mean=(0.5,), std=(0.25,), training_sigmas=(0.1, 0.9))


def idx(array: np.ndarray) -> bytes:
    shape = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return bytes([0, 0, 8, array.ndim]) + shape + array.tobytes()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four images of the test split plain, two of the training split gzipped."""
    images = np.arange(4 * 28 * 28).astype(np.uint8).reshape(4, 28, 28)
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(idx(images))
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(idx(np.array([3, 1, 4, 1], dtype=np.uint8)))
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(images[:2])))
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(np.array([5, 9], dtype=np.uint8))))
    return tmp_path


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    save_model(SPEC.build(), SPEC, tmp_path / "net.safetensors")
    return tmp_path / "net.safetensors"


def resave(path: Path, change: Callable[[dict[str, torch.Tensor], dict[str, str]], None]) -> Path:
    with safe_open(path, framework="pt") as file:
        state, metadata = {key: file.get_tensor(key) for key in file.keys()}, dict(file.metadata())  # noqa: SIM118
    change(state, metadata)
    save_file(state, path, metadata=metadata)
    return path


class TestData:
    def test_the_shipped_sample(self, data: Dataset) -> None:
        x, y = data[:8]
        assert (len(data), tuple(x.shape), x.dtype, y.dtype) == (1000, (8, 1, 28, 28), torch.float32, torch.int64)
        assert (float(x.min()), float(x.max())) == (0.0, 1.0)
        assert torch.equal(x * 255, (x * 255).round())
        assert data.y is not None
        assert set(data.y.tolist()) == set(range(10))

    def test_uint8_npz(self, npz: Callable[..., Path]) -> None:
        data = dds.load_data(str(npz(x=X, y=Y)))
        assert torch.equal(data[:][0], torch.from_numpy(X).float() / 255)
        assert data[:][1].tolist() == [1, 0]
        assert data.transform == "x/255"

    @pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
    def test_float_npz(self, npz: Callable[..., Path], dtype: type) -> None:
        data = dds.load_data(str(npz(x=np.array([[0.0, 0.25, 1.0]], dtype=dtype), y=Y[:1])))
        assert data[:][0].tolist() == [[0.0, 0.25, 1.0]]
        assert data[:][0].dtype == torch.float32
        assert data.transform == "none"

    def test_names_of_classes(self, npz: Callable[..., Path]) -> None:
        assert dds.load_data(str(npz(x=X, y=Y, classes=np.array(["dog", "Löwe"])))).classes == ("dog", "Löwe")
        assert dds.load_data(str(npz(x=X, y=Y))).classes is None

    def test_without_labels(self, npz: Callable[..., Path]) -> None:
        path = npz(x=X)
        with pytest.raises(DataError, match="--no-labels"):
            dds.load_data(str(path))
        data = dds.load_data(str(path), labels=False)
        assert data.y is None
        assert data[:][1].tolist() == [-1, -1]

    def test_indexing_does_not_share_memory(self, npz: Callable[..., Path]) -> None:
        data = dds.load_data(str(npz(x=np.zeros((2, 3), dtype=np.float32), y=Y)))
        data[:][0].fill_(0.5)
        assert data[:][0].max() == 0

    @pytest.mark.parametrize("index", [[1], np.array([1]), slice(1, 2)])
    def test_any_index(self, npz: Callable[..., Path], index: object) -> None:
        x, y = dds.load_data(str(npz(x=X, y=Y)))[index]
        assert torch.equal(x, torch.from_numpy(X[1:]).float() / 255)
        assert y.tolist() == [0]

    def test_idx_folder(self, folder: Path) -> None:
        test, train = (dds.load_data(f"fashion-mnist:{folder}", split=split) for split in ("test", "train"))
        assert test.classes == spec_of(dds.load_model("fashion-mnist-cnn")).classes  # type: ignore[union-attr]
        assert dds.load_data(f"mnist:{folder}").classes is None
        assert (len(test), len(train)) == (4, 2)
        assert test[:][1].tolist() == [3, 1, 4, 1]
        assert train[:][1].tolist() == [5, 9]
        assert torch.equal(test[:2][0], train[:][0])
        assert tuple(test[:1][0].shape) == (1, 1, 28, 28)
        assert test.fingerprint() != train.fingerprint()

    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            ("t10k-images-idx3-ubyte", b"", "not an idx file"),
            ("t10k-images-idx3-ubyte", b"\x00\x00\x0d\x03" + bytes(12), "not an idx file"),
            ("t10k-images-idx3-ubyte", idx(np.zeros((4, 28, 28), dtype=np.uint8))[:-1], "says shape"),
            ("t10k-images-idx3-ubyte", idx(np.zeros((3, 28, 28), dtype=np.uint8)), "3 images but 4 labels"),
            ("t10k-labels-idx1-ubyte", idx(np.zeros((0,), dtype=np.uint8)), "says shape"),
        ],
    )
    def test_bad_idx(self, folder: Path, name: str, content: bytes, message: str) -> None:
        (folder / name).write_bytes(content)
        with pytest.raises(DataError, match=message):
            dds.load_data(f"fashion-mnist:{folder}")

    def test_bad_gzip(self, folder: Path) -> None:
        whole = (folder / "train-images-idx3-ubyte.gz").read_bytes()
        for content in (b"no gzip", whole[:50], whole[:100] + bytes(60) + whole[160:]):
            (folder / "train-images-idx3-ubyte.gz").write_bytes(content)
            with pytest.raises(DataError, match="train-images"):
                read_idx(folder / "train-images-idx3-ubyte.gz", 3)

    def test_missing_idx(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"no t10k-images-idx3-ubyte or t10k-images-idx3-ubyte\.gz in"):
            dds.load_data(f"fashion-mnist:{tmp_path}")

    @pytest.mark.parametrize(
        ("arrays", "message"),
        [
            ({"y": Y}, "no array x"),
            ({"x": X.astype(np.int64), "y": Y}, "expected uint8, uint16 or floating point"),
            ({"x": np.array([[0.5, 1.01]]), "y": Y[:1]}, "divide by 255"),
            ({"x": np.array([[-0.01, 1.0]]), "y": Y[:1]}, "expected \\[0, 1\\]"),
            ({"x": np.array([[np.nan, 1.0]]), "y": Y[:1]}, "NaN or infinity"),
            ({"x": np.zeros(3), "y": np.zeros(3, int)}, "expected \\(B, C, H, W\\)"),
            ({"x": np.zeros((0, 3)), "y": np.zeros(0, int)}, "not empty"),
            ({"x": X, "y": Y[:1]}, r"npz: labels have shape \(1,\), expected \(2,\)"),
            ({"x": X, "y": Y.astype(float)}, "npz: labels are float64, such as '1.0', expected whole numbers"),
            ({"x": X, "y": np.array(["cat", "dog"])}, "npz: labels are <U3, such as 'cat'"),
            ({"x": X, "y": np.array([True, False])}, "npz: labels are bool"),
            ({"x": X, "y": np.array([0, -1])}, "npz: a label is -1, expected classes 0, 1, ..; .*--no-labels"),
            ({"x": X, "y": np.array([0, 2**64 - 1], dtype=np.uint64)}, "expected classes"),
            ({"x": X, "y": Y, "classes": np.array(["a"])}, "1 names of classes for labels up to 1"),
            ({"x": X, "y": Y, "classes": np.array(["a", "a"])}, "expected different words"),
            ({"x": X, "y": Y, "classes": np.array([1, 2])}, "expected different words"),
            ({"x": np.array([{"a": 1}, None], dtype=object), "y": Y}, "not a readable npz"),
        ],
    )
    def test_bad_npz(self, npz: Callable[..., Path], arrays: dict[str, np.ndarray], message: str) -> None:
        with pytest.raises(DataError, match=message):
            dds.load_data(str(npz(**arrays)))

    def test_corrupt_npz(self, npz: Callable[..., Path], tmp_path: Path) -> None:
        whole = npz(x=np.zeros((50, 50), dtype=np.uint8), y=np.zeros(50, int)).read_bytes()
        flipped = bytearray(whole)
        flipped[300] ^= 0xFF
        for content in (b"", b"not a zip", whole[: len(whole) // 2], pickle.dumps({"x": 1}), bytes(flipped)):
            (tmp_path / "bad.npz").write_bytes(content)
            with pytest.raises(DataError, match="not a readable npz"):
                dds.load_data(str(tmp_path / "bad.npz"))

    def test_a_bare_array_named_npz(self, tmp_path: Path) -> None:
        with (tmp_path / "bare.npz").open("wb") as file:
            np.save(file, X)
        with pytest.raises(DataError, match="not a readable npz"):
            dds.load_data(str(tmp_path / "bare.npz"))

    def test_missing_and_unknown(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="no data file at"):
            dds.load_data(str(tmp_path / "none.npz"))
        with pytest.raises(InputError, match="Did you mean 'fashion-mnist-sample'"):
            dds.load_data("fashion-mnist-sampel")
        with pytest.raises(InputError, match="Did you mean 'test'"):
            dds.load_data("fashion-mnist-sample", split="tests")
        assert dds.load_data("fashion-mnist-sample", split="train").split == "test"  # what it is of, for a run's header

    def test_a_pickle_in_an_npz_is_not_executed(self, tmp_path: Path) -> None:
        class Bomb:
            def __reduce__(self) -> tuple[object, ...]:
                return Path.touch, (tmp_path / "executed",)

        np.savez(tmp_path / "bomb.npz", x=np.array([Bomb()], dtype=object), y=Y[:1])
        with pytest.raises(DataError):
            dds.load_data(str(tmp_path / "bomb.npz"))
        assert not (tmp_path / "executed").exists()

    def test_fingerprint_tells_data_sets_apart(self) -> None:
        def one(**change: object) -> dict[str, str | int]:
            return Dataset(**({"name": "a", "split": "test", "x": X, "y": Y} | change)).fingerprint()  # type: ignore[arg-type]

        changed = X.copy()
        changed[1, 0, 2, 2] ^= 1
        others = [
            {"x": changed},
            {"x": X[::-1]},
            {"x": X[:1], "y": Y[:1]},
            {"x": X.reshape(2, 9)},
            {"x": X.astype(np.float32)},
        ]
        prints = [one(), *(one(**other) for other in others), one(split="train"), one(name="b")]
        assert len({json.dumps(p, sort_keys=True) for p in prints}) == len(prints)
        assert set(one()) == {"name", "split", "length", "transform", "sha256", "labels_sha256"}

    def test_labels_are_part_of_what_a_data_set_is(self) -> None:
        """All of them, not those of some inputs; and the same labels as other types are the same."""

        def labels(y: object, n: int = 1000) -> object:
            found = Dataset(name="a", split="test", x=np.zeros((n, 2), np.float32), y=y).fingerprint()  # type: ignore[arg-type]
            return found["labels_sha256"]

        y = np.zeros(1000, np.int64)
        changed = y.copy()
        changed[1] = 1  # none of the inputs that are hashed
        assert labels(y) == labels(y.astype(np.uint8)) == labels(torch.from_numpy(y)) == labels(y.tolist())
        assert labels(y) != labels(changed)
        assert labels(None) is None
        assert labels([0], 1) != labels([1], 1)


class TestModels:
    def test_the_shipped_model(self, model: torch.nn.Module, data: Dataset) -> None:
        spec = spec_of(model)
        assert spec is not None
        assert len(spec.classes) == 10
        assert spec.training_sigmas[0] < spec.sigma0 < spec.training_sigmas[-1]
        assert not model.training
        assert 26_000 <= sum(p.numel() for p in model.parameters()) <= 60_000
        x, y = data[:]
        with torch.inference_mode():
            assert (model(x + 0.25 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))).argmax(1) == y)[
                :
            ].float().mean() > 0.75

    def test_assets_are_small(self) -> None:
        assets = ROOT / "src" / "ddsmoothing" / "assets"
        assert all(path.stat().st_size <= 500_000 for path in assets.iterdir())

    def test_a_saved_model_comes_back(self, saved: Path) -> None:
        torch.manual_seed(0)
        original, loaded = SPEC.build().eval(), dds.load_model(str(saved))
        x = torch.rand(3, 1, 28, 28)
        assert torch.equal(original(x), loaded(x))
        assert spec_of(loaded) == SPEC

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda state, _: state.pop("11.bias"), "missing \\['11.bias'\\]"),
            (lambda state, _: state.update({"module.extra": torch.zeros(1)}), "unexpected \\['module.extra'\\]"),
            (lambda state, _: state.update({"11.bias": torch.zeros(3)}), "other shape \\['11.bias'\\]"),
            (lambda _, metadata: metadata.clear(), "no ddsmoothing metadata"),
            (lambda _, metadata: metadata.update(ddsmoothing="{}"), "not a model spec: arch"),
            (lambda _, metadata: metadata.update(ddsmoothing="["), "not a model spec"),
            (
                lambda _, metadata: metadata.update(
                    ddsmoothing=metadata["ddsmoothing"].replace("small-cnn", "smal-cnn")
                ),
                "Did you mean 'small-cnn'",
            ),
        ],
    )
    def test_a_model_that_does_not_fit(self, saved: Path, change: Callable[..., None], message: str) -> None:
        with pytest.raises(ModelError, match=message):
            dds.load_model(str(resave(saved, change)))

    def test_damaged_and_missing_files(self, saved: Path, tmp_path: Path) -> None:
        saved.write_bytes(saved.read_bytes()[:-5])
        with pytest.raises(ModelError, match="not a readable safetensors file"):
            dds.load_model(str(saved))
        with pytest.raises(ModelError, match="no model file at"):
            dds.load_model(str(tmp_path / "none.safetensors"))
        with pytest.raises(InputError, match="Did you mean 'fashion-mnist-cnn'"):
            dds.load_model("fashion-mnist-cn")

    @pytest.mark.parametrize("name", ["net.pt", "net.pth", "net.pkl", "net"])
    def test_a_pickle_is_refused_unread(self, tmp_path: Path, name: str) -> None:
        class Bomb:
            def __reduce__(self) -> tuple[object, ...]:
                return Path.touch, (tmp_path / "executed",)

        (tmp_path / name).write_bytes(pickle.dumps(Bomb()))
        with pytest.raises(ModelError, match="can run code"):
            dds.load_model(str(tmp_path / name))
        (tmp_path / "disguised.safetensors").write_bytes(pickle.dumps(Bomb()))
        with pytest.raises(ModelError, match="not a readable safetensors"):
            dds.load_model(str(tmp_path / "disguised.safetensors"))
        assert not (tmp_path / "executed").exists()

    @pytest.fixture
    def package(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
        code = """
import torch
def build(): return torch.nn.Linear(4, 2).train()
ready = torch.nn.Linear(4, 3)
def bare(): return lambda x: x
def wrong(): return 3
def needs(one): return one
number = 5
"""
        (tmp_path / "my_nets_for_tests.py").write_text(code)
        monkeypatch.syspath_prepend(tmp_path)
        yield "my_nets_for_tests"
        sys.modules.pop("my_nets_for_tests", None)

    def test_a_model_from_a_function(self, package: str) -> None:
        built = dds.load_model(f"{package}:build")
        assert isinstance(built, torch.nn.Linear)
        assert not built.training
        assert isinstance(dds.load_model(f"{package}:ready"), torch.nn.Linear)
        assert callable(dds.load_model(f"{package}:bare"))
        assert spec_of(built) is None

    @pytest.mark.parametrize("name", ["wrong", "none", "", "number", "needs"])
    def test_a_function_that_gives_no_model(self, package: str, name: str) -> None:
        with pytest.raises(ModelError, match=r"package\.module:function|expected a torch\.nn\.Module"):
            dds.load_model(f"{package}:{name}")

    @pytest.mark.parametrize("name", ["no_such_package_here:build", ":build", "a..b:c"])
    def test_a_module_that_is_not_there(self, name: str) -> None:
        with pytest.raises(ModelError, match="cannot import"):
            dds.load_model(name)

    def test_hash_is_stable_and_sees_every_weight(self) -> None:
        def build() -> torch.nn.Module:
            torch.manual_seed(1)
            return SPEC.build()

        first = model_hash(build())
        assert first == model_hash(build())
        assert first == model_hash(build().train(False))
        for key in build().state_dict():
            changed = build()
            state = changed.state_dict()
            flat = state[key].reshape(-1)
            flat[-1] = flat[-1] + 1 if flat.dtype == torch.int64 else torch.nextafter(flat[-1], torch.tensor(9e9))
            changed.load_state_dict(state)
            assert model_hash(changed) != first, key
        assert model_hash(build().half()) != first

    def test_hash_sees_the_architecture_and_the_spec(self, saved: Path) -> None:
        linear = torch.nn.Linear(2, 2)
        relu, gelu = (torch.nn.Sequential(linear, kind()) for kind in (torch.nn.ReLU, torch.nn.GELU))
        assert model_hash(relu) != model_hash(gelu)
        before = model_hash(dds.load_model(str(saved)))
        resave(saved, lambda _, m: m.update(ddsmoothing=m["ddsmoothing"].replace('"a"', '"c"')))
        assert model_hash(dds.load_model(str(saved))) != before

    def test_a_bare_callable_has_no_hash(self) -> None:
        assert model_hash(lambda x: x) is None

    def test_probe_classes(self) -> None:
        assert probe_classes(torch.nn.Linear(4, 7), torch.zeros(1, 4)) == 7
        with pytest.raises(ModelError, match="does not take inputs of shape"):
            probe_classes(torch.nn.Linear(4, 7), torch.zeros(1, 5))
        with pytest.raises(ModelError, match="expected logits"):
            probe_classes(torch.nn.Flatten(0), torch.zeros(1, 5))


def test_environment_matches_pyproject() -> None:
    path = ROOT / "environment.yml"
    if not path.exists():
        pytest.skip("no environment.yml here")
    yaml = pytest.importorskip("yaml")
    environment = yaml.safe_load(path.read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert environment["name"] == project["name"]
    plain = [entry for entry in environment["dependencies"] if isinstance(entry, str)]
    (pip,) = (entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict))
    assert f"python{project['requires-python']}" in [entry.replace(" ", "") for entry in plain]
    assert "pip" in plain
    assert any(entry.split("[")[0] in (".", "-e .", project["name"]) for entry in pip)
