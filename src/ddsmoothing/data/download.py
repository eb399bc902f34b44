"""Fetch a data set from where it is published. Nothing here runs unless it is asked for.

Every file is checked against its published MD5 sum before it gets its name. Archives are read member by member.
"""

from __future__ import annotations

import hashlib
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch

from ddsmoothing.data.cifar import BINARY, FILES
from ddsmoothing.errors import DataError
from ddsmoothing.files import write_durably


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where a data set is published.

    Attributes:
        url: of the folder.   md5: of each file in it, by name.
    """

    url: str
    md5: dict[str, str]


SOURCES: Final = {
    "mnist": Source(
        url="https://ossci-datasets.s3.amazonaws.com/mnist/",
        md5={
            "train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
            "train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
            "t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
            "t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
        },
    ),
    "fashion-mnist": Source(
        url="http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        md5={
            "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
            "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
            "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
            "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
        },
    ),
    "cifar10": Source(
        url="https://www.cs.toronto.edu/~kriz/",
        md5={"cifar-10-binary.tar.gz": "c32a1d4ab5d03f1284b67883e8d87530"},
    ),
}


def fetch(kind: str, folder: Path) -> None:
    """Fetch what is missing of a data set into a folder, which is made; progress goes to standard error.

    Raises: DataError if a file cannot be had or is not the published one.
    """
    source = SOURCES[kind]
    folder.mkdir(parents=True, exist_ok=True)
    for name, md5 in source.md5.items():
        path = folder / name
        if not path.exists():
            _file(source.url + name, path, md5)
        if name.endswith(".tar.gz"):
            _unpack(path, folder / BINARY)


def _file(url: str, path: Path, md5: str) -> None:
    path = path.resolve()  # a link stays
    part = path.with_name(path.name + ".part")
    try:
        torch.hub.download_url_to_file(url, str(part))
        with part.open("rb") as file:
            digest = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
        if digest != md5:
            raise DataError(f"{url} has the MD5 sum {digest}, expected {md5}; it is not the published file.")
        part.replace(path)
    except DataError:
        raise
    except Exception as error:  # whatever a network can do
        raise DataError(f"{url} could not be fetched: {error}. Put {path.name} into {path.parent} yourself.") from error
    finally:
        part.unlink(missing_ok=True)


def _unpack(archive: Path, folder: Path) -> None:
    """The files of CIFAR-10, and no others, under names of our own."""
    folder.mkdir(exist_ok=True)
    try:
        with tarfile.open(archive) as tar:
            for name in (f"{stem}.bin" for stems in FILES.values() for stem in stems):
                member = tar.extractfile(f"{folder.name}/{name}")
                if member is None:
                    raise DataError(f"{archive}: {name} is no file.")
                write_durably(folder / name, member.read())
    except (tarfile.TarError, KeyError, EOFError, OSError) as error:
        raise DataError(f"{archive} is not the archive of CIFAR-10: {error}.") from error
