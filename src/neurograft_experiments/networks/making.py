"""Networks from settings, as a study file holds them: by name, by factory, or by a Hugging Face configuration."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from neurograft.errors import InputError, NeurograftError, OptionError, closest
from neurograft.factories import factory_parts, find_factory
from neurograft.inputs import first_tensor
from neurograft.options import check_count
from neurograft.preserve_state import preserve_state
from neurograft_experiments.networks.convnet import convnet
from neurograft_experiments.networks.huggingface import from_configuration
from neurograft_experiments.networks.lenet import lenet
from neurograft_experiments.networks.mlp import mlp
from neurograft_experiments.networks.resnet import resnet8, resnet18, resnet20
from neurograft_experiments.networks.shapes import Shape
from neurograft_experiments.networks.vgg import vgg11
from neurograft_experiments.networks.vit import ViT

NAMED: dict[str, Callable[..., nn.Module]] = {
    "mlp": mlp,
    "lenet": lenet,
    "vgg11": vgg11,
    "resnet18": resnet18,
    "vit": ViT,
    "resnet8": resnet8,
    "resnet20": resnet20,
    "convnet": convnet,
}
"""Name in a study file -> how it is built: called with shape and classes, options by keyword."""
MOST = 65_536
"""Of widths and depths: a network of more layers takes minutes to build, even without weights."""


def make_network(settings: Mapping[str, Any], shape: Shape, classes: int) -> nn.Module:
    """An untrained network for images of a shape; its weights are drawn from torch's random state.

    `{"name": "vgg11", "share": 0.25, "batch_norm": True}` is one of `NAMED`, the rest are its options.
    `{"name": "package.module:factory", …}` calls any function: with `shape` and `classes` where it has parameters of
    these names, and with the options. `{"huggingface": {"model_type": "vit", …}}` is an image classifier of
    transformers, see `from_configuration`; instead of the mapping, a folder with a config.json.

    Args:
        settings: what to build.
        shape: channels, height and width of an image.
        classes: outputs.

    Raises:
        OptionError: for a name or an option that is not known, with the closest known ones, and for a value that an
            option does not take.
        InputError: if a factory cannot be found or called, or its network does not map images of this shape to
            one logit per class.

    Example:
        >>> make_network({"name": "mlp", "width": 16, "depth": 1}, (1, 8, 8), 10).head
        Linear(in_features=16, out_features=10, bias=False)
        >>> make_network({"name": "restnet18"}, (3, 32, 32), 10)
        Traceback (most recent call last):
        neurograft.errors.OptionError: unknown network 'restnet18'; did you mean 'resnet18' ...
    """
    check_network(settings)
    options = dict(settings)
    if "huggingface" in options:
        network = from_configuration(options["huggingface"], shape, classes)
        return _with_logits(network, "the Hugging Face configuration", shape, classes)
    name = options.pop("name")
    if name in NAMED:
        return NAMED[name](shape, classes, **options)
    return _with_logits(_called(name, options, shape, classes), f"factory {name!r}", shape, classes)


def check_network(settings: Mapping[str, Any]) -> None:
    """Refuse settings that `make_network` would refuse, as far as that shows without building or importing anything.

    Raises:
        OptionError: for a name or an option that is not known, and for a value that an option does not take.
        InputError: if the name of a factory does not read `package.module:function`.
    """
    if not isinstance(settings, Mapping):
        raise OptionError(f"a network's settings are a mapping such as {{'name': 'mlp'}}, got {settings!r}")
    options = dict(settings)
    if "huggingface" in options:
        if len(options) > 1:
            beside = sorted(options.keys() - {"huggingface"})[0]
            raise OptionError(f"{beside!r} beside 'huggingface': its configuration holds all options")
        return
    name = options.pop("name", None)
    if isinstance(name, str) and ":" in name:
        factory_parts(name)
    elif isinstance(name, str) and name in NAMED:
        check_options(name, options)
    else:
        raise OptionError(f"unknown network {name!r}; {closest(str(name), NAMED)}, or package.module:function")


def is_factory(settings: Mapping[str, Any]) -> bool:
    """Whether building the network imports code that its settings name."""
    return ":" in str(settings.get("name", ""))


def check_options(name: str, options: Mapping[str, Any]) -> None:
    """Refuse options that a named network does not have, and values of another kind than their defaults.

    Raises:
        OptionError: with the closest known options, or the value.
    """
    taken = {p.name: p.default for p in inspect.signature(NAMED[name]).parameters.values() if p.kind is p.KEYWORD_ONLY}
    for option, value in options.items():
        if option not in taken:
            raise OptionError(f"network {name!r} has no option {option!r}; {closest(option, taken)}")
        default = taken[option]
        if isinstance(default, bool):
            if not isinstance(value, bool):
                raise OptionError(f"{option} is True or False, got {value!r}")
        elif isinstance(default, int):
            check_count(option, value)
            if value > MOST:
                raise OptionError(f"{option} is at most {MOST:,}, got {value!r}")
        elif isinstance(value, bool) or not isinstance(value, (int, float)):
            raise OptionError(f"{option} is a number, got {value!r}")


def _called(name: str, options: dict[str, Any], shape: Shape, classes: int) -> nn.Module:
    factory = find_factory(name)
    try:
        taken = set(inspect.signature(factory).parameters)
    except (TypeError, ValueError):  # written in C, without a signature
        taken = set()
    given = {key: value for key, value in (("shape", shape), ("classes", classes)) if key in taken}
    try:
        network = factory(**given | options)
    except NeurograftError:
        raise
    except Exception as error:
        raise InputError(f"factory {name!r} failed: {type(error).__name__}: {error}") from error
    if not isinstance(network, nn.Module):
        raise InputError(f"factory {name!r} gave a {type(network).__name__}, not a torch.nn.Module")
    return network


def _with_logits(network: nn.Module, what: str, shape: Shape, classes: int) -> nn.Module:
    """The network, if it gives logits of shape `(samples, classes)`."""
    with preserve_state(network), torch.no_grad():
        try:
            outputs = network(torch.zeros(2, *shape))
        except Exception as error:
            raise InputError(
                f"{what} gave a network that does not take images of shape {shape}: {type(error).__name__}: {error}"
            ) from error
    found = tuple(first_tensor(outputs).shape)
    if found != (2, classes):
        raise InputError(f"{what} gave a network whose logits for 2 images have shape {found}, expected (2, {classes})")
    return network
