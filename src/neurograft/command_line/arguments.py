"""What the subcommands have in common: factories, example inputs and options given as text."""

import json
import re
from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from neurograft.errors import CheckpointError, InputError, NeurograftError, OptionError, closest
from neurograft.factories import find_factory
from neurograft.options import check_seed
from neurograft.paths import is_folder, is_taken

if TYPE_CHECKING:
    from torch import Tensor, nn

    from neurograft.inputs import Inputs
    from neurograft.members.checks import Weights

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
SHAPE = re.compile(r"(?:(?P<name>[A-Za-z_]\w*)=)?(?P<sizes>[0-9]{1,12}(?:x[0-9]{1,12})*)(?::(?P<dtype>\w+))?")
MOST_ENTRIES = 1 << 30  # of an example input


def build(text: str, seed: int) -> "nn.Module":
    """A network in eval mode from a factory, with its random start fixed by `seed`.

    Raises:
        InputError: if the factory cannot be found or called, or gives no network.
    """
    import torch
    from torch import nn

    factory = find_factory(text)
    check_seed(seed, "--seed")
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

    check_seed(seed, "--seed")
    if not shapes:
        return _given_inputs(factory.partition(":")[0])
    generator = torch.Generator().manual_seed(seed)
    parsed = [_example(text, generator) for text in shapes]
    named = {name: tensor for name, tensor in parsed if name}
    if named and len(named) < len(parsed):
        raise InputError("either every --input has a name of its own (name=SHAPE) or none has")
    if named:
        return named
    tensors = tuple(tensor for _, tensor in parsed)
    return tensors[0] if len(tensors) == 1 else tensors


def _given_inputs(module_name: str) -> "Inputs":
    try:
        function = find_factory(f"{module_name}:example_inputs")
    except InputError:
        raise InputError(
            f"no example inputs: give --input SHAPE, such as --input 1x3x32x32, or define example_inputs() "
            f"in {module_name}"
        ) from None
    try:
        given: Inputs = function()
    except NeurograftError:
        raise
    except Exception as error:
        raise InputError(f"example_inputs() of {module_name} failed: {type(error).__name__}: {error}") from error
    return given


def _example(text: str, generator: Any) -> "tuple[str | None, Tensor]":
    import torch

    match = SHAPE.fullmatch(text)
    if match is None:
        raise InputError(f"--input {text!r} is no shape; write 1x3x32x32, 2x16:int64 or name=2x16:int64")
    dtype = match["dtype"] or "float32"
    if dtype not in DTYPES:
        raise InputError(f"--input {text!r}: unknown dtype {dtype!r}; {closest(dtype, DTYPES)}")
    sizes = tuple(int(size) for size in match["sizes"].split("x"))
    if prod(sizes) > MOST_ENTRIES:
        raise InputError(f"--input {text!r} has {prod(sizes):.3g} entries: a small example is all that is needed")
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
    except (ValueError, RecursionError):  # no JSON, thousands of digits or brackets
        pass
    try:
        return [float(part) for part in text.split(",")] if "," in text else text
    except ValueError:
        return text


def parse_weights(text: str | None) -> "Weights | None":
    """Member weights given as `0.7,0.3`, or by patterns of tensor names as JSON: `{"*": [1, 1], "head.*": [3, 1]}`.

    Raises:
        OptionError: if one is no number.

    Example:
        >>> parse_weights("0.7,0.3"), parse_weights('{"head.*": [3, 1]}')
        ([0.7, 0.3], {'head.*': [3, 1]})
    """
    if text is None:
        return None
    try:
        if text.lstrip().startswith("{"):
            by_pattern: dict[str, list[float]] = json.loads(text)
            return by_pattern
        return [float(part) for part in text.split(",")]
    except (ValueError, RecursionError):
        raise OptionError(
            f"--weights {text!r} must be numbers with commas between them, such as 0.7,0.3, or JSON that gives "
            'patterns such numbers, {"*": [1, 1], "head.*": [3, 1]}'
        ) from None


def pair_of_numbers(text: str, option: str) -> tuple[float, float]:
    """Two numbers with a comma between them.

    Raises:
        OptionError: if they are not two numbers.

    Example:
        >>> pair_of_numbers("3,1e-5", "--noise")
        (3.0, 1e-05)
    """
    try:
        first, second = map(float, text.split(","))
    except ValueError:
        raise OptionError(f"{option} {text!r} must be two numbers with a comma between them, such as 3,1e-5") from None
    return first, second


FILES = (".pt", ".pth", ".bin", ".ckpt", ".pkl", ".safetensor", ".npz", ".json", ".onnx", ".h5")


def check_folder(path: Path) -> None:
    """Find out before the work whether a folder can be written.

    Raises:
        CheckpointError: for an ending such as .pt, and as `check_target`.
    """
    from neurograft.checkpoints.atomic import check_target

    if path.suffix.lower() in FILES and not is_folder(path):
        raise CheckpointError(
            f"--output {path} ends in {path.suffix}: the result is a .safetensors file, or a folder (a name without "
            "such an ending)"
        )
    check_target(path, folder=True)


def check_output(path: Path, *, force: bool) -> None:
    """Find out before the work whether the result can be written.

    Raises:
        CheckpointError: if the name does not end in .safetensors, or something of that name exists (a link that leads
            nowhere too), and as `check_target`.
    """
    from neurograft.checkpoints.atomic import check_target

    if path.suffix != ".safetensors":
        raise CheckpointError(f"--output {path} must end in .safetensors")
    if is_taken(path) and not force:
        raise CheckpointError(f"--output {path} exists; give --force to replace it")
    check_target(path)
