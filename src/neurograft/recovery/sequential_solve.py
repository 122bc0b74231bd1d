"""Settle layers one after the other while the fused network runs: regressions, scales, BatchNorm statistics."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor, nn

from neurograft.recovery.fitting import Fit
from neurograft.recovery.rescaling import RescaleFit
from neurograft.recovery.residual_branches import Addition, BranchPaths
from neurograft.recovery.samples import Sampler, Samples, check_finite_output, output_rows, rows_shape
from neurograft.recovery.statistics import NormFit
from neurograft.recovery.watching import Contraction, Norm, Stop, UseKey, Watcher, run
from neurograft.tracing.graph import NeuronGraph

Item: TypeAlias = Fit | NormFit | RescaleFit
FAINT = 1e-3
"""A channel whose scale up to the residual stream is below this share of the largest cannot correct the stream."""


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Run a copy of ours in eval mode; its modules get their modes back, what was written into it stays."""
    modes = {module: module.training for module in model.modules()}
    try:
        model.eval()
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@dataclass(eq=False)
class SolvePlan:
    """What is to be settled in which order, on what.

    With one batch each item is settled as the run reaches it; with several, each pass gathers for the next item
    (or for all next items that read the same activation) and settles it at its end.
    """

    model: nn.Module
    graph: NeuronGraph
    samples: Samples
    sampler: Sampler
    pending: list[Item]

    @property
    def at_once(self) -> bool:
        """Whether all samples are one batch."""
        return len(self.samples.batches) == 1

    def next_items(self) -> list[Item]:
        """What the next pass can settle."""
        if self.at_once:
            return list(self.pending)
        first = self.pending[0]
        items: list[Item] = [first]
        if isinstance(first, Fit) and not first.place.stream:
            for item in self.pending[1:]:
                if not isinstance(item, Fit) or item.place.stream or item.place.reads != first.place.reads:
                    break
                items.append(item)
        return items


def settle(work: SolvePlan) -> int:
    """Settle everything that is pending, in place; how many passes it took."""
    passes = 0
    while work.pending:
        items = work.next_items()
        passes += 1
        last: dict[UseKey, Contraction] = {}
        norms: dict[str, Norm] = {}
        for number, batch in enumerate(work.samples.batches):
            fitter = _Fitter(work, items, number, last, norms)
            watcher = Watcher(fitter.before, fitter.after, fitter.norm, fitter.trails.about, fitter.trails.done)
            run(work.model, work.graph, batch, watcher, what=f"batches[{number}], the fused network")
        if work.at_once:
            left = fitter.left
            if len(left) == len(items):
                left = left[1:]  # the run did not reach it
            work.pending = left
            continue
        for item in items:
            _settle_gathered(item, last, norms)
        work.pending = work.pending[len(items) :]
    return passes


def _settle_gathered(item: Item, last: dict[UseKey, Contraction], norms: dict[str, Norm]) -> None:
    with torch.no_grad():
        if isinstance(item, Fit) and item.regression is not None:
            item.solve(last[item.name])
        elif isinstance(item, RescaleFit) and item.statistics.mean is not None:
            item.apply(last[item.name])
        elif isinstance(item, NormFit) and item.statistics.mean is not None:
            item.write(norms[item.name])


class _Fitter:
    """One run of the fused network over one batch."""

    def __init__(
        self,
        work: SolvePlan,
        items: Sequence[Item],
        batch: int,
        last: dict[UseKey, Contraction],
        norms: dict[str, Norm],
    ) -> None:
        followed = {i.place.key for i in items if isinstance(i, Fit) and i.place.stream}
        self.trails = BranchPaths(work.model, followed, self.adding)
        self.work, self.batch, self.last, self.norms_met = work, batch, last, norms
        self.left = list(items)

    def turn(self, name: UseKey | str) -> Item | None:
        """The item of this name, if it may be settled now."""
        if self.work.at_once:
            return self.left[0] if self.left and self.left[0].name == name else None
        return next((item for item in self.left if item.name == name), None)

    def finished(self, item: Item) -> None:
        """Go on to the next item; end the run with the last one."""
        self.left.remove(item)
        if not self.left:
            raise Stop

    def before(self, contraction: Contraction) -> None:
        item = self.turn(contraction.key)
        if not isinstance(item, Fit) or item.place.stream:
            return
        chosen = self.chosen(item, contraction)
        self.gather(item, contraction, item.targets[self.batch], chosen)
        if self.work.at_once:
            item.solve(contraction)
        self.finished(item)

    def after(self, contraction: Contraction, output: Tensor) -> Tensor | None:
        item = self.turn(contraction.key)
        if not isinstance(item, RescaleFit):
            self.trails.start(contraction, output)
            return None
        check_finite_output(output, contraction.tensor, f"the fused network, batches[{self.batch}]")
        item.statistics.add(output)
        self.last[contraction.key] = contraction
        if self.work.at_once:
            item.apply(contraction)
            output = contraction.again()
        self.finished(item)
        return output

    def adding(self, addition: Addition) -> None:
        item, trail = self.turn(addition.key), addition.trail
        if not isinstance(item, Fit) or not item.place.stream:
            return
        contraction = trail.contraction
        chosen = self.chosen(item, contraction)
        self.gather(item, contraction, self.left_for(item, addition, chosen), chosen)
        if self.work.at_once and item.solve(contraction):
            addition.branch.copy_(trail.forth(contraction.again()))
        self.trails.drop(contraction.key)
        self.finished(item)

    def left_for(self, item: Fit, addition: Addition, chosen: Tensor) -> Tensor:
        """What the stream's planned rows leave for the layer to make, taken back through the norms between."""
        trail, count = addition.trail, self.work.samples.counts[self.batch]
        stream = output_rows(trail.back(addition.other), chosen, count)
        wanted = item.targets[self.batch].to(stream) - stream
        if trail.shift is not None:
            wanted = wanted - trail.shift
        if trail.scale is None:
            return wanted
        scale = trail.scale.to(wanted)
        faint = scale.abs() < FAINT * scale.abs().max()
        wanted = wanted / torch.where(faint, torch.ones_like(scale), scale)
        if not bool(faint.any()):
            return wanted
        return torch.where(faint, output_rows(trail.contraction.again(), chosen, count), wanted)

    def norm(self, norm: Norm) -> None:
        item = self.turn(norm.name)
        if not isinstance(item, NormFit):
            return
        item.statistics.add(norm.input)
        self.norms_met[norm.name] = norm
        if self.work.at_once:
            item.write(norm)
        self.finished(item)

    def chosen(self, item: Fit, contraction: Contraction) -> Tensor:
        """The positions of every sample that the layer is solved from."""
        place, geometry, x = item.place, contraction.geometry, contraction.input
        count = self.work.samples.counts[self.batch]
        if geometry is not None:
            n, available = x.shape[0], len(geometry.table(x.shape[2:]))
        else:
            n, available = rows_shape(x, count)
        return self.work.sampler.choose(place.number, self.batch, n, available, place.inputs)

    def gather(self, item: Fit, contraction: Contraction, targets: Tensor, chosen: Tensor) -> None:
        """Add this batch's rows to the item's regression."""
        check_finite_output(contraction.input, contraction.tensor, f"the fused network, batches[{self.batch}]")
        item.add(contraction, targets, chosen, self.work.samples.groups_of()[self.batch])
        self.last[item.name] = contraction
