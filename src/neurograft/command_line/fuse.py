"""`neurograft fuse`."""

from collections.abc import Mapping, Sequence
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
from neurograft.command_line.printing import say
from neurograft.command_line.streaming import MaxMemory, MemberFiles, Network, names_folder
from neurograft.errors import OptionError
from neurograft.options import check_seed

if TYPE_CHECKING:
    from torch import nn

    from neurograft.members.checks import Weights
    from neurograft.methods.method import Method

CALIBRATION = 2000
"""Images that methods look at, a fifth of them apart for validation."""


def fuse(
    factory: Network,
    members: MemberFiles,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The fused checkpoint: a .safetensors file, or a folder.")
    ],
    inputs: InputShapes = [],  # noqa: B006 - typer reads the default, nothing writes to it
    method: Annotated[
        str | None, typer.Option(help="How to fuse: average, transplant, …", show_default="transplant")
    ] = None,
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

    Example: `neurograft fuse llama-a llama-b --method average -o llama-fused`
    """
    from neurograft.methods import method_of

    if saved is not None:
        _check_decided({"--method": method, "--option": option, "--weights": weights, "--fixed": fixed})
    if names_folder(factory) or saved or max_memory or dtype or output.suffix != ".safetensors":
        if calibration is not None:
            raise OptionError("methods that look at activations need the members in memory; leave out --calibration")
        if recover not in ("auto", "none"):
            raise OptionError("recovery needs the members in memory; leave out --recover, or fuse without streaming")
        chosen = method_of(method or "transplant", parse_options(option))
        how = _How(chosen, parse_weights(weights), tuple(fixed), seed)
        _stream(factory, members, output, inputs, how, saved, max_memory, dtype, shard_size, force)
        return
    from neurograft.applying.provenance import Provenance
    from neurograft.checkpoints import load_into, open_checkpoint, sha256, write_checkpoint
    from neurograft.command_line.arguments import build, example_inputs
    from neurograft.fusing import Fusion, Recovery, check_recovery
    from neurograft.members.members import Members
    from neurograft.plugins import load_images

    chosen, shares = method_of(method or "transplant", parse_options(option)), parse_weights(weights)
    recovery = None if recover == "none" else cast(Recovery, recover)
    check_recovery(recovery, calibration)
    check_output(output, force=force)
    examples = example_inputs(inputs, factory, seed)
    files = [open_checkpoint(path) for path in members]
    networks = [load_into(build(factory, seed), file) for file in files]
    _check_numbers(networks, members)
    images = None if calibration is None else load_images(calibration, samples=CALIBRATION).train.batches()
    loaded = Members(networks, examples, weights=shares, fixed=fixed, calibration=images)
    fusion = Fusion.of(loaded, chosen, seed=seed)
    decided = fusion.plan
    hashes = {path: sha256(path) for file in files for path in file.files}
    for file in files:
        file.check_unchanged()
    record = Provenance.of(decided, files, factory, fixed).record(hashes)
    fusion = fusion.recovered(recovery)
    last = fusion.report.recovery
    found = {"calibration": calibration, "recovery": None if last is None else last.recovery}
    write_checkpoint(fusion.model, output, record | found)
    say(str(decided))
    say(str(fusion.report))
    say(f"wrote {output}")


def _check_numbers(networks: Sequence["nn.Module"], paths: Sequence[Path]) -> None:
    """Refuse NaN and infinity with the name of the file."""
    from neurograft.members.checks import check_finite

    for network, path in zip(networks, paths, strict=True):
        for name, tensor in network.state_dict().items():
            check_finite(name, tensor, str(path))


def _check_decided(given: Mapping[str, object]) -> None:
    """Refuse beside a saved plan what it has decided."""
    extra = [name for name, value in given.items() if value]
    if extra:
        raise OptionError(f"a saved plan has decided on the method and all it takes; leave out {' and '.join(extra)}")


@dataclass(frozen=True)
class _How:
    method: "Method"
    weights: "Weights | None"
    fixed: tuple[str, ...]
    seed: int


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
    from neurograft.checkpoints.writing import size_text
    from neurograft.command_line.streaming import open_members, parse_dtype, parse_size, progress_bar
    from neurograft.methods.planner import plan_members
    from neurograft.plans.saving import SavedPlan, load_plan

    check_seed(how.seed, "--seed")
    limit, size, wanted = (
        parse_size(max_memory, "--max-memory"),
        parse_size(shard_size, "--shard-size"),
        parse_dtype(dtype),
    )
    if output.suffix == ".safetensors":
        check_output(output, force=force)
    else:
        check_folder(output)
    opened = open_members(factory, members, inputs, how.fixed, how.seed).weighted(how.weights)
    with opened.hashing() as hashing, core_left_over():
        if saved is not None:
            decided = load_plan(saved)
        else:
            decided = SavedPlan(plan_members(opened, how.method, seed=how.seed), opened.name, how.fixed)
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
    say(str(decided.plan))
    speed = size_text((done.bytes_read + done.bytes_written) / max(done.seconds, 1e-9))
    say(f"wrote {output}: {size_text(done.bytes_written)} in {done.seconds:.1f} s ({speed}/s)")
