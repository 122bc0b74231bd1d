"""The networks of the demonstration, small enough to train in seconds."""

from typing import Any

from torch import nn

from neurograft_experiments.networks.making import make_network
from neurograft_experiments.networks.shapes import Shape

DEMONSTRATED = {"mlp": "MLP", "convnet": "Convolutional network with BatchNorm"}
"""Name on the command line and in results -> what people read."""
_SMALL, _LARGE = {"mlp": 32, "convnet": 8}, {"mlp": 128, "convnet": 16}


def demonstrated(name: str, shape: Shape) -> dict[str, Any]:
    """The settings of one of `DEMONSTRATED`, of a width that suits the images.

    Example:
        >>> demonstrated("convnet", (1, 8, 8)), demonstrated("mlp", (3, 32, 32))["width"]
        ({'name': 'convnet', 'width': 8}, 128)
    """
    width = (_SMALL if shape[1] <= 8 else _LARGE)[name]
    return {"name": name, "width": width, **({"depth": 3, "bias": True} if name == "mlp" else {})}


def digits_mlp() -> nn.Module:
    """The demonstration's MLP for the bundled digits, images of shape `(1, 8, 8)`."""
    return _for_digits("mlp")


def digits_convnet() -> nn.Module:
    """The demonstration's convolutional network for the bundled digits, images of shape `(1, 8, 8)`."""
    return _for_digits("convnet")


def _for_digits(name: str) -> nn.Module:
    shape: Shape = (1, 8, 8)
    return make_network(demonstrated(name, shape), shape, 10)
