"""Tensors on disk: read without trusting them, no more than is needed, and written whole or not at all."""

from neurograft.checkpoints.hashing import sha256
from neurograft.checkpoints.loading import load_into
from neurograft.checkpoints.reading import Checkpoint, open_checkpoint
from neurograft.checkpoints.writing import provenance_of, write_checkpoint

__all__ = [
    "Checkpoint",
    "load_into",
    "open_checkpoint",
    "provenance_of",
    "sha256",
    "write_checkpoint",
]
