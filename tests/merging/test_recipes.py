"""mergekit's recipes are read as they are; what cannot be meant is refused with the line, and nothing is written."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import neurograft as ng
from neurograft.checkpoints import provenance_of
from neurograft.command_line.app import app
from neurograft.errors import CheckpointError, MembersDiffer, OptionError, PlanError, RecipeError
from neurograft.merging.merge_methods import MERGE_METHODS
from neurograft.merging.recipe import Recipe

pytest.importorskip("transformers")
pytest.importorskip("yaml")

from tests.merging.models import llama, write_models

LINEAR = """merge_method: linear
models:
- model: m0
  parameters: {weight: 1}
- model: m1
  parameters: {weight: 2}
"""
TIES = """
merge_method: ties
base_model: base
models:
- model: m0
  parameters: {weight: 0.5, density: [0.2, 0.8]}
- model: m1
  parameters: {weight: [{filter: mlp, value: 1.0}, {value: 1e-1}]}
parameters:
  density: {filter: self_attn, value: 0.4}
  lambda: 1.3
  normalize: false
dtype: float32
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("models")
    write_models(place)
    return place


def read(folder: Path, text: str) -> Recipe:
    path = folder / "recipe.yaml"
    path.write_text(text.lstrip("\n"))
    return Recipe.read(path)


def test_parameters_of_models_of_filters_and_over_the_depth_are_settings(folder: Path) -> None:
    recipe = read(folder, TIES)
    assert recipe.operator == ng.Ties(
        weights=[0.5, {"*": 0.1, "*mlp*": 1.0}],
        # where a model says nothing all models' value counts, and where that says nothing mergekit's default
        density=[ng.Gradient([0.2, 0.8]), {"*": 1.0, "*self_attn*": 0.4}],
        scale=1.3,
        normalize=False,
    )
    assert recipe.members == (folder / "m0", folder / "m1")
    assert (recipe.base, recipe.first, recipe.dtype) == (folder / "base", folder / "base", "float32")


def test_the_first_filter_that_fits_counts(folder: Path) -> None:
    text = "merge_method: slerp\nbase_model: m1\nmodels: [{model: m0}, {model: m1}]\nparameters:\n  t:\n"
    recipe = read(folder, text + "  - {filter: mlp.up, value: 0.1}\n  - {filter: mlp, value: [0, 1]}\n  - value: 0.5\n")
    assert recipe.members == (folder / "m1", folder / "m0")  # from the base to the other
    operator = recipe.operator
    assert operator == ng.Slerp(t={"*": 0.5, "*mlp*": ng.Gradient([0, 1]), "*mlp.up*": 0.1})
    again = read(folder, text.replace("[{model: m0}, {model: m1}]", "[{model: m0}]") + "    0.25\n")
    assert (again.members, again.operator) == (recipe.members, ng.Slerp(t=0.25))
    special = read(folder, text + "  - {filter: 'a[0]*', value: 0.1}\n  - value: 0.5\n")
    assert list(special.operator.t) == ["*", "*a[[]0][*]*"]  # a filter is no pattern


@pytest.mark.parametrize("name", MERGE_METHODS)
def test_every_method_is_read_and_merged_with_the_least_it_needs(tmp_path: Path, folder: Path, name: str) -> None:
    method = MERGE_METHODS[name]
    weighted = ", parameters: {weight: 0.5}" if "weight" in method.required else ""
    base = {"ancestor": "base_model: base\n", "first member": "base_model: m0\n"}.get(method.base, "")
    text = f"merge_method: {name}\n{base}models: [{{model: m0{weighted}}}, {{model: m1{weighted}}}]\n"
    text += "parameters:\n  t: 0.3\n" if "t" in method.required else ""
    text += "parameters: {density: 0.5}\n" if name.startswith("della") else ""
    recipe = read(folder, text)
    assert isinstance(recipe.operator, method.operator)
    done = ng.merge(recipe, tmp_path / "out")
    found, first = (load_file(place / "model.safetensors") for place in (tmp_path / "out", folder / "m0"))
    assert done.output == tmp_path / "out"
    assert {key: x.shape for key, x in found.items()} == {key: x.shape for key, x in first.items()}
    assert all(bool(x.isfinite().all()) for x in found.values())


