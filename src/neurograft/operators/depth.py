"""How deep in a network a tensor lies, from 0 in the first block to 1 in the last, by the names alone."""

import re
from collections.abc import Iterable

NUMBERED = re.compile(r"(?P<block>(?P<stack>(?:[^.]*\.)*?)[0-9]+)\.")
DIGITS = re.compile(r"[0-9]+")


def depths(names: Iterable[str]) -> dict[str, float]:
    """The depth of every tensor that lies in a block.

    A block is the outermost module with a number for a name (`layers.3`), and blocks whose names differ in numbers
    alone (`layer1.0`, `layer2.0`) are a stack, in the order of these numbers. The i-th of n blocks has depth
    i / (n − 1), the only one of a stack 1. In networks without numbered modules every module that holds tensors is a
    block, in the order of the names. Other tensors (an embedding, a head) are left out: they count as depth 0.

    Example:
        >>> depths(["embed.weight", "layers.0.w", "layers.1.w", "layers.1.b", "layers.2.w", "head.weight"])
        {'layers.0.w': 0.0, 'layers.1.w': 0.5, 'layers.1.b': 0.5, 'layers.2.w': 1.0}
        >>> depths(["conv1.weight", "conv2.weight", "fc.weight", "fc.bias"])
        {'conv1.weight': 0.0, 'conv2.weight': 0.5, 'fc.weight': 1.0, 'fc.bias': 1.0}
    """
    listed = list(names)
    blocks = {name: found["block"] for name in listed if (found := NUMBERED.match(name))}
    if not blocks:
        places = {module: i for i, module in enumerate(dict.fromkeys(_module(name) for name in listed))}
        return {name: _share(places[_module(name)], len(places)) for name in listed}
    stacks: dict[str, list[str]] = {}
    for block in dict.fromkeys(blocks.values()):
        stacks.setdefault(DIGITS.sub("#", block), []).append(block)
    place = {
        block: _share(i, len(stack))
        for stack in stacks.values()
        for i, block in enumerate(sorted(stack, key=lambda block: [int(n) for n in DIGITS.findall(block)]))
    }
    return {name: place[block] for name, block in blocks.items()}


def _share(place: int, count: int) -> float:
    return place / (count - 1) if count > 1 else 1.0


def _module(name: str) -> str:
    return name.rpartition(".")[0]
