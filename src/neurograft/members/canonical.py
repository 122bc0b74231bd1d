"""Members in canonical form: the same functions, at scales that no symmetry of their groups can change any more."""

from collections.abc import Iterator, Mapping, Sequence

from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from neurograft.members.parametrised import write_back
from neurograft.members.rebuilding import rebuild
from neurograft.members.states import State
from neurograft.tracing.canonical import Step, canonical, components, touched
from neurograft.tracing.graph import NeuronGraph

KEPT = 2  # components whose tensors are kept: those of the layers that are read now


class CanonicalState(Mapping[str, Tensor]):
    """A network's tensors in canonical form, made when they are asked for and a layer at a time.

    Args:
        state: the network's own tensors, in memory or mapped from files.
        graph: its graph, with the steps.

    Example:
        >>> import neurograft as ng, torch
        >>> net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> state = CanonicalState(dict(net.named_parameters()), ng.trace(net, torch.randn(2, 3)))
        >>> rows = torch.cat([state["0.weight"].T, state["0.bias"][None]])
        >>> torch.allclose(state["2.weight"].norm(dim=0), rows.norm(dim=0))
        True
    """

    def __init__(self, state: State, graph: NeuronGraph):
        self._state, self._graph = state, graph
        self._parts: list[list[Step]] = components(graph.steps)
        self._part_of = {name: i for i, part in enumerate(self._parts) for step in part for name in touched(step)}
        self._made: dict[int, dict[str, Tensor]] = {}

    def __getitem__(self, name: str) -> Tensor:
        part = self._part_of.get(name)
        if part is None:
            return self._state[name]
        if part not in self._made:
            while len(self._made) >= KEPT:
                del self._made[next(iter(self._made))]
            made = canonical(self._state, self._graph, self._parts[part])
            self._made[part] = {own: x.to(self._state[own].dtype) for own, x in made.items()}
        return self._made[part][name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._state)

    def __len__(self) -> int:
        return len(self._state)


def canonical_networks(
    networks: Sequence[nn.Module], states: Sequence[State], graphs: Sequence[NeuronGraph]
) -> tuple[tuple[nn.Module, ...], tuple[State, ...]]:
    """Copies of networks in canonical form, and their tensors."""
    made = [dict(CanonicalState(state, graph)) for state, graph in zip(states, graphs, strict=True)]
    models = []
    for network, state in zip(networks, made, strict=True):
        parametrised = any(is_parametrized(module) for module in network.modules())
        # a parametrised weight is written into its parts in place
        models.append(rebuild(network, {n: x.clone() for n, x in state.items()} if parametrised else state))
        write_back(models[-1])
    return tuple(models), tuple(made)
