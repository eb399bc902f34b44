"""`ddsmoothing memory query`: what it reads, and what it refuses before anything is stored."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import ddsmoothing as dds
from ddsmoothing.memory import Store


def png(path: Path, depth: int, colour: int, rows: bytes, size: int = 28) -> Path:
    """A PNG image as other programs write it; Pillow itself writes no colour of 16 bits."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    front = struct.pack(">IIBBBBB", size, size, depth, colour, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", front) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    )
    return path


def asked(cli: Callable[..., Any], store: Path, image: Path) -> Any:
    model = ("--model", "fashion-mnist-cnn", "--n0", 10, "--n", 100, "--sigma", 0.25)
    return cli("memory", "query", "--store", store, *model, "--input", image, "--json")


def test_an_8_bit_image_is_stored_as_it_is(tmp_path: Path, cli: Callable[..., Any]) -> None:
    pixels = dds.load_data("fashion-mnist-sample").x[7, 0]
    Image.fromarray(pixels).save(tmp_path / "a.png")
    row = json.loads(asked(cli, tmp_path / "m", tmp_path / "a.png").out)
    assert row["reason"] == "kept"
    _, _, point = Store.open(tmp_path / "m").ball(1)
    assert (point == pixels.ravel()).all()


@pytest.mark.parametrize("kind", ["grey 16", "colour 16", "cut", "no image", "missing", "folder"])
def test_other_images_are_refused_in_one_line(tmp_path: Path, cli: Callable[..., Any], kind: str) -> None:
    """A picture of 16 bits was clipped to white, and a certificate of another picture stored."""
    path, rng = tmp_path / "a.png", np.random.default_rng(0)
    if kind == "grey 16":
        Image.fromarray(rng.integers(0, 2**16, (28, 28), dtype=np.uint16)).save(path)
    elif kind == "colour 16":
        png(path, 16, 2, (b"\x00" + rng.bytes(28 * 6)) * 28)
        with Image.open(path) as image:
            assert image.mode == "RGB"  # the high bytes, without a word
    elif kind == "cut":
        Image.new("L", (28, 28)).save(path)
        path.write_bytes(path.read_bytes()[:50])
    elif kind == "no image":
        path.write_text("%!PS-Adobe-3.0 EPSF-3.0")
    elif kind == "folder":
        path.mkdir()
    done = asked(cli, tmp_path / "m", path)
    assert done.code in (1, 2)
    assert len(done.err.strip().splitlines()) == 1
    assert str(path) in done.err
    if kind in ("grey 16", "colour 16"):
        assert "16 bits a" in done.err
        assert "npz" in done.err
    assert not (tmp_path / "m").exists()
