"""Files of a folder that do not lie in it: links that leave it are not followed."""

from pathlib import Path

from neurograft.errors import CheckpointError
from neurograft.escaping import named


def check_inside(folder: Path, file: Path) -> None:
    """Refuse a file that a link leads out of the folder.

    The hub's cache, which keeps `snapshots/<revision>/<file>` as links into `blobs/`, counts as one folder.

    Args:
        folder: what the file belongs to.
        file: a path in it.

    Raises:
        CheckpointError: names the link and where it leads.
    """
    try:
        root, real = folder.resolve(), file.resolve()
    except (OSError, RuntimeError, ValueError) as error:
        raise CheckpointError(f"{folder}: {named(file.name)!r} cannot be found: {error}") from error
    roots = [root]
    if root.parent.name == "snapshots":
        roots.append(root.parent.parent / "blobs")
    if not any(real.is_relative_to(place) for place in roots):
        raise CheckpointError(
            f"{folder}: {named(file.name)!r} leads outside its folder: it is a link to {real}; put the file itself "
            "there"
        )
