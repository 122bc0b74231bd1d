"""What the subcommands have in common: factories, example inputs and options given as text."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from neurograft.errors import CheckpointError, InputError, NeurograftError, OptionError, closest
from neurograft.factories import find_factory

if TYPE_CHECKING:
    from torch import Tensor, nn

    from neurograft.inputs import Inputs

Factory = Annotated[
    str,
    typer.Argument(
        metavar="FACTORY",
        help="How to build the network: `package.module:function`, called without arguments. "
        "Modules in the current folder are found.",
    ),
]
InputShapes = Annotated[
    list[str],
    typer.Option(
        "--input",
        "-i",
        metavar="SHAPE",
        help="An example input: `1x3x32x32`, with a dtype `2x16:int64`, with a name `input_ids=2x16:int64`; repeat it "
        "for several. Without any, `example_inputs()` beside the factory is called.",
    ),
]
Fixed = Annotated[
    list[str],
    typer.Option("--fixed", metavar="PATTERN", help="Parameters whose neurons must not move, as fnmatch patterns."),
]

DTYPES = ("float32", "float64", "float16", "bfloat16", "int64", "int32", "uint8", "bool")
SHAPE = re.compile(r"^(?:(?P<name>[A-Za-z_]\w*)=)?(?P<sizes>\d+(?:x\d+)*)(?::(?P<dtype>\w+))?$")


def build(text: str, seed: int) -> "nn.Module":
    """A network in eval mode from a factory, with its random start fixed by `seed`.

    Raises:
        InputError: if the factory cannot be found or called, or gives no network.
    """
    import torch
    from torch import nn

    factory = find_factory(text)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        try:
            network = factory()
        except NeurograftError:
            raise
        except Exception as error:
            raise InputError(f"factory {text!r} failed: {type(error).__name__}: {error}") from error
    if not isinstance(network, nn.Module):
        raise InputError(f"factory {text!r} gave a {type(network).__name__}, not a torch.nn.Module")
    return network.eval()


def example_inputs(shapes: Sequence[str], factory: str, seed: int) -> "Inputs":
    """Random example inputs of the given shapes, or what `example_inputs()` beside the factory gives.

    Raises:
        InputError: if a shape cannot be read, or there are neither shapes nor such a function.
    """
    import torch

    if not shapes:
        module_name = factory.partition(":")[0]
        try:
            given: Inputs = find_factory(f"{module_name}:example_inputs")()
        except InputError:
            raise InputError(
                f"no example inputs: give --input SHAPE, such as --input 1x3x32x32, or define example_inputs() "
                f"in {module_name}"
            ) from None
        return given
    generator = torch.Generator().manual_seed(seed)
    parsed = [_example(text, generator) for text in shapes]
    named = {name: tensor for name, tensor in parsed if name}
    if named and len(named) < len(parsed):
        raise InputError("either every --input has a name of its own (name=SHAPE) or none has")
    if named:
        return named
    tensors = tuple(tensor for _, tensor in parsed)
    return tensors[0] if len(tensors) == 1 else tensors


def _example(text: str, generator: Any) -> "tuple[str | None, Tensor]":
    import torch

    match = SHAPE.match(text)
    if match is None:
        raise InputError(f"--input {text!r} is no shape; write 1x3x32x32, 2x16:int64 or name=2x16:int64")
    dtype = match["dtype"] or "float32"
    if dtype not in DTYPES:
        raise InputError(f"--input {text!r}: unknown dtype {dtype!r}; {closest(dtype, DTYPES)}")
    sizes = tuple(int(size) for size in match["sizes"].split("x"))
    kind: torch.dtype = getattr(torch, dtype)
    if kind.is_floating_point:
        return match["name"], torch.randn(sizes, generator=generator).to(kind)
    return match["name"], torch.randint(0, 2, sizes, generator=generator).to(kind)


def parse_options(texts: Sequence[str]) -> dict[str, Any]:
    """Options given as `name=value`; JSON is taken as such, `0.7,0.3` as a list of numbers, anything else as text.

    Raises:
        OptionError: if one has no `=`.

    Example:
        >>> parse_options(["order=joint", "balance=true", "quota=0.7,0.3"])
        {'order': 'joint', 'balance': True, 'quota': [0.7, 0.3]}
    """
    options = {}
    for text in texts:
        name, separator, value = text.partition("=")
        if not separator or not name:
            raise OptionError(f"--option {text!r} must read name=value, such as --option order=joint")
        options[name.replace("-", "_")] = _option_value(value)
    return options


def _option_value(text: str) -> Any:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        pass
    try:
        return [float(part) for part in text.split(",")] if "," in text else text
    except ValueError:
        return text


def parse_weights(text: str | None) -> list[float] | None:
    """Member weights given as `0.7,0.3`.

    Raises:
        OptionError: if one is no number.
    """
    if text is None:
        return None
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise OptionError(f"--weights {text!r} must be numbers with commas between them, such as 0.7,0.3") from None


FILES = (".pt", ".pth", ".bin", ".ckpt", ".pkl", ".safetensor", ".npz", ".json", ".onnx", ".h5")


def check_folder(path: Path) -> None:
    """Refuse a folder that is named like a file of another kind, before any work is done.

    Raises:
        CheckpointError: for an ending such as .pt.
    """
    if path.suffix.lower() in FILES and not path.is_dir():
        raise CheckpointError(
            f"--output {path} ends in {path.suffix}: the result is a .safetensors file, or a folder (a name without "
            "such an ending)"
        )


def check_output(path: Path, *, force: bool) -> None:
    """Find out before the work whether the result can be written.

    Raises:
        CheckpointError: if the name does not end in .safetensors, the file exists, or its folder is missing.
    """
    if path.suffix != ".safetensors":
        raise CheckpointError(f"--output {path} must end in .safetensors")
    if not path.parent.is_dir():
        raise CheckpointError(f"--output {path}: the folder {path.parent} does not exist")
    if path.exists() and not force:
        raise CheckpointError(f"--output {path} exists; give --force to replace it")
