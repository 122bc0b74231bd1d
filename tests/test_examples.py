"""The example for SLURM, run with stand-ins for the commands of a cluster."""

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "examples" / "ray-on-slurm.sh"
STANDINS = {
    "scontrol": 'echo "scontrol $*" >> "$LOG"; [ "$1" = show ] && printf "one\\ntwo\\n"; exit 0',
    "srun": 'echo "srun $*" >> "$LOG"; case "$*" in *hostname*) echo 10.0.0.1;; esac',
    "ray": "exit 0",
    # as the real one, it starts when Ray runs on every node: the script does not wait for what it put in the background
    "neurograft": 'until grep -q "ray start --address" "$LOG"; do sleep 0.01; done; echo "neurograft $*" >> "$LOG"\n'
    '[ -z "$LONG" ] && exit 0\n'
    "trap 'exit 130' TERM; while true; do sleep 0.05; done",
}

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")


@pytest.fixture
def start(tmp_path):
    for name, body in STANDINS.items():
        path = tmp_path / name
        path.write_text(f"#!/bin/bash\n{body}\n")
        path.chmod(0o755)
    job = {"SLURM_JOB_NODELIST": "one,two", "SLURM_JOB_ID": "7", "SLURM_CPUS_PER_TASK": "8", "SLURM_GPUS_ON_NODE": "2"}
    own = {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "LOG": str(tmp_path / "log"), "LONG": ""}

    def started(**more):
        environment = {**os.environ, **job, **own, "DATA": "/data", "OUTPUT": "/results", **more}
        return subprocess.Popen(["bash", SCRIPT], env=environment)

    return started


def said(tmp_path):
    log = tmp_path / "log"
    return log.read_text().splitlines() if log.exists() else []


def test_ray_starts_on_every_node_and_the_study_runs_on_it(start, tmp_path):
    assert start(STUDIES="comparison members", PRESET="smoke").wait(30) == 0
    lines = said(tmp_path)
    (head,) = [line for line in lines if "ray start --head" in line]
    (other,) = [line for line in lines if "ray start --address" in line]
    assert "--nodelist=one ray start --head --node-ip-address=10.0.0.1 --port=20007" in head
    assert "--nodelist=two ray start --address=10.0.0.1:20007 --num-cpus=8 --num-gpus=2" in other
    (run,) = [line for line in lines if line.startswith("neurograft")]
    assert run == (
        "neurograft experiment run comparison members --preset smoke --engine ray --address 10.0.0.1:20007 "
        "--cpus-per-trial 8 --gpus-per-trial 1 --data-folder /data --output /results"
    )
    assert not any("requeue" in line for line in lines)


def test_its_options_are_those_of_the_command(neurograft_help):
    for option in [
        word for word in SCRIPT.read_text().partition("neurograft experiment run")[2].split() if "--" in word
    ]:
        assert option in neurograft_help


@pytest.fixture
def neurograft_help():
    import typer.testing

    from neurograft.command_line.app import app

    return typer.testing.CliRunner(env={"COLUMNS": "200"}).invoke(app, ["experiment", "run", "--help"]).output


def test_a_job_whose_time_is_up_queues_itself_again(start, tmp_path):
    job = start(LONG="1")
    while not any(line.startswith("neurograft") for line in said(tmp_path)):
        time.sleep(0.02)
    time.sleep(0.2)
    job.send_signal(signal.SIGTERM)
    assert job.wait(30) == 130
    assert "scontrol requeue 7" in said(tmp_path)
