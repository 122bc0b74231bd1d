"""Integers that modules of any code base declare about their widths (`num_heads`, `hidden_size`, `split_size`, …)."""

import re
from collections.abc import Iterator

from torch import nn

from neurograft.tracing.graph import NeuronGraph
from neurograft.tracing.layout import Factor, Layout, layout_size, segment_size

# names that speak of widths, and names that speak of something else although they hold such a word
WIDTH = re.compile(
    r"head|hidden|dim|size|width|feature|channel|embed|embd|inner|split|state|rank|group|d_model|^n[fx]$"
)
OTHER = re.compile(
    r"shift|window|patch|image|kernel|vocab|position|batch|layer|stride|label|class|idx|index|token|max_|padding"
)
COUNT = re.compile(r"^n_|num_|heads?$|groups?$|rank|state")


def declare_integers(model: nn.Module, old: NeuronGraph, new: NeuronGraph) -> None:
    """Give every declared integer the new width of whatever had its old one, in place.

    An attribute whose name speaks of a width is compared with the dimensions, segments and factors of the tensors
    below its module. Where the same old width became several new ones, counts (`num_heads`) go by factors and sizes
    (`hidden_size`) by whole dimensions; what stays ambiguous is left alone, and a run of the network will tell.
    """
    for path, module in model.named_modules():
        if type(module).__module__.startswith("torch.nn.modules") and not isinstance(
            module, (nn.MultiheadAttention, nn.RNNBase)
        ):
            continue
        _declare(module, path, old, new)
        # a configuration is shared by all modules of a model: it speaks of the whole
        config = module.__dict__.get("config")
        if not path and config is not None and hasattr(config, "__dict__"):
            _declare(config, "", old, new)


def _declare(holder: object, path: str, old: NeuronGraph, new: NeuronGraph) -> None:
    names = [
        name
        for name, value in vars(holder).items()
        if isinstance(value, int)
        and not isinstance(value, bool)
        and value > 1
        and WIDTH.search(name)
        and not OTHER.search(name)
    ]
    if not names:
        return
    wholes, factors = _widths(path, old, new)
    for name in names:
        value = getattr(holder, name)
        first, second = (factors, wholes) if COUNT.search(name) else (wholes, factors)
        for widths in (first, second):
            if len(became := widths.get(value, set())) == 1:
                setattr(holder, name, next(iter(became)))
                break
            if became:
                break


def _widths(path: str, old: NeuronGraph, new: NeuronGraph) -> tuple[dict[int, set[int]], dict[int, set[int]]]:
    """What each width below a module became: of dimensions and their segments, and of single factors."""
    wholes: dict[int, set[int]] = {}
    factors: dict[int, set[int]] = {}
    while True:
        prefix = f"{path}." if path else ""
        infos = [info for name, info in old.tensors.items() if name.startswith(prefix)]
        if infos or not path:
            break
        path = path.rpartition(".")[0]  # a module without tensors speaks of those beside it
    for info in infos:
        for before, after in zip(info.layouts, new.tensors[info.name].layouts, strict=True):
            wholes.setdefault(layout_size(before), set()).add(layout_size(after))
            for own, fresh in zip(before, after, strict=True):
                wholes.setdefault(segment_size(own), set()).add(segment_size(fresh))
            for a, b in zip(_factors(before), _factors(after), strict=True):
                factors.setdefault(a.size, set()).add(b.size)
    return wholes, factors


def _factors(layout: Layout) -> Iterator[Factor]:
    for segment in layout:
        for part in segment:
            if isinstance(part, Factor):
                yield part
            else:
                yield from _factors(part)
