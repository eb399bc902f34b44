"""Folders of the field's data sets: CIFAR-10, ImageNet, MNIST and images; fetching them; changes for training."""

from __future__ import annotations

import collections
import gzip
import hashlib
import http.server
import io
import os
import pickle
import socket
import tarfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import ddsmoothing as dds
from ddsmoothing.data import FOLDERS, augmentation
from ddsmoothing.data import download as download_module
from ddsmoothing.data.download import SOURCES, Source
from ddsmoothing.errors import DataError, DdsmoothingWarning, InputError
from fuzzing import cases

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (12, 3, 32, 32), dtype=np.uint8)
LABELS = np.arange(12, dtype=np.uint8) % 10


# CIFAR-10


def binary_batches(folder: Path, x: np.ndarray = PIXELS, y: np.ndarray = LABELS) -> Path:
    """Two images in each training batch, two in the test batch."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = np.concatenate([y[:, None], x.reshape(len(x), -1)], 1).astype(np.uint8)
    for i in range(5):
        (folder / f"data_batch_{i + 1}.bin").write_bytes(rows[2 * i : 2 * i + 2].tobytes())
    (folder / "test_batch.bin").write_bytes(rows[10:].tobytes())
    return folder


def python2_pickle(pixels: bytes, labels: list[int], *, by_columns: bool = False) -> bytes:
    """What Python 2 wrote, opcode by opcode: strings of bytes, protocol 2, a numpy array by its state."""

    def string(text: bytes) -> bytes:
        if len(text) < 256:
            return b"U" + bytes([len(text)]) + text
        return b"T" + len(text).to_bytes(4, "little") + text

    n = len(labels)
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\nq\x02cnumpy\nndarray\nq\x03K\x00\x85U\x01b\x87Rq\x04"
        + b"(K\x01"
        + b"M" + n.to_bytes(2, "little") + b"M\x00\x0c\x86"
        + b"cnumpy\ndtype\nq\x05U\x02u1K\x00K\x01\x87Rq\x06(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        + (b"\x88" if by_columns else b"\x89")
        + string(pixels)
        + b"tb"
    )  # fmt: skip
    numbers = b"](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
    return (
        b"\x80\x02}q\x01("
        + string(b"data") + array
        + string(b"labels") + numbers
        + string(b"batch_label") + string(b"training batch 1 of 5")
        + string(b"filenames") + b"](" + string(b"leptodactylus_s_000004.png") + b"e"
        + b"u."
    )  # fmt: skip


def python_batches(folder: Path, write: Callable[[np.ndarray, list[int]], bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for i, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
        part = slice(2 * i, 2 * i + 2)
        (folder / name).write_bytes(write(PIXELS[part].reshape(2, -1), LABELS[part].tolist()))
    return folder


def by_python3(protocol: int) -> Callable[[np.ndarray, list[int]], bytes]:
    return lambda x, y: pickle.dumps({"data": x, "filenames": ["a.png"], "labels": y, "batch_label": "b"}, protocol)


def by_python2(x: np.ndarray, y: list[int]) -> bytes:
    return python2_pickle(x.tobytes(), y)


def test_the_written_pickle_is_what_python_reads() -> None:
    """So that the test's own file is one that other software takes too."""
    read = pickle.loads(by_python2(PIXELS[:2].reshape(2, -1), [3, 4]), encoding="bytes")
    assert np.array_equal(read[b"data"], PIXELS[:2].reshape(2, -1))
    assert read[b"labels"] == [3, 4]


CIFAR_WRITERS: dict[str, Callable[[Path], Path]] = {
    "binary": lambda folder: binary_batches(folder),
    "binary, in its folder": lambda folder: binary_batches(folder / "cifar-10-batches-bin").parent,
    "python 2": lambda folder: python_batches(folder / "cifar-10-batches-py", by_python2).parent,
    "python 2, the folder itself": lambda folder: python_batches(folder, by_python2),
    **{f"protocol {p}": lambda folder, p=p: python_batches(folder, by_python3(p)) for p in (2, 4)},
}


