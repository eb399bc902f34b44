"""Private copies of a module tree for threads that run it side by side, and what a pass wrote where all would see it.

A module that keeps something in an attribute in one line of ``forward`` and reads it in the next would mix the inputs
of threads that share it. It runs no model.
"""

from __future__ import annotations

import copy
import re
import types
from typing import Any, Final

import numpy as np
import torch
from torch import nn
from torch.nn.modules import module as module_hooks

from ddsmoothing.errors import ModelError
from ddsmoothing.modules import CODE, HOOKS, PLAIN, from_library, is_compiled, is_opaque, marks, walk

HOOK: Final = re.compile(r"<forward (pre )?hook \d+>$")  # how the walk calls one


class Replicas:
    """Copies of a module tree with their own attributes, containers and plain objects, that share tensors and arrays.

    There are none, and ``alone`` says why, where something else that a pass may write into would be shared: hooks that
    are functions, closures over more than constants, objects of C such as locks and generators, scripted modules,
    modules with a way of their own to be copied. A bare callable has none.

    Attributes:
        copies: in eval mode; empty where the model has to be called by one thread at a time.
        alone: what stands against copies, with its name; None where there are some.
    """

    def __init__(self, model: Any, count: int) -> None:
        self.alone = None if isinstance(model, nn.Module) else "it is a bare callable"
        if any(getattr(module_hooks, f"_global{table}") for table in HOOKS):
            self.alone = "hooks on all modules are registered"
        self.copies: list[nn.Module] = []
        self._modules: list[nn.Module] = []
        self._shared: dict[str, Any] = {}
        self._leaves: dict[int, Any] = {}
        try:
            for way, value in walk(model):
                if not isinstance(value, PLAIN):
                    self._sort(way, value)
            if self.alone is None:
                parts = [_parts(module, self._leaves) for module in self._modules]
                self.copies = [self._copy(parts) for _ in range(count)]
        except ModelError as error:
            self.alone = str(error)
        except Exception as error:  # whatever an object's own way of being copied may raise
            self.alone = f"it cannot be copied ({type(error).__name__}: {error})"
        self._marks = marks(self._shared)
        self._model, self._registered = model, _registered(model)

    def _sort(self, way: str, value: Any) -> None:
        name = way.removeprefix(".")
        if isinstance(value, nn.Module):
            self._modules.append(value)
        elif isinstance(value, (torch.Tensor, np.ndarray)) or ":" in name:
            self._shared[name] = self._leaves[id(value)] = value
        elif isinstance(value, CODE):
            self._leaves[id(value)] = value
        if self.alone is None and (why := _against(way, value)) is not None:
            self.alone = f"{why} ({name})" if name else why

    def _copy(self, parts: list[tuple[dict[str, Any], list[tuple[str, Any]]]]) -> nn.Module:
        """One copy of the tree, from what its modules share and what each copy gets its own of; the root is first."""
        shells = [object.__new__(type(module)) for module in self._modules]
        memo = self._leaves | {id(module): shell for module, shell in zip(self._modules, shells, strict=True)}
        for shell, (shared, own) in zip(shells, parts, strict=True):
            vars(shell).update(shared)
            vars(shell).update({name: _own(value, memo) for name, value in own})
        for module in shells[0].modules():
            module.training = False
        return shells[0]

    def written(self) -> list[str]:
        """Names of what passes wrote into and all callers share, and of parameters and buffers that they replaced."""
        now = marks(self._shared)
        names = [name for name in self._shared if now[name] != self._marks[name]]
        for one in self.copies or [self._model]:
            held = _registered(one)
            names += [name for name in {**self._registered, **held} if held.get(name) is not self._registered.get(name)]
        return list(dict.fromkeys(names))


def _parts(module: nn.Module, leaves: dict[int, Any]) -> tuple[dict[str, Any], list[tuple[str, Any]]]:
    """A module's attributes: those that copies share, and those that each copy gets its own of."""
    shared = {name: value for name, value in vars(module).items() if isinstance(value, PLAIN) or id(value) in leaves}
    return shared, [(name, value) for name, value in vars(module).items() if name not in shared]


def _own(value: Any, memo: dict[int, Any]) -> Any:
    """A copy of a value; most of a module's own are empty dictionaries of hooks."""
    return value.copy() if isinstance(value, dict) and not value else copy.deepcopy(value, memo)


def _registered(model: Any) -> dict[str, torch.Tensor]:
    """A module's parameters and buffers by name; nothing for a bare callable."""
    if not isinstance(model, nn.Module):
        return {}
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def _against(way: str, value: Any) -> str | None:
    """What in a thing stands against private copies of the tree that it is in; None where nothing does."""
    if isinstance(value, nn.Module):
        own = getattr(type(value), "__deepcopy__", None)
        parametrized = getattr(own, "__module__", None) == "torch.nn.utils.parametrize"
        if isinstance(value, torch.jit.ScriptModule) or is_compiled(value) or (own is not None and not parametrized):
            return "a module that is copied in a way of its own"
        return "a module with slots" if any(vars(kind).get("__slots__") for kind in type(value).__mro__) else None
    if isinstance(value, types.FunctionType):
        if HOOK.search(way) and not from_library(value):
            return "a hook that is a function"
        held = [cell.cell_contents for cell in value.__closure__ or () if cell != types.CellType()]
        held += [*(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values(), *vars(value).values()]
        constant = (*PLAIN, *CODE, types.FunctionType)
        return None if all(isinstance(one, constant) for one in held) else "a function that keeps something"
    if isinstance(value, types.BuiltinFunctionType):
        ours = not isinstance(value.__self__, (types.ModuleType, type, type(None)))
        return "a function that keeps something" if ours else None
    return f"a {type(value).__qualname__}" if is_opaque(value) else None