def test_a_recipe_is_what_the_operator_makes_in_memory(tmp_path: Path, folder: Path) -> None:
    path = folder / "ties.yaml"
    path.write_text(TIES)
    ng.merge(path, tmp_path / "out", dtype=torch.bfloat16)
    found = load_file(tmp_path / "out" / "model.safetensors")
    models = {}
    for name in ("base", "m0", "m1"):
        models[name] = llama()
        models[name].load_state_dict(load_file(folder / name / "model.safetensors"))
    inputs = {"input_ids": torch.ones(1, 4, dtype=torch.long), "use_cache": False}
    wanted = ng.fuse([models["m0"], models["m1"]], inputs, Recipe.read(path).operator, base=models["base"])
    for name, tensor in wanted.state_dict().items():
        assert torch.equal(found[name], tensor.to(torch.bfloat16)), name
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"
    assert (tmp_path / "out" / "neurograft_recipe.yaml").read_text() == TIES
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"## Recipe\n\n```yaml\n{TIES.rstrip()}\n```" in card
    assert provenance_of(tmp_path / "out" / "model.safetensors")["recipe"] == TIES


def test_slices_that_take_all_layers_are_models(folder: Path) -> None:
    head = "merge_method: slerp\nbase_model: m0\nparameters: {t: 0.5}\nslices:\n- sources:\n"
    sources = "  - {model: m0, layer_range: [0, 3]}\n  - {model: m1, layer_range: [0, 3]}\n"
    assert read(folder, head + sources).operator == ng.Slerp(t=0.5)
    own = read(folder, head + sources + "  parameters: {t: [{filter: mlp, value: 0.1}]}\n")
    assert own.operator == ng.Slerp(t={"*": 0.5, "*mlp*": 0.1})
    with pytest.raises(RecipeError, match=r"recipe.yaml, line 7: layer_range \[0, 2\] is not all of the 3 layers"):
        read(folder, head + sources.replace("m1, layer_range: [0, 3]", "m1, layer_range: [0, 2]"))
    with pytest.raises(RecipeError, match="line 8: layers are not stacked anew .a frankenmerge."):
        read(folder, head + sources + "- sources:\n" + sources)


def test_one_more_key_aligns(tmp_path: Path, folder: Path) -> None:
    text = LINEAR
    recipe = read(folder, text + "align: {method: permutation, restarts: 1}\n")
    assert recipe.align == ng.Permutation(restarts=1)
    ng.merge(recipe, tmp_path / "out")
    assert provenance_of(tmp_path / "out" / "model.safetensors")["method"] == "linear after permutation"
    assert read(folder, text + "align: permutation\n").align == ng.Permutation()
    for value, message in {
        "transplant": "align='transplant' chooses among all members' neurons",
        "permutatoin": "unknown method 'permutatoin'; did you mean 'permutation'",
        "{method: permutation, restart: 1}": "has no option 'restart'; did you mean 'restarts'",
    }.items():
        with pytest.raises(RecipeError, match=f"line 7: .*{message}"):
            read(folder, text + f"align: {value}\n")


