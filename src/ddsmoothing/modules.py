"""What a module tree holds beside its registered weights: walked by name, marked, compared and replicated.

It runs no model. The walk sees attributes, containers, plain objects, hooks and what closures hold; it does not see
globals of the modules that code lives in.
"""

from __future__ import annotations

import enum
import re
import types
from collections import deque
from collections.abc import Iterator
from functools import partial
from pathlib import PurePath
from typing import Any, Final

import numpy as np
import torch
from torch import nn

from ddsmoothing.devices import TABLES
from ddsmoothing.errors import ModelError

LARGEST: Final = 200_000  # things in one tree, at most
CONTENT: Final = 2**16  # numbers of a tensor that is no parameter: up to here its content is compared, not its version
PLAIN: Final = (
    *(type(None), bool, int, float, complex, str, bytes, range, slice, type(...), np.generic, np.dtype),
    *(torch.dtype, torch.device, torch.layout, torch.memory_format, torch.Size, torch.qscheme),
    *(enum.Enum, PurePath),
)
CODE: Final = (type, types.ModuleType, types.BuiltinFunctionType, np.ufunc)
LIBRARIES: Final = ("torch", "torchvision", "timm", "ddsmoothing")  # code that is known by its name
HOOKS: Final = ("_forward_pre_hooks", "_forward_hooks")
_OWN: Final = frozenset(vars(nn.Module()))  # attributes of every module


def qualified(kind: Any) -> str:
    """The name of a class or function, without addresses."""
    name = getattr(kind, "__qualname__", None) or getattr(kind, "__name__", None) or type(kind).__qualname__
    return f"{getattr(kind, '__module__', None)}.{name}"


def from_library(kind: Any) -> bool:
    """Is a class or function from one of the LIBRARIES?"""
    return str(getattr(kind, "__module__", None)).partition(".")[0] in LIBRARIES


