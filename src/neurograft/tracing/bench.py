"""A copy of a network whose tensors can be replaced, and how much that changes what it returns."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from neurograft.errors import TraceError
from neurograft.inputs import Inputs, call
from neurograft.preserve_state import copy_of, seed_all
from neurograft.tracing.labelling import pinned_outputs, tensors_of_model
from neurograft.tracing.tape import as_found


class Bench:
    """A copy of the network, in float64 or as it is, whose tensors can be replaced and that is run again and again."""

    def __init__(
        self,
        model: nn.Module,
        examples: Sequence[Inputs],
        outputs: tuple[str, ...],
        seed: int,
        double: bool = False,
    ):
        self.model = copied(model).double() if double else copied(model)
        self.examples = [pytree.tree_map(_doubled, x) for x in examples] if double else examples
        self.outputs = outputs
        self.seed = seed
        self.devices = sorted({p.device.index for p in self.model.parameters() if p.is_cuda})
        self.tensors = tensors_of_model(self.model).by_name
        self.generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for x in self.tensors.values():
                x.data = self._roughened(x.data)
        self.original = {name: x.data for name, x in self.tensors.items()}

    def _roughened(self, x: Tensor) -> Tensor:
        # ones and zeros hide mistakes: a scale that is 1 everywhere may be permuted at will
        if x.is_complex():
            return torch.view_as_complex(self._roughened(torch.view_as_real(x.resolve_conj())))
        if x.numel() < 2 or not x.is_floating_point() or not bool((x == x.flatten()[0]).all()):
            return x
        noise = torch.rand(x.shape, generator=self.generator).to(x.device, x.dtype)
        value = float(x.flatten()[0])
        if value == 0:
            return 0.2 * (noise - 0.5)
        # a branch that is scaled to almost nothing hides mistakes too
        return x * (0.8 + 0.4 * noise) if abs(value) >= 0.01 else (0.1 + 0.1 * noise) * (1 if value > 0 else -1)

    def put(self, tensors: Mapping[str, Tensor]) -> None:
        """Give the copy these tensors, and its own where none is given."""
        for name, x in self.tensors.items():
            x.data = tensors.get(name, self.original[name])

    def run(self, tensors: Mapping[str, Tensor]) -> list[Tensor]:
        """The compared outputs with these tensors in place, for all examples."""
        self.put(tensors)
        with as_found(self.model):
            found = self._called()
        self.put({})
        return found

    def again(self) -> tuple[list[Tensor], list[Tensor]]:
        """The outputs with its own tensors, and those of the same calls right after, whatever was kept or drawn."""
        with as_found(self.model):
            first = self._called()
            return first, self._called(seeded=False)

    def _called(self, *, seeded: bool = True) -> list[Tensor]:
        found: list[Tensor] = []
        for example in self.examples:
            if seeded:
                seed_all(self.seed, self.devices)
            outputs = call(self.model, example)
            found += [x.detach().clone() for _, x in pinned_outputs(outputs, self.outputs or None)]
        return found


def _doubled(leaf: object) -> object:
    return leaf.double() if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf


def copied(model: nn.Module) -> nn.Module:
    """A deep copy, or an error with what to do."""
    try:
        return copy_of(model)
    except Exception as error:
        raise TraceError(
            f"{type(model).__name__} cannot be copied, so its graph cannot be proven "
            f"({type(error).__name__}: {error}); "
            "make it copyable (copy.deepcopy), or trace with verify=False"
        ) from error


def change(before: Tensor, after: Tensor) -> float:
    """max|after − before| / max|before|; infinite if the shapes or the non-finite values differ."""
    if before.shape != after.shape or before.dtype != after.dtype:
        return float("inf")
    if before.numel() == 0:
        return 0.0
    if not (before.is_floating_point() or before.is_complex()):
        return 0.0 if torch.equal(before, after) else float("inf")
    a, b = (torch.view_as_real(x.detach()) if x.is_complex() else x.detach() for x in (before, after))
    wide = torch.float64 if a.dtype == torch.float64 else torch.float32
    a, b = a.to(wide), b.to(wide)
    finite = torch.isfinite(a)
    if not torch.equal(finite, torch.isfinite(b)):
        return float("inf")
    a, b = a[finite], b[finite]
    if a.numel() == 0:
        return 0.0
    largest = float(a.abs().max())
    moved = float((a - b).abs().max())
    return moved / largest if largest > 0 else (0.0 if moved == 0 else float("inf"))


def largest_change(before: Sequence[Tensor], after: Sequence[Tensor]) -> float:
    """The largest `change` of any output."""
    if len(before) != len(after):
        return float("inf")
    return max((change(a, b) for a, b in zip(before, after, strict=True)), default=0.0)


def failing_groups(
    names: Sequence[str], measure: Callable[[Sequence[str]], float], tolerance: float, errors: dict[str, float]
) -> list[str]:
    """The names without which all others together stay within the tolerance; halves first, then one by one."""

    def search(part: Sequence[str]) -> list[str]:
        error = measure(part)
        if error <= tolerance:
            return []
        if len(part) <= 1:
            errors.update(dict.fromkeys(part, error))
            return list(part)
        middle = len(part) // 2
        return search(part[:middle]) + search(part[middle:])

    guilty = search(names)
    rest = [name for name in names if name not in guilty]
    if guilty and measure(rest) <= tolerance:
        return guilty
    kept: list[str] = []
    for name in rest:
        error = measure([*kept, name])
        if error <= tolerance:
            kept.append(name)
        else:
            errors[name] = error
            guilty.append(name)
    return guilty


__all__ = ["Bench", "change", "copied", "failing_groups", "largest_change"]
