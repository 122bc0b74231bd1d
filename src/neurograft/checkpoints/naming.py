"""Which tensors of a checkpoint are a network's: under which prefix they lie, and what else is there."""

import re
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from neurograft.checkpoints.reading import Checkpoint, Renamed
from neurograft.checkpoints.torch_files import BETWEEN
from neurograft.errors import CheckpointError, closest
from neurograft.escaping import named

WRAPPERS = {"module", "model", "net", "network", "state", "dict", "ema", "swa", "averaged", "student", "teacher"}
AVERAGES = {"ema", "swa", "averaged"}
INNER = re.compile(r"(?:^|(?<=[./]))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
COUNTER = "num_batches_tracked"  # older checkpoints have none
AVERAGED = "n_averaged"  # what torch.optim.swa_utils.AveragedModel keeps beside its module
PASSED = (AVERAGED, "total_ops", "total_params")  # thop, which counts operations, leaves these in every module
NEVER = "\0"  # in no name of a tensor
MOST = 50  # prefixes that are looked at


@dataclass(frozen=True)
class NameMatch:
    """One way to find a network in a checkpoint: its tensors are those whose names begin with `prefix`.

    `names` maps the network's names (of tied tensors the first) to the stored ones, with wrappers inside where
    `wrapped`. `missing` are the network's, `counters` those of them that may be missing; `extra` begin with the prefix
    and are not the network's, `beside` do not begin with it, and `passed` are known to mean nothing for a network.
    """

    prefix: str
    wrapped: bool
    names: Mapping[str, str]
    missing: Sequence[str]
    counters: Sequence[str]
    extra: Sequence[str]
    beside: Sequence[str]
    passed: Sequence[str]

    @property
    def part(self) -> str:
        """What people call the prefix."""
        return self.prefix.rstrip(f".{BETWEEN}")

    @property
    def is_average(self) -> bool:
        """Whether the prefix names a moving average of weights."""
        return bool(AVERAGES.intersection(re.split(rf"[._{BETWEEN}]", self.part)))

    @property
    def is_wrapper(self) -> bool:
        """Whether the prefix, within its dict, is what wrappers of networks are called."""
        return WRAPPERS.issuperset(re.split("[._]", self.part.rpartition(BETWEEN)[2]))

    @property
    def is_all(self) -> bool:
        """Whether the checkpoint holds the network under its own names and nothing else."""
        return not (self.prefix or self.wrapped or self.missing or self.counters or self.extra or self.passed)


def find_network(
    checkpoint: Checkpoint,
    network: nn.Module,
    *,
    ignored: Callable[[str], bool] = lambda _: False,
    renamed: Callable[[str], str] | None = None,
) -> tuple[Checkpoint, dict[str, str]]:
    """Find a network's tensors in a checkpoint, whatever wrapped the network when it was saved.

    Prefixes (`module.`, `_orig_mod.`, `model.`, …) and dicts around the state dict are taken off, counters that are
    missing start at 0, and what thop and averaging leave behind is passed over; a warning names in one line what was
    taken. Of a network and its moving average the network is taken; `FILE#ema` takes the average.

    Args:
        checkpoint: what was opened.
        network: may be on the meta device.
        ignored: names for which it is true are passed over.
        renamed: turns a name in the files into the network's.

    Returns:
        The checkpoint, under the network's names if a prefix was taken off; and the network's names mapped to the
        checkpoint's, of tied tensors the first.

    Raises:
        CheckpointError: tensors that are missing, extra or of another shape; several readings that differ.
    """
    wanted = _Wanted(network, ignored, renamed)
    readings = list(wanted.readings(checkpoint))
    complete = [reading for reading in readings if not reading.missing]
    taken = {name for reading in complete for name in reading.names.values()}
    allowed = [reading for reading in complete if _accounts_for_all(reading, taken, bool(checkpoint.part))]
    fitting = [reading for reading in allowed if wanted.wrong_shape(checkpoint, reading) is None]
    if not fitting:
        best = (allowed or complete or readings)[0]
        raise CheckpointError(
            (wanted.wrong_shape(checkpoint, best) if allowed else None)
            or names_text(checkpoint.path, wanted.kind, best.missing, [*best.extra, *best.beside])
        )
    chosen = _chosen(checkpoint, fitting)
    if chosen.is_all:
        return checkpoint, dict(chosen.names)
    warnings.warn(_taken_text(checkpoint, chosen, fitting), stacklevel=3)
    return _as_named(checkpoint, chosen, wanted)


class _Wanted:
    """The tensors that a network keeps."""

    def __init__(
        self, network: nn.Module, ignored: Callable[[str], bool], renamed: Callable[[str], str] | None
    ) -> None:
        self.kind = type(network).__name__
        self.own: dict[str, Tensor] = network.state_dict(keep_vars=True)
        for name, tensor in self.own.items():
            if not isinstance(tensor, Tensor):
                raise CheckpointError(
                    f"{self.kind} keeps {named(name)!r}, which is no tensor; it is no member for files"
                )
        first: dict[int, str] = {}
        self.first = {name: first.setdefault(id(tensor), name) for name, tensor in self.own.items()}
        wrapper = "module." if all(name.startswith("module.") for name in self.own) else ""
        self._plain = {INNER.sub("", name.removeprefix(wrapper)): name for name in self.own}
        self._unsaved = {name for name, _ in network.named_buffers()} - self.own.keys()
        self._ignored, self._renamed = ignored, renamed
        self.keeps_names = renamed is not None

    def readings(self, checkpoint: Checkpoint) -> Iterator[NameMatch]:
        """Those of all prefixes under which every tensor is there, or else the ones that come closest."""
        names = {name: name if name in self.own else INNER.sub("", name) for name in checkpoint.tensors}
        self._between = BETWEEN if any(file.suffix != ".safetensors" for file in checkpoint.files) else NEVER
        if not checkpoint.part and (reading := self._reading(names, "")).is_all:
            yield reading
            return
        prefixes = self._prefixes(set(names.values())) if self._renamed is None else [""]
        if part := checkpoint.part:
            prefixes = [p for p in prefixes if p.startswith((f"{part}.", f"{part}{BETWEEN}"))]
            if not prefixes:
                raise CheckpointError(f"{checkpoint.path} holds no {self.kind} under {part!r}; {_parts_text(names)}")
        yield from (self._reading(names, prefix) for prefix in prefixes)

    def _prefixes(self, there: Collection[str]) -> list[str]:
        needed: dict[str, list[str]] = {}
        for plain, name in self._plain.items():
            needed.setdefault(self.first[name], []).append(plain)
        needed = {name: aliases for name, aliases in needed.items() if not name.endswith(COUNTER)}
        if not needed:
            return [""]
        ends = max(needed.values(), key=lambda aliases: len(aliases[0]))
        found = {name[: -len(end)] for name in there for end in ends if name.endswith(end)}
        found = {""} | {prefix for prefix in found if prefix.endswith((".", BETWEEN))}

        def count(prefix: str) -> int:
            return sum(any(prefix + alias in there for alias in aliases) for aliases in needed.values())

        whole = [
            prefix for prefix in found if all(any(prefix + a in there for a in aliases) for aliases in needed.values())
        ]
        if whole:
            return sorted(whole, key=lambda prefix: (len(prefix), prefix))[:MOST]
        return sorted(sorted(found, key=len)[:MOST], key=lambda prefix: (-count(prefix), len(prefix)))

    def _reading(self, names: Mapping[str, str], prefix: str) -> NameMatch:
        folder = prefix[: prefix.rfind(self._between) + 1]
        found: dict[str, str] = {}
        extra, beside, passed = [], [], []
        for stored, plain in names.items():
            if not plain.startswith(folder):
                continue  # of another dict in the file
            inner = plain.removeprefix(prefix) if plain.startswith(prefix) else None
            known = None if inner is None else self._known(inner)
            if known is not None:
                if known not in found or inner == known:
                    found[known] = stored
            elif re.split(rf"[.{BETWEEN}]", plain)[-1] in PASSED:
                passed.append(stored)
            elif inner is None:
                if self._between not in plain.removeprefix(folder):
                    beside.append(stored)
            elif inner not in self._unsaved and self._between not in inner and not self._is_ignored(inner):
                extra.append(stored)
        missing = [name for name in dict.fromkeys(self.first.values()) if name not in found]
        counters = [name for name in missing if name.endswith(COUNTER)]
        wrapped = any(stored != names[stored] for stored in found.values())
        return NameMatch(
            prefix, wrapped, found, [n for n in missing if n not in counters], counters, extra, beside, passed
        )

    def _known(self, name: str) -> str | None:
        """The network's own name of a tensor whose prefix was taken off, of tied ones the first."""
        own = name if name in self.own else self._plain.get(name)
        if own is None and self._renamed is not None:
            own = self._renamed(name)
        return self.first.get(own or "")

    def _is_ignored(self, name: str) -> bool:
        return self._ignored(name) or (self._renamed is not None and self._ignored(self._renamed(name)))

    def wrong_shape(self, checkpoint: Checkpoint, reading: NameMatch) -> str | None:
        """What is wrong with a tensor that has another shape than the network's."""
        for name, stored in reading.names.items():
            found, expected = tuple(checkpoint.tensors[stored].shape), tuple(self.own[name].shape)
            if found != expected:
                return (
                    f"{checkpoint.path}: {named(stored)} has shape {found}, but {self.kind} expects {expected}; make "
                    "the factory build the network this checkpoint was saved from"
                )
        return None


def _accounts_for_all(reading: NameMatch, taken: Collection[str], asked: bool) -> bool:
    """Whether nothing is left over that may belong to a larger network than the one that is looked for."""
    if any(name not in taken for name in reading.extra):
        return False
    return asked or reading.is_wrapper or all(name in taken for name in reading.beside)


def _chosen(checkpoint: Checkpoint, fitting: Sequence[NameMatch]) -> NameMatch:
    networks = [reading for reading in fitting if not reading.is_average] or fitting
    first = networks[0]
    for other in networks[1:]:
        if not _alike(checkpoint, first, other):
            parts = [reading.part for reading in networks if reading.part]
            raise CheckpointError(
                f"{checkpoint.path} holds the network {len(networks)} times, with different numbers: "
                f"{', '.join(repr(named(reading.part)) for reading in networks[:10])}; name one, such as "
                f"{checkpoint.path.name}#{parts[-1]}"
            )
    return first


def _alike(checkpoint: Checkpoint, one: NameMatch, other: NameMatch) -> bool:
    for name, stored in one.names.items():
        a, b = checkpoint.tensors[stored], checkpoint.tensors[other.names[name]] if name in other.names else None
        if b is None or a.dtype != b.dtype or not torch.equal(a, b):
            return False
    return True


def _as_named(checkpoint: Checkpoint, chosen: NameMatch, wanted: _Wanted) -> tuple[Checkpoint, dict[str, str]]:
    """The checkpoint under the network's own names, in the order of its bytes, with counters that are not there."""
    owners = {stored: name for name, stored in chosen.names.items()}
    kept = wanted.own if not wanted.keeps_names else owners
    names = {owner: stored if stored in kept else owner for stored, owner in owners.items()}
    tensors = {names[owners[stored]]: stored for stored in checkpoint.tensors if stored in owners}
    zeros = {name: torch.zeros(wanted.own[name].shape, dtype=wanted.own[name].dtype) for name in chosen.counters}
    found = replace(checkpoint, tensors=Renamed(checkpoint.tensors, tensors, zeros))
    return found, names | {name: name for name in zeros}


def _taken_text(checkpoint: Checkpoint, chosen: NameMatch, fitting: Sequence[NameMatch]) -> str:
    """What was taken of a checkpoint, in one line."""
    facts = [f"the tensors under {chosen.prefix!r} were taken"] if chosen.prefix else []
    if chosen.wrapped:
        facts.append("wrappers inside of names were taken off")
    for other in fitting:
        if other.is_average and not chosen.is_average:
            facts.append(f"a moving average is there too: {checkpoint.path.name}#{other.part} takes that")
    if any(name.endswith(AVERAGED) for name in chosen.passed):
        facts.append(f"they are an average of several steps ({AVERAGED})")
    left = [name for name in chosen.beside if not any(name in other.names.values() for other in fitting)]
    left += [name for name in chosen.passed if not name.endswith(AVERAGED)]
    if left:
        facts.append(f"left out: {first_of(left)}")
    if chosen.counters:
        facts.append(f"not there and set to 0: {first_of(chosen.counters)}")
    return f"{checkpoint.path}: {'; '.join(facts)}"


def _parts_text(names: Collection[str]) -> str:
    parts = sorted({re.split(rf"[.{BETWEEN}]", name)[0] for name in names})
    return f"there are {', '.join(map(named, parts[:10]))}{' and others' if len(parts) > 10 else ''}"


def names_text(path: object, model: str, missing: Sequence[str], extra: Sequence[str]) -> str:
    """A message about a checkpoint that lacks tensors of the network, or holds others; empty if neither."""
    parts = []
    if missing:
        parts.append(f"lacks {first_of(missing)} that {model} has")
    if extra:
        parts.append(f"holds {first_of(extra)} that {model} does not have")
    hint = f"; {closest(named(extra[0]), map(named, missing))}" if missing and extra and len(missing) <= 10 else ""
    return f"{path} {' and '.join(parts)}{hint}"


def first_of(names: Sequence[str]) -> str:
    """The first of some tensors, and how many more there are.

    Example:
        >>> first_of(["a", "b", "c"])
        "'a' and 2 more tensors"
    """
    more = len(names) - 1
    return f"{named(names[0])!r}" + (f" and {more} more tensor{'s' if more > 1 else ''}" if more else "")
