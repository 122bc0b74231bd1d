"""`merge_adapters`: several LoRA adapters of one base become one, or are merged into the base, as products."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from neurograft.applying.huggingface import carried, is_model_folder
from neurograft.applying.provenance import Provenance
from neurograft.checkpoints.atomic import whole
from neurograft.checkpoints.hashing import Hashing
from neurograft.checkpoints.reading import Checkpoint, open_checkpoint
from neurograft.checkpoints.writing import PROVENANCE, TensorWriter, nbytes, shards, write_index
from neurograft.errors import BadWeights, MembersDiffer, OptionError, PlanError
from neurograft.merging.adapters import CONFIG, FILES, PREFIX, Adapter, Factors, open_adapter
from neurograft.merging.factoring import Factored, joined, of_matrix, padded, truncated
from neurograft.methods import operator_of
from neurograft.operators.block import Block
from neurograft.operators.depth import depths
from neurograft.operators.linear import Linear
from neurograft.operators.operator import Operator
from neurograft.operators.task_arithmetic import TaskArithmetic
from neurograft.options import check_count, check_seed
from neurograft.preserve_state import keeps_random_state

Rank: TypeAlias = int | Literal["exact"] | None
"""How many rows A has: a number, "exact" for the sum of the adapters' ranks, None for the largest of them."""


@dataclass(frozen=True)
class MergedAdapters:
    """What was written; prints as text.

    Attributes:
        output: where it lies.
        rank: of the merged adapter; None if it was merged into the base.
        errors: module -> how much of the merged product is lost by its rank, |M − B A| / |M|.
    """

    output: Path
    rank: int | None
    errors: Mapping[str, float]

    def __str__(self) -> str:
        if self.rank is None:
            return f"{len(self.errors)} products merged into the base: {self.output}"
        worst = max(self.errors, key=self.errors.__getitem__)
        mean = sum(self.errors.values()) / len(self.errors)
        lost = (
            "nothing"
            if self.errors[worst] < 1e-6
            else f"{mean:.1%} on the mean and {self.errors[worst]:.1%} of {worst}"
        )
        return f"{len(self.errors)} products of rank {self.rank}: their rank loses {lost}: {self.output}"


@keeps_random_state
def merge_adapters(
    adapters: Sequence[str | Path],
    output: str | Path,
    method: str | Operator = "linear",
    *,
    base: str | Path | None = None,
    rank: Rank = None,
    into_base: bool = False,
    seed: int = 0,
    **options: Any,
) -> MergedAdapters:
    """Merge adapters of one base by what they add to its weights, s_m B_m A_m, not by their factors.

    The mean of factors is not the factors of the mean: mean(B_m) mean(A_m) ≠ mean(B_m A_m). Here an operator combines
    the products (a module that an adapter does not have counts as zero there), and the result is decomposed again.
    Biases and modules that adapters hold as wholes are averaged with equal weights.

    Args:
        adapters: at least two folders as PEFT writes them: LoRA, rsLoRA or DoRA, of any ranks.
        output: a folder that is new or empty.
        method: an operator, such as `ng.Ties(density=0.2)`, or its name. What members have changed is here the
            products themselves, so that none needs a base.
        base: the folder or checkpoint of the base, for DoRA and `into_base`.
        rank: of the merged adapter. Sums (`linear`, `task_arithmetic`) may be "exact", with the factors side by side;
            everything else is truncated to the largest rank of the adapters, or to a number, by singular values.
        into_base: write the base with the merged products added instead of an adapter.
        seed: of random operators.
        options: of an operator that is given by name.

    Raises:
        OptionError: an unknown method or option, an impossible rank, or no base where one is needed.
        PlanError: fewer than two adapters, other kinds of adapters, or adapters of different bases.
        MembersDiffer: products of different shapes.
        BadWeights: NaN or infinity.
        CheckpointError: a folder cannot be read or written.

    Source: Hu et al. 2022, arXiv:2106.09685, section 4.
    """
    operator = method if isinstance(method, Operator) else operator_of(method, options)
    if isinstance(method, Operator) and options:
        raise OptionError(f"{', '.join(options)}: options of an operator are given to {type(method).__name__}")
    check_seed(seed)
    merging = _Merging.of(adapters, operator, base, rank, into_base, seed)
    return merging.into_base(Path(output)) if into_base else merging.adapter(Path(output))


