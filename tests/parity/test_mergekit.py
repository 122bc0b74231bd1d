"""mergekit's recipes as they are, and every tensor of its outputs (version 0.1.5, float32)."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from neurograft.merging.merge import merge

FOLDER = Path(os.environ.get("NEUROGRAFT_SHARED", "nowhere")) / "parity" / "mergekit"
RECIPES = sorted(path.stem for path in FOLDER.glob("recipes/*.yaml"))

pytest.importorskip("transformers")


# run by itself: what it computes with is chosen when torch is loaded
PROGRAM = "import sys; from neurograft.merging.merge import merge; merge(sys.argv[1], sys.argv[2])"


@pytest.mark.skipif(not RECIPES, reason="mergekit's outputs are not here: NEUROGRAFT_SHARED")
@pytest.mark.parametrize("recipe", RECIPES)
def test_every_tensor_of_mergekits_recipes(tmp_path: Path, monkeypatch, recipe: str) -> None:
    monkeypatch.chdir(FOLDER)
    path, out = Path("recipes") / f"{recipe}.yaml", tmp_path / "out"
    if recipe == "arcee_fusion":
        # which entries pass its threshold is decided by the rounding of a float32 softmax: the outputs are those of
        # AVX2, and with AVX-512 mergekit's own formula chooses another entry in two tensors
        arguments = [sys.executable, "-c", PROGRAM, str(path), str(out)]
        subprocess.run(arguments, check=True, env={**os.environ, "ATEN_CPU_CAPABILITY": "avx2"})
    else:
        merge(path, out)
    found = load_file(out / "model.safetensors")
    expected = load_file(FOLDER / "outputs" / f"{recipe}.safetensors")
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype == torch.float32
        worst = float((found[name] - tensor).abs().max() / tensor.abs().max())
        assert worst < 1e-5, f"{name}: {worst}"
    assert (out / "neurograft_recipe.yaml").read_bytes() == path.read_bytes()
