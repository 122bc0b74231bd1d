"""Writing a page."""

from pathlib import Path

from neurograft.checkpoints.atomic import whole
from neurograft.errors import CheckpointError, InputError


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all, its folder too if there is none.

    Raises:
        InputError: it cannot be written there.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole(path) as part:
            part.write_text(text, encoding="utf-8")
    except (OSError, CheckpointError) as error:
        raise InputError(f"{path} cannot be written: {error}; choose another place with --to or --claims") from error