REFUSED = {
    "unknown top key": (LINEAR + "dtpye: float32\n", "line 7: unknown key 'dtpye'; did you mean 'dtype'"),
    "unknown model key": (
        LINEAR.replace("- model: m1", "- model: m1\n  paramters: {}"),
        "line 6: unknown key 'paramters'",
    ),
    "unknown parameter": (LINEAR.replace("{weight: 2}", "{wieght: 2}"), "line 6: linear has no parameter 'wieght'"),
    "unknown method": (LINEAR.replace("linear", "tise"), "line 1: unknown merge_method 'tise'; did you mean 'ties'"),
    "no method": (LINEAR.partition("\n")[2], "line 1: merge_method is missing"),
    "ram": (LINEAR.replace("linear", "ram"), "line 1: merge_method ram: is not implemented"),
    "passthrough": (LINEAR.replace("linear", "passthrough"), "line 1: merge_method passthrough: .*frankenmerge"),
    "modules": ("merge_method: linear\nmodules: {}\n", "line 2: modules: of models with several modules"),
    "mixture": ("base_model: m0\ngate_mode: hidden\n", "line 2: gate_mode: mixtures of experts are not built"),
    "evolve": (LINEAR + "genome: {}\n", "line 7: genome: recipes are not searched for"),
    "tokens": (LINEAR + "tokenizer: {source: base}\n", "line 7: tokenizer: tokens are not moved"),
    "both": (LINEAR + "slices: []\n", "line 7: a recipe has either models: or slices:"),
    "neither": ("merge_method: linear\n", "a recipe has either models: or slices:"),
    "one model": ("merge_method: linear\nmodels:\n- {model: m0, parameters: {weight: 1}}\n", "line 2: .* at least two"),
    "three for slerp": (
        "merge_method: slerp\nbase_model: m0\nparameters: {t: 0}\nmodels: [{model: m0}, {model: m1}, {model: m2}]\n",
        "line 4: slerp merges 2 models, got 3",
    ),
    "twice": (LINEAR.replace("m1", "m0"), "line 5: .*m0 is there twice"),
    "no such model": (LINEAR.replace("m1", "m9"), "line 5: m9: no such folder or file, here or beside the recipe"),
    "no such base": (LINEAR.replace("linear", "ties") + "base_model: nowhere/base\n", "line 7: nowhere/base: no such"),
    "adapter": (
        LINEAR.replace("m1", "m1+lora"),
        r"line 5: m1\+lora: .*adapters are merged by `neurograft merge-adapters`",
    ),
    "no weight": (LINEAR.replace("{weight: 2}", "{}"), "line 5: weight: is missing for .*m1"),
    "no t": ("merge_method: slerp\nbase_model: m0\nmodels: [{model: m1}]\n", "line 1: slerp needs t: under"),
    "no base": (LINEAR.replace("linear", "ties"), "line 1: ties needs base_model:"),
    "needless base": (LINEAR + "base_model: base\n", "line 7: linear has no base: list .*base among the models"),
    "density": (
        TIES.replace("[0.2, 0.8]", "0"),
        "line 5: density is above 0 and at most 1, got 0",
    ),
    "no number": (LINEAR.replace("weight: 2", "weight: big"), "line 6: weight is a number, a list"),
    "no switch": (LINEAR + "parameters: {normalize: 1}\n", "line 7: normalize is true or false for all tensors, got 1"),
    "rescale": (
        "merge_method: ties\nbase_model: base\nmodels:\n- {model: m0, parameters: {weight: 1}}\n"
        "- {model: m1, parameters: {weight: 1}}\nparameters: {rescale: true}\n",
        "line 6: rescale: only what is chosen at random is rescaled",
    ),
    "shared by one": (
        LINEAR.replace("{weight: 2}", "{weight: 2, normalize: false}"),
        "line 6: normalize is one for all models: put it under parameters:",
    ),
    "filter": (LINEAR.replace("weight: 2", "weight: [{filter: mlp}]"), "line 6: a filter is a part of a tensor's name"),
    "filter key": (LINEAR.replace("weight: 2", "weight: [{fliter: mlp, value: 1}]"), "line 6: unknown key 'fliter'"),
    "dtype": (LINEAR + "dtype: float23\n", "line 7: unknown dtype 'float23'; did you mean 'float32'"),
    "tokenizer source": (LINEAR + "tokenizer_source: m2\n", "line 7: tokenizer_source .*m2 is none of the models"),
    "no YAML": (LINEAR + "a: [\n", "line 8: "),
    "two documents": (LINEAR + "---\n" + LINEAR, "line 7: "),
    "twice a key": (LINEAR + "merge_method: ties\n", "line 7: 'merge_method' is there twice"),
    "no mapping": ("- a\n- b\n", "line 1: a recipe is a mapping of keys to values"),
    "bomb": (
        "a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1]\nb: &b [*a, *a, *a, *a, *a, *a, *a, *a]\nc: &c [*b, *b, *b, *b, *b, *b]\n"
        "d: &d [*c, *c, *c, *c, *c, *c]\ne: [*d, *d, *d, *d, *d, *d, *d, *d, *d]\n",
        "line .: more than 10,000 values, with those that aliases repeat",
    ),
    "deep": ("a: " + "[" * 60 + "]" * 60, "line 1: nested more than 30 levels deep"),
    "tag": ("a: !!python/object:os.system x\n", "line 1: dates, binary data and other tags are not taken"),
    "a list of none": ("merge_method: linear\nmodels: []\n", r"line 2: models is a list of at least one, got \[\]"),
    "a model is no text": ("merge_method: linear\nmodels: [{model: 3}]\n", "line 2: a model is a folder"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_meant_is_refused_with_the_line(folder: Path, name: str) -> None:
    text, message = REFUSED[name]
    with pytest.raises(RecipeError, match=message):
        read(folder, text)


def test_files_that_are_no_recipes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="nowhere.yaml cannot be read: No such file"):
        Recipe.read(tmp_path / "nowhere.yaml")
    (tmp_path / "large.yaml").write_bytes(b"#" * 200_000)
    with pytest.raises(RecipeError, match="a recipe has at most 100,000 bytes"):
        Recipe.read(tmp_path / "large.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"a: 1\nb: \xff\n")
    with pytest.raises(RecipeError, match="latin.yaml, line 2: no UTF-8"):
        Recipe.read(tmp_path / "latin.yaml")


def test_vocabularies_must_agree_where_the_tokenizer_is_chosen(tmp_path: Path) -> None:
    write_models(tmp_path, 2, {"a": 0, "b": 1})
    text = LINEAR + "tokenizer_source: union\n"
    recipe = read(tmp_path, text)
    ng.merge(recipe, tmp_path / "out")
    assert (tmp_path / "out" / "tokenizer.json").is_file()
    (tmp_path / "m1" / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {"a": 1, "b": 0}}}))
    with pytest.raises(MembersDiffer, match="m1 has another vocabulary than .*m0: 'a' is 1 there and 0 here"):
        ng.merge(recipe, tmp_path / "other")
    (tmp_path / "m1" / "tokenizer.json").unlink()
    with pytest.raises(MembersDiffer, match="m1 has no tokenizer"):
        ng.merge(recipe, tmp_path / "other")
    assert not (tmp_path / "other").exists()
    assert not read(tmp_path, LINEAR).same_vocabulary


