"""Imports run one way, from later stages to earlier ones, and no file reaches itself again."""

import ast

import pytest
from tools.import_graph import circle, file_graph, module_files, stage_graph, stage_of

# each line may import its own names and those above, never in a circle
LIBRARY = """
_version errors escaping paths
text_table
inputs preserve_state checkpoints factories least_squares options plugins yaml_file
member_statistics
axes
operators
tracing
members
plans
alignment
selection
methods
applying
evaluating
recovery
fusing
merging
training
reporting
advising
command_line
"""
EXPERIMENTS = """
strict claims devices
data
networks
store
study rows
study_text
study_file
trials
progress engine
cluster disk_space study_query
reports
trial_cache
unlabelled
costs synchronous tunings initial_models
running
inside
demo
command_line
"""
RANKS = {
    f"{package}.{name}": (package, line)
    for package, lines in (("neurograft", LIBRARY), ("neurograft_experiments", EXPERIMENTS))
    for line, names in enumerate(lines.split("\n"))
    for name in names.split()
}
GRAPH = file_graph()
# the packages themselves and `python -m neurograft` are no stages
FILES = [name for name in GRAPH if name not in {"neurograft", "neurograft_experiments", "neurograft.__main__"}]


@pytest.mark.parametrize("module", FILES)
def test_imports_point_to_earlier_stages(module):
    stage = stage_of(module)
    assert stage in RANKS, f"{stage} has no place in the order: add it"
    # "neurograft" comes before "neurograft_experiments": the library never imports the experiments
    later = [name for name in GRAPH[module] if stage_of(name) not in RANKS or RANKS[stage_of(name)] > RANKS[stage]]
    assert not later


def test_the_order_names_only_what_there_is():
    assert set(RANKS) == {stage_of(module) for module in FILES}


def test_no_stage_and_no_file_imports_itself_by_a_detour():
    assert circle(stage_graph(GRAPH)) == []
    assert circle(GRAPH) == []


def test_every_kind_of_import_is_read(tmp_path):
    lines = {
        "neurograft/__init__.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from neurograft.a import x",
        "neurograft/a.py": "def later():\n    import neurograft.b.c\n    from neurograft.b import c, name",
        "neurograft/b/__init__.py": "",
        "neurograft/b/c.py": "import neurograft\nimport torch",
    }
    for name, text in lines.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    graph = file_graph(tmp_path)
    assert graph == {
        "neurograft": {"neurograft.a"},
        "neurograft.a": {"neurograft.b.c", "neurograft.b"},
        "neurograft.b": set(),
        "neurograft.b.c": {"neurograft"},
    }
    assert circle(graph)[1:] in (
        ["neurograft.a", "neurograft.b.c", "neurograft"],
        ["neurograft.b.c", "neurograft", "neurograft.a"],
        ["neurograft", "neurograft.a", "neurograft.b.c"],
    )


@pytest.mark.parametrize("module", [name for name in FILES if name.split(".")[0] == "neurograft"])
def test_no_heavy_import_at_the_top(module):
    heavy = {"ot", "sklearn", "matplotlib", "transformers", "datasets", "accelerate", "ray", "pyarrow", "PIL"}
    tree = ast.parse(module_files()[module].read_text(encoding="utf-8"))
    names = {
        name.split(".")[0]
        for node in tree.body
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    assert not names & heavy


def test_no_file_is_called_after_nothing():
    vague = {"utils", "util", "helpers", "helper", "misc", "common", "base", "core"}
    assert not [name for name in FILES if vague & set(name.split("."))]
