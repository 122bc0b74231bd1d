"""Record what a network really runs, with real tensors or on the meta device."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from neurograft.errors import NeurograftError, TraceError
from neurograft.inputs import Inputs, call
from neurograft.tracing.dispatch import Dispatch, facts_of, tensors_in
from neurograft.tracing.meta_execution import Literals, MetaExecution
from neurograft.tracing.tape import Op, Tape, as_found, module_paths, on_meta, see_through


@dataclass(slots=True)
class Recorder:
    """Appends every op to `ops`; `execute` runs it, and gives back the arguments and the result to record."""

    path: Callable[[], str]
    execute: Callable[[Any, tuple[Any, ...], dict[str, Any]], tuple[tuple[Any, ...], dict[str, Any], Any]]
    ops: list[Op] = field(default_factory=list)

    def meet(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run an op and append it."""
        facts = facts_of(func)
        args, kwargs, result = self.execute(func, args, kwargs)
        results = tuple(result) if isinstance(result, (tuple, list)) else (result,)
        shapes = tuple(tuple(r.shape) if isinstance(r, Tensor) else None for r in results)
        mutates = tuple(
            x for i, name in facts.mutable for x in tensors_in((args[i] if i < len(args) else kwargs.get(name),))
        )
        self.ops.append(Op(facts.name, facts.overload, args, kwargs, results, shapes, self.path(), mutates, func))
        return result


def as_given(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any], Any]:
    """Run an op as the network gives it."""
    return args, kwargs, func(*args, **kwargs)


def record(model: nn.Module, inputs: Inputs) -> Tape:
    """Run the network once on `inputs` and keep every op it dispatched.

    Raises:
        TraceError: if the network cannot run on `inputs`.
    """
    with as_found(model), module_paths(model) as path:
        literals: AbstractContextManager[object] = nullcontext()
        values: dict[int, Tensor] = {}
        recorder = Recorder(path, as_given)
        if on_meta(model):
            meta = MetaExecution()
            values, literals = meta.shadows, Literals()
            recorder.execute = meta.execute
            inputs = tree_map_only(Tensor, meta.enter, inputs)
        try:
            with literals, Dispatch(recorder.meet):
                outputs = call(model, inputs)
        except NeurograftError:
            raise
        except Exception as error:
            raise TraceError(
                f"{type(model).__name__} does not run on the example inputs: {type(error).__name__}: {error}"
            ) from error
    see_through(recorder.ops, [*model.parameters(), *model.buffers()])
    return Tape(recorder.ops, inputs, outputs, values)


__all__ = ["Recorder", "as_given", "record"]
