"""Samples that no layer is solved from: they decide whether a refitted network is nearer to the members than before."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import nan

import torch
from torch import Tensor, nn

from neurograft.inputs import Inputs, call_on_batch, device_of, first_tensor, to_device
from neurograft.members.sample_dimension import positions_of
from neurograft.plans.plan import FusionPlan
from neurograft.preserve_state import preserve_state
from neurograft.recovery.samples import Samples

EVERY = 5
"""One sample in so many is held out, fewer where that makes more than `MOST`."""
MOST = 100


def held_out(samples: Samples) -> tuple[Samples, Samples | None]:
    """Take the samples apart into those to solve from and those to judge by; nobody judges fewer than `EVERY` samples.

    Where groups are named they are held out, one in so many, and all samples of a group go one way. Batches whose
    tensors do not all have one row per sample go one way as a whole.

    Example:
        >>> solve, judges = held_out(Samples((torch.arange(12.0),), (12,)))
        >>> solve.batches[0].tolist(), judges.batches[0].tolist()
        ([0.0, 1.0, 2.0, 3.0, 5.0, 6.0, 7.0, 8.0, 10.0, 11.0], [4.0, 9.0])
    """
    groups = samples.groups_of()
    every = max(EVERY, -(-(max(int(part.max()) for part in groups) + 1) // MOST))
    solve: list[tuple[Inputs, Tensor]] = []
    judge: list[tuple[Inputs, Tensor]] = []
    for batch, of in zip(samples.batches, groups, strict=True):
        chosen = of % every == every - 1
        if samples.dim is None or not samples.can_be_cut(batch, len(of)):
            (judge if bool(chosen.any()) and solve and len(of) < samples.total // 2 else solve).append((batch, of))
            continue
        for part, rows in ((solve, ~chosen), (judge, chosen)):
            if bool(rows.any()):
                part.append((positions_of(batch, samples.dim, rows.nonzero().flatten()), of[rows]))
    if not judge or not solve:
        return samples, None
    return _among(samples, solve), _among(samples, judge)


def _among(samples: Samples, parts: Sequence[tuple[Inputs, Tensor]]) -> Samples:
    groups = None if samples.groups is None else torch.cat([of for _, of in parts])
    return samples.of([(batch, len(of)) for batch, of in parts]).grouped(groups)


@dataclass(frozen=True, eq=False)
class HoldOut:
    """What is wanted on the held-out samples, per batch the members' weighted mean output or the target's."""

    samples: Samples
    wanted: tuple[Tensor, ...]

    @classmethod
    def of(
        cls, samples: Samples, plan: FusionPlan, models: Sequence[nn.Module], target: nn.Module | None = None
    ) -> "HoldOut":
        """Run every member once; with a target, what that returns is wanted."""
        if target is not None:
            return cls(samples, tuple(_outputs(target, samples, "the target")))
        wanted: list[Tensor] = []
        for m, (model, weight) in enumerate(zip(models, plan.weights, strict=True)):
            for number, output in enumerate(_outputs(model, samples, f"member {m}")):
                if m == 0:
                    wanted.append(output * weight)
                else:
                    wanted[number] = wanted[number] + (output * weight).to(wanted[number].device)
        return cls(samples, tuple(wanted))

    def error(self, model: nn.Module) -> float:
        """|y − t| / |t| of the network's outputs; nan where there is nothing to compare, as among integers."""
        away = size = 0.0
        for output, wanted in zip(_outputs(model, self.samples, "the fused network"), self.wanted, strict=True):
            if output.shape != wanted.shape:
                return nan
            there = wanted.to(output.device)
            known = torch.isfinite(there)
            away += float((output - there)[known].square().sum())
            size += float(there[known].square().sum())
        return float((away / size) ** 0.5) if size > 0 else nan


def _outputs(model: nn.Module, samples: Samples, who: str) -> list[Tensor]:
    """The logits, or the first tensor, of every batch, float64."""
    found = []
    with preserve_state(model), torch.no_grad():
        for number, batch in enumerate(samples.batches):
            outputs = call_on_batch(model, to_device(batch, device_of(model)), f"batches[{number}], {who}")
            tensor = first_tensor(outputs)
            found.append(tensor.double() if tensor.is_floating_point() else tensor[:0].double())
    return found
