"""Plans on disk: one safetensors file with the maps as tensors and everything else as JSON in its metadata."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from neurograft.axes.layout import Factor
from neurograft.axes.maps import NeuronMap, Pairs, PerUnit
from neurograft.axes.symmetry import Symmetry
from neurograft.checkpoints.header import CODES, DTYPES
from neurograft.checkpoints.reading import open_checkpoint
from neurograft.checkpoints.writing import write_tensors
from neurograft.errors import CheckpointError, PlanError, closest
from neurograft.escaping import named
from neurograft.operators import OPERATORS
from neurograft.operators.operator import Operator
from neurograft.operators.settings import Gradient
from neurograft.plans.checking import check_fields, check_plan
from neurograft.plans.plan import FusionPlan
from neurograft.tracing.flow import Edge, Flow, Node, NodeKind
from neurograft.tracing.graph import (
    Absorb,
    Balance,
    Centre,
    FixedReason,
    Fold,
    Group,
    NeuronGraph,
    Place,
    Slot,
    TensorInfo,
    Tied,
    Use,
)

KEY = "neurograft-plan"
VERSION = 4
KINDS = {
    kind.__name__: kind
    for kind in (
        *(
            Factor,
            Slot,
            Group,
            TensorInfo,
            Use,
            Tied,
            Node,
            Edge,
            Flow,
            Fold,
            Centre,
            Absorb,
            Place,
            Balance,
            NeuronGraph,
        ),
        *(Pairs, PerUnit, NeuronMap, FusionPlan, Gradient),
    )
}
ENUMS: dict[str, type[Enum]] = {kind.__name__: kind for kind in (FixedReason, NodeKind, Symmetry)}


@dataclass(frozen=True, eq=False)
class SavedPlan:
    """A plan, and what it was made for.

    `network` is a factory `module:function` or a class `transformers:Class`; `hashes` gives for every member the
    SHA-256 hash of each of its files by name, and is empty for members that were in memory.
    """

    plan: FusionPlan
    network: str = ""
    fixed: tuple[str, ...] = ()
    hashes: tuple[Mapping[str, str], ...] = ()


def save_plan(saved: SavedPlan, path: Path) -> None:
    """Write a plan, completely or not at all.

    Raises:
        CheckpointError: it cannot be written.
        PlanError: its options or details hold something that is no number, text, tensor, or collection of these.

    Example:
        >>> import tempfile
        >>> plan = FusionPlan("average", (NeuronGraph((), {}),) * 2, {}, (0.5, 0.5))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_plan(SavedPlan(plan), Path(folder) / "plan.safetensors")
        ...     load_plan(Path(folder) / "plan.safetensors").plan.weights
        (0.5, 0.5)
    """
    writing = _PlanWriter()
    content = {
        "version": VERSION,
        "network": saved.network,
        "fixed": list(saved.fixed),
        "hashes": [dict(files) for files in saved.hashes],
        "plan": writing.encoded(saved.plan),
        "graphs": writing.graphs,
    }
    write_tensors(writing.tensors, path, {KEY: json.dumps(content, separators=(",", ":"))})


def load_plan(path: Path) -> SavedPlan:
    """Read a plan that `save_plan` wrote; nothing in the file is trusted.

    Raises:
        CheckpointError: the file is damaged, is no plan, or its maps do not fit its graphs.
    """
    if path.suffix != ".safetensors":
        raise CheckpointError(f"{path}: a saved plan ends in .safetensors")
    opened = open_checkpoint(path)
    if KEY not in opened.metadata:
        raise CheckpointError(f"{path} is a checkpoint, not a plan; make one with `neurograft plan --output`")
    try:
        content = json.loads(opened.metadata[KEY])
        if content["version"] != VERSION:
            raise CheckpointError(f"{path} is a plan of version {content['version']}; this neurograft reads {VERSION}")
        reading = _PlanReader(opened.tensors, content["graphs"])
        plan = reading.decoded(content["plan"])
        if not isinstance(plan, FusionPlan):
            raise TypeError(f"it holds a {type(plan).__name__}")
        check_plan(plan)
        hashes = tuple({str(file): str(digest) for file, digest in files.items()} for files in content["hashes"])
        return SavedPlan(plan, str(content["network"]), tuple(map(str, content["fixed"])), hashes)
    except CheckpointError:
        raise
    except (TypeError, ValueError, AttributeError, LookupError, ArithmeticError, RuntimeError, PlanError) as error:
        raise CheckpointError(f"{path} is no plan that this neurograft can read: {named(str(error), 200)}") from error


class _PlanWriter:
    """Turns dataclasses, collections and tensors into JSON; members that share a graph or a map share it on disk."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self.graphs: list[Any] = []
        self._seen: dict[int, Any] = {}
        self._alive: list[Any] = []  # what is seen must not be freed, or its identity could be another's

    def encoded(self, value: Any) -> Any:
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        if isinstance(value, (Tensor, NeuronGraph)):
            return self._once(value)
        if isinstance(value, FixedReason | NodeKind | Symmetry):
            return {type(value).__name__: value.value}
        if isinstance(value, torch.dtype):
            return {"dtype": CODES[value]}
        if isinstance(value, Operator):
            return self._operator(value)
        if is_dataclass(value) and type(value).__name__ in KINDS:
            return {"is": type(value).__name__} | {f.name: self.encoded(getattr(value, f.name)) for f in fields(value)}
        if isinstance(value, tuple):
            return [self.encoded(v) for v in value]
        if isinstance(value, list):
            return {"list": [self.encoded(v) for v in value]}
        if isinstance(value, (set, frozenset)):
            return {"set": sorted(value)}
        if isinstance(value, Mapping):
            return {"map": [[self.encoded(k), self.encoded(v)] for k, v in value.items()]}
        raise PlanError(f"a plan with a {type(value).__name__} in its options or details cannot be saved")

    def _operator(self, value: Operator) -> Any:
        if OPERATORS.get(value.name) is not type(value):
            raise PlanError(
                f"a plan with the operator {value} cannot be saved: whoever loads it would not find {value.name!r}; "
                "enter it in neurograft.operators.OPERATORS"
            )
        return {"operator": [value.name, self.encoded(value.options)]}

    def _once(self, value: Tensor | NeuronGraph) -> Any:
        if id(value) not in self._seen:
            self._alive.append(value)
            if isinstance(value, Tensor):
                name = f"map{len(self.tensors)}"
                self.tensors[name] = value.detach().cpu()
                self._seen[id(value)] = {"tensor": name}
            else:
                own = {"is": "NeuronGraph"} | {f.name: self.encoded(getattr(value, f.name)) for f in fields(value)}
                self.graphs.append(own)
                self._seen[id(value)] = {"graph": len(self.graphs) - 1}
        return self._seen[id(value)]