@pytest.mark.parametrize("writer", CIFAR_WRITERS)
def test_cifar10(writer: str, tmp_path: Path) -> None:
    folder = CIFAR_WRITERS[writer](tmp_path / "data")
    test, train = (dds.load_data(f"cifar10:{folder}", split=split) for split in ("test", "train"))
    assert test.classes is not None and (test.classes[3], test.classes[9], len(test.classes)) == ("cat", "truck", 10)
    assert torch.equal(test[:][0], torch.from_numpy(PIXELS[10:]).float() / 255)
    assert torch.equal(train[:][0], torch.from_numpy(PIXELS[:10]).float() / 255)
    assert (test[:][1].tolist(), train[:][1].tolist()) == ([0, 1], list(range(10)))
    assert test.fingerprint() != train.fingerprint()
    assert test.transform == "x/255"


def test_cifar10_is_the_same_data_set_in_every_form(tmp_path: Path) -> None:
    prints = [dds.load_data(f"cifar10:{write(tmp_path / name)}").fingerprint() for name, write in CIFAR_WRITERS.items()]
    assert all(one == prints[0] for one in prints)


def test_code_in_a_cifar10_file_is_not_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.makedirs, (str(tmp_path / "was-run"), 0o777, True)

    def write(x: np.ndarray, y: list[int]) -> bytes:
        return pickle.dumps({"evil": Evil(), "data": x, "labels": y, "more": Evil()}, 2)

    data = dds.load_data(f"cifar10:{python_batches(tmp_path / 'data', write)}")
    assert len(data) == 2
    assert not (tmp_path / "was-run").exists()
    pickle.loads((tmp_path / "data" / "test_batch").read_bytes())
    assert (tmp_path / "was-run").exists()  # the trap works


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not a CIFAR-10 file for Python"),
        (b"garbage", "is not a CIFAR-10 file for Python"),
        (by_python2(PIXELS[:2].reshape(2, -1), [3, 4])[:3000], "is not a CIFAR-10 file for Python"),
        (python2_pickle(PIXELS[:2].tobytes(), [3]), "6144 bytes of pixels and 1 labels"),
        (python2_pickle(PIXELS[:2].tobytes(), [3, 4], by_columns=True), "take the binary version"),
        (python2_pickle(PIXELS[:2].tobytes(), [3, 10]), "label above 9"),
        (python2_pickle(b"", []), "holds no images"),
        (pickle.dumps({"labels": [3, 4]}), "0 bytes of pixels"),
        (pickle.dumps({"data": PIXELS[:1], "labels": [300]}), "is not a CIFAR-10 file for Python"),
    ],
)
def test_a_cifar10_file_that_is_none(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "test_batch").write_bytes(content)
    with pytest.raises(DataError, match=message) as error:
        dds.load_data(f"cifar10:{tmp_path}")
    assert "\n" not in str(error.value)


def test_damaged_binary_cifar10(tmp_path: Path) -> None:
    folder = binary_batches(tmp_path / "data")
    whole = (folder / "test_batch.bin").read_bytes()
    for content, message in ((whole[:-1], "multiple of 3073"), (b"", "no images"), (b"\x0b" + whole[1:], "above 9")):
        (folder / "test_batch.bin").write_bytes(content)
        with pytest.raises(DataError, match=message):
            dds.load_data(f"cifar10:{folder}")


# folders of images


def photo(height: int, width: int, seed: int, mode: str = "RGB") -> Image.Image:
    """Smooth, as photographs are."""
    small = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC).convert(mode)


