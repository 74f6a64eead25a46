"""A small transformer that learns to write Python, from the sources of Python's own standard library.

Real text, a real optimizer, nothing to download. A run is a function of its seed alone: two trainers with one seed
give the same losses, bit for bit, and so does one that went on from the other's `Trainer.state`.
"""

from __future__ import annotations

import sysconfig
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

import asyncsave

VOCABULARY = 256  # a character is a byte of UTF-8


def standard_library() -> Tensor:
    """Read the modules of the standard library (the files of its top folder, some megabytes).

    Returns:
        Their bytes as a one-dimensional tensor of uint8, the files in the order of their names.

    Raises:
        FileNotFoundError: this Python came without its sources.
    """
    folder = Path(sysconfig.get_path("stdlib"))
    text = bytearray().join(path.read_bytes() for path in sorted(folder.glob("*.py")))
    if not text:
        raise FileNotFoundError(f"no Python sources in {folder}: run with a Python that came with its standard library")
    return torch.frombuffer(text, dtype=torch.uint8)


class Block(nn.Module):
    """Causal self-attention and a feed-forward part four times as wide, each behind a norm and around a residual."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.projection = nn.Linear(width, width)
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, length, width) to the same shape."""
        x = x + self._attend(self.attention_norm(x))
        further: Tensor = self.feed_forward(x)
        return x + further

    def _attend(self, x: Tensor) -> Tensor:
        heads = self.query_key_value(x).unflatten(-1, (3, self.heads, -1))  # (batch, length, 3, heads, depth)
        query, key, value = heads.permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        projected: Tensor = self.projection(mixed.transpose(1, 2).flatten(-2))
        return projected


class CharTransformer(nn.Module):
    """Predicts each next character of a text; 24.8 million parameters as it stands.

    The embedding and the output layer are one weight, so that a checkpoint has a tie to keep.
    """

    def __init__(self, width: int = 640, layers: int = 5, heads: int = 10, context: int = 128) -> None:
        super().__init__()
        self.context = context
        self.characters = nn.Embedding(VOCABULARY, width)
        self.positions = nn.Embedding(context, width)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(layers)), nn.LayerNorm(width))
        self.output = nn.Linear(width, VOCABULARY, bias=False)
        self.output.weight = self.characters.weight
        for embedding in (self.characters, self.positions):
            nn.init.normal_(embedding.weight, std=0.02)

    def forward(self, text: Tensor) -> Tensor:
        """Map characters, int64 (batch, length ≤ context), to logits, float32 (batch, length, vocabulary)."""
        positions = torch.arange(text.shape[1], device=text.device)
        logits: Tensor = self.output(self.blocks(self.characters(text) + self.positions(positions)))
        return logits


class Trainer:
    """A model in training on the CPU: its parameters, AdamW, and where it stands in the stream of batches.

    Args:
        text: what to learn, uint8, one-dimensional; it is shared, not copied.
        seed: of the parameters and of the batches.
        batch: pieces of text in a step, each as long as the model's context.
    """

    def __init__(self, text: Tensor, seed: int = 0, batch: int = 2) -> None:
        torch.manual_seed(seed)
        self.model = CharTransformer()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=2e-4, fused=True)
        self.steps = 0
        self._text = text
        self._batch = batch
        self._batches = torch.Generator().manual_seed(seed)

    def step(self) -> float:
        """Learn from one batch; return the loss on it before (nats per character)."""
        pieces = self._next_batch()
        logits = self.model(pieces[:, :-1])
        loss = functional.cross_entropy(logits.flatten(0, 1), pieces[:, 1:].flatten())
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.steps += 1
        return loss.item()

    def training_state(self) -> asyncsave.TrainingState:
        """Return all that a later trainer needs to go on from here, for a `CheckpointManager`."""
        return asyncsave.TrainingState(model=self.model, optimizer=self.optimizer, batches=self._batches)

    def _next_batch(self) -> Tensor:
        """Cut pieces of context + 1 characters at random places: int64 (batch, context + 1)."""
        length = self.model.context + 1
        starts = torch.randint(len(self._text) - length, (self._batch, 1), generator=self._batches)
        return self._text[starts + torch.arange(length)].long()
