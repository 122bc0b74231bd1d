"""What fine-tunes have changed is measured entry by entry, in the basis in which they would be merged."""

from pathlib import Path

import pytest
import torch
from tests.networks import build, example
from tests.planting import planted
from torch import nn
from typer.testing import CliRunner

import neurograft as ng
from neurograft.checkpoints import write_checkpoint
from neurograft.command_line.app import app
from neurograft.errors import OptionError, PlanError

NAME = "vgg_batch_norm"


def children(count: int = 3) -> tuple[nn.Module, list[nn.Module]]:
    base = build(NAME)
    models = []
    for seed in range(count):
        generator = torch.Generator().manual_seed(seed)
        model = build(NAME)
        with torch.no_grad():
            for parameter in model.parameters():
                changed = torch.rand(parameter.shape, generator=generator) < 0.5
                parameter += (
                    0.1 * parameter.std().nan_to_num(0.1) * torch.randn(parameter.shape, generator=generator) * changed
                )
        models.append(model)
    return base, models


def flat(model: nn.Module, names: list[str]) -> torch.Tensor:
    state = model.state_dict()
    return torch.cat([state[name].double().flatten() for name in names])


def test_families_are_measured_as_their_formulas_say() -> None:
    base, models = children()
    found = ng.compare(models, example(NAME), base=base)
    names = [name for name, tensor in base.state_dict().items() if tensor.is_floating_point()]
    families = {family.name: family for family in found.families}
    assert sum(family.tensors for family in families.values()) == len(names) == found.whole.tensors
    for pattern, family in {"features.*.weight": families["features.*.weight"], "": found.whole}.items():
        own = [n for n in names if not pattern or (n.startswith("features.") and n.endswith(".weight"))]
        start = flat(base, own)
        changes = [flat(model, own) - start for model in models]
        assert family.entries == len(start)
        for m, change in enumerate(changes):
            assert family.changes[m] == pytest.approx(float(change.norm() / start.norm()))
        pairs = [(0, 1), (0, 2), (1, 2)]
        cosines = [float(torch.cosine_similarity(changes[i], changes[j], 0)) for i, j in pairs]
        assert family.cosine == pytest.approx(sum(cosines) / 3, abs=1e-9)
        signs = torch.stack(changes).sign()
        twice = signs.abs().sum(0) >= 2
        conflict = (signs.amax(0) > 0) & (signs.amin(0) < 0)
        assert family.conflicts == pytest.approx(float((conflict & twice).sum() / twice.sum()))
    lines = str(found).splitlines()
    assert lines[0].split() == [
        "tensors",
        "count",
        "entries",
        *("change", "0", "change", "1", "change", "2"),
        "cosine",
        "conflicts",
    ]
    assert lines[-1].startswith("all")


def test_aligned_members_are_compared_in_their_common_basis() -> None:
    base, models = children(2)
    x = example(NAME)
    graph = ng.trace(base, x, verify=False)
    wanted = ng.compare(models, x, base=base).whole
    members = ng.Members([models[0], planted(models[1], graph, 1)], x, base=planted(base, graph, 5), graph=graph)
    with pytest.raises(PlanError, match="the base is no ancestor"):
        ng.compare(members)
    found = ng.compare(members, align=ng.Permutation(restarts=1, reference=0)).whole
    assert found.changes == pytest.approx(wanted.changes)
    assert (found.cosine, found.conflicts) == (pytest.approx(wanted.cosine, abs=1e-9), pytest.approx(wanted.conflicts))
    with pytest.raises(OptionError, match="give their ancestor, base="):
        ng.compare(models, x)


def test_many_members_have_the_least_the_mean_and_the_most() -> None:
    base, models = children(8)
    found = str(ng.compare(models, example(NAME), base=base))
    assert "most change" in found.splitlines()[0]
    assert "change 7" not in found


FACTORY = "tests.merging.test_compare:network"


def network() -> nn.Module:
    return build(NAME)


def example_inputs() -> torch.Tensor:
    return example(NAME)


def test_the_command_prints_and_draws(tmp_path: Path) -> None:
    base, models = children(2)
    paths = [tmp_path / f"{name}.safetensors" for name in ("base", "a", "b")]
    for path, model in zip(paths, (base, *models), strict=True):
        write_checkpoint(model, path, {})
    arguments = ["compare", FACTORY, str(paths[1]), str(paths[2])]
    with pytest.raises(OptionError, match="give --base"):
        CliRunner().invoke(app, arguments, catch_exceptions=False)
    done = CliRunner().invoke(app, [*arguments, "--base", str(paths[0])])
    assert done.exit_code == 0, done.output
    assert done.output == f"{ng.compare(models, example(NAME), base=base)}\n"
    pytest.importorskip("matplotlib")
    drawn = tmp_path / "changes.svg"
    done = CliRunner().invoke(app, [*arguments, "--base", str(paths[0]), "--picture", str(drawn)])
    assert done.exit_code == 0, done.output
    assert "<svg" in drawn.read_text()
