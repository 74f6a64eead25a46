"""Trainings that go on beside a save: one that keeps every core busy, one that keeps the GIL, or a user's own."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Callable
from typing import Protocol

import torch
from torch import nn

from asyncsave.errors import OptionError

__all__ = ["KINDS", "Loop", "OwnLoop", "PythonLoop", "Training", "loop_of", "usual_kind"]

KINDS = ("cpu", "python", "gpu")


class Loop(Protocol):
    """Something that goes on beside a save, step by step."""

    def step(self) -> None:
        """Do one step; return when its work is done, on an accelerator, too."""


class Training:
    """A small transformer with AdamW on random tokens: forward, backward and update in one step.

    It trains beside the state that is saved, so that a step takes tens of milliseconds and a save spans many. The work
    runs on as many threads as torch uses: all cores, if nobody has said otherwise; or on an accelerator.
    """

    def __init__(
        self, width: int = 256, layers: int = 2, batch: int = 4, length: int = 64, device: str = "cpu"
    ) -> None:
        generator = torch.Generator().manual_seed(0)
        layer = nn.TransformerEncoderLayer(width, 4, 4 * width, dropout=0.0, batch_first=True)
        self._model = nn.Sequential(
            nn.Embedding(256, width), nn.TransformerEncoder(layer, layers), nn.Linear(width, 256)
        ).to(device)
        self._optimizer = torch.optim.AdamW(self._model.parameters(), lr=1e-4)
        self._tokens = torch.randint(256, (batch, length + 1), generator=generator).to(device)

    def step(self) -> None:
        """Do one step; its loss is read, which waits for the accelerator."""
        logits = self._model(self._tokens[:, :-1])
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), self._tokens[:, 1:].flatten())
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()
        loss.item()
        if self._tokens.is_cuda:
            torch.cuda.synchronize()


class PythonLoop:
    """Steps of nothing but Python: one core is busy, and the GIL is let go only when another thread insists on it.

    That is a training loop whose time goes into tokens, sampling or bookkeeping. A step takes several milliseconds,
    more than the five for which a thread may keep the GIL from the others.
    """

    def __init__(self, rounds: int = 120_000) -> None:
        self._rounds = rounds

    def step(self) -> None:
        """Do one step."""
        value = 0
        for index in range(self._rounds):
            value = (31 * value + index) % 1_000_003


class OwnLoop:
    """A user's own step: a function without arguments, called once per step.

    Args:
        name: ``"module:function"``; the module is looked for in the current folder too.

    Raises:
        OptionError: There is none.
    """

    def __init__(self, name: str) -> None:
        module, _, attribute = name.partition(":")
        if os.getcwd() not in sys.path:
            sys.path.insert(0, os.getcwd())
        try:
            with contextlib.redirect_stdout(sys.stderr):
                found: object = importlib.import_module(module)
            for part in attribute.split("."):
                found = getattr(found, part)
        except (ImportError, AttributeError, ValueError) as error:
            raise OptionError(f"there is no step {name!r} (module:function): {error}") from error
        except (Exception, SystemExit) as error:  # a script that is no module: it runs, and ends, when it is imported
            raise OptionError(f"{module!r} cannot be imported: {type(error).__name__}: {error}") from error
        if not callable(found):
            raise OptionError(f"{name!r} is no function, but {found!r}")
        self._name = name
        self._function: Callable[[], object] = found

    def step(self) -> None:
        """Call it; wait for the accelerator, if there is one in use. What it prints goes to stderr: stdout is ours.

        Raises:
            OptionError: It has failed.
        """
        try:
            with contextlib.redirect_stdout(sys.stderr):
                self._function()
        except Exception as error:
            raise OptionError(f"the step {self._name!r} has failed: {type(error).__name__}: {error}") from error
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()


def usual_kind() -> str:
    """Return the kind of training that this machine is for."""
    return "gpu" if torch.cuda.is_available() else "cpu"


def loop_of(kind: str) -> Loop:
    """Return the loop of a name: one of ``KINDS``, or ``"module:function"``.

    Raises:
        OptionError: There is none, or no accelerator for it.
    """
    if ":" in kind:
        return OwnLoop(kind)
    if kind == "cpu":
        return Training()
    if kind == "python":
        return PythonLoop()
    if kind != "gpu":
        raise OptionError(f"step must be one of {', '.join(KINDS)}, or module:function, not {kind!r}")
    if not torch.cuda.is_available():
        raise OptionError("there is no CUDA device here: measure with step cpu or python")
    return Training(width=1024, layers=8, batch=8, length=256, device="cuda")
