"""Images in files and folders: every mode and depth, every layout; nothing is changed or left out without a word."""

from __future__ import annotations

import os
import struct
import subprocess
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import ddsmoothing as dds
from ddsmoothing.data import load_image
from ddsmoothing.data.folders import SUFFIXES
from ddsmoothing.errors import DataError, DdsmoothingWarning
from reference import Half

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (5, 7), dtype=np.uint8)
RGB = RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8)
DEEP = RNG.integers(0, 2**16, (5, 7), dtype=np.uint16)
DEEP[0, :2] = 0, 65535
ALPHA = RNG.integers(0, 256, (5, 7), dtype=np.uint8)


def png(colour: int, rows: np.ndarray, depth: int = 16) -> bytes:
    """A PNG image as other programs write it; Pillow itself writes no colour of 16 bits."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    front = struct.pack(">IIBBBBB", 7, 5, depth, colour, 0, 0, 0)
    lines = b"".join(b"\x00" + row.astype(">u2").tobytes() for row in rows)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", front) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")


def tiff(bits: int, channels: int, pixels: np.ndarray) -> bytes:
    """An uncompressed little-endian TIFF image."""
    data = pixels.astype("<u2" if bits > 8 else "<u1").tobytes()
    tags = [
        *((256, 4, 1, 7), (257, 4, 1, 5), (258, 3, channels, bits if channels == 1 else 8), (259, 3, 1, 1)),
        *((262, 3, 1, 2 if channels == 3 else 1), (273, 4, 1, 200), (277, 3, 1, channels), (278, 4, 1, 5)),
        (279, 4, 1, len(data)),
    ]
    entries = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    if channels == 3:  # the three numbers of bits do not fit into their tag
        entries = entries.replace(struct.pack("<HHII", 258, 3, 3, 8), struct.pack("<HHII", 258, 3, 3, 190))
    head = struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + entries + struct.pack("<I", 0)
    return head.ljust(190, b"\0") + struct.pack("<3H", bits, bits, bits).ljust(10, b"\0") + data


def saved(image: Image.Image, kind: str, **options: Any) -> Callable[[Path], None]:
    return lambda path: image.save(path, kind, **options)


def raw(data: bytes) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(data) and None


def channels(pixels: np.ndarray) -> np.ndarray:
    return pixels.transpose(2, 0, 1)


PALETTE = Image.fromarray(RGB).quantize(16)
CLEAR = PALETTE.copy()
CLEAR.info["transparency"] = bytes([0, 128, 255])
TAKEN: dict[str, tuple[Callable[[Path], None], np.ndarray, int]] = {
    "grey PNG": (saved(Image.fromarray(GREY), "PNG"), GREY[None], 255),
    "grey and alpha": (saved(Image.merge("LA", [Image.fromarray(a) for a in (GREY, ALPHA)]), "PNG"), GREY[None], 255),
    "black and white": (
        saved(Image.fromarray(np.where(GREY > 99, 255, 0).astype(np.uint8)).convert("1", dither=0), "PNG"),
        np.where(GREY > 99, 255, 0)[None],
        255,
    ),
    "four grey levels": (raw(b"P5 7 5 3\n" + (GREY % 4).tobytes()), (GREY % 4 * 85)[None], 255),
    "grey PGM": (saved(Image.fromarray(GREY), "PPM"), GREY[None], 255),
    "grey TIFF": (saved(Image.fromarray(GREY), "TIFF"), GREY[None], 255),
    "grey GIF": (saved(Image.fromarray(GREY), "GIF"), GREY[None], 255),
    "palette of greys": (saved(Image.fromarray(GREY).convert("P"), "PNG"), GREY[None], 255),
    "RGB PNG": (saved(Image.fromarray(RGB), "PNG"), channels(RGB), 255),
    "RGB PPM": (saved(Image.fromarray(RGB), "PPM"), channels(RGB), 255),
    "RGB BMP": (saved(Image.fromarray(RGB), "BMP"), channels(RGB), 255),
    "RGB TIFF": (raw(tiff(8, 3, RGB)), channels(RGB), 255),
    "RGB and alpha": (
        saved(Image.fromarray(np.concatenate([RGB, ALPHA[..., None]], 2)), "PNG"), channels(RGB), 255
    ),
    "lossless WebP": (saved(Image.fromarray(RGB), "WEBP", lossless=True), channels(RGB), 255),
    "WebP and alpha": (
        saved(Image.fromarray(np.concatenate([RGB, ALPHA[..., None]], 2)), "WEBP", lossless=True, exact=True),
        channels(RGB),
        255,
    ),
    "palette": (saved(PALETTE, "PNG"), channels(np.asarray(PALETTE.convert("RGB"))), 255),
    "palette with alpha": (saved(CLEAR, "PNG"), channels(np.asarray(PALETTE.convert("RGB"))), 255),
    "colour GIF": (saved(PALETTE, "GIF"), channels(np.asarray(PALETTE.convert("RGB"))), 255),
    "grey PNG of 16 bits": (saved(Image.fromarray(DEEP), "PNG"), DEEP[None], 65535),
    "grey TIFF of 16 bits": (raw(tiff(16, 1, DEEP)), DEEP[None], 65535),
    "grey PGM of 16 bits": (raw(b"P5 7 5 65535\n" + DEEP.astype(">u2").tobytes()), DEEP[None], 65535),
    "plain PGM of 16 bits": (raw(b"P2 7 5 65535\n" + b" ".join(b"%d" % n for n in DEEP.flat)), DEEP[None], 65535),
}  # fmt: skip


@pytest.mark.parametrize("kind", TAKEN)
def test_pixels_are_those_that_are_stored(kind: str, tmp_path: Path) -> None:
    """Alone and in a folder, whatever the file's name says of its format."""
    write, expected, levels = TAKEN[kind]
    (tmp_path / "cat").mkdir()
    path = tmp_path / "cat" / "image.png"
    write(path)
    picture = load_image(path)
    assert (picture.levels, picture.pixels.dtype) == (levels, np.uint8 if levels == 255 else np.uint16)
    np.testing.assert_array_equal(picture.pixels, expected)
    data = dds.load_data(f"folder:{tmp_path}")
    assert data.x.dtype == picture.pixels.dtype
    np.testing.assert_array_equal(data.x[0], expected)
    assert data.transform == f"x/{levels}"
    assert torch.equal(data[:][0][0], torch.from_numpy(expected.astype(np.float32)) / levels)