@pytest.fixture
def imagenet(tmp_path: Path) -> Path:
    """Two classes in val and train; photographs of several shapes and modes."""
    root = tmp_path / "ilsvrc"
    shapes = [(300, 400, "RGB"), (500, 333, "L"), (256, 256, "RGB"), (100, 90, "CMYK")]
    for split in ("val", "train"):
        for label, name in enumerate(("n02", "n01")):
            (root / split / name).mkdir(parents=True)
            for i, (height, width, mode) in enumerate(shapes):
                photo(height, width, 10 * label + i, mode).save(root / split / name / f"{i}.JPEG")
    return root


def test_imagenet_is_transformed_as_the_field_does(imagenet: Path) -> None:
    """Pixel for pixel what torchvision's Resize(256), CenterCrop(224) and ToTensor give."""
    transforms = pytest.importorskip("torchvision.transforms")
    folder = pytest.importorskip("torchvision.datasets").ImageFolder
    usual = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224), transforms.ToTensor()])
    theirs, ours = folder(imagenet / "val", usual), dds.load_data(f"imagenet:{imagenet}")
    assert len(ours) == len(theirs) == 8
    x, y = ours[:]
    for i, (image, label) in enumerate(theirs):
        assert torch.equal(x[i], image)
        assert int(y[i]) == label
    assert torch.equal(x * 255, (x * 255).round())  # on the exact grid


