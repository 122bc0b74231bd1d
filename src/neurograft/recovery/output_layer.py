"""The layer that makes a classifier's outputs, solved on cross-entropy towards an ensemble's probabilities."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from neurograft.evaluating.ensemble import Ensemble, weighted_mean
from neurograft.inputs import call_on_batch, device_of, first_tensor, to_device
from neurograft.plans.plan import FusionPlan
from neurograft.preserve_state import preserve_state
from neurograft.recovery.layers import LayerUse
from neurograft.recovery.samples import Samples
from neurograft.recovery.targets import output_positions, shares_on
from neurograft.recovery.watching import Contraction, Watcher, run

RIDGES = (1.0, 0.1, 1e-2, 1e-3, 1e-4)
STEPS = 200


@dataclass(frozen=True, slots=True)
class OutputFit:
    """What solving the output layer on cross-entropy did on the held-out samples, in nats per sample.

    Attributes:
        tensor: the weight's name.
        before: cross-entropy with the ensemble's probabilities as it was.
        after: the same with the new weights.
        ridge: the λ chosen.
    """

    tensor: str
    before: float
    after: float
    ridge: float

    def __str__(self) -> str:
        return (
            f"{self.tensor} was solved on cross-entropy towards the target's probabilities (ridge {self.ridge:g}): on "
            f"the held-out samples {self.before:.3g} nats before, {self.after:.3g} after"
        )


def fit_output_layer(
    model: nn.Module, plan: FusionPlan, places: Sequence[LayerUse], samples: Samples, judges: Samples, target: Ensemble
) -> OutputFit | None:
    """Solve the last linear layer of a classifier anew, in place: with its inputs X and the ensemble's probabilities P

        min over W, b of  −(1/n) Σ P log softmax(X Wᵀ + b)  +  λ·mean(diag XᵀX)·|W − W₀|² / 2,

    which is convex; λ is the one with the least cross-entropy on the held-out samples. A least-squares fit of the
    outputs spends its accuracy on their size; where an ensemble's weights change from sample to sample, the size means
    little and the order of the classes is what counts.

    Args:
        model: the fused network, a copy of ours.
        plan: its plan.
        places: its layers.
        samples: to solve from.
        judges: held-out ones.
        target: the ensemble.

    Returns:
        What it did; None where no linear layer makes the outputs as they are returned, or nothing was won.
    """
    place = _output_layer(places, plan)
    if place is None:
        return None
    solving, held = _inputs_and_outputs(model, plan, place, samples), _inputs_and_outputs(model, plan, place, judges)
    if solving is None or held is None:
        return None
    (x, layer), (x_held, _) = solving, held
    p, p_held = _probabilities(target, samples), _probabilities(target, judges)
    if p is None or p_held is None or p.shape != (len(x), layer.weight.shape[1]) or len(p_held) != len(x_held):
        return None
    start = layer.weight.detach().double(), None if layer.bias is None else layer.bias.detach().double()
    before = best = float(_cross_entropy(x_held, p_held, *start))
    found: tuple[Tensor, Tensor | None] | None = None
    chosen, now = 0.0, start
    for ridge in RIDGES:
        now = _solved(x, p, start, now, ridge)
        held_out = float(_cross_entropy(x_held, p_held, *now))
        if held_out < best:
            best, found, chosen = held_out, now, ridge
    if found is None:
        return None
    with torch.no_grad():
        layer.weight.copy_(found[0])
        if layer.bias is not None and found[1] is not None:
            layer.bias.copy_(found[1])
    return OutputFit(place.key[0], before, best, chosen)


def _output_layer(places: Sequence[LayerUse], plan: FusionPlan) -> LayerUse | None:
    """The only linear layer all of whose outputs are the network's."""
    found = []
    for place in places:
        made = None if place.skipped or place.stream or place.groups != 1 else output_positions(place, plan.graph)
        if made is not None and len(made) == place.outputs:
            found.append(place)
    return found[0] if len(found) == 1 else None


def _inputs_and_outputs(
    model: nn.Module, plan: FusionPlan, place: LayerUse, samples: Samples
) -> tuple[Tensor, Contraction] | None:
    """What the layer reads, one row per sample; None unless the network returns exactly what it makes."""
    read: list[Tensor] = []
    made: list[Tensor] = []
    layers: list[Contraction] = []

    def before(contraction: Contraction) -> None:
        if contraction.key == place.key:
            layers.append(contraction)

    def after(contraction: Contraction, output: Tensor) -> None:
        if contraction.key == place.key:
            read.append(contraction.input.double())
            made.append(output)

    for number, batch in enumerate(samples.batches):
        what = f"batches[{number}], the fused network"
        with preserve_state(model):
            run(model, plan.graph, batch, Watcher(before=before, after=after), what=what)
            with torch.no_grad():
                returned = first_tensor(call_on_batch(model, to_device(batch, device_of(model)), what))
        if len(made) != number + 1 or layers[number].geometry is not None or made[number].shape != returned.shape:
            return None
        if returned.dim() != 2 or not torch.allclose(made[number], returned, rtol=1e-3, atol=1e-4):
            return None
    return torch.cat(read), layers[-1]


def _probabilities(target: Ensemble, samples: Samples) -> Tensor | None:
    """The members' probabilities, weighted as the ensemble does, shape `(samples, classes)`; None for other outputs."""
    found = []
    with preserve_state(target), torch.no_grad():
        for number, batch in enumerate(samples.batches):
            moved = to_device(batch, device_of(target))
            outputs = [
                first_tensor(call_on_batch(member, moved, f"batches[{number}], member {m}"))
                for m, member in enumerate(target.members)
            ]
            if any(output.dim() != 2 or not output.is_floating_point() for output in outputs):
                return None
            mixed = weighted_mean(torch.stack(outputs).double().softmax(2), shares_on(target, batch), target.dim)
            found.append(mixed / mixed.sum(1, keepdim=True))
    return torch.cat(found)


def _cross_entropy(x: Tensor, p: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    logits = x @ weight if bias is None else x @ weight + bias
    return F.cross_entropy(logits, p)


def _solved(
    x: Tensor, p: Tensor, start: tuple[Tensor, Tensor | None], now: tuple[Tensor, Tensor | None], ridge: float
) -> tuple[Tensor, Tensor | None]:
    """The minimum for one λ, by L-BFGS from where the last one ended."""
    planned = start[0]
    scale = ridge * float(x.square().sum(0).mean() / len(x))
    unknown = [
        tensor.clone(memory_format=torch.contiguous_format).requires_grad_() for tensor in now if tensor is not None
    ]
    solver = torch.optim.LBFGS(unknown, max_iter=STEPS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        solver.zero_grad()
        weight, bias = unknown[0], unknown[1] if len(unknown) > 1 else None
        total = _cross_entropy(x, p, weight, bias) + 0.5 * scale * (weight - planned).square().sum()
        total.backward()  # type: ignore[no-untyped-call]
        return total

    with torch.enable_grad():
        solver.step(loss)  # type: ignore[no-untyped-call]
    made = [tensor.detach() for tensor in unknown]
    return made[0], made[1] if len(made) > 1 else None
