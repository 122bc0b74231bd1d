"""Tensors on disk: read without trusting them, mapped instead of loaded, written whole or not at all."""

from neurograft.checkpoints.hashing import sha256
from neurograft.checkpoints.loading import load_into, read_checkpoint
from neurograft.checkpoints.reading import Checkpoint, open_checkpoint
from neurograft.checkpoints.writing import provenance_of, write_checkpoint

__all__ = [
    "Checkpoint",
    "load_into",
    "open_checkpoint",
    "provenance_of",
    "read_checkpoint",
    "sha256",
    "write_checkpoint",
]
