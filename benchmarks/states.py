"""The states that the benchmarks save: plain nested dictionaries of CPU tensors.

Values are random, so that no layer below can gain from zeros. Nothing is trained here: what a save costs depends on
the number and the size of the tensors only.
"""

from __future__ import annotations

import torch

from asyncsave.bench.states import State, synthetic


def transformer_with_adamw(layers: int = 12, width: int = 768) -> State:
    """Return the standard state: a transformer encoder and AdamW's two moments and step counts.

    The tensors have the names and shapes of ``nn.TransformerEncoder`` (float32, contiguous, one storage each).

    Args:
        layers: number of encoder layers, twelve parameters each.
        width: model width; the feed-forward part is four times as wide.

    Returns:
        ``{"model": ..., "optimizer": ..., "epoch": ...}``; with the defaults 576 tensors, 1.02 GB.
    """
    shapes = {
        "self_attn.in_proj_weight": (3 * width, width),
        "self_attn.in_proj_bias": (3 * width,),
        "self_attn.out_proj.weight": (width, width),
        "self_attn.out_proj.bias": (width,),
        "linear1.weight": (4 * width, width),
        "linear1.bias": (4 * width,),
        "linear2.weight": (width, 4 * width),
        "linear2.bias": (width,),
        "norm1.weight": (width,),
        "norm1.bias": (width,),
        "norm2.weight": (width,),
        "norm2.bias": (width,),
    }
    model = {f"layers.{i}.{name}": _noise(*shape) for i in range(layers) for name, shape in shapes.items()}
    moments = {
        index: {"step": torch.tensor(100.0), "exp_avg": _noise(*p.shape), "exp_avg_sq": _noise(*p.shape)}
        for index, p in enumerate(model.values())
    }
    groups = [{"lr": 3e-4, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1, "params": list(moments)}]
    return {"model": model, "optimizer": {"state": moments, "param_groups": groups}, "epoch": 3}


def small_tensors(count: int = 20_000, floats: int = 32) -> State:
    """Return ``count`` tensors of ``floats`` float32 values, each in its own storage."""
    return synthetic(4 * count * floats, count)


def tiny() -> State:
    """Return ten float32 tensors of 1,000 bytes: 10 KB in all."""
    return small_tensors(count=10, floats=250)


def megabytes(size: int) -> State:
    """Return ``size`` float32 tensors of 1 MB (10^6 bytes) each."""
    return small_tensors(count=size, floats=250_000)


def _noise(*shape: int) -> torch.Tensor:
    return torch.empty(shape).uniform_(-1.0, 1.0)
