"""Vanilla averaging: every neuron keeps its place, A = B = I and c = w."""

from neurograft.errors import MembersDiffer
from neurograft.planning.members import Members
from neurograft.planning.plan import Filling


def average(members: Members) -> Filling:
    """Average the members' weights entry by entry, W = Σ_m w_m W_m.

    Raises:
        MembersDiffer: a free group has different sizes in the members.
    """
    for group in members.graph.free:
        sizes = members.sizes(group.name)
        if len(set(sizes)) > 1:
            raise MembersDiffer(
                f"group {group.name} has {' / '.join(map(str, sizes))} neurons in the members; averaging needs equal "
                "widths, transplant and optimal_transport do not"
            )
    return Filling(maps={}, weights=members.weights_or(), owned=False)
