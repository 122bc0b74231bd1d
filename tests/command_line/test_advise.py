import sys

import pytest

from neurograft.checkpoints import load_into, open_checkpoint, write_checkpoint
from neurograft.command_line.app import main
from neurograft_experiments.networks import digits_mlp

NETWORK = "neurograft_experiments.networks:digits_mlp"


@pytest.fixture
def members(tmp_path):
    import torch

    paths = []
    for seed in range(2):
        torch.manual_seed(seed)
        paths.append(tmp_path / f"{seed}.safetensors")
        write_checkpoint(digits_mlp(), paths[-1], {})
    return [str(path) for path in paths]


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["neurograft", "advise", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code


def test_advice_network_and_page(members, tmp_path, monkeypatch, capsys):
    output, page = tmp_path / "advised.safetensors", tmp_path / "advice.html"
    arguments = ["--method", "transplant", "--epochs", 1, "--lr", 0.05, "--output", output, "--page", page]
    assert not run(monkeypatch, NETWORK, *members, *arguments)
    out = capsys.readouterr().out
    assert "What was compared at the end" in out
    assert "test, %" in out
    load_into(digits_mlp(), output)
    assert "transplant" in page.read_text(encoding="utf-8")
    assert "neurograft advise neurograft_experiments" in page.read_text(encoding="utf-8")
    record = open_checkpoint(output).metadata
    assert "recipe" in str(record)


def test_the_test_images_can_be_left_alone(members, monkeypatch, capsys):
    assert not run(monkeypatch, NETWORK, *members, "--method", "average", "--epochs", 0, "--no-test")
    assert "test, %" not in capsys.readouterr().out


def test_a_place_that_cannot_be_written_to_is_found_before_the_search(members, tmp_path, monkeypatch, capsys):
    assert run(monkeypatch, NETWORK, *members, "--output", tmp_path / "fused.pt") == 2
    assert "must end in .safetensors" in capsys.readouterr().err
    assert run(monkeypatch, NETWORK, *members, "--page", tmp_path / "nowhere" / "page.html") == 2
    assert "nowhere does not exist" in capsys.readouterr().err


def test_model_folders_give_a_model_folder(tmp_path, monkeypatch, capsys):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    settings = {"image_size": 8, "patch_size": 4, "num_channels": 1, "hidden_size": 16, "intermediate_size": 32}
    settings |= {"num_hidden_layers": 1, "num_attention_heads": 2, "num_labels": 10}
    for name in "ab":
        torch.manual_seed(ord(name))
        network = transformers.ViTForImageClassification(transformers.ViTConfig(**settings))
        network.save_pretrained(tmp_path / name)
    (tmp_path / "a" / "preprocessor_config.json").write_text("{}")
    output = tmp_path / "advised"
    arguments = ["--method", "transplant", "--epochs", 1, "--lr", 0.05, "--no-test", "--output", output]
    assert not run(monkeypatch, tmp_path / "a", tmp_path / "b", *arguments)
    assert "What was compared at the end" in capsys.readouterr().out
    advised = transformers.AutoModelForImageClassification.from_pretrained(output)
    assert advised.config.hidden_size == 16
    assert advised(torch.zeros(2, 1, 8, 8)).logits.shape == (2, 10)
    assert (output / "preprocessor_config.json").is_file()
