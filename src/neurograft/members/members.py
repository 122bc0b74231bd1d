"""The members of a fusion: read and checked once, carried from plan to recovery."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import nn

from neurograft.checkpoints.hashing import Hashing
from neurograft.checkpoints.loading import load_into
from neurograft.errors import InputError, MembersDiffer, OptionError, PlanError
from neurograft.inputs import Batches, Calibration, Inputs, check_batches
from neurograft.member_statistics.drawing import calibration_batches
from neurograft.member_statistics.statistics import Statistics, check_statistics
from neurograft.members.canonical import CanonicalState, canonical_networks
from neurograft.members.checks import (
    Weights,
    check_finite,
    check_models,
    check_names,
    check_shapes,
    check_values,
    differing_constants,
    member_weights,
)
from neurograft.members.factors import factor_warnings
from neurograft.members.graphs import graphs_of
from neurograft.members.settings import differing_settings
from neurograft.members.states import State, state_of
from neurograft.members.stored import StoredMember
from neurograft.operators.settings import Gradient
from neurograft.options import patterns_of
from neurograft.preserve_state import copy_of, keeps_random_state
from neurograft.tracing.canonical import canonical_graph
from neurograft.tracing.graph import NeuronGraph


class Members:
    """The networks that are fused, checked against each other once; `plan`, `apply` and every recovery take them.

    Args:
        models: at least two networks of one class; widths of free groups may differ. They are only read.
        example_inputs: what they take: a tensor, a tuple of arguments, or a dict of keyword arguments.
        weights: one number per member, normalised to sum to 1; None lets the method choose (usually equal). Or patterns
            of tensor names -> one number per member, of which the last that fits counts: `{"*": [1, 1], "head.*":
            [3, 1]}`, where "*" stands for all the rest. A number may be a `Gradient` over the depth.
        base: the network they were all trained from, for operators that need it, or where it lies (a checkpoint or a
            folder); it is aligned along with them.
        graph: the graph of `models[0]` if it was traced before.
        fixed: fnmatch patterns of parameters whose neurons stay where they are.
        calibration: a re-iterable of batches, for methods and recovery that look at activations; "noise" for inputs
            drawn at random.
        statistics: one `Statistics` per member, of its own data. Without calibration batches inputs are drawn from
            them, and refit brings the outputs towards the members weighted by how well they know each input.

    Attributes:
        networks: the modules; of members on disk they are on the meta device, where no weight exists.
        weights: one number per member that sum to 1, None where the method may choose.
        tensor_weights: tensor name -> the weights there, where they are others.
        given: the weights as they were given, for operators that do not need them to sum to 1; None if none were.
        base: the ancestor as a member of its own, None without one.
        states: of every member its parameters and persistent buffers by name, in memory or mapped from files.
        stored: of members on disk their checkpoints, empty in memory.
        name: of members on disk how their network is built, a factory `module:function` or `transformers:Class`.
        folders: of members in Hugging Face folders where they lie.
        is_canonical: whether they are in canonical form.
        statistics: what each member brought of its own data, None without.

    Raises:
        PlanError: fewer than two networks, or networks without values.
        MembersDiffer: members of different classes, tensors or shapes.
        BadWeights: member weights that make no sense.
        OptionError: a pattern of weights fits no tensor.
        TraceError: a network that cannot be traced.

    Example:
        >>> nets = [nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)) for _ in "ab"]
        >>> members = Members(nets, torch.randn(1, 4), weights=[3, 1])
        >>> members
        Members(2 of Sequential, weights 0.75, 0.25)
        >>> members.sizes("0.weight:0")
        (8, 8)
    """

    networks: tuple[nn.Module, ...]
    states: tuple[State, ...]
    example_inputs: Inputs | None
    weights: tuple[float, ...] | None
    tensor_weights: Mapping[str, tuple[float, ...]]
    given: Weights | None
    base: "Members | None"
    fixed: tuple[str, ...]
    calibration: Batches | None
    stored: tuple[StoredMember, ...]
    name: str
    folders: tuple[Path, ...]
    is_canonical: bool
    statistics: tuple[Statistics, ...] | None

    @keeps_random_state
    def __init__(
        self,
        models: Sequence[nn.Module],
        example_inputs: Inputs,
        *,
        weights: Weights | None = None,
        base: nn.Module | str | Path | None = None,
        graph: NeuronGraph | None = None,
        fixed: str | Sequence[str] = (),
        calibration: Calibration | None = None,
        statistics: Sequence[Statistics] | None = None,
    ) -> None:
        check_models(models)
        brought = None if statistics is None else check_statistics(statistics, len(models))
        batches = calibration_batches(calibration, brought, example_inputs)
        self._set(models, [state_of(model) for model in models], example_inputs, fixed, batches)
        self.statistics = brought
        check_names(self.states)
        self._weigh(weights)
        if base is not None:
            self._set_base(base)
        self._trace(graph)

    @classmethod
    def single(
        cls,
        model: nn.Module,
        example_inputs: Inputs,
        *,
        graph: NeuronGraph | None = None,
        fixed: str | Sequence[str] = (),
        calibration: Batches | None = None,
    ) -> "Members":
        """One network alone, which is what pruning plans for."""
        check_values(model, "the model")
        if calibration is not None:
            check_batches(calibration, name="calibration")
        made = cls.__new__(cls)
        made._set([model], [state_of(model)], example_inputs, fixed, calibration)
        made._trace(graph)
        return made

    @classmethod
    def traced(cls, models: Sequence[nn.Module], graphs: Sequence[NeuronGraph]) -> "Members":
        """Networks whose graphs are known, from a plan that was made for them or for others like them."""
        made = cls.__new__(cls)
        made._set(models, [state_of(model) for model in models])
        check_names(made.states)
        made.__dict__["graphs"] = tuple(graphs)
        return made

    @classmethod
    def on_disk(
        cls,
        stored: Sequence[StoredMember],
        networks: Sequence[nn.Module],
        example_inputs: Inputs,
        name: str,
        *,
        fixed: str | Sequence[str] = (),
        folders: Sequence[Path] = (),
        base: tuple[StoredMember, nn.Module] | None = None,
    ) -> "Members":
        """Checkpoints and their networks on the meta device; they are traced when their graphs are read."""
        made = cls.__new__(cls)
        made._set(networks, [member.state for member in stored], example_inputs, fixed)
        made.stored, made.name, made.folders = tuple(stored), name, tuple(folders)
        check_names(made.states)
        if base is not None:
            made._descend([base[1]], [base[0].state])
            assert made.base is not None
            made.base.stored = (base[0],)
        return made

    def _set(
        self,
        networks: Sequence[nn.Module],
        states: Sequence[State],
        example_inputs: Inputs | None = None,
        fixed: str | Sequence[str] = (),
        calibration: Batches | None = None,
    ) -> None:
        self.networks, self.states, self.example_inputs = tuple(networks), tuple(states), example_inputs
        self.fixed, self.calibration, self.base = patterns_of(fixed, "fixed"), calibration, None
        self.stored, self.name, self.folders = (), "", ()
        self.weights, self.tensor_weights, self.given, self.statistics = None, {}, None, None
        self.is_canonical = False

    def _weigh(self, weights: Weights | None) -> None:
        self.weights, self.tensor_weights = member_weights(weights, len(self), self.states[0])
        if isinstance(weights, Mapping):
            self.given = {str(pattern): tuple(map(_plain, own)) for pattern, own in weights.items()}
        elif weights is not None:
            self.given = tuple(map(_plain, weights))

    def _set_base(self, base: nn.Module | str | Path) -> None:
        if isinstance(base, (str, Path)):
            base = load_into(copy_of(self.networks[0]), Path(base))
        elif not isinstance(base, nn.Module):
            raise PlanError(f"base is a network, a checkpoint or a folder, not a {type(base).__name__}")
        check_values(base, "the base")
        self._descend([base], [state_of(base)])

    def _descend(self, networks: Sequence[nn.Module], states: Sequence[State]) -> None:
        """Take in the ancestor, which is of the members' class and has their tensors."""
        if type(networks[0]) is not type(self.networks[0]):
            raise MembersDiffer(
                f"the base is a {type(networks[0]).__name__} but the members are {type(self.networks[0]).__name__}"
            )
        check_names((self.states[0], states[0]), ("models[0]", "the base"))
        self.base = Members.__new__(Members)
        self.base._set(networks, states, self.example_inputs, self.fixed)

    def _trace(self, graph: NeuronGraph | None) -> None:
        assert self.example_inputs is not None
        graphs = graphs_of(self.networks, self.states, self.example_inputs, graph, self.fixed)
        check_shapes(self.states, graphs)
        self.__dict__["graphs"] = tuple(graphs)

    @cached_property
    def graphs(self) -> tuple[NeuronGraph, ...]:
        """How the neurons of each member lie in its tensors; they differ at most in the sizes of groups.

        Raises:
            MembersDiffer: shapes do not fit together.
            TraceError: the network does not run on the meta device.
        """
        self._trace(None)
        return self.graphs

    @cached_property
    def base_graph(self) -> NeuronGraph:
        """The graph of the ancestor, that of member 0 where their shapes agree."""
        assert self.base is not None
        shapes = [
            {name: tensor.shape for name, tensor in state.items()} for state in (self.states[0], *self.base.states)
        ]
        return self.graph if shapes[0] == shapes[1] else self.base.graph

    def with_base(self) -> "Members":
        """The same members and their ancestor as the last one, of weight 0."""
        assert self.base is not None
        return self.changed(
            networks=(*self.networks, *self.base.networks),
            states=(*self.states, *self.base.states),
            stored=(*self.stored, *self.base.stored),
            graphs=(*self.graphs, self.base_graph),
            weights=(*self.weights_or(), 0.0),
            base=None,
        )

    @cached_property
    def canonical(self) -> "Members":
        """The same members in canonical form: what they compute is the same, their networks are copies.

        Members on disk are brought into it when their tensors are read.

        Raises:
            PlanError: a scale of 0 whose shift nothing can carry.
        """
        if self.is_canonical:
            return self
        made = self.changed(graphs=tuple(map(canonical_graph, self.graphs)), is_canonical=True)
        if self.stored:
            pairs = zip(self.states, self.graphs, strict=True)
            made.states = tuple(CanonicalState(state, graph) for state, graph in pairs)
        else:
            made.networks, made.states = canonical_networks(self.networks, self.states, self.graphs)
        if self.base is not None:
            made.base = self.base.changed(graphs=(self.base_graph,)).canonical
        return made

    @property
    def graph(self) -> NeuronGraph:
        """The graph of member 0."""
        return self.graphs[0]

    @property
    def models(self) -> tuple[nn.Module, ...] | None:
        """The networks as they can be run; None for members on disk."""
        return None if self.stored else self.networks

    def __len__(self) -> int:
        return len(self.states)

    def __repr__(self) -> str:
        weights = "" if self.weights is None else ", weights " + ", ".join(f"{w:.3g}" for w in self.weights)
        return f"Members({len(self)} of {type(self.networks[0]).__name__}{', on disk' if self.stored else ''}{weights})"

    def sizes(self, group: str) -> tuple[int, ...]:
        """The number of neurons each member has in `group`."""
        return tuple(graph[group].size for graph in self.graphs)

    def weights_or(self, default: Sequence[float] | None = None) -> tuple[float, ...]:
        """The given weights, else `default`, else equal ones."""
        if self.weights is not None:
            return self.weights
        return tuple(default) if default is not None else (1 / len(self),) * len(self)

    def owner(self, m: int) -> str:
        """What messages call member m."""
        if self.stored:
            return str(self.stored[m].checkpoint.path)
        return f"models[{m}]" if len(self) > 1 else "the model"

    def check_numbers(self) -> None:
        """Read every tensor once and refuse NaN and infinity.

        Raises:
            BadWeights: names the tensor, whose it is, and how many entries are bad.
        """
        for m, state in enumerate(self.states):
            for name, tensor in state.items():
                check_finite(name, tensor, self.owner(m))
        if self.base is not None:
            owner = self.base.owner(0) if self.stored else "the base"
            for name, tensor in self.base.states[0].items():
                check_finite(name, tensor, owner)

    @cached_property
    def notes(self) -> tuple[str, ...]:
        """What a fusion of these members loses: products, whole numbers and settings in which they differ."""
        return self.factor_warnings + differing_constants(self.states) + differing_settings(self.networks)

    @cached_property
    def factor_warnings(self) -> tuple[str, ...]:
        """Products of parameters (LoRA, low-rank layers) whose factors fuse apart."""
        return factor_warnings(self.networks[0], self.states, self.graph)

    def weighted(self, weights: Weights | None) -> "Members":
        """The same members with these weights; with their own if None.

        Raises:
            BadWeights: no numbers, the wrong number of them, negative, not finite, or all zero.
            OptionError: a pattern fits no tensor.
        """
        if weights is None:
            return self
        made = self.changed(given=None)
        made._weigh(weights)
        return made

    def with_ancestor(self, base: nn.Module | str | Path | None) -> "Members":
        """The same members with this ancestor; with their own if None.

        Raises:
            OptionError: members on disk, whose ancestor is opened along with them.
            CheckpointError: a file that cannot be read, or holds another network.
            MembersDiffer: it is of another class, or has other tensors.
        """
        if base is None:
            return self
        if self.stored:
            raise OptionError("members on disk are opened together with their ancestor: open_files(..., base=)")
        made = self.changed()
        made._set_base(base)
        return made

    def changed(self, **fields: Any) -> "Members":
        """The same members with other attributes, such as `weights`, `calibration` or `graphs`."""
        made = self.__class__.__new__(self.__class__)
        made.__dict__.update(self.__dict__)
        made.__dict__.pop("canonical", None)
        made.__dict__.update(fields)
        return made

    def hashing(self) -> Hashing:
        """Start to hash the members' files in the background; use it as a context manager around plan and fuse."""
        return Hashing([member.checkpoint.files for member in self.files])

    def hashes(self) -> tuple[Mapping[str, str], ...]:
        """The SHA-256 hash of every member's files, by file name."""
        with self.hashing() as hashing:
            found = hashing.results()
        return tuple({file.name: found[file] for file in member.checkpoint.files} for member in self.files)

    @property
    def files(self) -> tuple[StoredMember, ...]:
        """The members on disk, and their ancestor after them."""
        return self.stored if self.base is None else (*self.stored, *self.base.stored)


