"""`import neurograft` and `neurograft --help` must not wait for torch."""

import json
import subprocess
import sys

import pytest

# what the command line may load; torch and numpy are not among them
ALLOWED = {
    *("neurograft", "neurograft_experiments", "typer", "click", "shellingham", "annotated_doc", "typing_extensions"),
    *("rich", "pygments", "markdown_it", "mdurl", "attr", "attrs"),
    *("pydantic", "pydantic_core", "annotated_types", "typing_inspection"),  # typer looks whether they are there
}


def loaded(program):
    code = (
        "import sys; before = set(sys.modules)\n"
        f"{program}\n"
        "import json; print('MODULES' + json.dumps(sorted({name.split('.')[0] for name in set(sys.modules) - before})))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    found = set(json.loads(out.rpartition("MODULES")[2]))
    return {name for name in found if name not in sys.stdlib_module_names and not name.startswith("_")}


def test_the_package_imports_nothing():
    assert loaded("import neurograft") == {"neurograft"}


def test_a_name_imports_what_it_needs_and_no_more():
    heavy = {"sklearn", "matplotlib", "transformers", "datasets", "pandas", "ray", "accelerate", "ot"}
    found = loaded("import neurograft; neurograft.evaluate; neurograft.finetune; neurograft.fuse; neurograft.combine")
    assert "torch" in found
    assert not found & heavy


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["fuse", "--help"], ["trace", "--help"], ["demo", "--help"], ["experiment", "run", "--help"]],
)
def test_help_imports_no_torch(arguments):
    program = (
        f"sys.argv = ['neurograft', *{arguments!r}]\n"
        "from neurograft.command_line.app import main\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code"
    )
    assert loaded(program) <= ALLOWED


def test_the_module_is_the_command():
    done = subprocess.run([sys.executable, "-m", "neurograft", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("neurograft ")
