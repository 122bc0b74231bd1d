"""Random numbers that depend on a key and an entry's place alone: any block gets the same ones, on any device."""

from hashlib import sha256

import torch
from torch import Tensor

# the constants of splitmix64, as signed numbers of 64 bits
GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)
MIXERS = ((30, 0xBF58476D1CE4E5B9 - (1 << 64)), (27, 0x94D049BB133111EB - (1 << 64)))
BITS = 24  # of a float32 between 0 and 1


def uniform(shape: torch.Size, key: str, first: int, device: torch.device) -> Tensor:
    """Numbers from 0 to 1 (excluded), float32: number i of the key is that of entry `first` + i, whatever the block.

    The i-th state of splitmix64, seeded with a hash of the key.

    Example:
        >>> whole = uniform(torch.Size([4, 3]), "seed 0, layer.weight", 0, torch.device("cpu"))
        >>> rows = uniform(torch.Size([2, 3]), "seed 0, layer.weight", 6, torch.device("cpu"))
        >>> torch.equal(whole[2:], rows)
        True

    Source: Steele, Lea & Flood 2014, "Fast splittable pseudorandom number generators".
    """
    start = int.from_bytes(sha256(key.encode()).digest()[:8], "little", signed=True)
    place = torch.arange(first + 1, first + 1 + shape.numel(), dtype=torch.int64, device=device)
    mixed = place.mul_(GOLDEN).add_(start)
    for shift, factor in MIXERS:
        mixed = (mixed ^ _shifted(mixed, shift)).mul_(factor)
    mixed = mixed ^ _shifted(mixed, 31)
    return (_shifted(mixed, 64 - BITS).to(torch.float32) * 2.0**-BITS).reshape(shape)


def _shifted(numbers: Tensor, count: int) -> Tensor:
    # torch shifts the sign along; zeros must follow instead
    return (numbers >> count) & ((1 << (64 - count)) - 1)
