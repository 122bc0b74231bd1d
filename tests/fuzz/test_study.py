"""Damaged studies are refused with a StudyError that names file and line, in bounded time, and import nothing."""

import io
import random
import sys

import pytest
import yaml
from tests.fuzz.damage import damaged_bytes, damaged_tree, json_text, odd_value, watched

from neurograft.errors import StudyError
from neurograft_experiments.study_file import load_study, study_names
from neurograft_experiments.trials import tasks_of

STUDY = b"""\
title: "A study: \\u2713"
question: Does it work?
paper: neurograft
claims:
  - {text: it helps, source: ours, figure: {row: zip, where: {members: 2}}, against: 0.5, holds_if: above}
data: &data {source: digits, samples: 600}
network: {name: mlp, width: 16}
members: {count: 2, epochs: 1, split: {kind: parts}, networks: [{width: 8}, {}]}
mixing: 0.25
starts:
  transplant: {options: {importance: taylor}, recoveries: [none, refit]}
  twice: {method: sequence, steps: [merge, tune, prune], tune_epochs: 1}
tuning:
  finetune: {epochs: 1, lr: [0.1, 0.01]}
vary: {network.width: [8, 16], starts.transplant.options.balance: [true, false]}
cases:
  one: {}
  two: {<<: {calibration: 10}, data: *data}
presets:
  smoke: {seeds: 2, cases: {three: {network: {name: convnet}}}}
  small: {seeds: [0, 5], starts: {twice: null}}
"""


def reader(path):
    def read(data: bytes) -> None:
        path.write_bytes(data)
        study = load_study(path)
        for preset in study.presets:
            tasks_of(study, preset)

    return read


def test_damaged_bytes(tmp_path):
    chance, read = random.Random(0), reader(tmp_path / "study.yaml")
    read(STUDY)
    outcome = watched((damaged_bytes(STUDY, chance) for _ in range(1000)), read)
    assert all("study.yaml, line " in message for message in outcome.refused)
    assert outcome.read > 10
    assert len(outcome.refused) > 500


def test_damaged_fields(tmp_path):
    chance, tree = random.Random(1), yaml.safe_load(STUDY)
    outcome = watched((json_text(damaged_tree(tree, chance)) for _ in range(600)), reader(tmp_path / "study.yaml"))
    assert len(outcome.refused) > 300


def test_every_field_holds_what_nobody_meant(tmp_path):
    """Written as YAML writes it: dates, sets, binary data, shared and circular values."""
    from datetime import date

    chance, circle = random.Random(2), []
    circle.append(circle)
    odd = [date(2020, 1, 1), {1, 2}, b"\x00\xff", circle, (1, 2), {(1, 2): 3}, {None: 0}, {1.5: 0}, 2**200, -1e400]

    def inputs():
        for _ in range(400):
            tree = damaged_tree(yaml.safe_load(STUDY), chance)
            value = chance.choice([*odd, odd_value(chance)])
            if isinstance(tree, dict):
                tree[chance.choice([*tree, "seeds", "vary"])] = value
            out = io.StringIO()
            yaml.dump(tree, out, allow_unicode=chance.random() < 0.5)
            yield out.getvalue().encode("utf-8", "surrogatepass")

    assert len(watched(inputs(), reader(tmp_path / "study.yaml")).refused) > 250


def test_pieces_of_yaml_by_chance(tmp_path):
    chance = random.Random(3)
    pieces = ["a", ": ", "- ", "[", "]", "{", "}", ",", "\n", "  ", "&a ", "*a", "<<", "!!", "|", ">", "'", '"', "%"]
    pieces += ["? ", "---", "...", "!!set", "!!timestamp", "2020-01-01", "0x", "1:30", "\\U", "#", "\t", "title", "@"]
    inputs = ("".join(chance.choices(pieces, k=chance.randrange(1, 40))).encode() for _ in range(2000))
    outcome = watched(inputs, reader(tmp_path / "study.yaml"))
    assert outcome.read == 0
    assert all("line " in message for message in outcome.refused)


