"""Trace a network: record what it runs, learn which axes share neurons, prove it."""

import gc
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from fnmatch import fnmatch
from typing import Any

from torch import nn

from neurograft.errors import OptionError, ProofFailed, UnruledOp, closest
from neurograft.inputs import Inputs
from neurograft.options import patterns_of
from neurograft.preserve_state import keeps_random_state
from neurograft.tracing.algebra import Var, fix, leaves
from neurograft.tracing.graph import NeuronGraph
from neurograft.tracing.graph_builder import build_graph, name_groups
from neurograft.tracing.labelling import Labelling
from neurograft.tracing.proof import Proof, examples_of
from neurograft.tracing.proof import verify as prove
from neurograft.tracing.reasons import FixedReason, Why
from neurograft.tracing.recording import record
from neurograft.tracing.tape import tensors_of
from neurograft.tracing.training_run import follow_training


@keeps_random_state
def trace(
    model: nn.Module,
    example_inputs: Any,
    fixed: str | Sequence[str] = (),
    outputs: str | int | Sequence[str | int] | None = None,
    strict: bool = False,
    verify: bool = True,
) -> NeuronGraph:
    """Find out which tensor axes of a network share neurons.

    The network runs once on `example_inputs` (a tensor, a tuple of positional arguments, a dict of keyword
    arguments, or a list of several of these), in eval mode and without gradients; it comes back as it was.
    `fixed` holds fnmatch patterns on parameter names whose groups must not move. `outputs` names the returned
    tensors whose positions have a meaning (default: the logits if there are any, else all but caches). An op
    without a rule fixes the groups that enter it, with a warning; so does a group whose permutation moves the
    outputs (`verify`). With `strict` both are errors.

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> graph = trace(net, torch.randn(4, 3))
        >>> [(group.name, group.size, group.fixed) for group in graph]
        [('0.weight:0', 8, False), ('0.weight:1', 3, True), ('2.weight:0', 2, True)]

    Raises:
        TraceError: if the network does not run on the example inputs.
        InputError: if the example inputs are of no such form.
        OptionError: if a pattern in `fixed` or `outputs` matches nothing.
        UnruledOp: with `strict`, if an op has no rule.
        ProofFailed: with `strict`, if moving neurons moves the outputs, or these do not repeat from call to call.
    """
    with without_garbage_collection():
        labelling, chosen = learnt(model, examples_of(example_inputs), outputs)
        fix_by_patterns(labelling, patterns_of(fixed, "fixed"))
        report_unruled(labelling, strict)
        graph, variables = _built(labelling, model, tuple(chosen))
        if not verify:
            # let go of the tape before anybody looks for garbage in it
            del labelling, variables
            return graph
    return _proven(model, graph, variables, labelling, example_inputs, strict)


@contextmanager
def without_garbage_collection() -> Iterator[None]:
    """A tape is many small objects that all stay: looking for garbage among them again and again finds none."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def learnt(model: nn.Module, examples: Sequence[Inputs], outputs: Any) -> tuple[Labelling, list[str]]:
    """What all examples show of the network's axes, and the paths of the outputs that fix them."""
    labelling = Labelling(model)
    chosen: list[str] = []
    for example in examples:
        tape = record(model, example)
        labelling.read(tape, outputs)
        found = [path for one, path, _ in labelling.pinned if one is tape]
        if outputs is not None and not found:
            known = [path for path, _ in tensors_of(tape.outputs)]
            raise OptionError(
                f"outputs={outputs!r} matches nothing the network returns; {closest(str(outputs), known)}"
            )
        chosen += [path for path in found if path not in chosen]
    follow_training(labelling, model, examples, outputs)
    return labelling, chosen


def _built(labelling: Labelling, model: nn.Module, outputs: tuple[str, ...]) -> tuple[NeuronGraph, dict[str, Var]]:
    graph, variables = build_graph(labelling, model)
    return replace(graph, outputs=outputs), variables


def fix_by_patterns(labelling: Labelling, patterns: Sequence[str]) -> None:
    """Fix every group that has a place in a tensor whose name matches a pattern."""
    names = list(labelling.parameter_axes)
    for pattern in patterns:
        matched = [name for name in names if fnmatch(name, pattern)]
        if not matched:
            raise OptionError(f"fixed={pattern!r} matches no parameter; {closest(pattern, names)}")
        for name in matched:
            for axis in labelling.parameter_axes[name]:
                fix(axis, Why(FixedReason.ASKED, f"asked: {pattern}"))


def report_unruled(labelling: Labelling, strict: bool) -> None:
    """Warn of ops without a rule, or raise."""
    if not labelling.unruled:
        return
    names = name_groups(labelling).names
    lines = []
    for op, axes in labelling.unruled.items():
        groups = list(dict.fromkeys(names[var] for axis in axes for var in leaves(axis) if var in names))
        lines.append(f"{op}: fixes {', '.join(groups) if groups else 'nothing that was free'}")
    message = "no rule for " + "; ".join(lines)
    if strict:
        raise UnruledOp(f"{message}. Add a rule, or trace without strict=True to keep these groups fixed")
    warnings.warn(message, stacklevel=4)


def _proven(
    model: nn.Module,
    graph: NeuronGraph,
    variables: dict[str, Var],
    labelling: Labelling,
    example_inputs: Any,
    strict: bool,
) -> NeuronGraph:
    proof = prove(model, graph, example_inputs)
    if not proof.repeats:
        if strict:
            raise ProofFailed(f"the graph of {graph.model_class} cannot be proven: {proof.unproven}")
        warnings.warn(f"the graph cannot be proven: {proof.unproven}", stacklevel=4)
    # fixing one group may uncover another; every round fixes at least one, or takes a freedom from it
    while not proof.passed:
        guilty = [*proof.guilty, *proof.wrong_roles]
        labelling.alike.update(variables[name] for name in proof.alike)
        labelling.inexact.update(variables[name] for name in proof.inexact)
        for name in proof.narrow:
            error = proof.errors.get(name, proof.class_error)
            labelling.narrowed[variables[name]] = (
                f"proof: a {graph[name].symmetry.value} map moved the outputs by {error:.1g}"
            )
        if (strict and guilty) or not (guilty or proof.alike or proof.narrow or proof.inexact):
            raise ProofFailed(f"moving neurons of {graph.model_class} changed its outputs:\n{proof}")
        for name in guilty:
            error = proof.errors.get(name, proof.error)
            why = Why(FixedReason.PROOF, f"proof: moving its neurons moved the outputs by {error:.1g}")
            fix(((variables[name],),), why)
        if guilty:
            warnings.warn(
                f"these groups moved the outputs and are fixed now: {', '.join(guilty)}; a rule may be wrong, or the "
                "network reads activations in a way that tracing cannot see (tolist, numpy)",
                stacklevel=4,
            )
        graph, variables = _built(labelling, model, graph.outputs)
        proof = prove(model, graph, example_inputs)
    return replace(graph, proven=_words(proof))


def _words(proof: Proof) -> str:
    if proof.unproven:
        return f"unproven ({proof.unproven})"
    classes = f", by {proof.class_error:.0e} under random elements of their classes" if proof.class_error else ""
    return f"proven: outputs moved by {proof.error:.0e} (relative) under random permutations{classes}"


__all__ = ["trace"]
