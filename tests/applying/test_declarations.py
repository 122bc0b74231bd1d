"""Networks of other code bases with changed widths: what they declare is true, so one that is saved loads as itself."""

from pathlib import Path

import pytest
import torch
from tests.tracing.huggingface import made

import neurograft as ng

pytest.importorskip("transformers")


@pytest.mark.parametrize("name", ["gpt2", "bert", "llama", "t5", "vit", "opt", "gpt_neox"])
def test_a_pruned_network_is_saved_and_loaded_as_itself(name: str, tmp_path: Path) -> None:
    model, inputs = made(name)
    pruned = ng.prune(model, inputs, ratio=0.5)
    pruned.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path).eval()
    assert sum(p.numel() for p in loaded.parameters()) < sum(p.numel() for p in model.parameters())
    with torch.no_grad():
        torch.testing.assert_close(loaded(**inputs).logits, pruned(**inputs).logits, rtol=1e-4, atol=1e-4)


def test_the_proof_of_a_network_that_gives_nan_is_none() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
    graph = ng.trace(model, torch.full((2, 3), float("nan")))
    assert graph.proven == "unproven (the outputs are NaN: look at the weights and the inputs)"
