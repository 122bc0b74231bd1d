"""Fusing two Llama-shaped checkpoints on disk, beside reading them once and writing one, under a memory limit.

Usage: python benchmarks/streaming.py [gigabytes per member] [turns] [path of mergekit-yaml]     (default 2 and 3)

The members are Hugging Face folders of random bfloat16 weights. Every run has a process of its own whose data segment
is limited (RLIMIT_DATA counts anonymous memory, not mapped files). Before each run the files are dropped from the page
cache. "Floor" reads all members once in pieces of 4 MB and writes as many bytes as the fused checkpoint has, flushed.
The ways take turns; medians are shown. Times are those of planning, streaming, hashing and flushing, without imports.
The two commands are whole processes with their imports: `neurograft fuse --method average` under the same limit, and
mergekit's linear merge of the same folders without one (it maps files in a way that counts as data), where
`mergekit-yaml` is on the path or given (it is no dependency; give it an environment of its own). mergekit computes no
hashes and does not flush.
"""

import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from _memory import anonymous_bytes, watched

LIMIT = 3_000_000_000  # bytes of the data segment
WAYS = ("floor", "average", "transplant")
COMMANDS = ("neurograft fuse", "mergekit-yaml")


def build(folder: Path, gigabytes: float, seed: int) -> None:
    """A Llama folder of about so many bytes, written tensor by tensor."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from neurograft.checkpoints.writing import TensorWriter, shards, write_index

    width, inner = (4096, 14336) if gigabytes >= 4 else (2048, 5632)
    per_layer = 2 * (2.5 * width**2 + 3 * width * inner)
    layers = max(1, round((gigabytes * 1e9 - 4 * 32000 * width) / per_layer))
    config = LlamaConfig(
        vocab_size=32000,
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=32,
        num_key_value_heads=8,
        architectures=["LlamaForCausalLM"],
        dtype="bfloat16",
    )
    folder.mkdir()
    config.save_pretrained(folder)
    with torch.device("meta"):
        network = LlamaForCausalLM(config)
    generator = torch.Generator().manual_seed(seed)
    specs = {name: (torch.bfloat16, tuple(p.shape)) for name, p in network.named_parameters()}
    parts = shards(specs, 2_000_000_000)
    for part in parts:
        with TensorWriter(folder / part.file, part.tensors, {}) as writer:
            for name, (_, shape) in part.tensors.items():
                for rows in torch.arange(shape[0]).split(max(1, (1 << 24) // max(1, *shape[1:], 1))):
                    block = torch.empty(len(rows), *shape[1:], dtype=torch.bfloat16)
                    writer.write(name, block.normal_(0, 0.02, generator=generator))
    write_index(folder, parts)


def weights(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def forget(files: list[Path]) -> None:
    """Drop files from the page cache."""
    for file in files:
        handle = os.open(file, os.O_RDONLY)
        os.fsync(handle)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)


def floor(members: list[Path], output: Path) -> None:
    piece = memoryview(bytearray(1 << 22))
    for member in members:
        for path in weights(member):
            with path.open("rb", buffering=0) as file:
                while file.readinto(piece):
                    pass
    left = sum(path.stat().st_size for path in weights(members[0]))
    with output.open("wb", buffering=0) as file:
        while left:
            left -= file.write(piece[: min(left, len(piece))])
        os.fsync(file.fileno())


def fuse(method: str, members: list[Path], output: Path) -> None:
    import neurograft as ng
    from neurograft.applying.stored import fuse_stored, open_folders
    from neurograft.applying.streaming import core_left_over
    from neurograft.plans.saving import SavedPlan

    stored = open_folders(members)
    with stored.hashing() as hashing, core_left_over():
        plan = ng.plan(stored, method=method, **({"order": "joint"} if method == "transplant" else {}))
        fuse_stored(stored, SavedPlan(plan, stored.name), output, max_memory=1_000_000_000, hashing=hashing)


def measure(way: str, members: list[Path], output: Path) -> None:
    # imports are not what is measured
    from transformers import AutoConfig, LlamaForCausalLM, conversion_mapping  # noqa: F401

    import neurograft.applying.stored
    import neurograft.tracing.tracer  # noqa: F401

    resource.setrlimit(resource.RLIMIT_DATA, (LIMIT, LIMIT))
    forget([file for member in members for file in weights(member)])
    with watched() as peak:
        started, worked = time.perf_counter(), time.process_time()
        if way == "floor":
            floor(members, output)
        else:
            fuse(way, members, output)
        seconds, work = time.perf_counter() - started, time.process_time() - worked
    print(json.dumps({"seconds": seconds, "work": work, "peak": peak.most}))


def command(way: str, members: list[Path], output: Path, mergekit: str) -> list[str]:
    """What a user would type."""
    if way == "neurograft fuse":
        own = [sys.executable, "-W", "ignore", "-m", "neurograft", "fuse", *map(str, members), "--method", "average"]
        return [*own, "--output", str(output), "--max-memory", "1GB"]
    recipe = output.with_name("recipe.yml")
    models = "".join(f"  - model: {member}\n    parameters: {{weight: {1 / len(members)}}}\n" for member in members)
    recipe.write_text(f"models:\n{models}merge_method: linear\ndtype: bfloat16\n")
    return [mergekit, str(recipe), str(output), "--no-copy-tokenizer", "--out-shard-size", "2B"]


def run_command(words: list[str], members: list[Path], limited: bool) -> dict[str, float]:
    """Run a command, and watch its memory from outside."""
    forget([file for member in members for file in weights(member)])
    before, started, peak = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter(), 0
    with (
        tempfile.TemporaryFile("w+") as said,
        subprocess.Popen(
            words,
            stdout=said,
            stderr=said,
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
            preexec_fn=(lambda: resource.setrlimit(resource.RLIMIT_DATA, (LIMIT, LIMIT))) if limited else None,
        ) as process,
    ):
        while process.poll() is None:
            peak = max(peak, anonymous_bytes(process.pid))
            time.sleep(0.02)
        if process.returncode:
            said.seek(0)
            raise SystemExit(f"{' '.join(words)} failed:\n{said.read()[-2000:]}")
    seconds, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    work = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"seconds": seconds, "work": work, "peak": peak}


def measured(way: str, members: list[Path], output: Path) -> dict[str, float]:
    """Run one of our own ways in a process of its own."""
    words = [sys.executable, "-W", "ignore", __file__, "--measure", way, *map(str, (output, *members))]
    ended = subprocess.run(words, capture_output=True, text=True, check=False)
    if ended.returncode:
        raise SystemExit(f"{way} failed:\n{ended.stderr}")
    return json.loads(ended.stdout.splitlines()[-1])


def main() -> None:
    if "--measure" in sys.argv:
        way, output, *members = sys.argv[2:]
        measure(way, [Path(member) for member in members], Path(output))
        return
    gigabytes = float(sys.argv[1]) if len(sys.argv) > 1 else 2.0
    turns = int(sys.argv[2]) if len(sys.argv) > 2 else 3
    place = Path(tempfile.mkdtemp(prefix="neurograft-benchmark-"))
    try:
        members = [place / "a", place / "b"]
        for seed, member in enumerate(members):
            build(member, gigabytes, seed)
        size = sum(file.stat().st_size for file in weights(members[0]))
        print(f"2 members of {size / 1e9:.2f} GB, data segment limited to {LIMIT / 1e9:.0f} GB, {turns} turns")
        mergekit = sys.argv[3] if len(sys.argv) > 3 else shutil.which("mergekit-yaml")
        commands = COMMANDS if mergekit else COMMANDS[:1]
        found: dict[str, list[dict]] = {way: [] for way in (*WAYS, *commands)}
        for _ in range(turns):
            for way in found:
                output = place / "out"
                if way in COMMANDS:
                    found[way].append(
                        run_command(command(way, members, output, mergekit or ""), members, way != COMMANDS[1])
                    )
                else:
                    found[way].append(measured(way, members, output))
                shutil.rmtree(output) if output.is_dir() else output.unlink()
        print(f"{'':16} {'seconds':>8} {'GB/s':>6} {'x floor':>8} {'CPU seconds':>12} {'anonymous memory':>17}")
        base = statistics.median(run["seconds"] for run in found["floor"])
        for way, runs in found.items():
            seconds = statistics.median(run["seconds"] for run in runs)
            work = statistics.median(run["work"] for run in runs)
            peak = max(run["peak"] for run in runs)
            speed = 3 * size / seconds / 1e9
            print(
                f"{way:16} {seconds:8.2f} {speed:6.2f} {seconds / base:8.2f} {work:12.1f} {peak / 1e6:14.0f} MB",
                flush=True,
            )
        if not mergekit:
            print("mergekit-yaml is not on the path: not compared")
    finally:
        shutil.rmtree(place, ignore_errors=True)


if __name__ == "__main__":
    main()
