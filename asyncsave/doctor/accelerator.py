"""Whether torch starts, and what it knows of CUDA: asked in a process of its own, which may crash or hang."""

from __future__ import annotations

import json
import os
import subprocess
from typing import Any

from asyncsave.backends.interpreter import environment, interpreter
from asyncsave.doctor.check import Check, fine, unknown, wrong
from asyncsave.doctor.containers import PROC
from asyncsave.errors import OptionError

__all__ = ["ACCELERATOR", "PROGRAM", "ask_torch", "judge"]

ACCELERATOR = ("torch_import", "cuda", "gpu")

PROGRAM = """
import json
import torch
cuda = torch.cuda.is_available()
gpus = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())] if cuda else []
print()
print(json.dumps({"cuda": torch.version.cuda or torch.version.hip, "works": cuda, "gpus": gpus}))
"""
_PATIENCE = 120.0


def ask_torch(*, program: str = PROGRAM, timeout: float = _PATIENCE) -> dict[str, Any] | str:
    """Import torch elsewhere, and ask it.

    Args:
        program: What to run.
        timeout: Seconds.

    Returns:
        ``cuda`` (the version that torch was built for, or None), ``works`` and ``gpus`` (names); or why there is no
        answer.
    """
    try:
        done = subprocess.run(  # noqa: S603 - this Python, and a program of ours
            [interpreter(), "-c", program],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout,
            check=False,
            env=environment(),
            cwd=os.path.abspath(os.sep),  # what lies in the user's folder is no package
        )
    except OptionError:
        return "this program has no Python of its own to ask"
    except subprocess.TimeoutExpired:
        return f"no answer within {timeout:g} s"
    except OSError as error:
        return f"Python does not start: {error.strerror or error}"
    if done.returncode:
        said = done.stderr.decode(errors="replace").split("\n")
        how = f"signal {-done.returncode}" if done.returncode < 0 else f"exit code {done.returncode}"
        return next((line.strip() for line in reversed(said) if line.strip()), how)
    try:
        answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        return "it said something else than was asked"
    return answer


def judge(answer: dict[str, Any] | str | None, *, proc: str = PROC) -> list[Check]:
    """Return ``torch_import``, ``cuda`` (the version; None: built without) and ``gpu`` (names; None: there is none).

    Args:
        answer: That of :func:`ask_torch`; None: nobody has asked.
        proc: Where a driver of NVIDIA shows itself.
    """
    if answer is None:
        return [unknown(name, "Leave --no-torch out: torch was not asked.") for name in ACCELERATOR]
    if isinstance(answer, str):
        first = wrong("torch_import", value=False, remedy=f"Reinstall torch, it does not start here: {answer}.")
        return [first, *(unknown(name, "Mend torch first: it does not start.") for name in ACCELERATOR[1:])]
    has_driver = os.path.exists(os.path.join(proc, "driver", "nvidia", "version"))
    return [fine("torch_import", value=True), *_cuda(answer, has_driver=has_driver)]


def _cuda(answer: dict[str, Any], *, has_driver: bool) -> list[Check]:
    gpus = ", ".join(dict.fromkeys(answer["gpus"])) or None
    if len(answer["gpus"]) > 1:
        gpus = f"{len(answer['gpus'])} x {gpus}"
    if answer["works"]:
        return [fine("cuda", answer["cuda"]), fine("gpu", gpus)]
    if not has_driver:
        return [fine("cuda", answer["cuda"]), fine("gpu", None)]
    if answer["cuda"] is None:
        remedy = "Install a build of torch with CUDA (pytorch.org/get-started): there is a driver for it."
        return [wrong("cuda", None, remedy), unknown("gpu", "Mend CUDA first.")]
    remedy = "Update the driver, or give the container its GPUs (--gpus all): torch finds none, and there is a driver."
    return [wrong("cuda", answer["cuda"], remedy), unknown("gpu", "Mend CUDA first.")]
