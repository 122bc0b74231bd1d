"""Checkpoints without a network are merged by names; of folders with several models each is, and the rest is copied."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import neurograft as ng
from neurograft.errors import CheckpointError, MembersDiffer
from neurograft.merging.components import components
from neurograft.merging.named_tensors import open_tensors

pytest.importorskip("yaml")

RECIPE = """merge_method: ties
base_model: base
models:
- model: m0
  parameters: {weight: [1, 0]}
- model: m1
  parameters: {weight: 1}
parameters: {density: 0.5}
"""


def state(seed: int, scale: float) -> dict[str, torch.Tensor]:
    start, own = torch.Generator().manual_seed(0), torch.Generator().manual_seed(seed)
    shapes = {"blocks.0.w": (6, 4), "blocks.1.w": (6, 4), "norm.running_var": (6,), "head.w": (3, 6)}
    made = {name: torch.rand(shape, generator=start) for name, shape in shapes.items()}
    made = {name: x + scale * torch.rand(x.shape, generator=own) for name, x in made.items()}
    return made | {"norm.num_batches_tracked": torch.tensor(seed)}


def recipe(folder: Path, text: str = RECIPE) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text)
    return path


def expected(states: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """What the operator makes of tensors of one name, running statistics averaged, counters the largest."""
    from neurograft.operators.block import Block
    from neurograft.operators.depth import depths

    base, *members = states
    operator = ng.Ties(weights=[ng.Gradient([1, 0]), 1], density=0.5)
    found = {}
    for name, start in base.items():
        own = [member[name] for member in members]
        block = Block(name, own, (0.5, 0.5), start, depth=depths(base).get(name, 0.0))
        if not start.is_floating_point():
            found[name] = torch.stack(own).amax(0)
        else:
            found[name] = (own[0] + own[1]) / 2 if "running" in name else operator.combine(block)
    return found


def check(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor)


def test_checkpoints_without_a_network_are_merged_by_the_names_of_their_tensors(tmp_path: Path) -> None:
    states = [state(0, 0.0), state(1, 0.2), state(2, 0.2)]
    for name, own in zip(("base", "m0", "m1"), states, strict=True):
        save_file(own, tmp_path / f"{name}.safetensors")
    text = (
        RECIPE.replace("base\n", "base.safetensors\n").replace("m0", "m0.safetensors").replace("m1", "m1.safetensors")
    )
    ng.merge(recipe(tmp_path, text), tmp_path / "out.safetensors")
    check(load_file(tmp_path / "out.safetensors"), expected(states))
    members = open_tensors([tmp_path / "m0.safetensors", tmp_path / "m1.safetensors"], tmp_path / "base.safetensors")
    assert ng.plan(members, method="ties").warnings == ()  # nothing is said of units that nobody knows
    assert ng.compare(members).whole.tensors == 4
    save_file(states[2] | {"head.w": torch.zeros(4, 6)}, tmp_path / "m1.safetensors")
    with pytest.raises(MembersDiffer, match=r"head.w has shape \(4, 6\) in models\[1\], expected \(3, 6\)"):
        ng.merge(recipe(tmp_path, text), tmp_path / "other.safetensors")
    save_file(states[2], tmp_path / "m1.safetensors")
    save_file(states[0] | {"head.w": torch.zeros(4, 6)}, tmp_path / "base.safetensors")
    with pytest.raises(MembersDiffer, match=r"head.w has shape \(4, 6\)"):
        ng.merge(recipe(tmp_path, text), tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match="aligning needs the network"):
        ng.merge(recipe(tmp_path, text + "align: permutation\n"), tmp_path / "other.safetensors")
    assert not (tmp_path / "other.safetensors").exists()


def write_pipelines(folder: Path, listing: str, places: dict[str, str]) -> dict[str, list[dict[str, torch.Tensor]]]:
    """Folders `base`, `m0`, `m1` with a listing, weights in the places that are named, and files beside them."""
    written: dict[str, list[dict[str, torch.Tensor]]] = {place: [] for place in places}
    for m, name in enumerate(("base", "m0", "m1")):
        (folder / name / "tokenizer").mkdir(parents=True)
        (folder / name / listing).write_text(json.dumps({"of": name}))
        (folder / name / "tokenizer" / "vocab.txt").write_text(name)
        (folder / name / "onnx").mkdir()
        (folder / name / "onnx" / "model.onnx").write_bytes(b"other weights")
        for i, (place, file) in enumerate(places.items()):
            own = state(10 * i + m, 0.2 * bool(m))
            (folder / name / place).mkdir(exist_ok=True)
            (folder / name / place / "config.json").write_text("{}")
            save_file(own, folder / name / place / file)
            written[place].append(own)
    return written


@pytest.mark.parametrize(
    ("listing", "places"),
    [
        ("modules.json", {"": "model.safetensors", "2_Dense": "model.safetensors"}),
        ("model_index.json", {"text_encoder": "model.safetensors", "unet": "diffusion_pytorch_model.safetensors"}),
    ],
    ids=["sentence-transformers", "diffusers"],
)
def test_each_model_of_a_folder_is_merged_and_the_rest_is_the_bases(
    tmp_path: Path, listing: str, places: dict[str, str]
) -> None:
    written = write_pipelines(tmp_path, listing, places)
    assert components(tmp_path / "base") == list(places)
    done = ng.merge(recipe(tmp_path), tmp_path / "out", dtype=torch.float32)
    for place, file in places.items():
        check(load_file(tmp_path / "out" / place / file), expected(written[place]))
        assert (tmp_path / "out" / place / "config.json").read_text() == "{}"
    assert json.loads((tmp_path / "out" / listing).read_text()) == {"of": "base"}
    assert (tmp_path / "out" / "tokenizer" / "vocab.txt").read_text() == "base"
    assert not list((tmp_path / "out").rglob("*.onnx"))
    assert not (tmp_path / "out" / ".merged").exists()
    assert (tmp_path / "out" / "neurograft_recipe.yaml").read_text() == RECIPE
    assert done.bytes_written == sum(x.nbytes for states in written.values() for x in states[0].values())
    with pytest.raises(CheckpointError, match="aligning needs the network"):
        ng.merge(recipe(tmp_path, RECIPE + "align: permutation\n"), tmp_path / "other")
    place, file = next(reversed(places.items()))
    (tmp_path / "m1" / place / file).unlink()
    with pytest.raises(MembersDiffer, match="m1 holds the models"):
        ng.merge(recipe(tmp_path), tmp_path / "other")
    assert not (tmp_path / "other").exists()