def members_of(
    models: Sequence[nn.Module] | Members,
    example_inputs: Inputs | None,
    weights: Weights | None = None,
    graph: NeuronGraph | None = None,
    fixed: str | Sequence[str] = (),
    calibration: Calibration | None = None,
    base: nn.Module | str | Path | None = None,
    statistics: Sequence[Statistics] | None = None,
) -> Members:
    """Members as they are, with other weights, base, batches or statistics if given, or members of networks.

    Raises:
        OptionError: members are given together with what they carry already.
        InputError: networks without example inputs.
        NeurograftError: as `Members`.
    """
    if not isinstance(models, Members):
        if example_inputs is None:
            raise InputError("example_inputs are missing: networks are traced on what they take")
        return Members(
            models,
            example_inputs,
            weights=weights,
            base=base,
            graph=graph,
            fixed=fixed,
            calibration=calibration,
            statistics=statistics,
        )
    carried = {"example_inputs": example_inputs is not None, "graph": graph is not None, "fixed": bool(fixed)}
    if extra := [name for name, given in carried.items() if given]:
        raise OptionError(f"members carry what they were made with; leave out {' and '.join(extra)}")
    brought = None if statistics is None else check_statistics(statistics, len(models))
    batches = calibration_batches(calibration, brought, models.example_inputs)
    if batches is not None:
        models = models.changed(calibration=batches)
    if brought is not None:
        models = models.changed(statistics=brought)
    return models.with_ancestor(base).weighted(weights)


def _plain(weight: float | Gradient) -> float | Gradient:
    return weight if isinstance(weight, Gradient) else float(weight)
