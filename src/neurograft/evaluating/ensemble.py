"""Several members whose outputs are combined: what a fused network is compared with."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any, Literal, TypeAlias, cast, get_args

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from neurograft.errors import InputError, OptionError, closest
from neurograft.inputs import check_model, first_tensor

Vote: TypeAlias = Literal["average", "probabilities", "majority"]


class Ensemble(nn.Module):
    """Members whose outputs are combined.

    With outputs z_m (logits) of k members:

    - `vote="average"`: the mean of the outputs, `1/k Σ z_m`; of every floating tensor if a member returns several.
    - `vote="probabilities"`: the mean of the probabilities, `1/k Σ softmax(z_m)`.
    - `vote="majority"`: how many members vote for each class; where classes tie for the most votes, the one with the
      higher mean output gets half a vote more.

    The members are used, not copied. An output with `logits` (a mapping, as Hugging Face models return) gives an
    output of the same class that holds only `logits`.

    Args:
        models: the members; all take the same inputs.
        vote: how their outputs are combined.
        dim: the dimension of the outputs that counts the classes; only the two votes over classes need it.

    Raises:
        InputError: if there are no members or their outputs do not fit together.
        OptionError: if `vote` is unknown.

    Example:
        >>> x = torch.tensor([[-2.0, 1.0]])
        >>> Ensemble([nn.Identity(), nn.ReLU()])(x)
        tensor([[-1.,  1.]])
        >>> Ensemble([nn.Identity(), nn.ReLU(), nn.Softmax(dim=-1)], vote="majority")(x)
        tensor([[0., 3.]])
    """

    def __init__(self, models: Sequence[nn.Module], vote: Vote = "average", *, dim: int = -1) -> None:
        super().__init__()
        if isinstance(models, nn.Module) and not isinstance(models, nn.ModuleList):
            raise InputError(f"models must be a list of networks, not {type(models).__name__}")
        if not models:
            raise InputError("an ensemble needs at least one member, got an empty list")
        for m, model in enumerate(models):
            check_model(model, f"models[{m}]")
        if vote not in get_args(Vote):
            raise OptionError(f"unknown vote {vote!r}; {closest(str(vote), get_args(Vote))}")
        self.members = nn.ModuleList(models)
        self.vote = vote
        self.dim = dim

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The members' combined output for the same inputs."""
        outputs = [member(*args, **kwargs) for member in self.members]
        if isinstance(outputs[0], Mapping) and isinstance(outputs[0].get("logits"), Tensor):
            kind: Callable[..., Any] = type(outputs[0])
            return kind(logits=self._answer([first_tensor(output) for output in outputs]))
        if self.vote == "average":
            return _mean_of_trees(outputs)
        return self._answer([first_tensor(output) for output in outputs])

    def _answer(self, outputs: list[Tensor]) -> Tensor:
        stacked = _stack(outputs)
        if self.vote == "average":
            return stacked.mean(0)
        if self.vote == "probabilities":
            return stacked.softmax(_after_stacking(self.dim)).mean(0)
        return majority(stacked, self.dim)


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


def _mean_of_trees(outputs: list[Any]) -> Any:
    first = outputs[0]
    if is_dataclass(first) and not isinstance(first, (type, Mapping)):
        means = {f.name: _mean_of_trees([getattr(output, f.name) for output in outputs]) for f in fields(first)}
        return replace(first, **means)
    leaves, specs = zip(*(pytree.tree_flatten(output) for output in outputs), strict=True)
    if any(spec != specs[0] for spec in specs):
        raise InputError("the members' outputs are built differently; let them return the same structure")
    columns = [
        _stack(cast("tuple[Tensor, ...]", column)).mean(0)
        if isinstance(column[0], Tensor) and column[0].is_floating_point()
        else column[0]
        for column in zip(*leaves, strict=True)
    ]
    return pytree.tree_unflatten(columns, specs[0])
