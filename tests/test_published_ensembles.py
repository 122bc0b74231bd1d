"""The networks of the published ensembles are those that their weights are of, and the command makes its page."""

import os
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

TOOLS = Path(__file__).parents[1] / "tools"
SHARED = Path(os.environ.get("NEUROGRAFT_SHARED", "")) / "real"
with_data = pytest.mark.skipif(
    not (os.environ.get("NEUROGRAFT_SHARED") and (SHARED / "ani" / "atoms.npz").is_file()),
    reason="NEUROGRAFT_SHARED names no folder with the published ensembles",
)


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(TOOLS))
    import published_ensembles

    return published_ensembles


def test_without_the_data_the_command_skips(
    tool: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("NEUROGRAFT_SHARED", raising=False)
    assert tool.main([]) == 0
    assert "skipped: set NEUROGRAFT_SHARED" in capsys.readouterr().err


def test_a_frozen_norm_keeps_its_statistics_in_training(tool: ModuleType) -> None:
    net = tool.SpliceNetwork().train()
    before = {name: tensor.clone() for name, tensor in net.named_buffers()}
    x = torch.randn(3, 4, 100)
    assert net(x).shape == (3, 3, 20)
    assert all(torch.equal(before[name], tensor) for name, tensor in net.named_buffers())


def test_an_energy_is_the_sum_over_the_atoms_of_a_conformation(tool: ModuleType) -> None:
    torch.manual_seed(0)
    aev, element = torch.rand(5, 384), torch.tensor([0, 2, 1, 0, 3])
    net = tool.Potential()
    atoms = tool.Atoms(aev, element, torch.tensor([4, 4, 9, 9, 9]), torch.tensor([0, 0, 1, 1, 1]))
    each = torch.stack([net.nets["HCNO"[e]](aev[i])[0] for i, e in enumerate(element.tolist())]) * tool.KCAL
    expected = torch.stack([each[:2].sum(), each[2:].sum()])
    torch.testing.assert_close(atoms.energies(net(aev, element)), expected)


@with_data
def test_the_splice_members_are_as_far_from_their_ensemble_as_was_measured(tool: ModuleType) -> None:
    """The data's README has 0.15 to 0.18e-3 on its half, and average precisions of 0.46 to 0.56."""
    nets = tool.members(SHARED / "splice", tool.SpliceNetwork)
    assert len(nets) == 5
    _, judge = tool.halves(SHARED / "splice")
    seen = [tool.probabilities(net, judge.bases) for net in nets]
    rows = [tool.splice_row(found, torch.stack(seen).mean(0), judge.labels) for found in seen]
    assert all(0.1 < kl < 0.2 for kl, _, _ in rows)
    assert all(score > 0.4 for _, *scores in rows for score in scores)


def test_the_calibration_half_is_the_same_on_both_strands(tool: ModuleType, tmp_path: Path) -> None:
    bases = np.random.default_rng(0).integers(0, 4, 500).astype(np.uint8)
    labels = np.repeat(np.array([1, 2], np.uint8), 250)
    known = np.ones(500, bool)
    strands = {"reverse": 3 - bases[::-1], "forward_label": labels, "reverse_label": labels[::-1]}
    np.savez(tmp_path / "arab1.npz", forward=bases, forward_known=known, **strands)
    calibrate, judge = tool.halves(tmp_path, window=50)
    assert calibrate.bases.shape == judge.bases.shape == (8, 4, 130)
    assert calibrate.labels.unique().tolist() == [1]
    assert judge.labels.unique().tolist() == [2]
    assert torch.equal(calibrate.bases[0].argmax(0), torch.from_numpy(bases[:130].astype(np.int64)))


@with_data
def test_four_potentials_are_nearer_to_the_eight_than_two_and_two_than_one(tool: ModuleType) -> None:
    nets = tool.members(SHARED / "ani", tool.Potential)
    atoms = tool.Atoms.read(SHARED / "ani")
    seen = torch.stack([tool.atom_energies(net, atoms) for net in nets])
    away = [float(atoms.energies(seen[:k].mean(0) - seen.mean(0)).abs().mean()) for k in (1, 2, 4, 8)]
    assert away[0] > away[1] > away[2] > away[3] == pytest.approx(0, abs=1e-3)
    assert 1 < away[0] < 10


@with_data
def test_the_command_fills_in_its_part_of_the_page(tool: ModuleType, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# Title\n\n<!-- splice -->\nkept\n<!-- end of splice -->\n<!-- ani -->\n<!-- end of ani -->\nlast\n"
    )
    arguments = ["ani", "--seconds", "0.01", "--divisions", "1", "--methods", "average", "--page", str(page)]
    assert tool.main(arguments) == 0
    text = page.read_text()
    assert text.startswith("# Title\n\n<!-- splice -->\nkept\n")
    assert text.endswith("<!-- end of ani -->\nlast\n")
    for row in ("member 7", "ensemble of 4", "average, refit by molecules", "half way"):
        assert f"\n| {row}" in text
