"""What lies between two networks: loss and accuracy along the straight line, before and after alignment."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from neurograft.applying.application import apply
from neurograft.errors import InputError, MissingExtra, OptionError
from neurograft.evaluating.evaluation import Metric, Scores, evaluate
from neurograft.inputs import Batches, Inputs, check_batches, split_labels
from neurograft.members.members import Members
from neurograft.methods import method_of
from neurograft.methods.average import Average
from neurograft.methods.method import Method
from neurograft.methods.planner import plan_members
from neurograft.plans.plan import FusionPlan
from neurograft.preserve_state import keeps_random_state
from neurograft.tracing.graph import NeuronGraph

Recovery = Callable[[nn.Module], nn.Module]


@dataclass(frozen=True, slots=True)
class LossCurve:
    """Scores along a straight line between two networks.

    Attributes:
        loss: mean loss at every share, in nats for the cross-entropy.
        accuracy: share of correct outputs at every share, 0 to 1; nan if the task has no classes.
    """

    loss: tuple[float, ...]
    accuracy: tuple[float, ...]

    def loss_barrier(self, shares: Sequence[float]) -> float:
        """How far the loss rises above the straight line between its ends, at worst; 0 if it never does."""
        return max(height(self.loss, shares), 0.0)

    def accuracy_barrier(self, shares: Sequence[float]) -> float:
        """How far the accuracy falls below the straight line between its ends, at worst; 0 if it never does."""
        return max(height([-x for x in self.accuracy], shares), 0.0)


def height(values: Sequence[float], shares: Sequence[float]) -> float:
    """The highest rise above the line between the ends, max over s of values(s) − ((1−s)·values(0) + s·values(1)).

    Example:
        >>> height([1.0, 4.0, 2.0], [0.0, 0.5, 1.0])
        2.5
    """
    first, last = values[0], values[-1]
    return max(v - ((1 - s) * first + s * last) for v, s in zip(values, shares, strict=True))


@dataclass(frozen=True, slots=True)
class Barrier:
    """What `barrier` measured.

    Attributes:
        shares: the second network's share at every point, 0 to 1.
        before: the line between the networks as they are.
        after: the line once the second network's neurons are aligned to the first's.
        method: the method that aligned them.
    """

    shares: tuple[float, ...]
    before: LossCurve
    after: LossCurve
    method: str

    @property
    def loss_before(self) -> float:
        """The loss barrier of the networks as they are."""
        return self.before.loss_barrier(self.shares)

    @property
    def loss_after(self) -> float:
        """The loss barrier once they are aligned."""
        return self.after.loss_barrier(self.shares)

    @property
    def accuracy_before(self) -> float:
        """The accuracy barrier of the networks as they are."""
        return self.before.accuracy_barrier(self.shares)

    @property
    def accuracy_after(self) -> float:
        """The accuracy barrier once they are aligned."""
        return self.after.accuracy_barrier(self.shares)

    def __str__(self) -> str:
        return (
            f"loss barrier {self.loss_before:.4g} before, {self.loss_after:.4g} after {self.method}; "
            f"accuracy barrier {self.accuracy_before:.1%} before, {self.accuracy_after:.1%} after"
        )

    def plot(self, path: str | Path | None = None) -> Any:
        """Draw loss and accuracy over the line, before and after; write the picture to `path` if one is given.

        Returns:
            The matplotlib figure.

        Raises:
            MissingExtra: matplotlib is not installed.
        """
        try:
            from matplotlib.figure import Figure
        except ImportError as error:
            raise MissingExtra('plotting needs matplotlib: pip install "neurograft[plots]"') from error
        figure = Figure(figsize=(9, 3.5), layout="constrained")
        left, right = figure.subplots(1, 2)
        for line, name in ((self.before, "as they are"), (self.after, f"aligned by {self.method}")):
            left.plot(self.shares, line.loss, marker="o", label=name)
            right.plot(self.shares, [100 * x for x in line.accuracy], marker="o", label=name)
        for axes, what in ((left, "loss"), (right, "accuracy, %")):
            axes.set_xlabel("share of the second network")
            axes.set_ylabel(what)
            axes.grid(alpha=0.3)
        left.legend()
        if path is not None:
            figure.savefig(path, dpi=150)
        return figure


@keeps_random_state
def barrier(
    a: nn.Module,
    b: nn.Module,
    batches: Batches,
    example_inputs: Inputs | None = None,
    *,
    method: str | Method = "permutation",
    points: int = 11,
    graph: NeuronGraph | None = None,
    calibration: Batches | None = None,
    recover: Recovery | None = None,
    loss: Metric | None = None,
    metric: Metric | None = None,
    seed: int = 0,
) -> Barrier:
    """Measure loss and accuracy along the line (1−s)·a + s·b, and along (1−s)·a + s·(b aligned to a).

    barrier = max over s of loss(s) − ((1−s)·loss(0) + s·loss(1)), likewise for the accuracy with the sign turned.
    Two networks of one basin have none. With BatchNorm, pass `recover` (for example a re-estimation of its
    statistics): without it the inner points mean little.

    Args:
        a: the first network; its neurons keep their places.
        b: the second one, of the same class and widths.
        batches: labelled batches to measure on, re-iterable.
        example_inputs: what the networks take; default: the inputs of the first batch.
        method: what aligns them: "permutation", "optimal_transport", or such a method with its options, for example
            `Permutation(metric="activations")`.
        points: how many networks along each line, ends included.
        graph: the graph of `a` if it was traced before.
        calibration: batches for a method that looks at activations.
        recover: applied to every network strictly between the ends before it is measured.
        loss: as `evaluate` takes it.
        metric: as `evaluate` takes it; then `accuracy` holds this metric.
        seed: the only source of randomness.

    Raises:
        OptionError: fewer than two points, a metric that is no function, or what `plan` and `evaluate` refuse.
        InputError: batches that are empty or unlabelled.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> found = barrier(net, net, [(torch.randn(4, 2), torch.tensor([0, 1, 0, 1]))], method="average", points=3)
        >>> found.shares, round(found.loss_before, 6)
        ((0.0, 0.5, 1.0), 0.0)

    Source: Ainsworth et al. 2022, arXiv:2209.04836, definition 2.2; Jordan et al. 2022, arXiv:2211.08403.
    """
    if not isinstance(points, int) or points < 2:
        raise OptionError(f"points counts the networks along the line, ends included: at least 2, got {points!r}")
    if metric is not None and not callable(metric):
        raise OptionError(
            f"metric measures the networks on the line: a function (outputs, labels) -> number, not {metric!r}; what "
            f"neurons are matched by belongs to the method: method=Permutation(metric={metric!r})"
        )
    aligning = method_of(method, {})
    if not aligning.aligns:
        raise OptionError(f"{aligning.name} makes neurons of both networks together, so it has no line between them")
    check_batches(batches)
    if example_inputs is None:
        example_inputs = _first_inputs(batches)
    shares = tuple(i / (points - 1) for i in range(points))
    members = Members([a, b], example_inputs, graph=graph, calibration=calibration)
    straight = plan_members(members, Average(), seed=seed)
    aligned = plan_members(members, aligning, seed=seed)

    def line(way: FusionPlan) -> LossCurve:
        scores = [_measured(way, members, s, batches, recover, loss, metric) for s in shares]
        return LossCurve(tuple(x.loss for x in scores), tuple(_accuracy(x, metric) for x in scores))

    return Barrier(shares, line(straight), line(aligned), aligning.name)


def _first_inputs(batches: Batches) -> Inputs:
    for batch in batches:
        return split_labels(batch)[0]
    raise InputError("batches are empty: nothing to measure on")


def _measured(
    way: FusionPlan,
    members: Members,
    share: float,
    batches: Batches,
    recover: Recovery | None,
    loss: Metric | None,
    metric: Metric | None,
) -> Scores:
    network = apply(replace(way, weights=(1 - share, share), tensor_weights={}), members)
    if recover is not None and 0 < share < 1:
        network = recover(network)
    return evaluate(network, batches, loss=loss, metric=metric)


def _accuracy(scores: Scores, metric: Metric | None) -> float:
    return scores.accuracy if metric is None else scores.metric
