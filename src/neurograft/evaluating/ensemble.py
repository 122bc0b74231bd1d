"""Several members whose outputs are combined: what a fused network is compared with."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any, Literal, TypeAlias, cast, get_args

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from neurograft.errors import BadWeights, InputError, OptionError, closest
from neurograft.inputs import check_model, first_tensor
from neurograft.member_statistics.gate import Gate
from neurograft.member_statistics.statistics import Statistics, check_statistics

ENERGY = 0.3
"""How much a member's energy counts; 0.1 to 2 make no difference that could be measured."""

Vote: TypeAlias = Literal["average", "probabilities", "majority", "energy"]


class Ensemble(nn.Module):
    """Members whose outputs are combined.

    With outputs z_m (logits) of k members:

    - `vote="average"`: the mean of the outputs, `1/k Σ z_m`; of every floating tensor if a member returns several.
    - `vote="probabilities"`: the mean of the probabilities, `1/k Σ softmax(z_m)`.
    - `vote="majority"`: how many members vote for each class; where classes tie for the most votes, the one with the
      higher mean output gets half a vote more.
    - `vote="energy"`: a mean of the outputs in which members count by how sure they are of a sample,
      `Σ w_m z_m` with w = softmax over members of `0.3 log Σ_c exp(z_mc − mean_c z_mc)`.

    With `weights` or `statistics` the first two are means with weights, `Σ w_m z_m` and `Σ w_m softmax(z_m)`. With
    statistics the weights are each member's share in a sample, p(m | x): the member whose data the sample resembles
    counts most there. Members that know different things gain most by that.

    The members are used, not copied. An output with `logits` (a mapping, as Hugging Face models return) gives an
    output of the same class that holds only `logits`.

    Args:
        models: the members; all take the same inputs.
        vote: how their outputs are combined.
        weights: one number per member; or a table of shape `(members, classes)`, what each member counts for each
            class. They are scaled to sum to 1 over the members. Counts of the classes in the members'
            data serve best by their fourth root.
        statistics: one `Statistics` per member, of its own data.
        dim: the dimension of the outputs that counts the classes; only votes and weights over classes need it.

    Raises:
        InputError: if there are no members or their outputs do not fit together.
        OptionError: if `vote` is unknown, or does not go with weights or statistics.
        BadWeights: weights of another shape, negative, not finite, or without a member for a class.
        MembersDiffer: statistics that are not one per member, or of different inputs.

    Example:
        >>> x = torch.tensor([[-2.0, 1.0]])
        >>> Ensemble([nn.Identity(), nn.ReLU()])(x)
        tensor([[-1.,  1.]])
        >>> Ensemble([nn.Identity(), nn.ReLU(), nn.Softmax(dim=-1)], vote="majority")(x)
        tensor([[0., 3.]])
        >>> Ensemble([nn.Identity(), nn.ReLU()], weights=[3, 1])(x)
        tensor([[-1.5000,  1.0000]])
    """

    def __init__(
        self,
        models: Sequence[nn.Module],
        vote: Vote = "average",
        *,
        weights: Sequence[float] | Sequence[Sequence[float]] | Tensor | None = None,
        statistics: Sequence[Statistics] | None = None,
        dim: int = -1,
    ) -> None:
        super().__init__()
        if isinstance(models, nn.Module) and not isinstance(models, nn.ModuleList):
            raise InputError(f"models must be a list of networks, not {type(models).__name__}")
        if not models:
            raise InputError("an ensemble needs at least one member, got an empty list")
        for m, model in enumerate(models):
            check_model(model, f"models[{m}]")
        if vote not in get_args(Vote):
            raise OptionError(f"unknown vote {vote!r}; {closest(str(vote), get_args(Vote))}")
        if weights is not None and statistics is not None:
            raise OptionError("weights and statistics both say what members count; pass one of them")
        if vote in ("majority", "energy") and (weights is not None or statistics is not None):
            raise OptionError(f"vote={vote!r} itself says what members count; leave out weights and statistics")
        self.members = nn.ModuleList(models)
        self.vote = vote
        self.dim = dim
        self.weights = None if weights is None else member_shares(weights, len(models))
        self.statistics = None if statistics is None else check_statistics(statistics, len(models))
        self.gate = None if self.statistics is None else Gate.of(self.statistics)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The members' combined output for the same inputs."""
        brought = None if self.statistics is None else self.statistics[0].tensors_of(*args, **kwargs)
        outputs = [member(*args, **kwargs) for member in self.members]
        shares = self._shares(outputs, brought)
        if isinstance(outputs[0], Mapping) and isinstance(outputs[0].get("logits"), Tensor):
            kind: Callable[..., Any] = type(outputs[0])
            return kind(logits=self._combined_outputs([first_tensor(output) for output in outputs], shares))
        if self.vote in ("average", "energy") and (shares is None or shares.shape[2] == 1):
            return _mean_of_trees(outputs, shares)
        return self._combined_outputs([first_tensor(output) for output in outputs], shares)

    def shares(self, *args: Any, **kwargs: Any) -> Tensor:
        """What every member counts for the given inputs, shape `(members, samples or 1, classes or 1)`.

        Example:
            >>> Ensemble([nn.Identity(), nn.ReLU()]).shares(torch.zeros(5, 2)).flatten()
            tensor([0.5000, 0.5000])
        """
        brought = None if self.statistics is None else self.statistics[0].tensors_of(*args, **kwargs)
        outputs = [member(*args, **kwargs) for member in self.members] if self.vote == "energy" else []
        found = self._shares(outputs, brought)
        k = len(self.members)
        return torch.full((k, 1, 1), 1 / k) if found is None else found

    def _shares(self, outputs: Sequence[Any], brought: Sequence[Tensor] | None) -> Tensor | None:
        if self.gate is not None and brought is not None:
            return self.gate.weights(brought)[..., None]
        if self.vote == "energy":
            return energy_shares(_stack([first_tensor(output) for output in outputs]), self.dim)
        if self.weights is None:
            return None
        return self.weights[:, None, None] if self.weights.dim() == 1 else self.weights[:, None, :]

    def _combined_outputs(self, outputs: list[Tensor], shares: Tensor | None) -> Tensor:
        stacked = _stack(outputs)
        classes = _after_stacking(self.dim)
        if self.vote == "majority":
            return majority(stacked, self.dim)
        if self.vote == "probabilities":
            return weighted_mean(stacked.softmax(classes), shares, self.dim)
        if (
            shares is not None and shares.shape[2] > 1
        ):  # where weights differ by class, a shift of all logits must not count
            stacked = stacked - stacked.mean(classes, keepdim=True)
        return weighted_mean(stacked, shares, self.dim)


