"""`neurograft fuse`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from neurograft.command_line.arguments import (
    Fixed,
    InputShapes,
    check_folder,
    check_output,
    parse_options,
    parse_weights,
)
from neurograft.command_line.printing import print_lines
from neurograft.command_line.streaming import (
    Align,
    Base,
    MaxMemory,
    MemberFiles,
    Network,
    check_decided,
    names_folder,
    recipe_of,
)
from neurograft.errors import OptionError
from neurograft.options import check_seed

if TYPE_CHECKING:
    import torch
    from torch import nn

    from neurograft.applying.streaming import Streamed
    from neurograft.members.checks import Weights
    from neurograft.methods.method import Method
    from neurograft.operators.operator import Operator

CALIBRATION = 2000
"""Images that methods look at, a fifth of them apart for validation."""


def fuse(
    factory: Network,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The fused checkpoint: a .safetensors file, or a folder.")
    ],
    members: MemberFiles = [],  # noqa: B006 - typer reads the default, nothing writes to it
    inputs: InputShapes = [],  # noqa: B006 - typer reads the default, nothing writes to it
    method: Annotated[
        str | None,
        typer.Option(help="How to fuse: average, transplant, … or ties, slerp, …", show_default="transplant"),
    ] = None,
    base: Base = None,
    align: Align = None,
    weights: Annotated[
        str | None,
        typer.Option(
            help="One number per member, such as `0.7,0.3`; or JSON that gives patterns of tensors such numbers."
        ),
    ] = None,
    option: Annotated[
        list[str],
        typer.Option("--option", metavar="NAME=VALUE", help="An option of the method; repeat it for several."),
    ] = [],  # noqa: B006 - as above
    fixed: Fixed = [],  # noqa: B006 - as above
    calibration: Annotated[
        str | None,
        typer.Option(
            metavar="DATA",
            help="Images for recovery and for methods that look at activations: `digits`, or a folder as for `demo`.",
        ),
    ] = None,
    statistics: Annotated[
        list[Path],
        typer.Option(
            "--statistics",
            metavar="FILE",
            help="What `neurograft statistics` wrote for a member, once for each in their order: instead of data.",
        ),
    ] = [],  # noqa: B006 - as above
    recover: Annotated[
        str, typer.Option(help="Repair without training: refit, repair, batch_norm, none, or what suits.")
    ] = "auto",
    seed: Annotated[int, typer.Option(help="The only source of randomness.")] = 0,
    saved: Annotated[
        Path | None,
        typer.Option("--plan", help="Apply a plan that `neurograft plan --output` saved for these members."),
    ] = None,
    max_memory: MaxMemory = None,
    dtype: Annotated[str | None, typer.Option(help="Of the result: float32, bfloat16, float16 or float64.")] = None,
    shard_size: Annotated[str, typer.Option(metavar="SIZE", help="Bytes per file where a folder is written.")] = "5GB",
    force: Annotated[bool, typer.Option("--force", help="Replace the output file if it exists.")] = False,
) -> None:
    """Fuse checkpoints of one network into one checkpoint of the same size.

    The result is written completely or not at all; its metadata hold the members' SHA-256 hashes, the method, its
    options, the seed and the version. Model folders, and all with --max-memory, --dtype, --plan or a folder as
    output, are streamed: the network is traced without weights, and no member need fit into memory.

    Example: `neurograft fuse package.module:function a.safetensors b.safetensors -i 1x3x32x32 -o fused.safetensors`

    Example: `neurograft fuse llama-a llama-b --method ties --base llama --option density=0.5 -o llama-merged`

    Example: `neurograft fuse recipe.yaml -o llama-merged`
    """
    from neurograft.methods import choice_of

    decided = {"--method": method, "--option": option, "--weights": weights, "--fixed": fixed, "--align": align}
    if (recipe := recipe_of(factory, members)) is not None:
        more = {"--plan": saved, "--base": base, "--calibration": calibration, "--statistics": statistics}
        more["--recover"] = recover if recover != "auto" else None
        check_decided({**decided, **more}, "a recipe")
        _merge(*recipe, output, inputs, seed, max_memory, dtype, shard_size, force)
        return
    if saved is not None:
        check_decided(decided, "a saved plan")
    if names_folder(factory) or saved or max_memory or dtype or output.suffix != ".safetensors":
        if calibration is not None:
            raise OptionError("methods that look at activations need the members in memory; leave out --calibration")
        if statistics:
            raise OptionError("statistics are for recovery, which needs the members in memory; leave out --statistics")
        if recover not in ("auto", "none"):
            raise OptionError("recovery needs the members in memory; leave out --recover, or fuse without streaming")
        chosen, operator = choice_of(method or "transplant", parse_options(option), align)
        how = _How(chosen, operator, parse_weights(weights), tuple(fixed), seed, base)
        _stream(factory, members, output, inputs, how, saved, max_memory, dtype, shard_size, force)
        return
    from neurograft.applying.provenance import Provenance
    from neurograft.checkpoints import load_into, open_checkpoint, sha256, write_checkpoint
    from neurograft.command_line.arguments import build, example_inputs
    from neurograft.fusing import Fusion, Recovery, check_recovery
    from neurograft.member_statistics.statistics import Statistics
    from neurograft.members.members import Members
    from neurograft.plugins import load_images

    options, shares = parse_options(option), parse_weights(weights)
    choice_of(method or "transplant", options, align)
    recovery = None if recover == "none" else cast(Recovery, recover)
    check_recovery(recovery, calibration or statistics or None)
    check_output(output, force=force)
    examples = example_inputs(inputs, factory, seed)
    files = [open_checkpoint(path) for path in members]
    networks = [load_into(build(factory, seed), file) for file in files]
    _check_numbers(networks, members)
    images = None if calibration is None else load_images(calibration, samples=CALIBRATION).train.batches()
    ancestor = None if base is None else open_checkpoint(base)
    started = None if ancestor is None else load_into(build(factory, seed), ancestor)
    brought = [Statistics.load(path) for path in statistics] or None
    loaded = Members(
        networks, examples, weights=shares, base=started, fixed=fixed, calibration=images, statistics=brought
    )
    fusion = Fusion.of(loaded, method or "transplant", align=align, seed=seed, **options)
    plan = fusion.plan
    read = [*files, *([] if ancestor is None or plan.base is None else [ancestor])]
    hashes = {path: sha256(path) for file in read for path in file.files}
    for file in read:
        file.check_unchanged()
    record = Provenance.of(plan, files, factory, fixed, None if plan.base is None else ancestor).record(hashes)
    fusion = fusion.recovered(recovery)
    last = fusion.report.recovery
    found = {"calibration": calibration, "statistics": [sha256(path) for path in statistics]}
    found |= {"recovery": None if last is None else last.recovery}
    write_checkpoint(fusion.model, output, record | found)
    print_lines(str(plan))
    print_lines(str(fusion.report))
    print_lines(f"wrote {output}")


def _check_numbers(networks: Sequence["nn.Module"], paths: Sequence[Path]) -> None:
    """Refuse NaN and infinity with the name of the file."""
    from neurograft.members.checks import check_finite

    for network, path in zip(networks, paths, strict=True):
        for name, tensor in network.state_dict().items():
            check_finite(name, tensor, str(path))


@dataclass(frozen=True)
class _How:
    method: "Method"
    operator: "Operator | None"
    weights: "Weights | None"
    fixed: tuple[str, ...]
    seed: int
    base: Path | None


def _stream(
    factory: str,
    members: list[Path],
    output: Path,
    inputs: list[str],
    how: _How,
    saved: Path | None,
    max_memory: str | None,
    dtype: str | None,
    shard_size: str,
    force: bool,
) -> None:
    """Fuse files block by block."""
    from neurograft.applying.stored import fuse_stored
    from neurograft.applying.streaming import core_left_over
    from neurograft.command_line.streaming import open_members, progress_bar
    from neurograft.methods.planner import plan_members
    from neurograft.plans.saving import SavedPlan, load_plan

    limit, size, wanted = _checked(output, max_memory, shard_size, dtype, how.seed, force)
    opened = open_members(factory, members, inputs, how.fixed, how.seed, how.base).weighted(how.weights)
    with opened.hashing() as hashing, core_left_over():
        if saved is not None:
            decided = load_plan(saved)
        else:
            decided = SavedPlan(plan_members(opened, how.method, how.operator, seed=how.seed), opened.name, how.fixed)
        with progress_bar("fusing") as progress:
            done = fuse_stored(
                opened,
                decided,
                output,
                dtype=wanted,
                shard_size=size,
                max_memory=limit,
                progress=progress,
                hashing=hashing,
            )
    print_lines(str(decided.plan))
    _say_done(done)


def _merge(
    factory: str,
    recipe: Path,
    output: Path,
    inputs: list[str],
    seed: int,
    max_memory: str | None,
    dtype: str | None,
    shard_size: str,
    force: bool,
) -> None:
    """Follow a recipe."""
    from neurograft.command_line.arguments import build, example_inputs
    from neurograft.command_line.streaming import progress_bar
    from neurograft.merging.merge import merge
    from neurograft.merging.recipe import Recipe

    limit, size, wanted = _checked(output, max_memory, shard_size, dtype, seed, force)
    followed = Recipe.read(recipe)
    with progress_bar("merging") as progress:
        done = merge(
            followed,
            output,
            build=(lambda: build(factory, seed)) if factory else None,
            name=factory,
            example_inputs=example_inputs(inputs, factory, seed) if factory or inputs else None,
            dtype=wanted,
            seed=seed,
            max_memory=limit,
            shard_size=size,
            progress=progress,
        )
    print_lines(f"{len(followed.members)} members combined by {followed.operator}")
    _say_done(done)


def _checked(
    output: Path, max_memory: str | None, shard_size: str, dtype: str | None, seed: int, force: bool
) -> "tuple[int | None, int | None, torch.dtype | None]":
    """The limits and the dtype, after everything was checked that can be before the work."""
    from neurograft.command_line.streaming import parse_dtype, parse_size

    check_seed(seed, "--seed")
    limits = parse_size(max_memory, "--max-memory"), parse_size(shard_size, "--shard-size")
    wanted = parse_dtype(dtype)
    if output.suffix == ".safetensors":
        check_output(output, force=force)
    else:
        check_folder(output)
    return *limits, wanted


def _say_done(done: "Streamed") -> None:
    from neurograft.checkpoints.writing import size_text

    speed = size_text((done.bytes_read + done.bytes_written) / max(done.seconds, 1e-9))
    print_lines(f"wrote {done.output}: {size_text(done.bytes_written)} in {done.seconds:.1f} s ({speed}/s)")