def test_where_imagenet_may_be(imagenet: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    test = dds.load_data(f"imagenet:{imagenet}")
    assert test.fingerprint() == dds.load_data(f"imagenet:{imagenet / 'val'}").fingerprint()
    monkeypatch.setenv("IMAGENET_DIR", str(imagenet))
    assert test.fingerprint() == dds.load_data("imagenet").fingerprint()
    train = dds.load_data("imagenet", split="train")
    assert train.fingerprint() != test.fingerprint()
    assert (test.name, test.transform) == ("imagenet", "shorter side 256, centre 224, x/255")
    monkeypatch.delenv("IMAGENET_DIR")
    with pytest.raises(InputError, match="IMAGENET_DIR"):
        dds.load_data("imagenet")


def test_images_are_read_when_they_are_asked_for(imagenet: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, opened, real = dds.load_data(f"imagenet:{imagenet}"), [], Image.open
    monkeypatch.setattr(Image, "open", lambda path, **options: opened.append(Path(path).name) or real(path, **options))
    x, y = data[[5, 2]]
    assert opened == ["1.JPEG", "2.JPEG"]
    assert (x.shape, y.tolist()) == ((2, 3, 224, 224), [1, 0])
    assert data.x.shape == (8, 3, 224, 224)
    assert torch.equal(data[5][0], x[0])
    assert torch.equal(data[2:6:3][0], x.flip(0))
    assert torch.equal(data[np.array([5])][0], x[:1])


def test_a_folder_of_images(tmp_path: Path) -> None:
    for split, count in (("test", 2), ("train", 3)):
        for label, name in enumerate(("cat", "dog", ".cache")):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(count):
                photo(20, 30, 100 * label + i).save(tmp_path / split / name / f"{i}.png")
    with pytest.warns(DdsmoothingWarning, match="left out, as no images in class folders: .cache"):
        test, train = (dds.load_data(f"folder:{tmp_path}", split=split) for split in ("test", "train"))
    assert (len(test), len(train)) == (4, 6)
    assert test.classes == ("cat", "dog")
    assert test[:][1].tolist() == [0, 0, 1, 1]
    expected = np.asarray(photo(20, 30, 101)).transpose(2, 0, 1)
    assert np.array_equal(test[3][0].numpy() * 255, expected)
    assert test.transform == "x/255"


def test_grey_images_have_one_channel(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    for i in range(2):
        photo(8, 9, i, "L").save(tmp_path / "a" / f"{i}.png")
    data = dds.load_data(f"folder:{tmp_path}")
    assert data[:][0].shape == (2, 1, 8, 9)
    assert np.array_equal(data[1][0][0].numpy() * 255, np.asarray(photo(8, 9, 1, "L")))


@pytest.mark.parametrize("kind", ["folder", "imagenet"])
def test_folders_that_hold_no_data_set(kind: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no class folders for the split test"):
        dds.load_data(f"{kind}:{tmp_path / 'none'}")
    (tmp_path / "a").mkdir()
    with pytest.raises(DataError, match="no images in the class folders"):
        dds.load_data(f"{kind}:{tmp_path}")
    (tmp_path / "a" / "0.png").write_bytes(b"no image")
    with pytest.raises(DataError, match="is not a readable image"):
        dds.load_data(f"{kind}:{tmp_path}")
    with pytest.raises(DataError, match="split train"):
        dds.load_data(f"{kind}:{tmp_path}", split="train")
    with pytest.raises(DataError, match="no class folders"):
        dds.load_data(f"{kind}:{tmp_path / 'none'}", download=True)  # nothing is published to be fetched


def test_images_that_do_not_fit(tmp_path: Path) -> None:
    """Said when they are loaded, from their headers, with how many there are."""
    (tmp_path / "a").mkdir()
    for i in range(3):
        photo(8, 9, 0).save(tmp_path / "a" / f"{i}.png")
    for i in range(3, 5):
        photo(9, 8, 0).save(tmp_path / "a" / f"{i}.png")
    with pytest.raises(
        DataError, match=r"3\.png has 9x8 pixels of 8 bits, expected 8x9 .*0\.png; 2 of 5 images differ"
    ):
        dds.load_data(f"folder:{tmp_path}")


def test_the_folders_of_splits_are_no_classes(tmp_path: Path) -> None:
    """Only a training split, or a validation split without class folders, is no test split."""
    (tmp_path / "train" / "cat").mkdir(parents=True)
    photo(8, 8, 0).save(tmp_path / "train" / "cat" / "0.png")
    with pytest.raises(DataError, match="no class folders for the split test"):
        dds.load_data(f"folder:{tmp_path}")
    (tmp_path / "flat" / "val").mkdir(parents=True)
    photo(8, 8, 0).save(tmp_path / "flat" / "val" / "0.png")
    with pytest.raises(DataError, match="no class folders for the split test"):
        dds.load_data(f"imagenet:{tmp_path / 'flat'}")


def test_splits_with_other_classes_are_refused(tmp_path: Path) -> None:
    for name in ("val/cat", "train/cat", "train/ant"):
        (tmp_path / name).mkdir(parents=True)
        photo(8, 8, 0).save(tmp_path / name / "0.png")
    with pytest.raises(DataError, match="different class folders"):
        dds.load_data(f"folder:{tmp_path}")


def test_a_run_on_a_folder_of_images(imagenet: Path, cli: Callable[..., Any], tmp_path: Path) -> None:
    model = ("--model", "small-cnn", "--num-classes", 2, "--random-weights", "--no-preflight")
    data = ("--data", f"imagenet:{imagenet}", "--sigma", 0.25, "--n0", 5, "--n", 20, "--max", 2, "--block-size", 8)
    answer = cli("certify", *model, *data, "--out", tmp_path / "run")
    assert answer.code == 0, answer.err
    assert len(dds.load_run(tmp_path / "run")) == 2


# damage


@cases(200)
@given(data=st.data())
def test_damaged_files(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """CIFAR-10 files and images: inputs, or an error of ours in one line; never anything else."""
    folder = tmp_path_factory.getbasetemp() / "fuzz-data"
    (folder / "cat").mkdir(parents=True, exist_ok=True)
    kind, path = data.draw(
        st.sampled_from([("cifar10", "test_batch"), ("folder", "cat/0.png"), ("folder", "cat/0.jpg")])
    )
    for name in SOUND:
        (folder / name).unlink(missing_ok=True)
    sound = SOUND[path]
    out, front = bytearray(sound), data.draw(st.booleans())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, max(0, min(len(out) - 1, 150 if front else len(out)))))
        out[at : at + data.draw(st.integers(0, 8))] = data.draw(st.binary(max_size=8))
    (folder / path).write_bytes(out)
    try:
        x, _ = dds.load_data(f"{kind}:{folder}")[:]
    except DataError as error:
        assert "\n" not in str(error)
    else:
        assert x.dtype == torch.float32
        assert len(x) > 0


def encoded(kind: str) -> bytes:
    out = io.BytesIO()
    photo(9, 12, 0).save(out, kind)
    return out.getvalue()


SOUND = {
    "test_batch": by_python2(PIXELS[:2].reshape(2, -1), [3, 4]),
    "cat/0.png": encoded("PNG"),
    "cat/0.jpg": encoded("JPEG"),
}


# fetching


def idx(array: np.ndarray) -> bytes:
    shape = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return bytes([0, 0, 8, array.ndim]) + shape + array.tobytes()


def published(folder: Path) -> dict[str, Source]:
    """Small data sets as they would be published in a folder, with their true MD5 sums."""
    folder.mkdir()
    for prefix, count in (("train", 3), ("t10k", 2)):
        images = RNG.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        (folder / f"{prefix}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(images)))
        (folder / f"{prefix}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(LABELS[:count])))
    batches = binary_batches(folder.parent / "made" / "cifar-10-batches-bin")
    with tarfile.open(folder / "cifar-10-binary.tar.gz", "w:gz") as tar:
        tar.add(batches, "cifar-10-batches-bin")
        escape = tarfile.TarInfo("../escaped.bin")
        tar.addfile(escape, io.BytesIO())
    return {
        kind: Source(
            url=folder.as_uri() + "/",
            md5={name: hashlib.md5((folder / name).read_bytes()).hexdigest() for name in source.md5},
        )
        for kind, source in SOURCES.items()
    }


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that data sets are fetched from in place of the network."""
    for kind, source in published(tmp_path / "published").items():
        monkeypatch.setitem(SOURCES, kind, source)
    return tmp_path / "published"


def files_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("kind", ["mnist", "fashion-mnist", "cifar10"])
def test_download(kind: str, sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "mine" / kind
    with pytest.raises(DataError, match=r"Put it there, from .*, or add --download\.") as error:
        dds.load_data(f"{kind}:{folder}")
    assert "\n" not in str(error.value)
    assert not folder.exists()
    test = dds.load_data(f"{kind}:{folder}", download=True)
    train = dds.load_data(f"{kind}:{folder}", split="train", download=True)
    assert (len(test), len(train)) == ((2, 10) if kind == "cifar10" else (2, 3))
    assert not [name for name in files_in(tmp_path / "mine") if "part" in name or "escaped" in name]
    assert not (tmp_path / "escaped.bin").exists()
    monkeypatch.setattr(torch.hub, "download_url_to_file", None)  # it is there: nothing is fetched again
    assert dds.load_data(f"{kind}:{folder}", download=True).fingerprint() == test.fingerprint()


def test_a_download_that_is_not_the_published_file(sources: Path, tmp_path: Path) -> None:
    (sources / "t10k-labels-idx1-ubyte.gz").write_bytes(b"tampered")
    with pytest.raises(DataError, match=r"expected .* not the published file"):
        dds.load_data(f"mnist:{tmp_path / 'mine'}", download=True)
    assert "t10k-labels-idx1-ubyte.gz" not in files_in(tmp_path / "mine")
    (sources / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(DataError, match=r"could not be fetched: .*Put t10k-labels-idx1-ubyte\.gz into"):
        dds.load_data(f"mnist:{tmp_path / 'mine'}", download=True)


def test_an_archive_that_is_none(sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def serve(content: bytes) -> None:
        (sources / "cifar-10-binary.tar.gz").write_bytes(content)
        md5 = {"cifar-10-binary.tar.gz": hashlib.md5(content).hexdigest()}
        monkeypatch.setitem(SOURCES, "cifar10", Source(url=sources.as_uri() + "/", md5=md5))

    other, linked = io.BytesIO(), io.BytesIO()
    with tarfile.open(fileobj=other, mode="w:gz") as tar:
        tar.addfile(tarfile.TarInfo("something.else"))
    with tarfile.open(fileobj=linked, mode="w:gz") as tar:
        for name in ("test_batch.bin", *(f"data_batch_{i}.bin" for i in range(1, 6))):
            link = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
            tar.addfile(link)
    for i, content in enumerate((b"no archive", other.getvalue(), linked.getvalue())):
        serve(content)
        with pytest.raises(DataError):
            dds.load_data(f"cifar10:{tmp_path / str(i)}", download=True)
        assert not [name for name in files_in(tmp_path / str(i)) if name.endswith(".bin")]


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[collections.Counter[str]]:
    """Data sets on a web server of this machine; counts what is asked of it."""
    found, asked = published(tmp_path / "published"), collections.Counter[str]()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args, directory=str(tmp_path / "published"))

        def log_message(self, *args: Any) -> None:
            asked[self.path] += 1

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        for kind, source in found.items():
            url = f"http://127.0.0.1:{running.server_port}/"
            monkeypatch.setitem(SOURCES, kind, Source(url=url, md5=source.md5))
        yield asked
        running.shutdown()
        thread.join()


def test_the_command_line_downloads_only_when_it_is_asked(
    server: collections.Counter[str], cli: Callable[..., Any], tmp_path: Path
) -> None:
    predict = ("predict", "--model", "fashion-mnist-cnn", "--sigma", 0.25, "--n", 20, "--max", 2)
    data = ("--data", f"mnist:{tmp_path / 'mine'}")
    answer = cli(*predict, *data)
    assert (answer.code, sum(server.values())) == (1, 0)
    assert "add --download" in answer.err
    assert cli(*predict, *data, "--download").code == 0
    assert sorted(server) == sorted(f"/{name}" for name in SOURCES["mnist"].md5)
    assert cli(*predict, *data).code == 0
    assert set(server.values()) == {1}


def test_loading_opens_no_socket(
    sources: Path, imagenet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise AssertionError("the network was asked for")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", refuse)
    binary_batches(tmp_path / "cifar")
    for name in (f"cifar10:{tmp_path / 'cifar'}", f"imagenet:{imagenet}", f"mnist:{sources}"):
        dds.load_data(name)[:2]
    with pytest.raises(DataError, match="pixels"):  # photographs of several sizes
        dds.load_data(f"folder:{imagenet}")
    for kind in SOURCES:
        with pytest.raises(DataError, match="--download"):
            dds.load_data(f"{kind}:{tmp_path / 'none'}")
    for name in ("torchvision:resnet18", "timm:resnet18"):
        with pytest.raises(InputError, match="--download"):
            dds.load_model(name)


def test_two_modules_alone_can_fetch() -> None:
    """Data sets and weights; the first is reached through load_data(download=True), the other build_model(..)."""
    source = Path(dds.__file__).parent
    for path in source.rglob("*.py"):
        text = path.read_text()
        assert ("torch.hub" not in text) or path == source / "data" / "download.py"
        assert not any(word in text for word in ("pretrained=True", ".get_state_dict(")) or (
            path == source / "models" / "zoo.py"
        )


def test_what_is_published_is_named_in_full() -> None:
    """The MD5 sums are those that torchvision has, which checks the same files."""
    datasets = pytest.importorskip("torchvision.datasets")
    for kind, theirs in (("mnist", datasets.MNIST), ("fashion-mnist", datasets.FashionMNIST)):
        assert SOURCES[kind].md5 == dict(theirs.resources)
        assert SOURCES[kind].url in theirs.mirrors
    assert SOURCES.keys() <= FOLDERS.keys()
    assert download_module.SOURCES["cifar10"].url.startswith("https://")


# changes for training


KEYS = [int(k) for k in np.random.default_rng(1).integers(0, 2**64, 400, dtype=np.uint64)]


def test_data_sets_without_an_augmentation() -> None:
    for name in ("mnist", "fashion-mnist", "folder", "none"):
        assert augmentation(name) is None
    with pytest.raises(InputError, match="Did you mean 'cifar10'"):
        augmentation("cifar1")
    assert all(augmentation(kind) is None or kind in ("cifar10", "imagenet") for kind in FOLDERS)


@pytest.mark.parametrize(("name", "size"), [("cifar10", 32), ("imagenet", 40)])
def test_a_changed_image_depends_on_its_key_alone(name: str, size: int) -> None:
    change = augmentation(name)
    assert change is not None
    x = torch.rand(6, 3, size, size, generator=torch.Generator().manual_seed(0))
    keys = KEYS[:6]
    before, state = x.clone(), torch.get_rng_state()
    all_at_once = change(x, keys)
    assert torch.equal(x, before)
    assert torch.equal(torch.get_rng_state(), state)
    assert all_at_once.shape == x.shape
    assert 0.0 <= float(all_at_once.min()) <= float(all_at_once.max()) <= 1.0
    for i in (0, 3, 5):
        assert torch.equal(change(x[i : i + 1], [keys[i]])[0], all_at_once[i])
    assert torch.equal(change(x.flip(0), keys[::-1]).flip(0), all_at_once)
    assert not torch.equal(change(x, keys[::-1]), all_at_once)


def test_cifar10_is_moved_by_up_to_four_pixels_and_mirrored() -> None:
    """Every change is one of 9 x 9 x 2 windows, found by trying them; all offsets and both sides occur."""
    change = augmentation("cifar10")
    assert change is not None
    x = torch.rand(1, 2, 6, 6, generator=torch.Generator().manual_seed(0))
    padded = torch.nn.functional.pad(x, (4, 4, 4, 4))[0]
    windows = {}
    for top in range(9):
        for left in range(9):
            window = padded[:, top : top + 6, left : left + 6]
            windows[window.numpy().tobytes()] = (top, left, 0)
            windows[window.flip(-1).contiguous().numpy().tobytes()] = (top, left, 1)
    seen = [windows[one.contiguous().numpy().tobytes()] for one in change(x.expand(400, -1, -1, -1), KEYS)]
    tops, lefts, flips = (collections.Counter(column) for column in zip(*seen, strict=True))
    assert set(tops) == set(lefts) == set(range(9))
    assert max(tops.values()) < 90  # 44 expected, seven standard deviations
    assert 130 < flips[1] < 270


def test_imagenet_windows() -> None:
    """On an image whose two channels are the coordinates, a window's place and size can be read off."""
    change = augmentation("imagenet")
    assert change is not None
    size = 64
    rows, columns = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    x = torch.stack([rows, columns]).float()[None] / size
    out = change(x.expand(200, -1, -1, -1), KEYS[:200])
    middle = (out[:, :, 20:44, 20:44] * size).double()
    steps = torch.stack(
        [middle[:, 0, -1].mean(1) - middle[:, 0, 0].mean(1), middle[:, 1, :, -1].mean(1) - middle[:, 1, :, 0].mean(1)]
    )
    height, width = steps / 23 * size
    mirrored = width < 0
    width = width.abs()
    assert 60 < int(mirrored.sum()) < 140
    area, ratio = height * width / size**2, width / height
    assert 0.06 < float(area.min()) < 0.2
    assert 0.85 < float(area.max()) <= 1.03
    assert 0.45 < float(area.mean()) < 0.62  # 0.54 if every window fitted
    assert float(ratio.min()) > 0.7
    assert float(ratio.max()) < 1.43
    assert float(ratio.min()) < 0.8 and float(ratio.max()) > 1.25