def member_shares(weights: Sequence[float] | Sequence[Sequence[float]] | Tensor, members: int) -> Tensor:
    """Weights that sum to 1 over the members, shape `(members,)` or `(members, classes)`.

    Raises:
        BadWeights: weights of another shape, negative, not finite, or without a member for a class.
    """
    try:
        given = torch.as_tensor(weights, dtype=torch.float64)
    except (TypeError, ValueError) as error:
        raise BadWeights(f"weights are no table of numbers: {error}") from error
    if given.dim() not in (1, 2) or len(given) != members:
        raise BadWeights(
            f"weights have shape {tuple(given.shape)}; for {members} members it is ({members},) or ({members}, classes)"
        )
    if not bool(torch.isfinite(given).all()) or bool((given < 0).any()) or bool((given.sum(0) <= 0).any()):
        raise BadWeights("weights must be finite, 0 or more, and above 0 for one member at least (of every class)")
    return given / given.sum(0)


def energy_shares(outputs: Tensor, dim: int = -1) -> Tensor:
    """What each member counts by its energy, softmax over members of 0.3 · log Σ_c exp(z_c − mean z).

    Args:
        outputs: logits, shape `(members, samples, ...)`.
        dim: the dimension of one member's logits that counts the classes.

    Returns:
        Shape `(members, samples, 1)`; the mean over all further dimensions.

    Source: Liu et al. 2020, arXiv:2010.03759 (the energy of a sample).
    """
    classes = _after_stacking(dim)
    energy = (outputs - outputs.mean(classes, keepdim=True)).logsumexp(classes)
    return (ENERGY * energy.flatten(2).mean(2) if energy.dim() > 2 else ENERGY * energy).softmax(0)[..., None]


