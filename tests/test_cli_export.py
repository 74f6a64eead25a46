"""``export`` as a user runs it: one part of a step, for any torch.load."""

from __future__ import annotations

import torch
from commands import documents

import asyncsave


def test_export(quick, version, tmp_path):
    """One part, in a file that any torch.load reads; an old file is replaced only when that was agreed to."""
    file = tmp_path / "model.pt"
    found = documents("export", version, file, "--step", "20")
    digest = found.pop("digest")
    assert found == {
        "path": str(file), "nbytes": file.stat().st_size, "durable": found["durable"], "part": "model", "step": 20,
        "checkpoint": str(version / "step-00000020"),
    }  # fmt: skip
    assert asyncsave.verify(file).ok
    assert digest.startswith("crc32:")
    assert torch.load(file, weights_only=True)["w"].tolist() == [20.0] * 100
    words = ["export", version, file, "--step", "best", "--metric", "loss"]
    assert "is there: replace it?" in quick.run(*words).err
    assert torch.load(file, weights_only=True)["w"].tolist() == [20.0] * 100
    assert quick.run(*words, "--yes").out.startswith(f"{file}: 'model' of step 40, ")
    assert torch.load(file, weights_only=True)["w"].tolist() == [40.0] * 100
    assert quick.documents("export", version, tmp_path / "ema.pt", "--part", "ema")["step"] == 60
    assert torch.load(tmp_path / "ema.pt", weights_only=True).tolist() == [0.0] * 3
