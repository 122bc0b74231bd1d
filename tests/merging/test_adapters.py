"""Adapters are merged as products: to a rank, exactly, or into the base; LoRA, rsLoRA and DoRA, as PEFT writes them."""

import json
from collections.abc import Mapping
from math import sqrt
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from typer.testing import CliRunner

import neurograft as ng
from neurograft.checkpoints import provenance_of
from neurograft.command_line.app import app
from neurograft.errors import BadWeights, CheckpointError, MembersDiffer, OptionError, PlanError
from neurograft.merging.factoring import joined, of_matrix, truncated
from neurograft.methods import operator_of
from neurograft.operators.block import Block

SHAPES = {"model.layers.0.self_attn.q_proj": (6, 8), "model.layers.1.mlp.up_proj": (10, 8)}
BASE = {
    f"{module}.weight": torch.randn(shape, generator=torch.Generator().manual_seed(1))
    for module, shape in SHAPES.items()
}


def write_adapter(
    folder: Path, seed: int, rank: int = 2, shapes: Mapping[str, tuple[int, ...]] = SHAPES, **config: Any
) -> Path:
    """An adapter of random factors, with a magnitude where the configuration says DoRA."""
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, Tensor] = {}
    for module, (outputs, *inputs) in shapes.items():
        own = (config.get("rank_pattern") or {}).get(module, rank)
        name = f"base_model.model.{module}.lora_"
        tensors[f"{name}A.weight"] = torch.randn(own, *inputs, generator=generator)
        tensors[f"{name}B.weight"] = torch.randn(outputs, own, *(1,) * (len(inputs) - 1), generator=generator)
        if config.get("use_dora"):
            tensors[f"{name}magnitude_vector"] = torch.rand(outputs, generator=generator) + 0.5
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    found = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": 4,
        "base_model_name_or_path": "tiny",
        "target_modules": ["q_proj"],
    }
    (folder / "adapter_config.json").write_text(json.dumps(found | config))
    return folder


def products(folder: Path, base: Mapping[str, Tensor] = BASE) -> dict[str, Tensor]:
    """What an adapter adds to every weight, by the papers' formulas in float64."""
    config = json.loads((folder / "adapter_config.json").read_text())
    tensors = {name: x.double() for name, x in load_file(folder / "adapter_model.safetensors").items()}
    found = {}
    for name in [name for name in tensors if name.endswith("lora_A.weight")]:
        module = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
        a, b = tensors[name], tensors[name.replace("lora_A", "lora_B")]
        alpha = (config.get("alpha_pattern") or {}).get(module, config["lora_alpha"])
        scale = alpha / (sqrt(len(a)) if config.get("use_rslora") else len(a))
        change = scale * torch.einsum("or,r...->o...", b.flatten(1), a)
        magnitude = tensors.get(name.replace("A.weight", "magnitude_vector"))
        if magnitude is not None:
            weight = base[f"{module}.weight"].double()
            change = magnitude[:, None] * nn.functional.normalize(weight + change, dim=1) - weight
        found[module] = change
    return found


def merged_products(*folders: Path) -> dict[str, Tensor]:
    """The mean of the products; where an adapter has no such module it adds nothing."""
    own = [products(folder) for folder in folders]
    return {
        module: sum(p.get(module, torch.zeros(())) for p in own) / len(own)  # type: ignore[misc]
        for module in {module: None for p in own for module in p}
    }


def close(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name].double(), tensor.double(), rtol=1e-5, atol=1e-5)


@pytest.fixture
def pair(tmp_path: Path) -> list[Path]:
    return [write_adapter(tmp_path / "a", 1), write_adapter(tmp_path / "b", 2, rank=3, use_rslora=True)]


def test_exactly_merged_the_product_is_the_mean_of_products(pair: list[Path], tmp_path: Path) -> None:
    done = ng.merge_adapters(pair, tmp_path / "out", rank="exact")
    assert (done.rank, max(done.errors.values())) == (5, 0.0)
    assert str(done).startswith("2 products of rank 5: their rank loses nothing")
    close(products(tmp_path / "out"), merged_products(*pair))
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["use_rslora"]) == (5, 5, False)
    tensors = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert tensors.keys() == load_file(pair[0] / "adapter_model.safetensors").keys()