def weighted_mean(stacked: Tensor, shares: Tensor | None, dim: int = -1) -> Tensor:
    """Σ_m w_m z_m.

    Args:
        stacked: the members' outputs, shape `(members, samples, ...)`.
        shares: w, shape `(members, samples or 1, classes or 1)`; None for equal ones.
        dim: the dimension of one member's output that counts the classes.

    Raises:
        InputError: outputs with other numbers of samples or classes than the weights.
    """
    if shares is None:
        return stacked.mean(0)
    k, samples, classes = shares.shape
    shape = [k, samples] + [1] * max(0, stacked.dim() - 2)
    if classes > 1:
        shape[_after_stacking(dim)] = classes
    if any(own not in (1, there) for own, there in zip(shape, stacked.shape, strict=False)) or stacked.dim() < 2:
        raise InputError(
            f"the members' outputs of shape {tuple(stacked.shape[1:])} do not fit weights of {samples} samples and "
            f"{classes} classes"
        )
    return (stacked * shares.to(stacked).reshape(shape)).sum(0)


def majority(outputs: Tensor, dim: int = -1) -> Tensor:
    """Count the members' votes; a tie for the most votes goes to the class with the highest mean output.

    Args:
        outputs: the members' outputs, shape `(members, ...)`.
        dim: the dimension of one member's output that counts the classes.

    Returns:
        Votes per class, the shape of one member's output; the winner of a tie has half a vote more.

    Example:
        >>> majority(torch.tensor([[[0.0, 3.0]], [[1.0, 0.0]]]))
        tensor([[1.0000, 1.5000]])
    """
    classes = _after_stacking(dim)
    votes = torch.zeros_like(outputs).scatter_(classes, outputs.argmax(classes, keepdim=True), 1.0).sum(0)
    leading = votes == votes.amax(dim, keepdim=True)
    tied = leading.sum(dim, keepdim=True) > 1
    winner = outputs.mean(0).masked_fill(~leading, -torch.inf).argmax(dim, keepdim=True)
    return votes.scatter_add(dim, winner, 0.5 * tied.to(votes.dtype))


def _after_stacking(dim: int) -> int:
    return dim if dim < 0 else dim + 1


def _stack(outputs: Sequence[Tensor]) -> Tensor:
    shapes = [tuple(output.shape) for output in outputs]
    if len(set(shapes)) > 1:
        raise InputError(f"the members' outputs differ in shape: {', '.join(map(str, shapes))}")
    return torch.stack(list(outputs))


def _mean_of_trees(outputs: list[Any], shares: Tensor | None) -> Any:
    first = outputs[0]
    if is_dataclass(first) and not isinstance(first, (type, Mapping)):
        means = {f.name: _mean_of_trees([getattr(output, f.name) for output in outputs], shares) for f in fields(first)}
        return replace(first, **means)
    leaves, specs = zip(*(pytree.tree_flatten(output) for output in outputs), strict=True)
    if any(spec != specs[0] for spec in specs):
        raise InputError("the members' outputs are built differently; let them return the same structure")
    columns = [
        weighted_mean(_stack(cast("tuple[Tensor, ...]", column)), shares)
        if isinstance(column[0], Tensor) and column[0].is_floating_point()
        else column[0]
        for column in zip(*leaves, strict=True)
    ]
    return pytree.tree_unflatten(columns, specs[0])
