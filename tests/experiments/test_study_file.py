import pytest

from neurograft.errors import StudyError
from neurograft_experiments.study_file import load_study, study_names, study_summaries

STUDY = """\
title: A small study
question: Does it work?
paper: neurograft
data: {source: digits}
network: {name: mlp, width: 16}
members:
  count: 2
  epochs: 1
starts:
  transplant: {}
tuning:
  finetune: {epochs: 1, lr: [0.1, 0.01]}
presets:
  smoke:
    seeds: 2
"""


@pytest.fixture
def load(tmp_path):
    def loaded(text):
        path = tmp_path / "study.yaml"
        path.write_text(text)
        return load_study(path)

    return loaded


def test_a_study_is_read(load):
    study = load(STUDY)
    (point,) = study.points("smoke")
    assert study.name == "study"
    assert point.settings.seeds == (0, 1)
    assert point.settings.tuning.finetune.lr == (0.1, 0.01)
    assert point.settings.starts["transplant"].method == "transplant"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("title:", "titel:", r"study.yaml, line 1: unknown key 'titel'; did you mean 'title'"),
        ("  count: 2", "  cuont: 2", r"line 7: unknown key cuont; did you mean 'count'"),
        ("  count: 2", "  count: 1", r"line 7: members.count: .*greater than or equal to 2, got 1"),
        ("  count: 2", "  count: two", r"line 7: members.count: .*valid integer.*, got 'two'"),
        ("  transplant: {}", "  transplnt: {}", r"line 10: .*unknown method 'transplnt'; did you mean 'transplant'"),
        ("transplant: {}", "transplant: {options: {strateg: flat}}", r"line 10: .*strateg"),
        ("lr: [0.1, 0.01]", "lr: [0.1, -1]", r"line 12: tuning.finetune.lr.*greater than 0, got -1"),
        ("    seeds: 2", "    sedes: 2", r"line 15: unknown key 'sedes' in a preset; did you mean 'seeds'"),
        ("  smoke:", "  smok:", r"line 14: unknown preset 'smok'; did you mean 'smoke'"),
        ("    seeds: 2", "    members: {epoch: 2}", r"line 15: unknown key epoch; did you mean 'epochs'"),
        ("    seeds: 2", "    vary: {members.cont: [2, 4]}", r"line 15: unknown key cont; .*'count'.*cont = 2 of vary"),
        ("    seeds: 2", "    vary: {data.source.x: [2]}", r"line 15: vary: 'data.source.x' leads through 'source'"),
        ("  count: 2", "  count: 2\n  count: 3", r"line 8: 'count' is there twice"),
        ("members:", "members: [", r"line \d+: "),
        ("paper: neurograft", "paper: none", r"line 3: paper: .*got 'none'"),
        ("paper: neurograft", "paper: neurograft\nclaims: [{txt: a}]", r"line 4: unknown key txt; did you mean 'text'"),
    ],
)
def test_errors_name_the_line_and_the_closest_key(load, old, new, message):
    assert old in STUDY
    with pytest.raises(StudyError, match=message):
        load(STUDY.replace(old, new, 1))


def test_pipelines_need_members(load):
    with pytest.raises(StudyError, match="members is missing"):
        load(STUDY.replace("members:\n  count: 2\n  epochs: 1\n", ""))


def test_presets_and_cases_are_laid_over_the_study(load):
    study = load(
        STUDY
        + "    members: {epochs: 3}\n"
        + "    cases:\n      wide: {network: {width: 32}}\n      other: {network: {name: convnet}, starts: {zip: {}}}\n"
        + "  small: {starts: {transplant: null}, vary: {network.width: [8, 9], members.count: [2, 3]}}\n"
    )
    wide, other = study.points("smoke")
    assert wide.settings.network == {"name": "mlp", "width": 32}
    assert other.settings.network == {"name": "convnet"}
    assert wide.settings.members.epochs == other.settings.members.epochs == 3
    assert list(other.settings.starts) == ["transplant", "zip"]
    small = study.points("small")
    assert [(p.settings.network["width"], p.settings.members.count) for p in small] == [(8, 2), (8, 3), (9, 2), (9, 3)]
    assert small[3].varied == {"network.width": 9, "members.count": 3}
    assert not small[0].settings.starts


def test_what_is_no_study(load, tmp_path):
    with pytest.raises(StudyError, match="no study 'comparson'; did you mean 'comparison'"):
        load_study("comparson")
    with pytest.raises(StudyError, match="cannot be read"):
        load_study(tmp_path / "missing.yaml")
    with pytest.raises(StudyError, match="line 1: a study is a mapping"):
        load("- 1\n")
    with pytest.raises(StudyError, match="has no preset 'paper'"):
        load(STUDY).points("paper")


@pytest.mark.parametrize("name", study_names())
def test_studies_of_the_package_are_valid_in_every_preset(name):
    study = load_study(name)
    assert study.presets["smoke"]
    assert study_summaries()[name][0] == study.about.title
    assert study_summaries()[name][2] == tuple(study.presets)
