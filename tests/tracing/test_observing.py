"""Observing finds every use of every weight again, on any batch."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import neurograft as ng
from neurograft.axes.layout import layout_size
from neurograft.inputs import call
from neurograft.tracing.graph import Use
from neurograft.tracing.observing import ObservedOp, observe
from tests.networks import NETWORKS, build, example
from tests.tracing.huggingface import made
from tests.tracing.test_checklist import CASES
from tests.tracing.test_huggingface import other_inputs


class Notes:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, int]] = []
        self.results: list[tuple[Use, Tensor | None, Tensor]] = []

    def before(self, step: ObservedOp) -> None:
        if step.reading is not None:
            self.seen.append(step.reading.key)

    def after(self, step: ObservedOp, result: Any) -> None:
        if step.reading is not None and step.reading.use is not None:
            given, output = step.reading.operands.input, result if isinstance(result, Tensor) else result[0]
            self.results.append((step.reading.use, None if given is None else given.clone(), output.clone()))


@pytest.mark.parametrize("name", NETWORKS)
def test_every_use_is_found_again_on_another_batch_size(name: str) -> None:
    model, notes = build(name), Notes()
    graph = ng.trace(model, example(name), verify=False)
    inputs = torch.utils._pytree.tree_map(lambda x: torch.cat([x, x, x]), example(name))
    with torch.no_grad(), observe(model, graph, notes):
        call(model, inputs)
    assert notes.seen == [(use.tensor, use.nth) for use in graph.uses]
    for use, given, output in notes.results:
        assert len(use.output) == output.dim()
        if given is not None and use.input is not None:
            assert len(use.input) == given.dim()


def test_inputs_and_outputs_are_those_of_the_op() -> None:
    model, notes = build("mlp_bias"), Notes()
    graph = ng.trace(model, example("mlp_bias"))
    x = torch.randn(9, 12)
    with torch.no_grad(), observe(model, graph, notes):
        model(x)
    use, given, output = notes.results[0]
    assert use.tensor == "layers.0.weight"
    assert torch.equal(given, x)
    assert torch.equal(output, model.layers[0](x))


def test_a_weight_changed_before_its_use_is_what_the_op_reads() -> None:
    model = build("attention")
    graph = ng.trace(model, example("attention"))

    class Zero(Notes):
        def before(self, step: ObservedOp) -> None:
            if step.reading is not None and step.reading.tensor == "head.weight":
                model.head.weight.zero_()

    with torch.no_grad(), observe(model, graph, Zero()):
        out = model(example("attention"))
    assert torch.equal(out, model.head.bias.expand_as(out))


def test_the_count_starts_anew_with_every_call() -> None:
    model, notes = build("twice"), Notes()
    graph = ng.trace(model, example("twice"))
    with torch.no_grad(), observe(model, graph, notes):
        model(example("twice"))
        model(example("twice"))
    assert notes.seen[:4] == notes.seen[4:]


def test_multi_head_attention_is_seen_through_its_fast_path() -> None:
    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attend = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
            self.head = nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Any:
            return self.head(self.attend(x))

    model, notes = Layer().eval(), Notes()
    x = torch.randn(2, 5, 8)
    graph = ng.trace(model, x)
    fast = torch.backends.mha.get_fastpath_enabled()
    with torch.no_grad(), observe(model, graph, notes):
        model(torch.randn(4, 5, 8))
    assert "attend.self_attn.in_proj_weight" in [tensor for tensor, _ in notes.seen]
    assert notes.seen == [(use.tensor, use.nth) for use in graph.uses]
    assert torch.backends.mha.get_fastpath_enabled() == fast


def test_hooks_and_flags_come_back_after_an_exception() -> None:
    model = build("mlp")
    graph = ng.trace(model, example("mlp"))
    with pytest.raises(RuntimeError, match="mat1 and mat2"), observe(model, graph, Notes()):
        model(torch.randn(2, 7))
    assert not model._forward_pre_hooks


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "wav2vec2", "mixtral"])
def test_uses_face_what_the_graph_says_on_other_inputs(name: str) -> None:
    pytest.importorskip("transformers")
    model, inputs = made(name)
    graph, notes = ng.trace(model, inputs, verify=False), Notes()
    with torch.no_grad(), observe(model, graph, notes):
        call(model, other_inputs(inputs))
    assert notes.seen == [(use.tensor, use.nth) for use in graph.uses]
    for use, given, output in notes.results:
        assert all(layout_size(use.output[k]) == output.shape[k] for k in use.output_dims.values())
        if given is not None and use.input is not None:
            assert all(layout_size(use.input[k]) == given.shape[k] for k in use.input_dims.values())


@pytest.mark.parametrize("name", ["lstm", "multi_head_attention", "bilinear", "einsum", "embedding_bag", "experts"])
def test_functional_code_is_observed(name: str) -> None:
    model, inputs = CASES[name].make().eval(), CASES[name].inputs()
    graph, notes = ng.trace(model, inputs, verify=False), Notes()
    with torch.no_grad(), observe(model, graph, notes):
        call(model, inputs)
    assert notes.seen == [(use.tensor, use.nth) for use in graph.uses]
