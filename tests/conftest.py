"""Where tests find the data that lies beside the project's folder."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from neurograft.command_line.app import main


@pytest.fixture(scope="session", autouse=True)
def no_files_at_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What `datasets` keeps lies among the tests' files."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def shared() -> Path:
    """The shared folder (data sets); the test is skipped where there is none."""
    named = os.environ.get("NEUROGRAFT_SHARED")
    folder = Path(named) if named else Path(__file__).resolve().parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip(f"no shared folder at {folder}; set NEUROGRAFT_SHARED to run this test")
    return folder


@pytest.fixture
def neurograft(monkeypatch, capsys):
    """Run the command line in this process; gives (exit code, standard output, error output)."""

    def run(*arguments, columns=160):
        monkeypatch.setattr(sys, "argv", ["neurograft", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", str(columns))
        monkeypatch.setattr(sys, "path", list(sys.path))
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        return ended.value.code, out, err

    return run
