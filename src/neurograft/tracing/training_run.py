"""Which neurons lie along tensors that only a run in training mode reaches: running averages of a codebook.

Such a tensor is read in no evaluation, but it must move with what it is an average of, or the first step of further
training undoes the fusion. What a training run does with it shows which axes it shares.
"""

from collections.abc import Iterator, Sequence

from torch import Tensor, nn

from neurograft.inputs import Inputs, call
from neurograft.preserve_state import copy_of
from neurograft.tracing.algebra import Axis, axis_size, canon, reason, unify
from neurograft.tracing.blocks import meet
from neurograft.tracing.dispatch import Dispatch
from neurograft.tracing.labelling import Labelling, pinned_outputs, tensors_of_model
from neurograft.tracing.recording import Recorder, as_given
from neurograft.tracing.tape import Tape, as_found, module_paths, on_meta, see_through, storage_key


def follow_training(labelling: Labelling, model: nn.Module, examples: Sequence[Inputs], outputs: object) -> None:
    """Unify the axes of tensors that no run has reached with those they share in a training run of a copy.

    A tensor counts as reached if every dim of it is the dim of a tensor that was reached. Whatever a training run
    does not show it (it does not run, fixes a dim, or multiplies by the tensor) stays as it is.
    """
    missing = [name for name in labelling.tensors.by_name if name not in labelling.reached]
    if on_meta(model) or not missing:
        return
    for example in examples:
        seen = _training_run(model, example, outputs)
        if seen is None:
            return
        multiplied = {name for note in seen.main.notes.uses for name in note.names}
        for name in missing:
            shared = [_shared(labelling, seen, axis) for axis in seen.parameter_axes[name]]
            if name in multiplied or name in labelling.reached or None in shared:
                continue
            for axis, other in zip(labelling.parameter_axes[name], shared, strict=True):
                if other is not None and axis_size(axis) > 1:
                    unify(axis, other, f"what training does with {name}")
            labelling.reached.add(name)


def _training_run(model: nn.Module, example: Inputs, outputs: object) -> Labelling | None:
    # everything that one step in training mode shows, None if there is no such step
    try:
        other = copy_of(model)
        labelling = Labelling(other)
        before = labelling.tensors.by_name
        with as_found(other, training=True), module_paths(other) as path:
            recorder = Recorder(path, as_given)
            with Dispatch(recorder.meet):
                returned = call(other, example)
            after = tensors_of_model(other).by_name
    except Exception:
        return None
    see_through(recorder.ops, before.values())
    # a parameter that is made of a result is another object in the same memory
    made = {storage_key(r): r for op in recorder.ops for r in op.results if isinstance(r, Tensor) and r.numel()}
    anew = {name: made[storage_key(x)] for name, x in after.items() if x.numel() and storage_key(x) in made}
    pinned = [x for _, x in pinned_outputs(returned, outputs)]
    labelling.read(Tape(recorder.ops, example, {"returned": pinned, "kept": [before, anew]}), "returned")
    for name, x in anew.items():
        if name in before and x is not before[name] and x.shape == before[name].shape:
            meet(labelling.main.label(before[name]), labelling.main.label(x), f"what training makes of {name}")
    return labelling


def _shared(labelling: Labelling, seen: Labelling, axis: Axis) -> Axis | None:
    # the dim of a reached tensor that has the axis in the training run; None if there is none or it cannot move
    if axis_size(axis) == 1:
        return axis
    if reason(axis) is not None:
        return None
    found = (mine for theirs, mine in _reached_axes(labelling, seen) if canon(theirs) == canon(axis))
    return next(found, None)


def _reached_axes(labelling: Labelling, seen: Labelling) -> Iterator[tuple[Axis, Axis]]:
    for name, axes in seen.parameter_axes.items():
        if name in labelling.reached:
            yield from zip(axes, labelling.parameter_axes[name], strict=True)


__all__ = ["follow_training"]
