"""Where a fused checkpoint comes from: the record in its metadata, and the model card for people."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from neurograft._version import __version__
from neurograft.checkpoints.reading import Checkpoint
from neurograft.escaping import code_block, markdown, markdown_code
from neurograft.operators.settings import Gradient
from neurograft.plans.plan import FusionPlan

UNKNOWN = "0" * 64  # stands for a hash until the file was read


@dataclass(frozen=True)
class Provenance:
    """What is recorded of a fusion: everything that decides the result.

    `network` says how the network is built: a factory `module:function` or a class of transformers; `recipe` is the
    text of the recipe that was followed.
    """

    method: str
    options: Mapping[str, Any]
    weights: tuple[float, ...]
    seed: int
    network: str
    members: Sequence[Checkpoint]
    fixed: tuple[str, ...] = ()
    base: Checkpoint | None = None
    recipe: str = ""

    @classmethod
    def of(
        cls,
        plan: FusionPlan,
        members: Sequence[Checkpoint],
        network: str,
        fixed: Sequence[str] = (),
        base: Checkpoint | None = None,
        recipe: str = "",
    ) -> "Provenance":
        """The record of a plan that is applied to checkpoints; `base` is the ancestor if the plan reads it."""
        decided = (plan.method, plan.options, plan.weights, plan.seed)
        return cls(*decided, network, tuple(members), tuple(fixed), base, recipe)

    def record(self, hashes: Mapping[Path, str]) -> dict[str, Any]:
        """Everything as JSON values; a file without a hash gets 64 zeros, so that all records have one length."""
        return {
            "version": __version__,
            "torch": torch.__version__,
            "network": self.network,
            "method": self.method,
            "options": {name: _plain(value) for name, value in self.options.items()},
            "weights": list(self.weights),
            "fixed": list(self.fixed),
            "seed": self.seed,
            "members": [_source(member, hashes) for member in self.members],
            **({} if self.base is None else {"base": _source(self.base, hashes)}),
            **({"recipe": self.recipe} if self.recipe else {}),
        }

    @property
    def _listed(self) -> Sequence[float]:
        """One weight per member for people: an operator's own if it has one number for each."""
        own = self.options.get("weights")
        plain = isinstance(own, (list, tuple)) and all(isinstance(weight, (int, float)) for weight in own)
        return own if plain and own is not None else self.weights

    def card(self, hashes: Mapping[Path, str], notes: Sequence[str] = ()) -> str:
        """The model card (README.md of a folder), with the record in it.

        Example:
            >>> print(Provenance("average", {}, (1.0,), 0, "transformers:GPT2LMHeadModel", ()).card({})[:61])
            ---
            library_name: transformers
            tags:
            - merge
            - neurograft
            ---
        """
        record = self.record(hashes)
        built = self.network.partition(":")[0]
        library = built if built in ("transformers", "peft") else "pytorch"
        options = markdown_code(", ".join(f"{name}={value!r}" for name, value in self.options.items()) or "none")
        lines = [
            "---",
            f"library_name: {library}",
            "tags:",
            "- merge",
            "- neurograft",
            "---",
            "",
            f"# Fused network ({markdown(self.method)})",
            "",
            f"One network made of {len(self.members)} by neurograft {__version__}; nothing was trained.",
            "",
            f"- network: {markdown_code(self.network)}",
            f"- method: {markdown_code(self.method)}, options: {options}, seed {self.seed}",
            f"- versions: neurograft {__version__}, torch {torch.__version__}",
            "",
            "| member | weight | file | SHA-256 |",
            "| --- | --- | --- | --- |",
        ]
        sources = list(zip(record["members"], [f"{weight:.4g}" for weight in self._listed], strict=False))
        sources += [(record["base"], "base")] if "base" in record else []
        for source, weight in sources:
            for file, digest in source["sha256"].items():
                lines.append(f"| {markdown(source['name'])} | {weight} | {markdown(file)} | `{digest}` |")
        lines += ["", *(f"> {markdown(note)}\n" for note in notes)]
        if self.recipe:
            lines += ["## Recipe", "", *code_block(self.recipe, "yaml"), ""]
        lines += [*code_block(json.dumps(record, indent=2), "json"), ""]
        return "\n".join(lines)


def _plain(value: Any) -> Any:
    """What JSON can hold of an option."""
    if isinstance(value, Gradient):
        return {"gradient": list(value.values)}
    if isinstance(value, Mapping):
        return {name: _plain(inner) for name, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, (list, tuple)) else value


def _source(source: Checkpoint, hashes: Mapping[Path, str]) -> dict[str, Any]:
    return {"name": source.path.name, "sha256": {file.name: hashes.get(file, UNKNOWN) for file in source.files}}
