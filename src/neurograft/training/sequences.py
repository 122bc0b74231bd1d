"""The order in which members are pruned, merged and tuned: the paper's first study."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeAlias, get_args

from torch import nn

from neurograft.applying.combining import combine, joined_norms
from neurograft.applying.pruning import prune
from neurograft.errors import OptionError, closest
from neurograft.inputs import Inputs
from neurograft.members.checks import check_models
from neurograft.preserve_state import copy_of, keeps_random_state
from neurograft.selection.widths import shares_of
from neurograft.tracing.graph import NeuronGraph
from neurograft.tracing.tracer import trace

SequenceStep: TypeAlias = Literal["prune", "merge", "tune"]
TuneFunction: TypeAlias = Callable[[nn.Module], nn.Module]


@keeps_random_state
def fuse_in_sequence(
    models: Sequence[nn.Module],
    example_inputs: Inputs,
    sequence: Sequence[SequenceStep] = ("merge", "tune", "prune"),
    tune: TuneFunction | None = None,
    weights: Sequence[float] | None = None,
    *,
    fixed: str | Sequence[str] = (),
    seed: int = 0,
    **options: Any,
) -> nn.Module:
    """Fuse networks into one of member 0's widths, by pruning, merging and tuning in any order.

    "merge" puts all members side by side (`combine`); "prune" before it leaves each member its share of the fused
    widths, after it the fused widths out of all neurons; "tune" trains what there is at that point: every member, or
    the one network. Without tuning, ("merge", "prune") gives what `apply(plan(models, x), models)` gives, and ("prune",
    "merge") the same with `sequence="prune-merge"`.

    Args:
        models: at least two networks of one class; they are only read.
        example_inputs: what the networks take.
        sequence: the steps in order: "merge" and "prune" once each, "tune" as often as wanted.
        tune: trains a network and returns it, for example `lambda net: ng.finetune(net, batches, epochs=3)`.
        weights: one number per member, normalised to sum to 1; default equal.
        fixed: fnmatch patterns of parameters whose neurons stay where they are.
        seed: the only source of randomness besides `tune`.
        options: how neurons are chosen, as `prune` takes it: `importance`, `order`, `normalize`, …

    Returns:
        A network of the class and the widths of `models[0]`.

    Raises:
        OptionError: steps that make no sense, or a "tune" without `tune`.

    Example:
        >>> import neurograft as ng
        >>> nets = [nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)) for _ in "ab"]
        >>> x = torch.randn(16, 4)
        >>> def tune(net):
        ...     print("tuning a network of", net[0].out_features)
        ...     return ng.finetune(net, [(x, x[:, 0].gt(0).long())], epochs=1, progress=False)
        >>> fuse_in_sequence(nets, x, ("merge", "tune", "prune", "tune"), tune)[0].out_features
        tuning a network of 16
        tuning a network of 8
        8

    Source: Öz et al. 2024, arXiv:2502.06849, section 5 (order of pruning, merging and tuning).
    """
    _check_sequence(sequence, tune)
    check_models(models)
    graph = trace(models[0], example_inputs, fixed=fixed)
    shares = _member_widths(graph, len(models))
    widths: dict[str, int] = {group.name: group.size for group in graph.outermost}
    networks = list(models)

    def pruned(network: nn.Module, width: Mapping[str, int]) -> nn.Module:
        return prune(network, example_inputs, width=width, fixed=fixed, seed=seed, **options)

    for step in sequence:
        if step == "merge":
            networks = [combine(networks, example_inputs, weights, fixed=fixed)]
        elif step == "tune":
            assert tune is not None
            networks = [tune(network) for network in networks]
        elif len(networks) > 1:
            networks = [pruned(network, width) for network, width in zip(networks, shares, strict=True)]
        else:
            networks = [pruned(networks[0], widths)]
    return joined_norms(copy_of(networks[0]))


def _member_widths(graph: NeuronGraph, members: int) -> list[dict[str, int]]:
    """How many neurons of every group each member gives if all give the same."""
    counts = {group.name: shares_of(group.size, (1 / members,) * members) for group in graph.outermost}
    return [{name: own[m] for name, own in counts.items()} for m in range(members)]


def _check_sequence(sequence: Sequence[str], tune: TuneFunction | None) -> None:
    if isinstance(sequence, str):
        raise OptionError(f'sequence is a list of steps, like ("merge", "tune", "prune"), got {sequence!r}')
    for step in sequence:
        if step not in get_args(SequenceStep):
            raise OptionError(f"sequence has an unknown step {step!r}; {closest(str(step), get_args(SequenceStep))}")
    for step in ("merge", "prune"):
        if list(sequence).count(step) != 1:
            raise OptionError(f"sequence has {step!r} {list(sequence).count(step)} times, it must be there once")
    if "tune" in sequence and tune is None:
        raise OptionError('sequence has "tune": pass tune=, a function that trains a network and returns it')
