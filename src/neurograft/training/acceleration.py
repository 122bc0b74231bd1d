"""Where to compute, in which precision and by how many processes: all that touches Accelerate's global state."""

import atexit
import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, TypeAlias

import torch

from neurograft.errors import MissingExtra, OptionError
from neurograft.training.settings import TrainingSettings

Accelerator: TypeAlias = Any  # accelerate ships no types, and is imported late
LAUNCHERS = ("LOCAL_RANK", "WORLD_SIZE")  # what torchrun and `accelerate launch` set in each process
SHARDED = {
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron",
}


@contextmanager
def accelerated(settings: TrainingSettings, home: torch.device) -> Iterator[Accelerator]:
    """An `accelerate.Accelerator` for one training, and none of its traces afterwards.

    Accelerate keeps device, precision and processes in states that all accelerators of a process share and nobody
    may change. They are put aside and put back, so that one process can train on the CPU and on a GPU, with and
    without mixed precision, one after the other, and inside a program that uses Accelerate itself.

    Args:
        settings: `device`, `precision` and `tracker` count.
        home: the device of the network, where it is trained unless `device` or a launcher says otherwise.

    Raises:
        OptionError: for a device or a precision that this machine does not have, a launcher that shards networks, or
            a tracker's folder that cannot be written to.
        MissingExtra: Accelerate is not installed, or TensorBoard for a tracker.
    """
    try:
        from accelerate import Accelerator, DistributedDataParallelKwargs
        from accelerate.state import AcceleratorState, GradientState, PartialState
    except ImportError as error:
        raise MissingExtra("training needs accelerate: pip install 'neurograft[train]'") from error

    device = _device(settings, home)
    _check_precision(settings["precision"], device)
    shared = [borg._shared_state for borg in (PartialState, AcceleratorState, GradientState)]
    before = [dict(state) for state in shared]
    for state in shared:
        state.clear()
    started: list[Any] = []
    try:
        alone = not torch.distributed.is_initialized()
        place = PartialState(cpu=device.type == "cpu")
        if alone and torch.distributed.is_initialized():
            atexit.register(torch.distributed.destroy_process_group)  # it serves all trainings of the process
        if place.num_processes == 1:
            place.device = device if device.index is not None or device.type != "cuda" else _current_gpu()
        elif device.index not in (None, place.device.index):
            raise OptionError(f"device={str(device)!r}: of several processes each has its own, here {place.device}")
        accelerator = Accelerator(
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
            mixed_precision="no" if settings["precision"] == "float32" else settings["precision"],
            log_with=None if settings["tracker"] is None else "tensorboard",
            project_dir=settings["tracker"],
        )
        _start_tracker(accelerator, settings)
        started = accelerator.trackers
        yield accelerator
    finally:
        for tracker in started:
            tracker.finish()
        for state, kept in zip(shared, before, strict=True):
            state.clear()
            state.update(kept)


def _device(settings: TrainingSettings, home: torch.device) -> torch.device:
    for variable, name in SHARDED.items():
        if os.environ.get(variable, "").lower() in ("1", "true"):
            raise OptionError(f"{variable} is set, but training copies the network to each GPU: launch without {name}")
    if settings["device"] is not None:
        device = torch.device(settings["device"])
    elif any(name in os.environ for name in LAUNCHERS) and torch.cuda.is_available():
        device = torch.device("cpu" if os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true") else "cuda")
    else:
        device = home
    if device.type == "cuda" and not torch.cuda.is_available():
        raise OptionError(f"device={str(device)!r}: torch finds no GPU on this machine")
    return device


def _current_gpu() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device())


def _start_tracker(accelerator: Accelerator, settings: TrainingSettings) -> None:
    folder = settings["tracker"]
    if folder is None:
        return
    if find_spec("tensorboard") is None:
        raise MissingExtra("tracker= needs TensorBoard: pip install 'neurograft[train]'")
    try:
        accelerator.init_trackers("")
    except OSError as error:
        raise OptionError(f"tracker={str(folder)!r} cannot be written to: {error.strerror or error}") from error


def _check_precision(precision: str, device: torch.device) -> None:
    if precision == "fp16" and device.type == "cpu":
        raise OptionError("precision='fp16' needs a GPU; on the CPU there are 'float32' and 'bf16'")
    if precision == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise OptionError("precision='bf16': this GPU does not compute in bfloat16; take 'fp16' or 'float32'")
