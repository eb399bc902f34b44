"""The one gate to a base classifier: whoever calls it without gradients does so here. It draws and counts nothing.

A model is called in eval mode, with inputs in the form that was asked for, by as many threads as is safe; what it
raises becomes one line, and its answers are checked.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Final

import torch

from ddsmoothing.counting.contract import BaseClassifier
from ddsmoothing.counting.replicas import Replicas
from ddsmoothing.devices import untouched
from ddsmoothing.errors import DdsmoothingError, InputError, ModelError, unknown

PRECISIONS: Final[dict[str, torch.dtype | None]] = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
NUMBERS: Final = (torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.int32)  # of logits


def takes_sigma(model: object) -> bool:
    """Whether a base classifier is called ``model(x, sigma)``: it says so itself by ``takes_sigma = True``."""
    return getattr(model, "takes_sigma", False) is True


def at_sigma(model: BaseClassifier, sigma: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    """A base classifier as a function of its inputs alone, whatever it is called with.

    Args:
        model: one that takes sigma, or one that does not.
        sigma: ``(B,)`` float32, the standard deviation of the noise of each row; for both norms.
    Returns: From inputs ``(B, ...)``, or ``(B m, ...)`` with the copies of an input side by side, to logits; the model
        itself where it does not take sigma.
    """
    if not takes_sigma(model):
        return model

    def forward(x: torch.Tensor) -> torch.Tensor:
        each = sigma.to(device=x.device, dtype=torch.float32).repeat_interleave(len(x) // len(sigma))
        logits: torch.Tensor = model(x, each)  # type: ignore[call-arg]
        return logits

    return forward


def called(model: Callable[..., Any], *inputs: torch.Tensor) -> Any:
    """What a model gives, with gradients where they are on; ModelError in one line for what it raises."""
    try:
        return model(*inputs)
    except (DdsmoothingError, torch.OutOfMemoryError):  # who looks for a block size wants to know of the latter
        raise
    except Exception as error:  # a model may raise anything
        raise _refusal(inputs[0], error) from error


def _refusal(x: torch.Tensor, error: Exception) -> ModelError:
    hint = " One image is a batch of one: x[None]." if x.ndim == 3 else ""
    return ModelError(f"the base classifier does not take inputs of shape {tuple(x.shape)}: {_reason(error)}{hint}")


@dataclass(frozen=True, kw_only=True)
class Form:
    """In which form noisy inputs reach the model: number type and memory format."""

    dtype: torch.dtype | None
    channels_last: bool


class Engine:
    """A base classifier made ready to run: cast, laid out and compiled copies of a module, or the model itself.

    Args:
        model: a module or callable; only modules can be cast, laid out or compiled.
    Attributes:
        captures: a CUDA graph of a pass may be tried: until one was refused or gave other logits.
    """

    def __init__(
        self,
        model: BaseClassifier,
        *,
        precision: str = "fp32",
        channels_last: bool = False,
        compiled: bool = False,
    ) -> None:
        if precision not in PRECISIONS:
            raise InputError(unknown("precision", precision, PRECISIONS))
        dtype = PRECISIONS[precision]
        changed = dtype is not None or channels_last or compiled
        if changed and not isinstance(model, torch.nn.Module):
            raise InputError("precision, channels_last and compiled need a torch.nn.Module, got a bare callable.")
        self.form = Form(dtype=dtype, channels_last=channels_last)
        self.model = model
        self.captures = isinstance(model, torch.nn.Module)
        if changed:
            assert isinstance(model, torch.nn.Module)
            try:
                copied = copy.deepcopy(model).to(dtype=dtype)
                if channels_last:
                    copied = copied.to(memory_format=torch.channels_last)
                self.model = torch.compile(copied.eval()) if compiled else copied
            except Exception as error:  # exported, scripted, quantised modules refuse in many ways
                raise ModelError(
                    f"a copy of the model cannot be made in another precision or form: {_reason(error)} Use "
                    "precision fp32 without channels_last and compiled."
                ) from error

    @property
    def alone(self) -> str | None:
        """Why only one thread at a time calls the model; None where each has a copy of its own."""
        return Replicas(self.model, 1).alone

    @contextmanager
    def open(self, callers: int = 1) -> Iterator[list[Caller]]:
        """Ways to the model for so many threads, or one where only one thread at a time may call it.

        A module's private copies run side by side; whatever has none is called under a lock that all share who use it
        at the same time. When it is left, answers that were not finite and tensors that were written into are named.

        Raises: ModelError.
        """
        _check_weights(self.model)
        replicas = Replicas(self.model, callers)
        with ExitStack() as stack:
            if replicas.copies:
                ways = [Caller(one, self.form) for one in replicas.copies]
            else:
                ways = [Caller(self.model, self.form, stack.enter_context(untouched(self.model)))]
            yield ways
            for way in ways:
                way.check_finite()
            if written := replicas.written():
                raise ModelError(
                    f"the base classifier writes into {', '.join(written[:3])} when it is called, also in eval mode, "
                    "so that an answer may depend on the calls before it; a certificate needs a function. Keep its "
                    "buffers as they are."
                )

    def logits(self, x: torch.Tensor, sigma: torch.Tensor | float, num_classes: int | None = None) -> torch.Tensor:
        """Logits ``(B, K)`` of one pass, finite; without gradients, and x stays as it is.

        Args:
            x: ``(B, ...)``, noisy inputs.
            sigma: ``(B,)`` float32 or one number, the standard deviation of the noise in each row, for models that take
                it.
            num_classes: K, where it is known.
        Raises: ModelError.
        """
        with self.open() as (caller,):
            logits = caller.logits(x.clone(), sigma, num_classes)
        return logits.clone()  # outside, so that a loss may be made with it


class Caller:
    """One thread's way to a base classifier.

    Attributes:
        model: that this caller calls.
        private: True for a copy of its own, which other callers may run beside; else they take turns.
    """

    def __init__(self, model: Any, form: Form, turn: AbstractContextManager[Any] | None = None) -> None:
        self.model, self._form, self._takes = model, form, takes_sigma(model)
        self.private, self._turn = turn is None, nullcontext() if turn is None else turn
        self._total: torch.Tensor | None = None  # 0, or NaN as soon as a logit is NaN or infinite

    def logits(
        self, x: torch.Tensor, sigma: torch.Tensor | float, num_classes: int | None = None, used: int | None = None
    ) -> torch.Tensor:
        """Logits of one pass ``(used, K)``, which ``check_finite`` looks at later; the model may write into x.

        Args:
            x, sigma, num_classes: as for ``Engine.logits``.   used: so many rows count, the others are padding.
        Raises: ModelError.
        """
        with torch.inference_mode():
            try:
                found = self.answer(x, sigma)
            except torch.OutOfMemoryError as error:
                raise _refusal(x, error) from error
            logits = check_logits(found, x, num_classes)[:used]
            if self._total is None:
                self._total = torch.zeros((), device=logits.device)
            self._total += (logits - logits).sum(dtype=torch.float32)  # in place: a CUDA graph of a pass adds too
        return logits

    def answer(self, x: torch.Tensor, sigma: torch.Tensor | float) -> Any:
        """What the model gives for x, unchecked: logits, or images of a denoiser; the model may write into x."""
        inputs = [self._formed(x)]
        if self._takes:
            inputs.append(torch.as_tensor(sigma, dtype=torch.float32, device=x.device).expand(len(x)))
        with torch.inference_mode(), self._turn:
            return called(self.model, *inputs)

    def _formed(self, x: torch.Tensor) -> torch.Tensor:
        if self._form.channels_last and x.ndim == 4:
            return x.to(dtype=self._form.dtype or x.dtype, memory_format=torch.channels_last)
        return x if self._form.dtype is None else x.to(self._form.dtype)

    def check_finite(self) -> None:
        """ModelError if any logit so far was NaN or infinite."""
        if self._total is not None and bool(self._total.isnan()):
            raise ModelError(
                "the base classifier gave NaN or infinite logits; a certificate from them would be meaningless. Check "
                "its weights and the range of its inputs."
            )


def no_grad_logits(model: BaseClassifier, x: torch.Tensor, sigma: torch.Tensor | float) -> torch.Tensor:
    """Logits ``(B, K)`` of a model in eval mode, which is given back as it came; see ``Engine.logits``."""
    return Engine(model).logits(x, sigma)


def check_logits(found: object, x: torch.Tensor, num_classes: int | None) -> torch.Tensor:
    """Return what a base classifier gave for x if these are logits ``(B, K)``, else raise ModelError."""
    wanted = f"expected logits of shape ({len(x)}, {'K' if num_classes is None else num_classes})"
    if not isinstance(found, torch.Tensor):
        raise ModelError(
            f"the base classifier returned {type(found).__name__} for {len(x)} inputs, {wanted}; take them out of it "
            f"by picked(model, {(place := _place(found))!r}) of ddsmoothing.models (--model-output {place})."
        )
    if found.is_nested or found.layout != torch.strided or found.is_quantized or found.dtype not in NUMBERS:
        kind = "nested" if found.is_nested else "quantised" if found.is_quantized else str(found.layout)
        kind = str(found.dtype) if kind == "torch.strided" else kind
        raise ModelError(f"the base classifier returned a tensor that is {kind}, {wanted} in real numbers, dense.")
    if found.device != x.device:
        raise ModelError(f"the base classifier answered on {found.device} to inputs on {x.device}; move it there.")
    if found.ndim != 2 or len(found) != len(x) or found.shape[1] != (num_classes or found.shape[1]):
        hint = "" if num_classes is None else f"; is num_classes={num_classes} right?"
        raise ModelError(f"the base classifier returned {tuple(found.shape)} for {len(x)} inputs, {wanted}{hint}")
    return found


def _place(found: object) -> str:
    """Where in an output the logits might be: as ``picked`` has it."""
    if isinstance(found, (tuple, list)):
        return "0"
    names = [key for key in found if isinstance(key, str)] if isinstance(found, dict) else []
    return names[0] if names and "logits" not in names else "logits"


def _check_weights(model: Any) -> None:
    """ModelError where a module's weights have no numbers."""
    if not isinstance(model, torch.nn.Module):
        return
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if torch.nn.parameter.is_lazy(tensor):
            raise ModelError(f"the model's {name} has no shape yet; run it once on an input before it is used.")
        if tensor.is_meta:
            raise ModelError(f"the model's {name} is on the device meta and has no numbers; load its weights.")


def _reason(error: Exception) -> str:
    """An exception in one line, ended by a point."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        text += "; try a smaller block size"
    return text if text.endswith(".") else f"{text}."