LAUGHS = "a: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"b{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 9)
)
MERGES = "a: &a0 {x: 1}\n" + "".join(f"b{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}]}}\n" for n in range(1, 12))
ATTACKS = {
    "aliases": (LAUGHS, r"line \d: more than 10,000 values"),
    "merges": (MERGES, r"line \d: more than 10,000 values"),
    "itself": ("a: &a [*a]", "line 1: nested more than 30 levels deep, by an alias"),
    "merged itself": ("a: &a {<<: *a}", "line 1: nested more than 30 levels deep, by an alias"),
    "brackets": ("a:\n  " + "[" * 5000, "line 2: nested more than 30 levels deep"),
    "closed brackets": ("a: " + "[" * 5000 + "]" * 5000, "line 1: nested more than 30 levels deep"),
    "dashes": ("- " * 20_000, "line 1: nested more than 30 levels deep"),
    "lists": ("a: [" + "1, " * 30_000 + "]", "more than 10,000 values"),
    "date": ("title: 2020-01-01", "line 1: dates, binary data and other tags are not taken; put text in quotes"),
    "no date": ("title: 2020-99-99", "line 1: dates, binary data"),
    "tag": ("title: !!python/object:os.system x", "line 1: dates, binary data and other tags"),
    "list as key": ("x: 1\n[1, 2]: 3", "line 2: a key is a word or a number"),
    "mapping as key": ("{a: 1}: 3", "line 1: a key is a word or a number"),
    "digits": (f"seeds: {'9' * 5000}", "line 1: no int: '9999"),
    "hexadecimal": (f"seeds: 0x{'f' * 5000}", "line 1: 0xfff.* has more than 64 bits"),
    "infinite": ("mixing: .inf", r"line 1: \.inf is no finite number"),
    "no such character": (r'title: "\U99999999"', "line 1: no YAML: "),
    "control character": ("title: a\x00b", "line 1: no YAML: unacceptable character"),
    "half a pair": (r'title: "\ud800"', r"line 1: \\ud800 holds half a surrogate pair"),
    "wrong int": ('seeds: !!int "x"', "line 1: no int: 'x'"),
    "merged list": ("a: {<<: [1]}", "line 1: << is given a mapping, or a list of them"),
    "long": ("#" * 200_000, "cannot be read: a study has at most 100,000 bytes"),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_attacks(tmp_path, attack):
    text, message = ATTACKS[attack]
    outcome = watched([text.encode()], reader(tmp_path / "study.yaml"))
    with pytest.raises(StudyError, match=message):
        raise StudyError(outcome.refused[0])


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("seeds: 2", "seeds: 1000000000", "line 20: seeds: .*at most 1000 items"),
        ("seeds: 2", "seeds: [1000000000000000]", r"line 20: seeds\.0: .*less than 1000000000000"),
        ("count: 2", "count: 1000000000", "line 8: members.count: .*less than or equal to 100"),
        ("width: 16}", "depth: 1000000000}", "line 7: depth is at most 65,536, got 1000000000"),
        ("[8, 16]", f"[{'8, ' * 600}]", r"line 15: preset smoke has more than 1,000 points"),
        ("seeds: [0, 5]", f"seeds: 1000, vary: {{network.width: [{'8, ' * 40}]}}", "more than 50,000 trials"),
        ("vary: {network.width", f"vary: {{{'a.' * 400}b", "line 15: vary: .* leads through more than 30 mappings"),
        ("title: ", f"{'t' * 1000}: 1\ntitle: ", r"line \d: unknown key 'ttt"),
        ("importance: taylor", f"{'b' * 900}: taylor", "line 11: .*no option 'bbb"),
    ],
)
def test_numbers_that_cannot_be_meant(tmp_path, old, new, message):
    assert old in STUDY.decode()
    outcome = watched([STUDY.decode().replace(old, new, 1).encode()], reader(tmp_path / "study.yaml"))
    with pytest.raises(StudyError, match=message):
        raise StudyError(outcome.refused[0])


def test_what_is_no_file(tmp_path):
    import os

    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "folder.yaml").mkdir()
    (tmp_path / "link.yaml").symlink_to("/dev/zero")

    def read(name: str) -> None:
        load_study(tmp_path / name)

    outcome = watched(["pipe.yaml", "folder.yaml", "link.yaml", "missing.yaml", "n" * 300 + ".yaml", "\0.yaml"], read)
    assert len(outcome.refused) == 6


def test_own_studies_are_far_from_the_bounds():
    for name in study_names():
        study = load_study(name)
        assert all(len(points) < 100 for points in study.presets.values())
        assert all(len(tasks_of(study, preset)) < 5000 for preset in study.presets)


def test_reading_imports_nothing(tmp_path):
    before = set(sys.modules)
    data = STUDY.replace(b"name: mlp, width: 16", b"name: 'this:that'")
    study = tmp_path / "study.yaml"
    study.write_bytes(data.replace(b"network.width: [8, 16], ", b""))
    assert tasks_of(load_study(study), "smoke")
    assert "this" not in set(sys.modules) - before