class _PlanReader:
    def __init__(self, tensors: Mapping[str, Tensor], graphs: Sequence[Any]):
        # copied, because a file that is mapped must not be replaced while the plan lives
        self._tensors = {name: tensor.clone() for name, tensor in tensors.items()}
        self._graphs = [self.decoded(graph) for graph in graphs]

    def decoded(self, value: Any) -> Any:
        if isinstance(value, list):
            return tuple(self.decoded(v) for v in value)
        if not isinstance(value, dict):
            return value
        if "is" in value:
            made = KINDS[value["is"]](**{name: self.decoded(v) for name, v in value.items() if name != "is"})
            check_fields(made)
            return made
        ((tag, content),) = value.items()
        if tag == "map":
            return {self.decoded(k): self.decoded(v) for k, v in content}
        if tag == "list":
            return [self.decoded(v) for v in content]
        if tag == "set":
            return frozenset(content)
        if tag == "tensor":
            return self._tensors[content]
        if tag == "operator":
            return self._operator(*content)
        if tag == "graph":
            return self._graphs[content]
        if tag in ENUMS:
            return ENUMS[tag](content)
        if tag == "dtype":
            return DTYPES[content]
        raise ValueError(f"unknown tag {tag!r:.40}")

    def _operator(self, name: str, options: Any) -> Operator:
        if name not in OPERATORS:
            raise ValueError(f"it was made with the operator {name!r:.40}; {closest(str(name), OPERATORS)}")
        return OPERATORS[name](**self.decoded(options))
