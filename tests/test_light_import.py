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


MODULE = """
from torch import nn
def net():
    return nn.Sequential(nn.Linear(4, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)).eval()
"""
BARE = """
import sys
BLOCKED = {blocked!r}
class Hiding:
    def __init__(self, finder):
        self.finder = finder
    def __getattr__(self, name):
        return getattr(self.finder, name)
    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in BLOCKED else self.finder.find_spec(name, path, target)
sys.meta_path[:] = [Hiding(finder) for finder in sys.meta_path]
import torch, neurograft as ng
from neurograft.methods import METHODS
from torch import nn
torch.manual_seed(0)
def net():
    return nn.Sequential(nn.Linear(4, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)).eval()
nets, x = [net(), net()], torch.randn(64, 4)
labels = torch.randint(3, (64,))
print(ng.trace(nets[0], x[:2]))
for method in METHODS:
    print(ng.plan(nets, x[:2], method, calibration=[x]))
    fused = ng.fuse(nets, x[:2], method, calibration=[x])
plan = ng.plan(nets, x[:2], "average")
fused = ng.repair(ng.apply(plan, nets), plan, nets, [x])
fused = ng.reestimate_batch_norm(fused, [x])
ng.combine(nets, x[:2]), ng.prune(nets[0], x[:2], ratio=0.5)
ng.barrier(nets[0], nets[1], [(x, labels)], example_inputs=x[:2])
print(ng.evaluate(ng.Ensemble(nets), [(x, labels)]))
tuned = ng.finetune(fused, [(x, labels)], epochs=1)
from neurograft.checkpoints import write_checkpoint
from pathlib import Path
folder = Path({folder!r})
(folder / "own.py").write_text({module!r})
for i, one in enumerate(nets):
    write_checkpoint(one, folder / f"{{i}}.safetensors", {{}})
sys.path.insert(0, str(folder))
BLOCKED.discard("pydantic")  # typer needs it
from neurograft.command_line.app import main
for more in ([], ["--max-memory", "1GB"]):
    files = [str(folder / f"{{i}}.safetensors") for i in range(2)]
    output = str(folder / f"fused{{len(more)}}.safetensors")
    sys.argv = ["neurograft", "fuse", "own:net", *files, "--method", "average", "--input", "2x4", "-o", output, *more]
    try:
        main()
    except SystemExit as end:
        assert not end.code, end.code
print("ALL DONE")
"""


def test_the_library_needs_what_it_depends_on_alone(tmp_path):
    blocked = {"pandas", "pydantic", "ray", "matplotlib", "accelerate", "datasets", "sklearn", "yaml", "filelock"}
    blocked |= {"transformers", "safetensors", "pyarrow", "PIL", "tensorboard"}
    program = BARE.format(blocked=blocked, folder=str(tmp_path), module=MODULE)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout.rstrip().endswith("ALL DONE"), done.stderr
