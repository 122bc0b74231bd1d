import sys

import pytest

from neurograft.command_line.app import main


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
