"""The kinds of importance: from the weights, from activations, from the loss, or by chance."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from neurograft.alignment.activations import calibration_of, member_activations
from neurograft.errors import InputError
from neurograft.inputs import Batches, Inputs, device_of, first_tensor, pair_note, split_labels, to_device
from neurograft.members.members import Members
from neurograft.members.sample_dimension import length_along, sample_dimension
from neurograft.preserve_state import copy_of, preserve_state
from neurograft.selection.importance import Alive, Magnitude
from neurograft.tracing.graph import NeuronGraph

Kind: TypeAlias = Literal["magnitude", "l1", "activation", "variance", "taylor", "random"]
MEASURED: tuple[Kind, ...] = ("activation", "variance", "taylor")
"""Kinds that look at calibration batches."""
PIECE = 32  # samples whose slopes are averaged before their size is taken
SAMPLES = 2048  # activations per neuron that importances are measured on


class Importance(Protocol):
    """Scores of one member's neurons: the mean of what every slot contributes."""

    def contributions(self, group: str, alive: Alive) -> list[Tensor]:
        """One vector of shape `(units,)` per slot that counts, not negative."""
        ...


def scorers(
    kind: Kind, members: Members, moved: frozenset[str], generator: torch.Generator
) -> Callable[[int, float], Importance]:
    """What makes the scorer of member m when the tensors that make its outputs are scaled by the second argument.

    - `magnitude`: squared weights, summed per slot; what the paper uses.
    - `l1`: absolute weights instead of squares: many small weights count for more beside few large ones.
    - `activation`: mean |activation| as its readers see it, times the norm of the weights that read it.
    - `variance`: variance of the activation times the squared norm of the weights that read it; a neuron that
      is constant counts nothing, however large it is.
    - `taylor`: |Σ w · ∂loss/∂w| over the weights that read it: how the loss changes, to first order, if nobody
      does; cross-entropy on the labels of the calibration batches, mean over pieces of 32 samples (at a minimum the
      slopes of many samples cancel).
    - `random`: uniform numbers, the control.

    The weights of the first four count only where they are alive, and compare members by the scale of their
    layers, unless scores are balanced; `taylor` does not change under rescalings that keep the function.

    Raises:
        OptionError: a kind that needs batches when there are none.
        InputError: batches that are empty, or unlabelled where labels are needed.
    """
    if kind in ("magnitude", "l1"):
        power = 2 if kind == "magnitude" else 1
        return lambda m, scale: Magnitude(members.states[m], members.graphs[m], moved, scale, power)
    groups = sorted(moved)
    if kind == "random":
        drawn = [{g: torch.rand(graph[g].size, generator=generator) for g in groups} for graph in members.graphs]
        return lambda m, _: Measured(drawn[m])
    batches, models = calibration_of(members, f"importance={kind!r}")
    if kind == "taylor":
        losses = [
            first_order(model, graph, groups, batches) for model, graph in zip(models, members.graphs, strict=True)
        ]
        return lambda m, _: Measured(losses[m])
    sizes = [activation_sizes(found, kind) for found in member_activations(members, when="post", samples=SAMPLES)]
    power = 1 if kind == "activation" else 2
    return lambda m, scale: Read(sizes[m], Magnitude(members.states[m], members.graphs[m], moved, scale), power)


@dataclass(frozen=True, eq=False)
class Measured:
    """Scores that were measured (or drawn) once and do not depend on what is alive."""

    scores: Mapping[str, Tensor]

    def contributions(self, group: str, _alive: Alive) -> list[Tensor]:
        """The scores of the group, shape `(units,)`."""
        return [self.scores[group]]


@dataclass(frozen=True, eq=False)
class Read:
    """A neuron's activations times how strongly they are read: activation · (Σ w² of its readers)^(power/2).

    Groups whose activations no calibration batch shows count by their readers alone.
    """

    sizes: Mapping[str, Tensor]
    weights: Magnitude
    power: int

    def contributions(self, group: str, alive: Alive) -> list[Tensor]:
        """One vector of shape `(units,)`."""
        read = [self.weights.slot_sum(s, group, alive).cpu() for s in self.weights.slots(group) if s.role == "in"]
        norm = torch.stack(read).sum(0) if read else torch.ones(self.weights.graph[group].size)
        return [self.sizes.get(group, torch.ones(1)).to(norm) * norm ** (self.power / 2)]


