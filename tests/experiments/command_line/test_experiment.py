import html
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from neurograft.errors import InputError, StoreError
from neurograft_experiments import command_line, running
from neurograft_experiments.store import Store

ROOT = Path(__file__).parents[3]
STUDY = """
title: A study of one's own
question: Does it run?
paper: neurograft
data: {source: digits, samples: 600}
network: {name: mlp, width: 8, depth: 1}
members: {count: 2, epochs: 1, lr: 0.05, batch: 32}
tuning:
  finetune: {epochs: 1, lr: 0.05, batch: 32}
seeds: 1
presets:
  smoke: {}
  small: {seeds: 2}
"""


@pytest.fixture
def study(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(STUDY)
    return path


@pytest.fixture
def output(tmp_path):
    return tmp_path / "runs"


def table(output):
    """The rows by key, without what differs from run to run."""
    return {
        row["key"]: {name: value for name, value in row.items() if name not in ("seconds", "hardware", "commit")}
        for row in Store(output).rows()
    }


@pytest.mark.parametrize(("command", "extra"), [(["demo"], "demo"), (["experiment", "list"], "experiments")])
def test_what_must_be_installed_first_is_named(neurograft, monkeypatch, command, extra):
    monkeypatch.setattr(command_line, "find_spec", lambda name: None if name == "pandas" else name)
    code, _, err = neurograft(*command)
    assert (code, err.strip()) == (2, f"error: this command needs pandas: pip install 'neurograft[{extra}]'")


def test_the_list_says_what_each_study_asks(neurograft):
    code, out, err = neurograft("experiment", "list")
    assert (code, err) == (0, "")
    assert "comparison" in out
    assert "Does one fused network beat its members" in out
    assert "smoke" in out


def test_help_shows_every_option(neurograft):
    code, out, _ = neurograft("experiment", "run", "--help")
    assert code == 0
    for option in (
        *("--preset", "--seeds", "--only", "--output", "--data-folder", "--device", "--engine", "--address"),
        *("--cpus-per-trial", "--gpus-per-trial", "--retries", "--fail-fast", "--dry-run"),
    ):
        assert option in out


def test_a_dry_run_counts_and_writes_nothing(neurograft, study, output):
    code, out, err = neurograft("experiment", "run", study, "--preset", "small", "-o", output, "--dry-run")
    assert (code, err) == (0, "")
    line = next(line for line in out.splitlines() if "mine.yaml" in line)
    assert [cell.strip() for cell in line.split("│")[2:-1]] == ["14", "0", "0", "4", "8"]
    assert not output.exists()


def test_a_study_of_ones_own_runs_once(neurograft, study, output):
    code, out, err = neurograft("experiment", "run", study, "-o", output)
    assert (code, err) == (0, "")
    assert "[9/9]" in out
    assert f"{study}: 7 of 7 trials" in out
    assert f"neurograft experiment report {study} --preset smoke --output {output}" in out
    rows = Store(output).rows()
    assert [row["row"] for row in rows].count("average") == 2
    assert all(row["study"] == "mine" for row in rows)
    before = Store(output).rows()
    code, out, _ = neurograft("experiment", "run", study, "-o", output)
    assert code == 0
    assert "[1/" not in out
    assert Store(output).rows() == before


def test_a_larger_preset_reuses_what_is_there(neurograft, study, output):
    neurograft("experiment", "run", study, "-o", output)
    _, out, _ = neurograft("experiment", "run", study, "-o", output, "--preset", "small", "--dry-run")
    line = next(line for line in out.splitlines() if "mine.yaml" in line)
    assert [cell.strip() for cell in line.split("│")[2:-1]] == ["14", "7", "0", "2", "4"]


def test_only_some_trials(neurograft, study, output):
    code, _, err = neurograft("experiment", "run", study, "-o", output, "--only", "Average", "--only", "*: member 1")
    assert (code, err) == (0, "")
    assert {row["row"] for row in Store(output).rows()} == {"average", "member 1"}
    code, _, err = neurograft("experiment", "run", study, "-o", output, "--only", "avarage")
    assert code == 2
    assert "no trial matches --only avarage; of 7, the first is called 'mlp, digits, seed 0: member 0'" in err


def test_seeds_by_number_or_by_name(neurograft, study, output):
    neurograft("experiment", "run", study, "-o", output, "--only", ": member 0", "--seeds", "1,3")
    assert [row["seed"] for row in Store(output).rows()] == [1, 3]
    code, _, err = neurograft("experiment", "run", study, "-o", output, "--seeds", "one")
    assert code == 2
    assert "--seeds 'one' names no seeds; write 5 (for 0 to 4), 3-5, or 0,7,9" in err
    for seeds in ("0", "1000000000", "0-1000000000", "5-3", f"1{'0' * 4000}", f"1{'0' * 5000}", "1000000000000"):
        code, _, err = neurograft("experiment", "run", study, "-o", output, "--seeds", seeds, "--dry-run")
        assert code == 2
        assert "names no seeds; write 5" in err
        assert len(err) < 500


def test_factories_are_imported_when_trials_run(neurograft, study, output, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    study.write_text(STUDY.replace("name: mlp, width: 8, depth: 1", "name: 'own_code:network'"))
    Path("own_code.py").write_text("from pathlib import Path\nPath('imported').touch()\n")
    for command in (["run", study, "--dry-run"], ["list"]):
        assert neurograft("experiment", *command)[0] == 0
    code, _, err = neurograft("experiment", "report", study, "-o", tmp_path)
    assert (code, "holds no results of mine" in err) == (2, True)
    assert not Path("imported").exists()
    code, _, err = neurograft("experiment", "run", study, "-o", output)
    assert (code, "own_code has no 'network'" in err) == (2, True)
    assert Path("imported").exists()
    assert Store(output).members() == ()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["comparisn"], "did you mean 'comparison'"),
        (["comparison", "--preset", "tiny"], "has no preset 'tiny'"),
        (["missing.yaml"], "missing.yaml cannot be read"),
        (["comparison", "--address", "auto"], "--address belongs to --engine ray"),
        (["comparison", "--gpus-per-trial", "1"], "--gpus-per-trial belongs to --engine ray"),
        (["comparison", "--device", "gpu"], "--device 'gpu' is no device; write auto, cpu"),
        (["comparison", "--engine", "slurm"], "'slurm' is not one of"),
    ],
)
def test_what_cannot_be_meant_is_said(neurograft, tmp_path, arguments, message):
    code, _, err = neurograft("experiment", "run", *arguments, "-o", tmp_path / "runs", columns=200)
    assert code == 2
    assert message in err
    assert not (tmp_path / "runs").exists()


