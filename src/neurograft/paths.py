"""What lies at a path, found without failing: a name that no system takes is a name of nothing."""

import os
from pathlib import Path


def is_there(path: Path) -> bool:
    """Whether something lies there; links are followed."""
    return os.path.exists(path)  # noqa: PTH110 - Path.exists() raises errors for names that are too long


def is_taken(path: Path) -> bool:
    """Whether the name is in use, be it for a link that leads nowhere."""
    return os.path.lexists(path)


def is_folder(path: Path) -> bool:
    """Whether a folder lies there."""
    return os.path.isdir(path)  # noqa: PTH112 - as above


def is_file(path: Path) -> bool:
    """Whether a plain file lies there."""
    return os.path.isfile(path)  # noqa: PTH113 - as above