def test_photographs(tmp_path: Path) -> None:
    """What a decoder gives, for the formats that lose something; a photograph with previews is one image."""
    for mode, size in (("RGB", (1, 5, 7)), ("L", (1, 5, 7)), ("CMYK", (3, 5, 7))):
        image = Image.fromarray(RGB).convert(mode)
        image.save(tmp_path / "a.jpg")
        expected = np.asarray(Image.open(tmp_path / "a.jpg").convert("L" if mode == "L" else "RGB"))
        found = load_image(tmp_path / "a.jpg").pixels
        np.testing.assert_array_equal(found, expected[None] if mode == "L" else channels(expected))
        assert found.shape[1:] == size[1:]
    Image.fromarray(RGB).save(tmp_path / "b.jpg", "MPO", save_all=True, append_images=[Image.fromarray(RGB[:2])])
    assert load_image(tmp_path / "b.jpg").pixels.shape == (3, 5, 7)


TWO = [Image.fromarray(255 - RGB)]
WIDE = np.stack([DEEP] * 3, 2)
REFUSED: dict[str, tuple[Callable[[Path], None], str]] = {
    "colour PNG of 16 bits": (raw(png(2, WIDE.reshape(5, -1))), "16 bits a channel .mode RGB.; save it as .*npz"),
    "colour and alpha of 16 bits": (raw(png(6, RNG.integers(0, 2**16, (5, 28)))), "16 bits a channel"),
    "grey and alpha of 16 bits": (raw(png(4, RNG.integers(0, 2**16, (5, 14)))), "16 bits a channel"),
    "colour TIFF of 16 bits": (raw(tiff(16, 3, WIDE)), "16 bits a channel"),
    "colour PPM of 16 bits": (raw(b"P6 7 5 65535\n" + WIDE.astype(">u2").tobytes()), "16 bits a channel"),
    "TIFF of 12 bits": (raw(tiff(12, 1, DEEP)), "12 bits a channel|not a readable image"),
    "floats": (saved(Image.fromarray(GREY.astype(np.float32)), "TIFF"), "32 bits a channel .mode F."),
    "32 bits": (saved(Image.fromarray(GREY.astype(np.int32)), "TIFF"), "32 bits a channel .mode I."),
    "101 grey levels": (raw(b"P5 7 5 100\n" + (GREY % 101).tobytes()), "100 as its largest value, expected one that"),
    "1024 grey levels": (raw(b"P5 7 5 1023\n" + (DEEP % 1024).astype(">u2").tobytes()), "1023 as its largest value"),
    "another colour space": (saved(Image.new("LAB", (7, 5)), "TIFF"), "mode LAB"),
    "a film": (saved(Image.fromarray(RGB), "GIF", save_all=True, append_images=TWO), "several pictures, expected one"),
    "a moving PNG": (saved(Image.fromarray(RGB), "PNG", save_all=True, append_images=TWO), "several pictures"),
    "a moving WebP": (saved(Image.fromarray(RGB), "WEBP", save_all=True, append_images=TWO), "several pictures"),
    "pages": (saved(Image.fromarray(RGB), "TIFF", save_all=True, append_images=TWO), "several pictures"),
    "text": (raw(b"no image"), "is not a readable image"),
    "nothing": (raw(b""), "is not a readable image"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_other_images_are_refused_with_what_to_do(kind: str, tmp_path: Path) -> None:
    write, message = REFUSED[kind]
    (tmp_path / "cat").mkdir()
    for name in ("a.png", "b.png"):
        Image.fromarray(RGB).save(tmp_path / "cat" / name)
    path = tmp_path / "cat" / "c.png"
    write(path)
    for call in (lambda: load_image(path), lambda: dds.load_data(f"folder:{tmp_path}")):
        with pytest.raises(DataError, match=message) as error:
            call()
        assert str(error.value).startswith(str(path))
        assert "\n" not in str(error.value)


def test_no_image_starts_a_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PostScript is given to a program by Pillow, if it is asked to open all that it knows."""
    started: list[object] = []
    monkeypatch.setattr(subprocess, "Popen", lambda *args, **_: started.append(args))
    monkeypatch.setattr(subprocess, "check_call", lambda *args, **_: started.append(args))
    (tmp_path / "a.png").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n"
    )
    with Image.open(tmp_path / "a.png") as trap:
        assert trap.format == "EPS"  # what an unrestricted reader takes it for
    with pytest.raises(DataError, match="not a readable image"):
        load_image(tmp_path / "a.png")
    assert not started


# folders


def fill(root: Path, *names: str, mode: str = "RGB") -> Path:
    """A small image at each of these places."""
    for i, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = np.full((5, 7, 3), i, np.uint8)
        Image.fromarray(pixels).convert(mode).save(root / name, "PNG")
    return root


def test_colours_stay_whichever_image_comes_first(tmp_path: Path) -> None:
    """One grey image in front made all others grey."""
    for first in ("L", "RGB"):
        root = tmp_path / first
        (root / "cat").mkdir(parents=True)
        Image.fromarray(GREY if first == "L" else RGB).save(root / "cat" / "0.png")
        Image.fromarray(RGB if first == "L" else GREY).save(root / "cat" / "1.png")
        data = dds.load_data(f"folder:{root}")
        assert data.x.shape == (2, 3, 5, 7)
        grey, colour = (0, 1) if first == "L" else (1, 0)
        np.testing.assert_array_equal(data.x[colour], channels(RGB))
        np.testing.assert_array_equal(data.x[grey], np.stack([GREY] * 3))


def test_depths_do_not_mix(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    Image.fromarray(GREY).save(tmp_path / "cat" / "0.png")
    Image.fromarray(DEEP).save(tmp_path / "cat" / "1.png")
    with pytest.raises(DataError, match=r"1\.png has 5x7 pixels of 16 bits, expected 5x7 pixels of 8 bits as .*0\.png"):
        dds.load_data(f"folder:{tmp_path}")


def flat() -> torch.nn.Module:
    """A linear model of 5x7 pixels."""
    return Half([1.0] + [0.0] * 34, 0.5)


def test_images_of_16_bits_are_certified_on_their_grid(tmp_path: Path, cli: Callable[..., Any]) -> None:
    """Without --levels: what they are is in the files."""
    (tmp_path / "deep" / "cat").mkdir(parents=True)
    Image.fromarray(DEEP).save(tmp_path / "deep" / "cat" / "0.png")
    given = ("--model", "test_images:flat", "--data", f"folder:{tmp_path / 'deep'}")
    options = ("--sigma", 0.25, "--n0", 5, "--n", 20, "--seed", 0, "--no-preflight")
    answer = cli("certify", *given, *options, "--out", tmp_path / "run")
    assert answer.code == 0, answer.err
    run = dds.load_run(tmp_path / "run")
    assert (run.header.levels, run.rows[0].noise) == (65535, "grid")
    again = cli("certify", *given, *options, "--out", tmp_path / "run")
    assert (again.code, len(dds.load_run(tmp_path / "run"))) == (0, 1), again.err
    answer = cli("certify", *given, *options, "--levels", 255, "--out", tmp_path / "float")
    assert answer.code == 0, answer.err
    assert dds.load_run(tmp_path / "float").rows[0].noise == "float"


@pytest.mark.parametrize("suffix", sorted(SUFFIXES))
def test_every_usual_ending_is_an_image(suffix: str, tmp_path: Path) -> None:
    """.pgm and .gif were dropped, and a whole class with them."""
    fill(tmp_path, "ant/0.png", f"bee/0{suffix.upper()}", "cat/0.png")
    data = dds.load_data(f"folder:{tmp_path}")
    assert (data.classes, data.y.tolist()) == (("ant", "bee", "cat"), [0, 1, 2])  # type: ignore[union-attr]


@pytest.mark.parametrize("name", ["backup", "zebra", "Test files", "a"])
def test_an_empty_class_is_an_error(name: str, tmp_path: Path) -> None:
    """It shifted the labels of all classes after it."""
    fill(tmp_path, "bee/0.png", "cat/0.png")
    (tmp_path / name).mkdir()
    with pytest.raises(DataError, match=f"class folders without images: {name}. They would shift the labels"):
        dds.load_data(f"folder:{tmp_path}")
    (tmp_path / name / "scan.dcm").write_bytes(b"x")
    with pytest.raises(DataError, match=rf"without images \(files \.dcm are not read\): {name}\."):
        dds.load_data(f"folder:{tmp_path}")


def test_what_is_left_out_is_named(tmp_path: Path) -> None:
    fill(tmp_path, "bee/0.png", "cat/0.png", "__MACOSX/bee/._0.png", ".git/x.png", "cat/.thumbs/a.png", "stray.png")
    fill(tmp_path, "bee/._0.png")
    (tmp_path / "cat" / "notes.txt").write_text("x")
    (tmp_path / "labels.csv").write_text("x")
    with pytest.warns(DdsmoothingWarning) as caught:
        data = dds.load_data(f"folder:{tmp_path}")
    assert (data.classes, len(data)) == (("bee", "cat"), 2)
    (line,) = [str(one.message) for one in caught]
    left = {"__MACOSX", ".git", "stray.png", "labels.csv", "bee/._0.png", "cat/.thumbs", "cat/notes.txt"}
    assert set(line.partition("class folders: ")[2].rstrip(".").split(", ")) == left
    for i in range(30):
        (tmp_path / "bee" / f"{i}.txt").write_text("x")
    with pytest.warns(DdsmoothingWarning, match=r" and 27 more\.$"):
        dds.load_data(f"folder:{tmp_path}")


def test_links_are_followed(tmp_path: Path) -> None:
    """To images, to class folders and inside them: such folders were skipped."""
    far = fill(tmp_path / "far", "cats/0.png", "more/1.png", "2.png")
    root = fill(tmp_path / "root", "bee/0.png")
    (root / "cat").symlink_to(far / "cats")
    (root / "bee" / "more").symlink_to(far / "more")
    (root / "bee" / "2.png").symlink_to(far / "2.png")
    data = dds.load_data(f"folder:{root}")
    assert (data.classes, data.y.tolist()) == (("bee", "cat"), [0, 0, 0, 1])  # type: ignore[union-attr]
    (root / "bee" / "round").symlink_to(root / "bee")
    with pytest.raises(DataError, match="round is a link to a folder that it lies in"):
        dds.load_data(f"folder:{root}")
    (root / "bee" / "round").unlink()
    (root / "bee" / "gone.png").symlink_to("nowhere")
    for kind in ("folder", "imagenet"):
        with pytest.raises(DataError, match=r"gone\.png is a link to nothing"):
            dds.load_data(f"{kind}:{root}")


SPLIT_NAMES = [
    *(("train", "test"), ("Train", "Test"), ("TRAIN", "VAL"), ("Training", "Testing"), ("training", "validation")),
    *(("training_set", "test_set"), ("train", "valid"), ("train-images", "eval images"), ("Train", "dev")),
]


@pytest.mark.parametrize(("train", "test"), SPLIT_NAMES)
@pytest.mark.parametrize("kind", ["folder", "imagenet"])
def test_splits_by_their_usual_names(train: str, test: str, kind: str, tmp_path: Path) -> None:
    """They counted as two classes."""
    fill(
        tmp_path,
        f"{train}/bee/0.png",
        f"{train}/cat/1.png",
        f"{train}/cat/2.png",
        f"{test}/bee/3.png",
        f"{test}/cat/4.png",
    )
    found = {split: dds.load_data(f"{kind}:{tmp_path}", split=split) for split in ("train", "test")}
    assert {split: data.y.tolist() for split, data in found.items()} == {"train": [0, 1, 1], "test": [0, 1]}  # type: ignore[union-attr]
    assert found["train"].classes == found["test"].classes == ("bee", "cat")


def test_test_comes_before_val_but_for_imagenet(tmp_path: Path) -> None:
    fill(tmp_path, "train/bee/0.png", "val/bee/1.png", "Test/bee/2.png")
    for kind, first in (("folder", 2), ("imagenet", 1)):
        assert dds.load_data(f"{kind}:{tmp_path}").x[0].max() == first
    fill(tmp_path, "testing/bee/3.png")
    with pytest.raises(DataError, match="holds Test and testing for one split"):
        dds.load_data(f"folder:{tmp_path}")


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    fill(tmp_path, "boat/0.png", "train/0.png", "test/0.png", "val/0.png")
    assert dds.load_data(f"folder:{tmp_path}").classes == ("boat", "test", "train", "val")


UNKNOWN = {
    "parts that look like classes": (["seg_train/bee/0.png", "seg_train/cat/0.png", "seg_test/bee/0.png"], "no class"),
    "a folder around them": (["images/bee/0.png", "images/cat/0.png"], "give .*/images itself"),
    "images without classes": (["0.png", "1.png"], "no class folders for the split test .*expected DIR/test/CLASS"),
    "splits without classes": (
        ["train/0.png", "test/0.png"],
        "no class folders for the split test .*holds test, train",
    ),
    "a training split alone": (["Training/bee/0.png"], "no class folders for the split test .*holds Training"),
    "other classes in training": (["test/bee/0.png", "Training/bee/0.png", "Training/cat/0.png"], "different class"),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_unknown_layouts_are_errors(name: str, tmp_path: Path) -> None:
    places, message = UNKNOWN[name]
    fill(tmp_path, *places)
    with pytest.raises(DataError, match=message) as error:
        dds.load_data(f"folder:{tmp_path}")
    assert "\n" not in str(error.value)


def test_images_may_lie_in_one_folder_of_their_class(tmp_path: Path) -> None:
    fill(tmp_path, "n01/images/0.png", "n01/images/1.png", "n02/images/0.png")
    assert dds.load_data(f"folder:{tmp_path}").y.tolist() == [0, 0, 1]  # type: ignore[union-attr]


def test_a_folder_that_may_not_be_read_or_an_image_that_changed(tmp_path: Path) -> None:
    fill(tmp_path, "bee/0.png", "cat/1.png", mode="L")
    data = dds.load_data(f"folder:{tmp_path}")
    fill(tmp_path, "bee/0.png", mode="RGB")
    with pytest.raises(DataError, match=r"0\.png has changed since its data set was loaded"):
        data[:1]
    (tmp_path / "bee" / "0.png").unlink()
    with pytest.raises(DataError, match=r"0\.png is not a readable image"):
        data[:1]
    with pytest.raises(DataError, match=r"no class folders.*which is no folder"):
        dds.load_data(f"folder:{tmp_path / 'cat' / '1.png'}")


def test_pipes_and_sockets_are_not_waited_for(tmp_path: Path) -> None:
    fill(tmp_path, "bee/0.png")
    os.mkfifo(tmp_path / "bee" / "1.png")
    with pytest.warns(DdsmoothingWarning, match=r"bee/1\.png"):
        assert len(dds.load_data(f"folder:{tmp_path}")) == 1


def test_only_headers_are_read_and_each_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, *(f"{name}/{i}.png" for name in ("bee", "cat") for i in range(20)))
    opened, decoded = [], []
    real = Image.open
    monkeypatch.setattr(Image, "open", lambda path, **options: opened.append(path) or real(path, **options))
    load = Image.Image.load
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda self: decoded.append(self) or load(self))
    dds.load_data(f"folder:{tmp_path}")
    assert len(opened) == len(set(opened)) == 40
    assert not decoded