def test_an_output_that_cannot_be_written_to_is_found_before_any_training(neurograft, study, tmp_path, monkeypatch):
    def never(*_, **__):
        raise AssertionError("trained")

    monkeypatch.setattr(running, "run_task", never)
    (tmp_path / "file").write_text("")
    code, _, err = neurograft("experiment", "run", study, "-o", tmp_path / "file")
    assert code == 2
    assert "file cannot be written to" in err
    assert "nothing was run. Choose another folder with --output" in err


def test_data_that_is_missing_is_found_before_any_training(neurograft, study, output, tmp_path, monkeypatch):
    study.write_text(STUDY.replace("digits", str(tmp_path / "images")))
    monkeypatch.setattr(running, "run_task", None)
    code, _, err = neurograft("experiment", "run", study, "-o", output)
    assert code == 2
    assert "images: no such folder" in err


def failing(pattern, error):
    run_task = running.run_task

    def run(task, *rest, **settings):
        if pattern in task.label:
            raise error
        return run_task(task, *rest, **settings)

    return run


def test_a_trial_that_fails_is_named_and_tried_again(neurograft, study, output, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(running, "run_task", failing("average, fine", InputError("no such luck")))
        code, out, err = neurograft("experiment", "run", study, "-o", output)
    assert code == 1
    assert "FAILED mlp, digits, seed 0: average, fine-tuned: no such luck" in out
    assert "failed: mlp, digits, seed 0: average, fine-tuned: InputError: no such luck" in err
    assert "1 task failed: tracebacks are in the table failures of " in err
    assert "6 of 7 trials" in out
    (failure,) = Store(output).failures()
    assert failure["label"] == "mlp, digits, seed 0: average, fine-tuned"
    code, out, err = neurograft("experiment", "run", study, "-o", output)
    assert (code, err) == (0, "")
    assert "7 of 7 trials" in out


def test_fail_fast_stops(neurograft, study, output, monkeypatch):
    monkeypatch.setattr(running, "run_task", failing(": member 0", InputError("no such luck")))
    code, out, _ = neurograft("experiment", "run", study, "-o", output, "--fail-fast")
    assert code == 1
    assert "0 of 7 trials" in out


def test_an_interrupted_run_says_how_to_go_on(neurograft, study, output, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(running, "run_task", failing("ensemble", KeyboardInterrupt()))
        code, _, err = neurograft("experiment", "run", study, "-o", output)
    assert code == 130
    assert "3 results and 2 members. The same command goes on from there:" in err
    assert f"  neurograft experiment run {study} -o {output}" in err
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert neurograft("experiment", "run", study, "-o", output)[0] == 0


def test_an_interruption_that_becomes_another_error_is_one(neurograft, study, output, monkeypatch):
    def work(*_, **__):
        try:
            signal.raise_signal(signal.SIGTERM)
        except KeyboardInterrupt as error:
            raise StoreError("the disk is gone") from error

    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with monkeypatch.context() as patched:
        patched.setattr(running, "run_task", work)
        code, _, err = neurograft("experiment", "run", study, "-o", output)
    assert code == 130
    assert "The same command goes on from there:" in err
    assert "the disk is gone" not in err
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_an_ignored_interruption_stays_ignored(neurograft, study, output, monkeypatch):
    def work(*_, **__):
        signal.raise_signal(signal.SIGINT)
        raise StoreError("the disk is gone")

    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with monkeypatch.context() as patched:
            patched.setattr(running, "run_task", work)
            code, _, err = neurograft("experiment", "run", study, "-o", output)
    finally:
        signal.signal(signal.SIGINT, before)
    assert code == 2
    assert "the disk is gone" in err


def test_a_report_of_what_is_there(neurograft, study, output, tmp_path):
    neurograft("experiment", "run", study, "-o", output, "--only", "average")
    code, out, err = neurograft("experiment", "report", study, "-o", output)
    assert (code, err) == (0, "")
    assert "mine (smoke): 2 of 7 results" in out
    assert f"wrote {output / 'report' / 'index.html'}" in out
    page = (output / "report" / "mine.html").read_text()
    assert "A study of one's own" in html.unescape(page)
    assert (output / "report" / "mine.md").is_file()
    assert len((output / "report" / "mine.jsonl").read_text().splitlines()) == 2
    claims = tmp_path / "claims.md"
    assert neurograft("experiment", "report", study, "-o", output, "--to", tmp_path / "to", "--claims", claims)[0] == 0
    assert "small" in claims.read_text()
    assert not (tmp_path / "to").exists()


def test_a_report_of_nothing_says_what_makes_the_rows(neurograft, study, output):
    code, _, err = neurograft("experiment", "report", study, "-o", output)
    assert code == 2
    assert "no such folder" in err
    output.mkdir()
    code, _, err = neurograft("experiment", "report", study, "-o", output)
    assert code == 2
    assert "holds no results of mine (preset smoke); neurograft experiment run" in err


def start(*arguments):
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", "from neurograft.command_line.app import main; main()", "experiment", "run"]
    return subprocess.Popen(
        [*command, *map(str, arguments)], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


@pytest.mark.slow
def test_killed_again_and_again_a_study_ends_with_the_same_table(neurograft, tmp_path):
    arguments = ("comparison", "--preset", "smoke", "--seeds", "2")
    undisturbed, output = tmp_path / "undisturbed", tmp_path / "killed"
    assert neurograft("experiment", "run", *arguments, "-o", undisturbed)[0] == 0
    kills, rows = 0, 0
    while kills < 5:
        process = start(*arguments, "-o", output)
        wanted = rows + random.randint(1, 6)
        while process.poll() is None and len(Store(output).rows()) < wanted:
            time.sleep(0.01)
        if process.poll() is not None:
            break
        process.kill()
        process.communicate()
        kills, rows = kills + 1, len(Store(output).rows())
    process = start(*arguments, "-o", output)
    out, _ = process.communicate()
    assert process.returncode == 0, out
    assert kills >= 3
    assert table(output) == table(undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["in-process", "ray"])
def test_a_job_that_ends_leaves_everything_in_order(tmp_path, study, engine):
    process = start(study, "--preset", "small", "--seeds", "40", "-o", tmp_path / "runs", "--engine", engine)
    while not Store(tmp_path / "runs").rows():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)
    process.terminate()
    out, _ = process.communicate()
    assert process.returncode == 130, out
    assert "The same command goes on from there" in out
    assert "Traceback" not in out


@pytest.mark.slow
def test_ray_gives_the_rows_that_one_process_gives(neurograft, tmp_path, study):
    assert neurograft("experiment", "run", study, "-o", tmp_path / "one")[0] == 0
    process = start(study, "--engine", "ray", "-o", tmp_path / "ray")
    out, _ = process.communicate()
    assert process.returncode == 0, out
    assert "7 of 7 trials" in out
    assert table(tmp_path / "ray") == table(tmp_path / "one")
    process = start(study, "--engine", "ray", "--cpus-per-trial", "1000", "-o", tmp_path / "more", "--seeds", "2")
    out, _ = process.communicate()
    assert process.returncode == 2
    assert "error: a trial requires 1000 CPUs and 0 GPUs, the cluster has" in out
