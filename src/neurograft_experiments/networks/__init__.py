"""The papers' networks, each once, and `make_network`, which builds them and any other from settings."""

from neurograft_experiments.networks.convnet import ConvNet, convnet
from neurograft_experiments.networks.demonstration import (
    DEMONSTRATED,
    demonstrated,
    digits_convnet,
    digits_mlp,
)
from neurograft_experiments.networks.lenet import LeNet, lenet
from neurograft_experiments.networks.making import NAMED, check_network, is_factory, make_network
from neurograft_experiments.networks.mlp import MLP, mlp
from neurograft_experiments.networks.resnet import ResNet, resnet8, resnet18, resnet20
from neurograft_experiments.networks.shapes import Shape
from neurograft_experiments.networks.vgg import VGG, vgg11
from neurograft_experiments.networks.vit import ViT

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
    "is_factory",
    "lenet",
    "make_network",
    "mlp",
    "resnet8",
    "resnet18",
    "resnet20",
    "vgg11",
]
