"""Mixed precision: networks that compute in 16 bits where that is safe, and gradients that do not vanish in them."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from neurograft.errors import OptionError
from neurograft.inputs import call_on_batch

DTYPES = {"float32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def check_precision(precision: str, device: torch.device) -> None:
    """Refuse a precision that a device does not compute in.

    Raises:
        OptionError: with those it has.
    """
    if precision == "fp16" and device.type == "cpu":
        raise OptionError("precision='fp16' needs a GPU; on the CPU there are 'float32' and 'bf16'")
    if precision == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise OptionError("precision='bf16': this GPU does not compute in bfloat16; take 'fp16' or 'float32'")


def scaler_of(precision: str, device: torch.device) -> torch.amp.GradScaler:
    """What scales the loss for float16, and does nothing otherwise."""
    return torch.amp.GradScaler(device.type, enabled=precision == "fp16")


class InPrecision(nn.Module):
    """A network in a precision, called with the inputs of a batch and the words that begin an error message."""

    def __init__(self, network: nn.Module, precision: str, device: torch.device) -> None:
        super().__init__()
        self.network, self.dtype, self.device = network, DTYPES[precision], device

    def forward(self, inputs: Any, where: str) -> Any:
        """The network's outputs; those in 16 bits become float32."""
        if self.dtype is None:
            return call_on_batch(self.network, inputs, where)
        with torch.autocast(self.device.type, self.dtype):
            outputs = call_on_batch(self.network, inputs, where)
        return pytree.tree_map_only(Tensor, lambda x: x.float() if x.dtype == self.dtype else x, outputs)
