"""Commands that the experiments add to `neurograft`."""

from importlib.util import find_spec

from neurograft.errors import MissingExtra


def check_installed(extra: str, *modules: str) -> None:
    """Refuse to start without what a command imports.

    Raises:
        MissingExtra: names the extra that installs it.
    """
    missing = [name for name in modules if find_spec(name) is None]
    if missing:
        raise MissingExtra(f"this command needs {', '.join(missing)}: pip install 'neurograft[{extra}]'")