def test_the_mean_of_factors_is_another_product(tmp_path: Path) -> None:
    pair = [write_adapter(tmp_path / str(m), m) for m in range(2)]
    tensors = [load_file(folder / "adapter_model.safetensors") for folder in pair]
    write_adapter(tmp_path / "apart", 0)
    apart = {name: (tensors[0][name] + tensors[1][name]) / 2 for name in tensors[0]}
    save_file(apart, tmp_path / "apart" / "adapter_model.safetensors")
    for module, wanted in merged_products(*pair).items():
        lost = (products(tmp_path / "apart")[module] - wanted).norm() / wanted.norm()
        assert float(lost) > 0.3  # which is why factors are not averaged


def test_to_a_rank_the_product_is_the_nearest_there_is(pair: list[Path], tmp_path: Path) -> None:
    done = ng.merge_adapters(pair, tmp_path / "out", rank=2)
    for module, wanted in merged_products(*pair).items():
        found = products(tmp_path / "out")[module]
        s = torch.linalg.svdvals(wanted)
        assert torch.linalg.matrix_rank(found) == 2
        lost = float((found - wanted).norm() / wanted.norm())
        assert abs(lost - float(s[2:].norm() / s.norm())) < 1e-5
        assert abs(lost - done.errors[module]) < 1e-5
    assert ng.merge_adapters(pair, tmp_path / "default").rank == 3  # the largest of theirs


@pytest.mark.parametrize("method", ["ties", "dare", "della", "breadcrumbs", "sce", "karcher", "multi_slerp", "slerp"])
def test_operators_act_on_products(pair: list[Path], tmp_path: Path, method: str) -> None:
    options = {"density": 0.4} if method in ("ties", "dare", "della", "breadcrumbs", "sce") else {}
    done = ng.merge_adapters(pair, tmp_path / "out", method, rank=8, seed=3, **options)
    own = [products(folder) for folder in pair]
    for m, module in enumerate(SHAPES):
        changes = [p[module].float() for p in own]
        block = Block(f"{module}.weight", changes, (0.5, 0.5), torch.zeros_like(changes[0]), depth=float(m), seed=3)
        if method in ("karcher", "multi_slerp", "slerp"):
            block = Block(f"{module}.weight", changes, (0.5, 0.5))
        wanted = operator_of(method, options).combine(block)
        torch.testing.assert_close(products(tmp_path / "out")[module].float(), wanted, rtol=1e-4, atol=1e-4)
    assert max(done.errors.values()) < 1e-5  # rank 8 holds whatever has at most 8 columns


def test_weights_scale_and_depth_reach_the_products(pair: list[Path], tmp_path: Path) -> None:
    operator = ng.TaskArithmetic(weights=[ng.Gradient([1, 0]), {"*": -1, "*q_proj*": 0.5}], scale=2)
    for rank in ("exact", 8):
        ng.merge_adapters(pair, tmp_path / str(rank), operator, rank=rank)  # type: ignore[arg-type]
        first, second = (products(folder) for folder in pair)
        q, up = SHAPES
        close(
            products(tmp_path / str(rank)), {q: 2 * (first[q] + 0.5 * second[q]), up: 2 * (0 * first[up] - second[up])}
        )


