"""What every result row records, so that it can be traced back and made again."""

import os
import platform
import subprocess
from collections.abc import Mapping
from functools import cache
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import torch

LIBRARIES = ("neurograft", "torch", "numpy", "scipy", "POT", "scikit-learn", "safetensors")


@cache
def provenance() -> dict[str, Any]:
    """Commit, library versions and hardware of this run."""
    found = {distribution.name: distribution.version for distribution in distributions()}
    versions = {name: found[name] for name in LIBRARIES if name in found}
    hardware = {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": f"{platform.system()} {platform.machine()}",
    }
    return {"commit": _commit(), "versions": {"python": platform.python_version(), **versions}, "hardware": hardware}


def computer_text(hardware: Mapping[str, Any]) -> str:
    """The hardware of a row in words."""
    parts = [str(hardware["cpu"]), f"{hardware['cores']} cores", f"{hardware['threads']} threads", hardware["system"]]
    return ", ".join([*parts, hardware["gpu"]] if hardware.get("gpu") else parts)


def _commit() -> str:
    """The commit the package's sources are at, with `+changes` if they differ from it."""
    folder = Path(__file__).parent
    try:
        commit = _git(folder, "rev-parse", "--short=12", "HEAD")
        changed = _git(folder, "status", "--porcelain", "--untracked-files=no", "--", str(folder.parent))
    except (OSError, subprocess.CalledProcessError):
        return "not a git checkout"
    return commit + ("+changes" if changed else "")


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or "unknown"
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
