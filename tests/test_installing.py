import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
WITHOUT_VENV = f"""#!{sys.executable}
import importlib.util, runpy, sys
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "ensurepip" else find(name, *rest)
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
OLD = f"""#!{sys.executable}
import runpy, sys
sys.version_info = (3, 10, 0)
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture
def project(tmp_path):
    """The files that `make` needs, without an environment."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt", "tools/install.py"):
        copy = tmp_path / name
        copy.parent.mkdir(exist_ok=True)
        copy.write_bytes((ROOT / name).read_bytes())
    return tmp_path


def make(project, python, *targets):
    program = project / "python"
    if python is not None:
        program.write_text(python)
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    return subprocess.run(
        ["make", f"PYTHON={program}", *targets],
        cwd=project,
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )


@pytest.mark.parametrize(
    ("python", "message"),
    [
        (WITHOUT_VENV, "has no venv module: install it first, on Debian and Ubuntu: sudo apt install python3"),
        (OLD, "neurograft needs Python 3.11 or newer"),
        (None, "python not found: install Python 3.11 or newer, with venv and pip"),
    ],
    ids=["no venv", "too old", "no python"],
)
@pytest.mark.parametrize("target", ["demo", "test"])
def test_what_is_missing_is_said_in_one_line(project, python, message, target):
    done = make(project, python, target)
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert message in done.stderr
    assert not (project / ".venv").exists()


def test_a_second_call_installs_nothing(project):
    (project / ".venv" / "bin").mkdir(parents=True)
    for name in (".ready-demo", ".ready-dev"):
        (project / ".venv" / name).touch()
    done = make(project, WITHOUT_VENV, "setup")
    assert (done.returncode, done.stderr) == (0, "")


def test_every_pinned_version_is_exact_and_known():
    from importlib.metadata import version

    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    pins = dict(line.split("==") for line in lines)
    assert pins["torch"] == "2.13.0"
    for name in ("numpy", "scipy", "POT", "safetensors", "typer", "rich", "pydantic", "pytest", "ruff", "mypy"):
        assert pins[name] == version(name).partition("+")[0]