@dataclass(frozen=True, eq=False)
class _Merging:
    """Adapters that fit together, and what is done to them."""

    adapters: tuple[Adapter, ...]
    operator: Operator
    base: Checkpoint | None
    rank: Rank
    seed: int
    modules: tuple[str, ...]
    depths: Mapping[str, float]

    @classmethod
    def of(
        cls,
        folders: Sequence[str | Path],
        operator: Operator,
        base: str | Path | None,
        rank: Rank,
        into_base: bool,
        seed: int,
    ) -> "_Merging":
        if isinstance(folders, (str, Path)) or len(folders) < 2:
            raise PlanError("merging needs a list of at least two adapters")
        if operator.needs_data:
            raise OptionError(f"{operator.name} measures networks; adapters are merged by what is in their files alone")
        sums = isinstance(operator, (Linear, TaskArithmetic))
        if rank == "exact" and not sums:
            raise OptionError(f"{operator.name} makes no sum of products, which would have a small rank; give a number")
        if rank not in (None, "exact"):
            check_count("rank", rank)
        if into_base and rank is not None:
            raise OptionError("a base has no rank: leave out rank or into_base")
        adapters = tuple(open_adapter(Path(folder)) for folder in folders)
        _check_bases(adapters, base)
        needing = next((a for a in adapters for f in a.factors.values() if f.magnitude is not None), None)
        if base is None and (into_base or needing is not None):
            why = "the adapters are merged into it" if needing is None else f"{needing.path} has magnitudes (DoRA)"
            raise OptionError(f"{why}: give the base, base= (on the command line --base)")
        modules = tuple(dict.fromkeys(module for adapter in adapters for module in adapter.factors))
        names = [f"{module}.weight" for module in modules]
        opened = None if base is None else open_checkpoint(Path(base))
        made = cls(adapters, operator, opened, rank, seed, modules, depths(names))
        operator.check(len(adapters), names, made.depths)
        made._check_shapes()
        return made

    def _check_shapes(self) -> None:
        for module in self.modules:
            first, *others = self._factors(module)
            for other in others:
                if (other.shape, other.kind, other.transposed) != (first.shape, first.kind, first.transposed):
                    raise MembersDiffer(f"{module}: the products have the shapes {first.shape} and {other.shape}")
            if self.base is not None:
                shape = tuple(first.oriented(self._weight(module)).shape)
                if shape != first.shape:
                    raise MembersDiffer(
                        f"{module}: the products have the shape {first.shape}, the base's weight {shape}"
                    )
        for name in {name for adapter in self.adapters for name in adapter.others}:
            own = [adapter.others.get(name) for adapter in self.adapters]
            if any(x is None or own[0] is None or x.shape != own[0].shape for x in own):
                raise MembersDiffer(f"{name} is not in all adapters, or of different shapes: it cannot be averaged")

    def _factors(self, module: str) -> list[Factors]:
        return [adapter.factors[module] for adapter in self.adapters if module in adapter.factors]

    def _stored(self, module: str) -> str:
        """The base's name of an adapted weight."""
        assert self.base is not None
        name = f"{module}.weight"
        if name in self.base.tensors:
            return name
        ends = [stored for stored in self.base.tensors if stored.endswith(f".{name}") or name.endswith(f".{stored}")]
        if len(ends) != 1:
            raise MembersDiffer(f"{self.base.path} has no weight {name}, which the adapters add to")
        return ends[0]

    def _weight(self, module: str) -> Tensor:
        assert self.base is not None
        return self.base.tensors[self._stored(module)]

    def _combined(self, module: str) -> Tensor:
        """What the merged adapter adds to a weight, as `(outputs, inputs, …)`."""
        base = None if self.base is None else self._weight(module)
        shape = self._factors(module)[0].shape
        changes = []
        for adapter in self.adapters:
            own = adapter.factors.get(module)
            change = torch.zeros(shape) if own is None else own.change(base)
            if not bool(torch.isfinite(change).all()):
                raise BadWeights(f"{module} of {adapter.path} holds NaN or infinity")
            changes.append(change)
        return self.operator.combine(self._block(module, changes))

    def _block(self, module: str, changes: Sequence[Tensor]) -> Block:
        name, count = f"{module}.weight", len(self.adapters)
        zero = torch.zeros_like(changes[0]) if self.operator.needs_base else None
        equal = (1 / count,) * count
        return Block(name, changes, equal, zero, depth=self.depths.get(name, 0.0), seed=self.seed)

    def _summed(self, module: str) -> Factored | None:
        """The factors side by side, for operators that add products up; None for others and for magnitudes."""
        if not isinstance(self.operator, (Linear, TaskArithmetic)):
            return None
        own = {m: adapter.factors[module] for m, adapter in enumerate(self.adapters) if module in adapter.factors}
        if any(factors.magnitude is not None for factors in own.values()):
            return None
        block = self._block(module, [torch.zeros(())] * len(self.adapters))
        weights = list(block.values(self.operator.weights, 1.0))
        if self.operator.normalize:
            weights = [weight / sum(weights) for weight in weights]
        scale = block.value(self.operator.scale, 1.0) if isinstance(self.operator, TaskArithmetic) else 1.0
        return joined([own[m].scaled for m in own], [scale * weights[m] for m in own])

    def _factored(self, module: str, rank: int) -> Factored:
        summed = self._summed(module)
        if summed is None:
            if self.rank == "exact":
                raise OptionError(f"{module} has magnitudes (DoRA): its change has no small rank; give a number")
            return of_matrix(self._combined(module).flatten(1), rank)
        if not bool(torch.isfinite(summed.a).all() and torch.isfinite(summed.b).all()):
            raise BadWeights(f"{module} of an adapter holds NaN or infinity")
        if summed.a.shape[0] <= rank:
            return padded(summed, rank)
        return truncated(summed.b, summed.a, rank)

    def adapter(self, output: Path) -> MergedAdapters:
        """Write the merged adapter."""
        ranks = [sum(f.rank for f in self._factors(module)) for module in self.modules]
        largest = max(factors.rank for adapter in self.adapters for factors in adapter.factors.values())
        rank = max(ranks) if self.rank == "exact" else self.rank or largest
        tensors: dict[str, Tensor] = {}
        errors: dict[str, float] = {}
        for module in self.modules:
            found, own = self._factored(module, rank), self._factors(module)[0]
            errors[module] = found.error
            a, b = found.a.reshape(rank, *own.a.shape[1:]), found.b.reshape(-1, rank, *(1,) * (own.b.dim() - 2))
            kind, end = ("lora_embedding_", "") if own.kind == "embedding" else ("lora_", ".weight")
            tensors[f"{PREFIX}{module}.{kind}A{end}"] = a.to(own.a.dtype).contiguous()
            tensors[f"{PREFIX}{module}.{kind}B{end}"] = b.to(own.b.dtype).contiguous()
        tensors |= {name: self._mean(name) for name in self.adapters[0].others}
        specs = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
        (shard,) = shards(specs, sum(map(nbytes, specs.values())) + 1)
        with whole(output, folder=True) as part:
            hashes, provenance = self._hashes(), self._provenance()
            with TensorWriter(part / FILES[0], shard.tensors, self._metadata(provenance, hashes)) as writer:
                for name in shard.tensors:
                    writer.write(name, tensors[name])
            (part / CONFIG).write_text(json.dumps(self._config(rank), indent=2) + "\n", encoding="utf-8")
            (part / "README.md").write_text(provenance.card(hashes), encoding="utf-8")
        return MergedAdapters(output, rank, errors)

    def into_base(self, output: Path) -> MergedAdapters:
        """Write the base with the merged products added to it."""
        assert self.base is not None
        adapted = {self._stored(module): module for module in self.modules}
        others = {self._base_name(name): name for name in self.adapters[0].others}
        specs = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in self.base.tensors.items()}
        parts = shards(specs, 5_000_000_000)
        with whole(output, folder=True) as part:
            hashes, provenance = self._hashes(), self._provenance()
            for shard in parts:
                metadata = self._metadata(provenance, hashes)
                with TensorWriter(part / shard.file, shard.tensors, metadata) as writer:
                    for name, (dtype, _) in shard.tensors.items():
                        tensor = self._mean(others[name]) if name in others else self.base.tensors[name]
                        if name in adapted:
                            own = self._factors(adapted[name])[0]
                            change = own.oriented(self._combined(adapted[name]))
                            tensor = tensor.to(change.dtype) + change
                        writer.write(name, tensor.to(dtype).contiguous())
            write_index(part, parts)
            if is_model_folder(self.base.path):
                for file in carried(self.base.path):
                    (part / file.name).write_bytes(file.read_bytes())
            (part / "README.md").write_text(provenance.card(hashes), encoding="utf-8")
        return MergedAdapters(output, None, dict.fromkeys(self.modules, 0.0))

    def _base_name(self, name: str) -> str:
        assert self.base is not None
        found = name.removeprefix(PREFIX).replace(".base_layer.", ".")  # PEFT saves adapted embeddings along
        if found not in self.base.tensors:
            raise MembersDiffer(f"{self.base.path} has no {found}, which the adapters replace")
        return found

    def _mean(self, name: str) -> Tensor:
        own = [adapter.others[name] for adapter in self.adapters]
        if not own[0].dtype.is_floating_point:
            return own[0].clone()
        wide = torch.promote_types(own[0].dtype, torch.float32)
        return torch.stack([tensor.to(wide) for tensor in own]).mean(0).to(own[0].dtype)

    def _config(self, rank: int) -> dict[str, Any]:
        """The first adapter's configuration with what the merged one is."""
        configs = [adapter.config for adapter in self.adapters]
        targets = [config.get("target_modules") for config in configs]
        saved = sorted({name for config in configs for name in config.get("modules_to_save") or ()})
        return {
            **configs[0],
            "r": rank,
            "lora_alpha": rank,
            "use_rslora": False,
            "use_dora": False,
            "rank_pattern": {},
            "alpha_pattern": {},
            "target_modules": targets[0] if all(own == targets[0] for own in targets) else sorted(self.modules),
            "modules_to_save": saved or None,
            "inference_mode": True,
        }

    def _provenance(self) -> Provenance:
        count = len(self.adapters)
        members = [adapter.checkpoint for adapter in self.adapters]
        return Provenance(
            self.operator.name,
            self.operator.options,
            (1 / count,) * count,
            self.seed,
            "peft:LORA",
            members,
            (),
            self.base,
        )

    def _hashes(self) -> Mapping[Path, str]:
        files = [adapter.checkpoint for adapter in self.adapters] + ([] if self.base is None else [self.base])
        with Hashing([file.files for file in files]) as hashing:
            found = hashing.results()
        for file in files:
            file.check_unchanged()
        return found

    def _metadata(self, provenance: Provenance, hashes: Mapping[Path, str]) -> dict[str, str]:
        return {PROVENANCE: json.dumps(provenance.record(hashes), sort_keys=True), "format": "pt"}


def _check_bases(adapters: Sequence[Adapter], base: str | Path | None) -> None:
    """Refuse adapters whose configurations name different bases, unless the base is given.

    Raises:
        PlanError: names both.
    """
    names = [adapter.config.get("base_model_name_or_path") for adapter in adapters]
    for adapter, name in zip(adapters, names, strict=True):
        if base is None and name != names[0]:
            raise PlanError(
                f"{adapter.path} is an adapter of {name!r:.200}, {adapters[0].path} of {names[0]!r:.200}; if these are "
                "one model, give it as base= (on the command line --base)"
            )
