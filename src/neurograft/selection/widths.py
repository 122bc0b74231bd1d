"""How many neurons each group of the fused network shall have."""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatch

from neurograft.errors import OptionError, closest
from neurograft.members.members import Members


def fused_sizes(members: Members, ratio: float | None, width: int | Mapping[str, int] | None) -> dict[str, int]:
    """How many neurons every moved group shall have: member 0's number, or what `ratio` or `width` set.

    Args:
        members: the networks.
        ratio: the share of all members' neurons to remove, in [0, 1); at least one neuron stays, or as many as
            the network chooses at once (the experts of a token).
        width: neurons per group, one number for all, or a mapping of patterns (of group names or of the tensors
            that make a group) to numbers; groups it does not name keep member 0's number.

    Raises:
        OptionError: both are given, a value is out of range, or a pattern names no group.
    """
    if ratio is not None and width is not None:
        raise OptionError("ratio and width both set how wide the fused network is; give one of them")
    if ratio is not None and not 0 <= ratio < 1:
        raise OptionError(f"ratio is the share of neurons removed, from 0 to below 1, got {ratio}")
    asked = _given_widths(members, width)
    sizes = {}
    for group in members.graph.outermost:
        own = members.sizes(group.name)
        total = sum(own)
        n = asked.get(group.name, own[0] if ratio is None else max(group.least, total - round(ratio * total)))
        if not group.least <= n <= total:
            chosen = f" ({group.ranked_by[0]} chooses as many)" if group.least > 1 else ""
            raise OptionError(
                f"group {group.name} cannot have {n} neurons: at least {group.least}{chosen}, at most {total}, all "
                "members' together"
            )
        sizes[group.name] = n
    return sizes


def _given_widths(members: Members, width: int | Mapping[str, int] | None) -> dict[str, int]:
    if width is None:
        return {}
    outermost = [group.name for group in members.graph.outermost]
    if not isinstance(width, Mapping):
        return dict.fromkeys(outermost, _whole(width))
    asked: dict[str, int] = {}
    for pattern, n in width.items():
        names = groups_made_by(members, pattern)
        if not names:
            raise OptionError(f"width names no free group: {pattern!r}; {closest(pattern, outermost)}")
        asked |= dict.fromkeys(names, _whole(n))
    return asked


def groups_made_by(members: Members, pattern: str) -> list[str]:
    """The outermost free groups whose name, or one of whose producing tensors, fits an fnmatch pattern."""
    return [
        group.name
        for group in members.graph.outermost
        if fnmatch(group.name, pattern) or any(s.role == "out" and fnmatch(s.tensor, pattern) for s in group.slots)
    ]


def _whole(n: object) -> int:
    if not isinstance(n, int) or isinstance(n, bool):
        raise OptionError(f"width is a whole number of neurons, got {n!r}")
    return n


def shares_of(n: int, quota: Sequence[float]) -> list[int]:
    """Cut n into whole parts proportional to the quota, which sums to 1; the last part is rounded first.

    Two members of quota (1−f, f) so give n − round(f·n) and round(f·n) neurons.

    Example:
        >>> shares_of(10, (0.5, 0.25, 0.25))
        [5, 3, 2]
    """
    counts = []
    left, mass = n, 1.0
    for share in reversed(quota):
        count = min(left, round(share / mass * left)) if 0 <= share < mass else left
        counts.append(count)
        left -= count
        mass -= share
    counts[-1] += left
    return counts[::-1]
