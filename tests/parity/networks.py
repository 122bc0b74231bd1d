"""The networks that the published outputs were made from; nothing here may draw random numbers in another order."""

import torch
from tests.networks import MLP, VGG, ResNet
from torch import Tensor, nn

MAKERS = {
    "mlp": lambda *widths: MLP(3 * 32 * 32, *(widths or (64, 48, 40)), 10),
    "vgg": lambda *widths: VGG(bias=False, widths=widths or (16, 0, 32, 0, 48, 48, 0)),
    "resnet": lambda: ResNet(widths=(16, 32), bias=False),
}


def build(name: str, seed: int, *widths: int) -> nn.Module:
    """A network in eval mode, its neurons' norms spread so that no two importances are nearly equal."""
    torch.manual_seed(seed)
    model = MAKERS[name](*widths)
    with torch.no_grad():
        for norm in (module for module in model.modules() if isinstance(module, nn.BatchNorm2d)):
            norm.weight.uniform_(0.5, 1.5)
            norm.bias.normal_(0, 0.2)
            norm.running_mean.normal_(0, 0.2)
            norm.running_var.uniform_(0.5, 1.5)
        for weight in (parameter for parameter in model.parameters() if parameter.dim() > 1):
            weight *= torch.empty(len(weight), *[1] * (weight.dim() - 1)).uniform_(0.5, 2.0)
    return model.eval()


def example() -> Tensor:
    """Four images, `(4, 3, 32, 32)`."""
    return torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(123))
