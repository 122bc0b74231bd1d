"""Fisher-weighted averaging: each entry weighted by how much a member's outputs depend on it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from neurograft.inputs import Batches, call_on_batch, device_of, first_tensor, split_labels, to_device
from neurograft.operators.block import Block
from neurograft.operators.operator import Operator, weighted_sum
from neurograft.operators.settings import EachSetting, Range, Setting, per_member, shared
from neurograft.options import check_count
from neurograft.preserve_state import preserve_state


@dataclass(frozen=True, kw_only=True)
class Fisher(Operator):
    """W_fused = Σ_m w_m (F_m + ε) W_m / Σ_m w_m (F_m + ε), entry by entry, ε a share of the mean of all F_m.

    F_m is the diagonal of member m's Fisher information, the mean over samples of (∂ log p(y | x) / ∂W)² with outputs y
    drawn from the member itself, so that no labels are needed. Buffers are averaged.

    Attributes:
        weights: one number per member; default the members' weights.
        outputs: "classes" if the last dimension of the outputs holds logits, "numbers" if outputs are the means of
            normal distributions.
        samples: how many samples are looked at, one backward pass for each.
        floor: ε.

    Raises:
        OptionError: values out of range, or no calibration batches.

    Source: Matena & Raffel 2022, arXiv:2111.09832, sections 3 and 4.
    """

    name: ClassVar[str] = "fisher"
    whole: ClassVar[bool] = True
    needs_data: ClassVar[bool] = True

    weights: EachSetting | None = per_member(None)
    outputs: Literal["classes", "numbers"] = "classes"
    samples: int = 256
    floor: Setting = shared(1e-6, Range(0, open=True))

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("samples", self.samples)

    def combine(self, block: Block) -> Tensor:
        """The mean, weighted by what was measured."""
        weights = block.values(self.weights, 1.0)
        if not block.statistics:
            return weighted_sum(block.members, [weight / sum(weights) for weight in weights])
        fisher = [found.to(block.members[0]) for found in block.statistics]
        floor = block.value(self.floor, 1e-6) * torch.stack(fisher).mean()
        floor = floor if float(floor) > 0 else torch.ones_like(floor)
        shares = torch.stack([(found + floor) * weight for found, weight in zip(fisher, weights, strict=True)])
        return (shares * torch.stack(list(block.members))).sum(0) / shares.sum(0)

    def measured(self, networks: Sequence[nn.Module], batches: Batches, seed: int) -> list[Mapping[str, Tensor]]:
        """The diagonal of every network's Fisher information, by parameter."""
        return [self._diagonal(network, batches, seed) for network in networks]

    def _diagonal(self, network: nn.Module, batches: Batches, seed: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        parameters = dict(network.named_parameters())
        for parameter in parameters.values():
            parameter.requires_grad_(parameter.is_floating_point())
        own = {name: p for name, p in parameters.items() if p.requires_grad}
        found = {name: torch.zeros_like(p, dtype=torch.double) for name, p in own.items()}
        count = 0
        with preserve_state(network), torch.enable_grad():
            network.eval()
            for number, batch in enumerate(batches):
                inputs = to_device(split_labels(batch)[0], device_of(network))
                outputs = first_tensor(call_on_batch(network, inputs, f"batches[{number}]"))
                for output in outputs[: self.samples - count]:
                    chance = self._log_likelihood(output, generator)
                    slopes = torch.autograd.grad(chance, list(own.values()), retain_graph=True, allow_unused=True)
                    for total, slope in zip(found.values(), slopes, strict=True):
                        if slope is not None:
                            total += slope.double().square()
                    count += 1
                if count == self.samples:
                    break
        return {name: total / max(1, count) for name, total in found.items()}

    def _log_likelihood(self, output: Tensor, generator: torch.Generator) -> Tensor:
        """Of outputs that are drawn from the distribution that one sample's output is."""
        if self.outputs == "numbers":
            noise = torch.randn(output.shape, generator=generator).to(output)
            return (noise * output).sum()  # its slope is that of −|y − output|²/2 at y = output + noise
        logs = output.reshape(-1, output.shape[-1]).log_softmax(-1)
        drawn = torch.multinomial(logs.detach().exp().cpu(), 1, generator=generator).to(logs.device)
        return logs.gather(1, drawn).sum()
