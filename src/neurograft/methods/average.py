"""Vanilla averaging: every neuron keeps its place, A = B = I and c = w."""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatch

from neurograft.alignment.ancestry import aligned_members, unaligned_note
from neurograft.errors import MembersDiffer, OptionError, closest
from neurograft.members.checks import check_member_weights
from neurograft.members.members import Members
from neurograft.plans.plan import Filling


def average(
    members: Members,
    *,
    tensor_weights: Mapping[str, Sequence[float]] | None = None,
    exclude: Sequence[str] = (),
) -> Filling:
    """Average the members' weights entry by entry, W = Σ_m w_m W_m.

    It is the right method for members trained from one ancestor (fine-tuned, federated), whose neurons stand in the
    same places. For members that do not look so the plan warns.

    Args:
        members: the networks; all of one width.
        tensor_weights: fnmatch patterns of tensor names -> the members' weights for those tensors, normalised to sum
            to 1; where several patterns fit the last one counts.
        exclude: fnmatch patterns of tensors that are not averaged but taken from member 0.

    Raises:
        MembersDiffer: a free group has different sizes in the members.
        OptionError: a pattern fits no tensor.
        BadWeights: weights that make no sense.

    Source: Singh & Jaggi 2020, arXiv:1910.05653, section 4 ("vanilla averaging").
    """
    for group in members.graph.free:
        sizes = members.sizes(group.name)
        if len(set(sizes)) > 1:
            raise MembersDiffer(
                f"group {group.name} has {' / '.join(map(str, sizes))} neurons in the members; averaging needs equal "
                "widths, transplant, optimal_transport and zip do not"
            )
    if isinstance(exclude, str):
        raise OptionError(f"exclude is a list of patterns, got the single string {exclude!r}")
    k = len(members.states)
    own: dict[str, tuple[float, ...]] = {}
    for pattern, weights in (tensor_weights or {}).items():
        shares = check_member_weights(weights, k, f"tensor_weights[{pattern!r}]") or ()
        own |= dict.fromkeys(_named(members, pattern, "tensor_weights"), shares)
    excluded = [name for pattern in exclude for name in _named(members, pattern, "exclude")]
    own |= dict.fromkeys(excluded, (1.0,) + (0.0,) * (k - 1))
    aligned = aligned_members(members)
    note = unaligned_note(aligned)
    return Filling(
        maps={},
        weights=members.weights_or(),
        owned=False,
        tensor_weights=own,
        warnings=() if note is None else (note,),
        details={"taken from member 0": sorted(set(excluded))} if excluded else {},
    )


def _named(members: Members, pattern: str, option: str) -> list[str]:
    names = [name for name in members.states[0] if fnmatch(name, pattern)]
    if not names:
        raise OptionError(f"{option} fits no tensor: {pattern!r}; {closest(pattern, members.states[0])}")
    return names
