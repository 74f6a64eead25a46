"""The random number generators that a training draws from: python's, numpy's, torch's on every device."""

from __future__ import annotations

import logging
import random
import sys
from typing import Any

import torch

__all__ = ["capture_rng", "restore_rng"]

_log = logging.getLogger("asyncsave")


def capture_rng() -> dict[str, Any]:
    """Return the state of every generator that is in use, as tensors and plain values.

    numpy's is taken where numpy has been imported, an accelerator's where it has been initialised. Loader workers'
    generators are not among them: they belong to the loader.
    """
    state: dict[str, Any] = {"python": random.getstate(), "torch": torch.get_rng_state()}
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        legacy = numpy.random.get_state(legacy=False)
        if legacy["bit_generator"] != "MT19937":
            _log.warning("numpy's global generator is a %s: its state is left out", legacy["bit_generator"])
        else:
            inner = legacy["state"]
            state["numpy"] = {
                "key": torch.from_numpy(inner["key"].astype("int64")),
                "pos": int(inner["pos"]),
                "has_gauss": int(legacy["has_gauss"]),
                "gauss": float(legacy["gauss"]),
            }
    kind, module = _accelerator()
    if module is not None:
        state[kind] = [module.get_rng_state(device) for device in range(module.device_count())]
    return state


def restore_rng(state: dict[str, Any]) -> None:
    """Put the state of every generator back; what this machine does not have is told in the log."""
    random.setstate(state["python"])
    torch.set_rng_state(state["torch"])
    if "numpy" in state:
        import numpy as np  # noqa: PLC0415 - only a run that used it needs it

        saved = state["numpy"]
        key = saved["key"].numpy().astype("uint32")
        np.random.set_state(  # noqa: NPY002 - the global generator is what is put back
            ("MT19937", key, saved["pos"], saved["has_gauss"], saved["gauss"])
        )
    kind, module = _accelerator()
    for other in state.keys() - {"python", "torch", "numpy", kind}:
        _log.warning("the random state of %s was saved, and this machine has none: it is left out", other)
    saved_devices = state.get(kind, [])
    devices = module.device_count() if module is not None else 0
    for device in range(min(devices, len(saved_devices))):
        module.set_rng_state(saved_devices[device], device)
    if kind in state and devices != len(saved_devices):
        _log.warning("the random state of %d %s devices was saved, there are %d", len(saved_devices), kind, devices)


def _accelerator() -> tuple[str, Any]:
    """Return the kind of accelerator in use, and torch's module for it; ``("", None)`` where there is none."""
    if not torch.accelerator.is_available():
        return "", None
    device = torch.accelerator.current_accelerator()
    kind = device.type if device is not None else ""
    module = getattr(torch, kind, None)
    initialized = getattr(module, "is_initialized", lambda: True)
    return (kind, module) if module is not None and initialized() else ("", None)
