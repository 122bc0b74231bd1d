import subprocess
import sys
import types

import pytest

import neurograft

PROMISED = [
    *("trace", "verify", "permute"),
    *("plan", "apply", "fuse"),
    *("combine", "prune", "Ensemble"),
    *("refit", "reestimate_batch_norm", "repair"),
    *("evaluate", "train", "finetune", "distill"),
]


@pytest.mark.parametrize("name", PROMISED)
def test_every_promised_name_resolves(name):
    assert callable(getattr(neurograft, name))


@pytest.mark.parametrize("name", sorted(neurograft._PUBLIC))
def test_every_public_name_is_documented_and_knows_its_module(name):
    value = getattr(neurograft, name)
    assert not isinstance(value, types.ModuleType)
    assert value.__doc__
    assert value.__name__ == name
    assert value.__module__ == neurograft._PUBLIC[name]


def test_public_names_are_sorted_and_listed():
    assert list(neurograft._PUBLIC) == sorted(neurograft._PUBLIC)
    assert neurograft.__all__ == ["__version__", *sorted(neurograft._PUBLIC)]
    assert set(neurograft.__all__) <= set(dir(neurograft))


def test_unknown_name():
    with pytest.raises(AttributeError, match="module 'neurograft' has no attribute 'fusee'"):
        neurograft.fusee  # noqa: B018


@pytest.mark.slow
def test_type_checkers_see_the_same_names(tmp_path):
    program = tmp_path / "uses_names.py"
    lines = [f"reveal_type(neurograft.{name})" for name in neurograft._PUBLIC]
    program.write_text("\n".join(["import neurograft", *lines, "neurograft.fusee", ""]))
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "mypy",
            "--strict",
            "--follow-imports=silent",
            "--cache-dir",
            str(tmp_path),
            str(program),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    notes = [line for line in done.stdout.splitlines() if "Revealed type" in line]
    assert len(notes) == len(neurograft._PUBLIC), done.stdout + done.stderr
    assert not [line for line in notes if line.endswith('"Any"')]
    assert 'has no attribute "fusee"' in done.stdout or 'Module has no attribute "fusee"' in done.stdout