def test_models_that_do_not_fit_leave_nothing_behind(tmp_path: Path) -> None:
    write_models(tmp_path, 2)
    recipe = read(tmp_path, TIES)
    stranger = load_file(tmp_path / "base" / "model.safetensors")
    save_file({name: torch.randn_like(x) for name, x in stranger.items()}, tmp_path / "base" / "model.safetensors")
    with pytest.raises(PlanError, match="the base is no ancestor of .*m0: neurons of the same place lie"):
        ng.merge(recipe, tmp_path / "out")
    (tmp_path / "base" / "config.json").unlink()
    with pytest.raises(PlanError, match="no ancestor of .*m0: they lie 1.* times as far apart"):
        ng.merge(recipe, tmp_path / "out")
    with pytest.raises(CheckpointError, match="base: aligning needs the network; of checkpoints that are no model"):
        ng.merge(read(tmp_path, TIES + "align: permutation\n"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


NETWORK = """
import torch
from torch import nn
def net():
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
def example_inputs():
    return torch.ones(1, 4)
"""


def test_the_command_follows_recipes_of_folders_and_of_other_checkpoints(
    tmp_path: Path, folder: Path, monkeypatch
) -> None:
    run = CliRunner().invoke
    path = folder / "ties.yaml"
    path.write_text(TIES)
    planned = run(app, ["plan", str(path)])
    assert planned.exit_code == 0, planned.output
    assert "of 2 members" in planned.output
    assert "30 tensors combined by ties" in planned.output
    done = run(app, ["fuse", str(path), "-o", str(tmp_path / "out"), "--dtype", "bfloat16"])
    assert done.exit_code == 0, done.output
    assert load_file(tmp_path / "out" / "model.safetensors")["lm_head.weight"].dtype == torch.bfloat16

    (tmp_path / "recipe_network.py").write_text(NETWORK)
    monkeypatch.syspath_prepend(tmp_path)
    state = {
        "0.weight": torch.randn(8, 4),
        "0.bias": torch.randn(8),
        "2.weight": torch.randn(2, 8),
        "2.bias": torch.zeros(2),
    }
    for name in ("a", "b"):
        save_file({key: x + 0.1 for key, x in state.items()}, tmp_path / f"{name}.safetensors")
    recipe = tmp_path / "files.yaml"
    recipe.write_text(LINEAR.replace("m0", "a.safetensors").replace("m1", "b.safetensors"))
    out = tmp_path / "merged.safetensors"
    done = run(app, ["fuse", "recipe_network:net", str(recipe), "-o", str(out)])
    assert done.exit_code == 0, done.output
    torch.testing.assert_close(load_file(out)["0.weight"], state["0.weight"] + 0.1)
    assert provenance_of(out)["network"] == "recipe_network:net"
    direct = ["fuse", "recipe_network:net", str(tmp_path / "a.safetensors"), str(tmp_path / "b.safetensors")]
    by_hand = [*direct, "--method", "slerp", "--option", "t=0.5", "-o", str(tmp_path / "slerp.safetensors")]
    assert run(app, by_hand).exit_code == 0
    base = ["--method", "ties", "--base", str(tmp_path / "a.safetensors"), "--align", "permutation"]
    for more in ([], ["--max-memory", "1GB"]):
        target = tmp_path / f"ties{len(more)}.safetensors"
        done = run(app, [*direct, *base, "-o", str(target), "--recover", "none", *more])
        assert done.exit_code == 0, done.output
        assert provenance_of(target)["method"] == "ties after permutation"
        assert provenance_of(target)["base"]["name"] == "a.safetensors"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["recipe.yaml", "--method", "ties"], "a recipe has decided on the method .* leave out --method"),
        (["recipe.yaml", "--base", "base", "--align", "permutation"], "leave out --align and --base"),
        (["recipe.yaml", "m0"], "recipe.yaml is a recipe, which names the members: leave them out"),
        (["net:make", "m0", "recipe.yaml"], "recipe.yaml is a recipe, which names the members: leave them out"),
    ],
)
def test_a_recipe_decides_alone(folder: Path, monkeypatch, arguments: list[str], message: str) -> None:
    monkeypatch.chdir(folder)
    (folder / "recipe.yaml").write_text(LINEAR)
    with pytest.raises(OptionError, match=message):
        CliRunner().invoke(app, ["fuse", *arguments, "-o", "out"], catch_exceptions=False)
