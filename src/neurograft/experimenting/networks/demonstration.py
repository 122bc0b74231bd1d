"""The networks of the demonstration, small enough to train in seconds."""

from collections.abc import Callable

from torch import nn

from neurograft.experimenting.networks.convnet import ConvNet
from neurograft.experimenting.networks.mlp import MLP
from neurograft.experimenting.networks.shapes import Shape


def digits_mlp() -> MLP:
    """The demonstration's MLP for the bundled digits, images of shape `(1, 8, 8)`."""
    return mlp_for((1, 8, 8), 10)


def digits_convnet() -> ConvNet:
    """The demonstration's convolutional network for the bundled digits, images of shape `(1, 8, 8)`."""
    return convnet_for((1, 8, 8), 10)


def mlp_for(shape: Shape, classes: int) -> MLP:
    """An MLP of a width that suits the images."""
    return MLP(shape, classes, 32 if shape[1] <= 8 else 128)


def convnet_for(shape: Shape, classes: int) -> ConvNet:
    """A convolutional network of a width that suits the images."""
    return ConvNet(shape, classes, 8 if shape[1] <= 8 else 16)


NETWORKS: dict[str, tuple[str, Callable[[Shape, int], nn.Module]]] = {
    "mlp": ("MLP", mlp_for),
    "convnet": ("Convolutional network with BatchNorm", convnet_for),
}
"""Name on the command line and in results -> what people read, and how it is made."""
