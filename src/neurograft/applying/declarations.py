"""Integers that modules of any code base declare about their widths (`num_heads`, `hidden_size`, `split_size`, …)."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from neurograft.axes.layout import Factor, Layout, layout_size, segment_size
from neurograft.tracing.graph import NeuronGraph

# names that mean widths, and names that mean something else although they hold such a word
WIDTH = re.compile(
    r"head|hidden|dim|size|width|feature|channel|embed|embd|inner|split|state|rank|group|experts$|^d_|^n[fx]$"
)
OTHER = re.compile(
    r"shift|window|patch|image|kernel|vocab|position|batch|layer|stride|label|class|idx|index|token|max_|padding"
)
# widths of the residual stream: in a configuration they mean the one that changed, whatever else has their value
STREAM = re.compile(r"^(hidden_sizes?|n_embd|d_model|model_dim|embed_dim|hidden_dim|dim)$")
COUNT = re.compile(r"^n_|num_|heads?$|groups?$|rank|state")
# counts of what holds neurons of its own: as many heads as a head is wide must not confuse them
LEADING = re.compile(r"(heads?|groups?)$")
# counts of what every weight is stacked along: whole dimensions, although they are counts
STACKED = re.compile(r"experts$")

# torch's own modules that declare widths which no kind of their own keeps true
DECLARING = (nn.MultiheadAttention, nn.RNNBase, nn.Transformer)


@dataclass(frozen=True, eq=False, slots=True)
class Declaration:
    """One declared width that was changed: attribute `name` of a module or configuration."""

    holder: object
    name: str
    old: Any
    new: Any


def declare_integers(
    model: nn.Module, old: NeuronGraph, new: NeuronGraph, handled: tuple[type, ...]
) -> list[Declaration]:
    """Give every declared integer the new width of whatever had its old one, in place.

    An attribute whose name means a width is compared with the dimensions, segments and factors of the tensors
    below its module. Where the same old width became several new ones, counts (`num_heads`) go by factors and sizes
    (`hidden_size`) by whole dimensions; what stays ambiguous is left alone, and a run of the network decides.

    Args:
        model: the network, whose tensors have the shapes of `new` already.
        old: the graph before.
        new: the graph after.
        handled: kinds of modules whose sizes somebody else declares.

    Returns:
        What was changed.
    """
    changed = []
    for path, module in model.named_modules():
        foreign = not type(module).__module__.startswith("torch.")
        if (foreign and not isinstance(module, handled)) or isinstance(module, DECLARING):
            changed += _declare(module, path, old, new)
        # a configuration is shared by all modules of a model: it describes the whole
        config = module.__dict__.get("config")
        if not path and config is not None and hasattr(config, "__dict__"):
            changed += _declare(config, "", old, new)
    return changed


def _declare(holder: object, path: str, old: NeuronGraph, new: NeuronGraph) -> list[Declaration]:
    named = {n: v for n, v in vars(holder).items() if WIDTH.search(n) and not OTHER.search(n) and _is_widths(v)}
    if not named:
        return []
    wholes, factors, leading = _widths(path, old, new)
    changed = []
    for name, value in named.items():
        stacked = bool(STACKED.search(name))
        counting = bool(COUNT.search(name)) and not stacked
        tables: tuple[dict[int, set[int]], ...] = (factors, wholes) if counting else (wholes, factors)
        if LEADING.search(name):
            tables = (leading, *tables)
        # three heads beside the three parts of a fused projection: what did not change is no evidence
        changing = stacked or bool(STREAM.search(name) or LEADING.search(name))
        fresh: Any = (
            _new_width(value, tables, changing)
            if isinstance(value, int)
            else type(value)(_new_width(n, tables, changing) for n in value)
        )
        if fresh != value:
            setattr(holder, name, fresh)
            changed.append(Declaration(holder, name, value, fresh))
    return changed


def _is_widths(value: object) -> bool:
    if isinstance(value, (list, tuple)):
        return bool(value) and type(value) in (list, tuple) and all(_is_widths(v) for v in value)
    return isinstance(value, int) and not isinstance(value, bool) and value > 1


def _new_width(value: int, tables: tuple[dict[int, set[int]], ...], changing: bool) -> int:
    """The one new width of an old one: the first table that has it decides; unchanged if it is ambiguous."""
    for widths in tables:
        if became := widths.get(value):
            if changing:
                became = became - {value} or became
            return next(iter(became)) if len(became) == 1 else value
    return value


def _widths(path: str, old: NeuronGraph, new: NeuronGraph) -> tuple[dict[int, set[int]], ...]:
    """What each width below a module became: of dimensions and segments, of factors, and of those that hold others."""
    wholes: dict[int, set[int]] = {}
    factors: dict[int, set[int]] = {}
    leading: dict[int, set[int]] = {}
    while True:
        prefix = f"{path}." if path else ""
        infos = [info for name, info in old.tensors.items() if name.startswith(prefix)]
        if infos or not path:
            break
        path = path.rpartition(".")[0]  # a module without tensors describes those beside it
    for info in infos:
        for before, after in zip(info.layouts, new.tensors[info.name].layouts, strict=True):
            wholes.setdefault(layout_size(before), set()).add(layout_size(after))
            for own, fresh in zip(before, after, strict=True):
                wholes.setdefault(segment_size(own), set()).add(segment_size(fresh))
                # query heads may be key/value heads times the queries of each: two leading factors
                for count in range(1, len(own)):
                    if isinstance(own[0], Factor) and own[0].group:
                        leading.setdefault(segment_size(own[:count]), set()).add(segment_size(fresh[:count]))
            for a, b in zip(_factors(before), _factors(after), strict=True):
                factors.setdefault(a.size, set()).add(b.size)
    return wholes, factors, leading


def _factors(layout: Layout) -> Iterator[Factor]:
    for segment in layout:
        for part in segment:
            if isinstance(part, Factor):
                yield part
            else:
                yield from _factors(part)