def test_magnitudes_are_taken_into_account(pair: list[Path], tmp_path: Path) -> None:
    save_file(BASE, tmp_path / "base.safetensors")
    dora = write_adapter(tmp_path / "dora", 5, use_dora=True)
    with pytest.raises(OptionError, match="dora has magnitudes .DoRA.: give the base"):
        ng.merge_adapters([pair[0], dora], tmp_path / "out")
    base = tmp_path / "base.safetensors"
    ng.merge_adapters([pair[0], dora], tmp_path / "out", base=base, rank=8)
    close(products(tmp_path / "out"), merged_products(pair[0], dora))
    with pytest.raises(OptionError, match="q_proj has magnitudes .DoRA.: its change has no small rank"):
        ng.merge_adapters([pair[0], dora], tmp_path / "exact", base=base, rank="exact")
    done = ng.merge_adapters([pair[0], dora], tmp_path / "whole", base=base, into_base=True)
    assert done.rank is None
    merged = {f"{module}.weight": x for module, x in merged_products(pair[0], dora).items()}
    close(load_file(tmp_path / "whole" / "model.safetensors"), {name: BASE[name] + x for name, x in merged.items()})
    assert provenance_of(tmp_path / "whole" / "model.safetensors")["base"]["name"] == "base.safetensors"


def test_modules_patterns_convolutions_and_tables_of_embeddings(tmp_path: Path) -> None:
    q = "model.layers.0.self_attn.q_proj"
    one = write_adapter(tmp_path / "one", 1, rank_pattern={q: 4}, alpha_pattern={q: 7})
    other = write_adapter(tmp_path / "other", 2, shapes={q: SHAPES[q]}, target_modules=["k_proj"])
    ng.merge_adapters([one, other], tmp_path / "out", rank="exact")
    close(products(tmp_path / "out"), merged_products(one, other))
    assert sorted(SHAPES) == json.loads((tmp_path / "out" / "adapter_config.json").read_text())["target_modules"]
    conv = [write_adapter(tmp_path / f"conv{m}", m, shapes={"stem": (5, 3, 2, 2)}) for m in range(2)]
    ng.merge_adapters(conv, tmp_path / "conv", rank="exact")
    close(products(tmp_path / "conv"), merged_products(*conv))
    tables = []
    for m in range(2):
        folder = write_adapter(tmp_path / f"table{m}", m)
        a, b = torch.randn(2, 11), torch.randn(4, 2)
        name = "base_model.model.embed.lora_embedding_"
        save_file({f"{name}A": a, f"{name}B": b}, folder / "adapter_model.safetensors")
        tables.append((b @ a).mT * 2)
    save_file({"embed.weight": torch.zeros(11, 4)}, tmp_path / "zero.safetensors")
    folders = [tmp_path / f"table{m}" for m in range(2)]
    ng.merge_adapters(folders, tmp_path / "whole", base=tmp_path / "zero.safetensors", into_base=True)
    found = load_file(tmp_path / "whole" / "model.safetensors")["embed.weight"]
    torch.testing.assert_close(found, (tables[0] + tables[1]) / 2)
    ng.merge_adapters(folders, tmp_path / "table", rank="exact")
    merged = load_file(tmp_path / "table" / "adapter_model.safetensors")
    torch.testing.assert_close((merged[f"{name}B"] @ merged[f"{name}A"]).mT, (tables[0] + tables[1]) / 2)


def test_saved_modules_are_averaged(pair: list[Path], tmp_path: Path) -> None:
    for m, folder in enumerate(pair):
        tensors = load_file(folder / "adapter_model.safetensors")
        save_file(
            tensors | {"base_model.model.score.weight": torch.full((2, 3), float(m))},
            folder / "adapter_model.safetensors",
        )
    ng.merge_adapters(pair, tmp_path / "out")
    found = load_file(tmp_path / "out" / "adapter_model.safetensors")
    torch.testing.assert_close(found["base_model.model.score.weight"], torch.full((2, 3), 0.5))
    save_file(tensors, pair[1] / "adapter_model.safetensors")
    with pytest.raises(MembersDiffer, match="score.weight is not in all adapters"):
        ng.merge_adapters(pair, tmp_path / "other")


