"""Where to compute."""

import torch

from neurograft.errors import OptionError

AUTO = "auto"


def check_device(name: str) -> None:
    """Refuse what is no device, whether this machine has it or not.

    Raises:
        OptionError: if torch has no such device.

    Example:
        >>> check_device("cuda:1"), check_device("gpu")
        Traceback (most recent call last):
        neurograft.errors.OptionError: --device 'gpu' is no device; write auto, cpu, cuda, cuda:1 or mps
    """
    if name == AUTO:
        return
    try:
        torch.device(name)
    except RuntimeError:
        raise OptionError(f"--device {name!r} is no device; write auto, cpu, cuda, cuda:1 or mps") from None


def choose_device(name: str) -> torch.device:
    """The device of that name; "auto" is a CUDA GPU if this process sees one, else the CPU.

    Raises:
        OptionError: if there is none of that name here.
    """
    check_device(name)
    if name == AUTO:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).split("\n")[0]
        raise OptionError(f"--device {name}: {reason}; write auto or cpu") from error
    return device