def walk(root: Any, whole: tuple[type, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Everything in a module or callable, each thing once, with the name of the way to it; the order is fixed.

    Args:
        root: where to begin; its own name is empty.
        whole: types of things that are not looked into.
    Raises: ModelError where it holds more than LARGEST things.
    """
    seen: dict[int, Any] = {}  # holds what is made on the way, so that ids stay their own
    waiting: list[tuple[str, Any]] = [("", root)]
    count = 0
    while waiting:
        name, value = waiting.pop()
        count += 1
        if count > LARGEST:
            raise ModelError(
                f"the model holds more than {LARGEST:,} things (at {name!r}); data sets, trainers and the like do not "
                "belong into its attributes."
            )
        if isinstance(value, PLAIN):
            yield name, value
        elif id(value) not in seen:
            if not isinstance(value, (tuple, frozenset)):  # equal ones may be one thing or two, as Python likes
                seen[id(value)] = value
            yield name, value
            if not isinstance(value, whole):
                waiting.extend(reversed([(f"{name}{way}", held) for way, held in _held(value)]))


def _held(value: Any) -> Iterator[tuple[str, Any]]:
    """What a thing holds, with the way to each."""
    if isinstance(value, nn.Module):
        yield from _of_module(value)
    elif isinstance(value, dict):
        for i, (key, held) in enumerate(value.items()):
            simple = isinstance(key, PLAIN)
            yield f"[{key!r}]" if simple else f"[#{i}]", held
            if not simple:
                yield f"[key {i}]", key
    elif isinstance(value, (list, tuple, deque)):
        yield from ((f"[{i}]", held) for i, held in enumerate(value))
    elif isinstance(value, (set, frozenset)):
        yield from ((f"{{{held!r}}}", held) for held in sorted((v for v in value if isinstance(v, PLAIN)), key=repr))
        yield from (("{}", held) for held in value if not isinstance(held, PLAIN))
    elif isinstance(value, partial):
        yield from ((".func", value.func), (".args", value.args), (".keywords", value.keywords))
    elif isinstance(value, types.MethodType):
        yield from ((".__self__", value.__self__), (".__func__", value.__func__))
    elif isinstance(value, types.FunctionType):
        cells = zip(value.__code__.co_freevars, value.__closure__ or (), strict=True)
        yield from ((f"<{name}>", cell.cell_contents) for name, cell in cells if cell != types.CellType())
        yield from ((".defaults", held) for held in (value.__defaults__, value.__kwdefaults__) if held)
    elif not isinstance(value, (torch.Tensor, np.ndarray, *CODE)) and not is_inner(value):
        yield from ((f".{name}", held) for name, held in _attributes(value))


def is_inner(value: Any) -> bool:
    """True for what torch builds its graphs and guards from, which is not walked."""
    return type(value).__module__.startswith(("torch.fx", "torch.export", "torch._"))


def _attributes(value: Any) -> Iterator[tuple[str, Any]]:
    """Of a plain object: what is in its ``__dict__`` and its slots."""
    yield from getattr(value, "__dict__", {}).items()
    for kind in type(value).__mro__:
        slots = vars(kind).get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if not name.startswith("__") and hasattr(value, name):
                yield name, getattr(value, name)


def is_compiled(module: nn.Module) -> bool:
    """Is it what ``torch.compile`` made of a module?"""
    return type(module).__module__.startswith("torch._dynamo")


def _hook_name(table: str, number: int) -> str:
    """How the walk calls a hook."""
    return f"<{table.strip('_')[:-1].replace('_', ' ')} {number}>"


def _of_module(module: nn.Module) -> Iterator[tuple[str, Any]]:
    if isinstance(module, torch.jit.ScriptModule):
        yield from _of_script(module)
        return
    attributes = vars(module)
    if is_compiled(module):
        yield "._orig_mod", module._orig_mod
        return
    for table in TABLES:
        yield from ((f".{name}", held) for name, held in attributes[table].items())
    for table in HOOKS:
        yield from ((f".{_hook_name(table, i)}", hook) for i, hook in enumerate(attributes[table].values()))
    if isinstance(module, torch.fx.GraphModule):
        yield ".code", module.code
        yield from ((f".{name}", held) for name, held in attributes.items() if isinstance(held, torch.Tensor))
        return
    derived = "_" if type(module).__module__.startswith("torch.nn.modules.") else "\0"  # what a layer of torch notes
    for name, held in attributes.items():
        if name not in _OWN and not name.startswith(derived):
            yield f".{name}", held
    for kind in type(module).__mro__:
        if not from_library(kind) and kind is not object:
            for name, held in vars(kind).items():
                if not name.startswith("__") and isinstance(held, (*PLAIN, list, dict, set, tuple, torch.Tensor)):
                    yield f".{kind.__qualname__}:{name}", held


def _of_script(module: torch.jit.ScriptModule) -> Iterator[tuple[str, Any]]:
    """A scripted module's code and attributes; its children are attributes too."""
    yield ".code", str(getattr(module, "code", ""))
    yield from ((f".{name}", held) for name, held in module.named_children())
    inner = module._c
    for name in dict.fromkeys(re.findall(r"^ {4}(\w+) = ", inner.dump_to_str(False, True, False), re.MULTILINE)):
        if name != "training" and name not in module._modules and inner.hasattr(name):
            yield f".{name}", inner.getattr(name)


def is_opaque(value: Any) -> bool:
    """True for what the walk cannot look into: locks, files, generators, streams and other objects of C."""
    known = (*PLAIN, *CODE, nn.Module, torch.Tensor, np.ndarray, dict, list, tuple, deque, set, frozenset, partial)
    if isinstance(value, (*known, types.MethodType, types.FunctionType)):
        return False
    return not hasattr(value, "__dict__") and not any("__slots__" in vars(kind) for kind in type(value).__mro__)


def content(value: torch.Tensor | np.ndarray[Any, Any]) -> bytes | None:
    """The bytes of a dense tensor or array; None where there are none: meta, sparse, quantised, other classes."""
    if isinstance(value, np.ndarray):
        return None if value.dtype.hasobject else value.tobytes()
    dense = _bytes(value)
    return None if dense is None else dense.cpu().numpy().tobytes()


def _bytes(value: torch.Tensor) -> torch.Tensor | None:
    """The same, where the tensor lies."""
    if (
        type(value) not in (torch.Tensor, nn.Parameter)
        or value.is_meta
        or value.is_nested
        or value.layout != torch.strided
        or value.is_quantized
    ):
        return None
    dense = value.detach().resolve_conj().resolve_neg().contiguous().reshape(-1)
    return dense.view(torch.uint8) if dense.numel() else dense.new_empty(0, dtype=torch.uint8)


def marks(values: dict[str, Any]) -> dict[str, object]:
    """What tells, by ``==``, whether tensors, arrays or containers have been written into since, under their names.

    The content of a small tensor that is no parameter, the version of a large one; numbers written into a large tensor
    behind the back of autograd (``.data``) are not seen. Of each device all small ones are copied at once, since a copy
    waits for the device.
    """
    found, there = dict[str, object](), dict[torch.device, dict[str, torch.Tensor]]()
    for name, value in values.items():
        if isinstance(value, torch.Tensor):
            small = not isinstance(value, nn.Parameter) and value.numel() <= CONTENT
            if small and (numbers := _bytes(value)) is not None:
                there.setdefault(value.device, {})[name] = numbers
            else:
                found[name] = None if value.is_inference() else value._version
        elif isinstance(value, np.ndarray):
            found[name] = content(value) if value.size <= CONTENT else None
        else:
            found[name] = [(way, held if isinstance(held, PLAIN) else id(held)) for way, held in walk(value)]
    for tensors in there.values():
        sizes = [len(one) for one in tensors.values()]
        parts = torch.split(torch.cat(list(tensors.values())).cpu(), sizes)
        found |= {name: one.numpy().tobytes() for name, one in zip(tensors, parts, strict=True)}
    return found


def state(root: Any) -> dict[str, object]:
    """A value for everything in a module or callable, by name, that tells by ``==`` whether it has changed."""
    found: dict[str, object] = {}
    for name, value in walk(root):
        if isinstance(value, (torch.Tensor, np.ndarray)):
            found[name] = content(value)
        elif isinstance(value, PLAIN):
            found[name] = f"{type(value).__name__} {value!r}"
        else:
            found[name] = type(value).__name__
    return found