def test_truncation_is_the_best_there_is_however_it_is_found() -> None:
    generator = torch.Generator().manual_seed(0)
    b, a = torch.randn(30, 5, generator=generator).double(), torch.randn(5, 20, generator=generator).double()
    for rank in (1, 3, 5, 7):
        by_factors, by_matrix = truncated(b, a, rank), of_matrix(b @ a, rank)
        torch.testing.assert_close(by_factors.b @ by_factors.a, by_matrix.b @ by_matrix.a)
        assert abs(by_factors.error - by_matrix.error) < 1e-9
        assert by_factors.a.shape == (rank, 20)
    both = joined([(b, a), (b, a)], [0.5, 1.5])
    torch.testing.assert_close(both.b @ both.a, 2 * b @ a)
    assert of_matrix(torch.zeros(3, 4), 2).error == 0


def change(folder: Path, **fields: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_what_cannot_be_merged_is_refused_and_nothing_is_written(pair: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    save_file(BASE, tmp_path / "base.safetensors")

    def refuses(kind: type[Exception], message: str, folders: Any = pair, *given: Any, **options: Any) -> None:
        with pytest.raises(kind, match=message):
            ng.merge_adapters(folders, out, *given, **options)
        assert not out.exists()

    refuses(PlanError, "at least two adapters", pair[:1])
    refuses(PlanError, "at least two adapters", str(pair[0]))
    refuses(CheckpointError, "has no adapter_config.json; it is no adapter", [pair[0], tmp_path])
    refuses(OptionError, "unknown method 'tise'; did you mean 'ties'", pair, "tise")
    refuses(OptionError, "has no option 'densty'; did you mean 'density'", pair, "ties", densty=1)
    refuses(OptionError, "ties makes no sum of products", pair, "ties", rank="exact")
    refuses(OptionError, "rank is a whole number of at least 1, got 0", pair, rank=0)
    refuses(OptionError, "fisher measures networks", pair, "fisher")
    refuses(OptionError, "a base has no rank", pair, rank=3, into_base=True, base=tmp_path / "base.safetensors")
    refuses(OptionError, "the adapters are merged into it: give the base", pair, into_base=True)
    refuses(BadWeights, "weights has 3 entries for 2 members", pair, ng.Linear(weights=[1, 2, 3]))
    other = write_adapter(tmp_path / "other", 3, shapes={"model.layers.0.self_attn.q_proj": (6, 9)})
    refuses(MembersDiffer, r"q_proj: the products have the shapes \(6, 8\) and \(6, 9\)", [pair[0], other])
    wrong = {name: torch.zeros(3, 8) for name in BASE}
    save_file(wrong, tmp_path / "wrong.safetensors")
    refuses(MembersDiffer, r"the base's weight \(3, 8\)", pair, base=tmp_path / "wrong.safetensors", into_base=True)
    save_file({"x": torch.zeros(1)}, tmp_path / "none.safetensors")
    refuses(
        MembersDiffer, "has no weight model.layers.0.self_attn.q_proj.weight", pair, base=tmp_path / "none.safetensors"
    )
    change(pair[1], base_model_name_or_path="other")
    refuses(PlanError, "b is an adapter of 'other', .*a of 'tiny'; if these are one model, give it as base=")
    change(pair[1], base_model_name_or_path="tiny", use_qalora=True)
    refuses(PlanError, "b is an adapter with QA-LoRA")
    change(pair[1], use_qalora=False, peft_type="IA3")
    refuses(PlanError, "b is an adapter of the kind 'IA3'; merged are LoRA, rsLoRA and DoRA")
    change(pair[1], peft_type="LORA", lora_alpha="much")
    refuses(CheckpointError, "lora_alpha or alpha_pattern cannot be read")
    (pair[1] / "adapter_config.json").write_text("[")
    refuses(CheckpointError, "adapter_config.json cannot be read")
    tensors = load_file(pair[0] / "adapter_model.safetensors")
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"
    change(write_adapter(tmp_path / "lacking", 4), r=2)
    save_file({key: x for key, x in tensors.items() if key != name}, tmp_path / "lacking" / "adapter_model.safetensors")
    refuses(CheckpointError, "q_proj lacks lora_B", [pair[0], tmp_path / "lacking"])
    save_file(tensors | {name: torch.zeros(6, 3)}, tmp_path / "lacking" / "adapter_model.safetensors")
    refuses(
        CheckpointError,
        r"factors of the shapes \(6, 3\) and \(2, 8\), which do not multiply",
        [pair[0], tmp_path / "lacking"],
    )
    tensors[name][0, 0] = float("nan")
    save_file(tensors, tmp_path / "lacking" / "adapter_model.safetensors")
    refuses(BadWeights, "q_proj of .* holds NaN or infinity", [pair[0], tmp_path / "lacking"])
    refuses(BadWeights, "q_proj of .*lacking holds NaN or infinity", [pair[0], tmp_path / "lacking"], "ties")


def test_the_command_merges_adapters(pair: list[Path], tmp_path: Path) -> None:
    arguments = [
        "merge-adapters",
        *map(str, pair),
        "-o",
        str(tmp_path / "out"),
        "--method",
        "ties",
        "--option",
        "density=0.5",
    ]
    done = CliRunner().invoke(app, [*arguments, "--rank", "4"])
    assert done.exit_code == 0, done.output
    assert "2 products of rank 4" in done.output
    assert (tmp_path / "out" / "README.md").read_text().startswith("---\nlibrary_name: peft")
    record = provenance_of(tmp_path / "out" / "adapter_model.safetensors")
    assert (record["method"], [source["name"] for source in record["members"]]) == (
        "ties",
        ["adapter_model.safetensors"] * 2,
    )
    with pytest.raises(OptionError, match="--rank 'most' is a number, or exact"):
        CliRunner().invoke(app, [*arguments, "--rank", "most"], catch_exceptions=False)


def test_factors_that_are_averaged_apart_are_warned_of() -> None:
    class Adapted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.ModuleDict({"lora_A": nn.Linear(4, 2, bias=False), "lora_B": nn.Linear(2, 4, bias=False)})

        def forward(self, x: Tensor) -> Tensor:
            return self.layer["lora_B"](self.layer["lora_A"](x))

    nets = [Adapted() for _ in range(2)]
    plan = ng.plan(nets, torch.randn(1, 4), "average")
    assert any("layer.lora_A.weight and layer.lora_B.weight are factors of a product" in note for note in plan.warnings)


@pytest.mark.filterwarnings("ignore")  # peft warns of its own calls
@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
def test_peft_loads_what_was_merged_and_computes_the_mean_of_changes(tmp_path: Path, dora: bool) -> None:
    peft = pytest.importorskip("peft")
    pytest.importorskip("transformers")
    from tests.merging.models import llama

    folders = []
    for m, config in enumerate(({"use_rslora": True, "r": 3}, {"r": 2, "use_dora": dora})):
        torch.manual_seed(m)
        made = peft.LoraConfig(
            lora_alpha=4, target_modules=["q_proj", "down_proj", "embed_tokens"], init_lora_weights=False, **config
        )
        model = peft.get_peft_model(llama(), made)
        model.save_pretrained(tmp_path / str(m))
        folders.append(tmp_path / str(m))
    base = llama()
    base.config.architectures = ["LlamaForCausalLM"]
    base.save_pretrained(tmp_path / "base")
    state = base.state_dict()

    def whole(folder: Path) -> dict[str, Tensor]:
        merged = peft.PeftModel.from_pretrained(llama(), folder).merge_and_unload()
        return {name: x.detach().clone() for name, x in merged.state_dict().items()}

    first, second = (whole(folder) for folder in folders)
    wanted = {name: (first[name] + second[name]) / 2 for name in state}
    rank = 16 if dora else "exact"
    ng.merge_adapters(folders, tmp_path / "out", base=tmp_path / "base", rank=rank)  # type: ignore[arg-type]
    close(whole(tmp_path / "out"), wanted)
    ng.merge_adapters(folders, tmp_path / "into", base=tmp_path / "base", into_base=True)
    close(type(base).from_pretrained(tmp_path / "into").state_dict(), wanted)
