"""Signals that end a command leave no unfinished file behind; warnings and errors are one line each."""

import io
import signal
import subprocess
import sys
import warnings

import pytest

from neurograft.command_line import app as command_line
from neurograft.command_line.printing import plain_printing, print_lines
from neurograft.errors import NeurograftError

WRITING = """
import sys, time
from pathlib import Path
from neurograft.checkpoints.atomic import whole
from neurograft.command_line import app

def work(**_):
    with whole(Path(sys.argv[1]), folder=True) as part:
        (part / "half").write_text("half")
        print("writing", flush=True)
        time.sleep(60)

app.app = work
app.main()
"""


# the tests may run where SIGHUP is ignored (nohup), which a child inherits
DEFAULTS = "import signal; signal.signal(signal.SIGHUP, signal.SIG_DFL)\n"


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_nothing_unfinished_stays(tmp_path, name):
    command = [sys.executable, "-c", f"{DEFAULTS}{WRITING}", str(tmp_path / "out")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "writing\n"
        assert list(tmp_path.iterdir())
        process.send_signal(getattr(signal, name))
        process.send_signal(getattr(signal, name))  # terminals that close send it twice
        _, told = process.communicate(timeout=50)
    assert process.returncode == 128 + getattr(signal, name)
    assert told == f"ended by {name}: unfinished files are removed\n"
    assert not list(tmp_path.iterdir())


def test_what_is_ignored_stays_ignored(tmp_path):
    code = f"import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n{WRITING.replace('sleep(60)', 'sleep(0.5)')}"
    command = [sys.executable, "-c", code, str(tmp_path / "out")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "writing\n"
        process.send_signal(signal.SIGHUP)
        assert process.wait(timeout=50) == 0
    assert (tmp_path / "out" / "half").is_file()


def test_handlers_are_given_back(neurograft):
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)], warnings.showwarning
    assert neurograft("--version")[0] == 0
    assert before == ([signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)], warnings.showwarning)


def test_a_terminal_that_lacks_characters(monkeypatch):
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, io.TextIOWrapper(io.BytesIO(), encoding="latin-1"))
    with plain_printing():
        print_lines("naïve → \udcff\x1b[31m")
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.showwarning = command_line_warning()
            warnings.warn("a\x1b[31m → b", stacklevel=1)
    assert sys.stdout.buffer.getvalue() == b"na\xefve \\u2192 \\udcff\\x1b[31m\n"
    assert sys.stderr.buffer.getvalue() == b"warning: a\\x1b[31m \\u2192 b\n"


def command_line_warning():
    """What shows warnings on the command line (pytest puts its own there)."""
    with plain_printing():
        return warnings.showwarning


def test_errors_are_spelt(monkeypatch, neurograft):
    def fail(**_):
        raise NeurograftError("bad \x1b[2Jname\r")

    monkeypatch.setattr(command_line, "app", fail)
    assert neurograft() == (2, "", "error: bad \\x1b[2Jname\\r\n")