def activation_sizes(activations: Mapping[str, Tensor], kind: str) -> dict[str, Tensor]:
    """Mean absolute activation or variance per unit, from activations of shape `(samples, units)`.

    Example:
        >>> activation_sizes({"a": torch.tensor([[1.0, 2.0], [-1.0, 2.0]])}, "variance")
        {'a': tensor([1., 0.])}
    """
    if kind == "activation":
        return {g: x.abs().mean(0).cpu() for g, x in activations.items()}
    return {g: x.var(0, correction=0).cpu() for g, x in activations.items()}


@torch.inference_mode(False)
@torch.enable_grad()
def first_order(model: nn.Module, graph: NeuronGraph, groups: list[str], batches: Batches) -> dict[str, Tensor]:
    """|Σ w · ∂loss/∂w| over the entries that read each unit (that make it, if nobody reads it), mean over pieces.

    Returns:
        group -> shape `(units,)`.

    Raises:
        InputError: batches that are empty or unlabelled, or labels that are no classes.
    """
    if any(x.is_inference() for x in (*model.parameters(), *model.buffers())):
        model = copy_of(model)  # what was made in inference mode takes no gradient, its copy does
    named = {name: p for name, p in model.named_parameters() if p.is_floating_point() or p.is_complex()}
    parameters = {name: p.detach().requires_grad_() for name, p in named.items()}
    device = device_of(model)
    sums = {g: torch.zeros(graph[g].size) for g in groups}
    count, cut = 0, None
    with preserve_state(model):
        for number, (inputs, labels) in enumerate(map(split_labels, batches)):
            if labels is None:
                raise InputError(f"importance='taylor' needs labels, but calibration batch {number} has none")
            cut = sample_dimension(model, inputs) == 0 if cut is None else cut
            for piece, own in _pieces(inputs, labels, cut):
                outputs = first_tensor(_called(model, parameters, to_device(piece, device)))
                loss = _cross_entropy(outputs, to_device(own, device), number)
                slopes = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
                products = {
                    name: (p.detach() * slope.conj()).real
                    for (name, p), slope in zip(parameters.items(), slopes, strict=True)
                    if slope is not None
                }
                for g in groups:
                    sums[g] += _effect(products, graph, g).abs().cpu()
                count += 1
    if not count:
        raise InputError("calibration is empty: importance='taylor' needs at least one labelled batch")
    return {g: so_far / count for g, so_far in sums.items()}


def _pieces(inputs: Inputs, labels: Any, cut: bool) -> Iterator[tuple[Inputs, Any]]:
    """A batch in pieces of 32 samples, or whole where samples do not lie along the first dimension of everything."""
    if not cut or not isinstance(labels, Tensor) or length_along((inputs, labels), 0) is None:
        yield inputs, labels
        return
    for start in range(0, len(labels), PIECE):
        piece = slice(start, start + PIECE)
        yield pytree.tree_map_only(Tensor, lambda x, piece=piece: x[piece], inputs), labels[piece]


def _called(model: nn.Module, parameters: Mapping[str, Tensor], inputs: Inputs) -> Any:
    arguments, names = ((), dict(inputs)) if isinstance(inputs, Mapping) else (inputs, None)
    try:
        return torch.func.functional_call(model, dict(parameters), arguments, names)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise InputError(
            f"{type(model).__name__} cannot take a calibration batch: {error}{pair_note(inputs)}"
        ) from error


def _cross_entropy(outputs: Tensor, labels: Any, batch: int) -> Tensor:
    if (
        not isinstance(labels, Tensor)
        or labels.is_floating_point()
        or labels.numel() * outputs.shape[-1] != outputs.numel()
    ):
        raise InputError(
            f"importance='taylor' is for classification: calibration batch {batch} has no class numbers as labels "
            f"for outputs of shape {tuple(outputs.shape)}"
        )
    return F.cross_entropy(outputs.reshape(-1, outputs.shape[-1]), labels.reshape(-1).long())


def _effect(products: Mapping[str, Tensor], graph: NeuronGraph, group: str) -> Tensor:
    slots = [s for s in graph[group].slots if s.tensor in products]
    size = graph[group].size
    total = torch.zeros(size)
    for slot in [s for s in slots if s.role == "in"] or [s for s in slots if s.role == "out"]:
        product = products[slot.tensor]
        sums = product.sum([d for d in range(product.dim()) if d != slot.dim]) if product.dim() > 1 else product
        total = total.to(sums) + sums[slot.positions(size).to(sums.device)].sum(1)
    return total
