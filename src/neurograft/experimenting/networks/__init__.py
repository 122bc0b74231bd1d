"""The papers' networks, each once, and `make_network`, which builds them and any other from settings."""

from neurograft.experimenting.networks.convnet import ConvNet, convnet
from neurograft.experimenting.networks.demonstration import (
    DEMONSTRATED,
    demonstrated,
    digits_convnet,
    digits_mlp,
)
from neurograft.experimenting.networks.lenet import LeNet, lenet
from neurograft.experimenting.networks.making import NAMED, check_network, make_network
from neurograft.experimenting.networks.mlp import MLP, mlp
from neurograft.experimenting.networks.resnet import ResNet, resnet8, resnet18, resnet20
from neurograft.experimenting.networks.shapes import Shape
from neurograft.experimenting.networks.vgg import VGG, vgg11
from neurograft.experimenting.networks.vit import ViT

__all__ = [
    "DEMONSTRATED",
    "MLP",
    "NAMED",
    "VGG",
    "ConvNet",
    "LeNet",
    "ResNet",
    "Shape",
    "ViT",
    "check_network",
    "convnet",
    "demonstrated",
    "digits_convnet",
    "digits_mlp",
    "lenet",
    "make_network",
    "mlp",
    "resnet8",
    "resnet18",
    "resnet20",
    "vgg11",
]
