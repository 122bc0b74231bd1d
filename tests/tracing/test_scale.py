"""Large networks are traced on the meta device, in seconds and megabytes; the time grows with the number of ops."""

import json
import subprocess
import sys
import time

import pytest
import torch
from torch import nn

import neurograft as ng
from neurograft.tracing.recording import record

# built and traced in a process of its own, so that its peak of memory is that of tracing
MEASURED = """
import json, resource, sys, time
import torch, transformers
import neurograft as ng

kind, config, options = json.loads(sys.argv[1])
config = getattr(transformers, config)(**options)
inputs = {"input_ids": torch.randint(1000, (1, 8))}
with torch.device("meta"):
    model = getattr(transformers, kind)(config).eval()
# a small network of the kind first: what is imported and looked up once is not counted
small = {"num_hidden_layers": 1} if "num_hidden_layers" in options else {"n_layer": 1}
with torch.device("meta"):
    one = getattr(transformers, kind)(type(config)(**options | small)).eval()
ng.trace(one, inputs)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
started = time.process_time()
graph = ng.trace(model, inputs)
print(json.dumps({
    "seconds": time.process_time() - started,
    "megabytes": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) / 1024,
    "units": sorted({group.size for group in graph.outermost}),
    "outermost": len(graph.outermost),
    "unruled": graph.unruled,
    "proven": graph.proven,
}))
"""

LLAMA_3_8B = (
    "LlamaForCausalLM",
    "LlamaConfig",
    {
        "vocab_size": 128_256,
        "hidden_size": 4096,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "intermediate_size": 14_336,
    },
)
GPT2_XL = ("GPT2LMHeadModel", "GPT2Config", {"n_embd": 1600, "n_layer": 48, "n_head": 25})
MIXTRAL_8X7B = (
    "MixtralForCausalLM",
    "MixtralConfig",
    {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8},
)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "units", "per_layer"),
    [
        pytest.param(LLAMA_3_8B, [8, 4096, 14_336], 2, id="llama-3-8b"),
        pytest.param(GPT2_XL, [25, 1600, 6400], 2, id="gpt-2-xl"),
        pytest.param(MIXTRAL_8X7B, [8, 4096], 2, id="mixtral-8x7b"),
    ],
)
def test_large_networks_are_traced_in_seconds(
    shape: tuple[str, str, dict[str, int]], units: list[int], per_layer: int
) -> None:
    pytest.importorskip("transformers")
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, json.dumps(shape)], capture_output=True, text=True, check=True, timeout=300
    )
    found = json.loads(done.stdout.splitlines()[-1])
    layers = shape[2].get("num_hidden_layers") or shape[2]["n_layer"]
    assert found["unruled"] == []
    assert found["proven"] == "unproven (meta device)"
    assert found["units"] == units
    # the stream, and per layer the heads and the hidden neurons (or the experts that hold them)
    assert found["outermost"] == 1 + per_layer * layers
    assert found["seconds"] < 5, found
    assert found["megabytes"] < 200, found


def chain(depth: int) -> nn.Module:
    """Linear layers with LayerNorm and ReLU."""
    layers: list[nn.Module] = []
    for _ in range(depth):
        layers += [nn.Linear(16, 16), nn.LayerNorm(16), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(16, 3)).eval()


@pytest.mark.slow
def test_time_grows_with_the_number_of_ops() -> None:
    each = {}
    for depth in (12, 96):
        model, x = chain(depth), torch.randn(2, 16)
        times = []
        for _ in range(3):
            started = time.process_time()
            ng.trace(model, x, verify=False)
            times.append(time.process_time() - started)
        each[depth] = min(times) / len(record(model, x).ops)
    # eight times as many ops: time per op may not even double
    assert each[96] < 2 * each[12], each
