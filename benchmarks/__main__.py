"""Run every benchmark and write docs/performance.md; `python benchmarks NAME ...` runs those only.

What each of them printed last is kept in the page, so that single ones can be repeated.
"""

import datetime
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
PAGE = HERE.parent / "docs" / "performance.md"
HEAD = """# Performance

Written by `make bench`; `python benchmarks NAME` repeats one of them. Each table comes from one run in which the ways
that are compared take turns. Figures hold for the machine and the load named with them: compare ratios, not seconds.
Where other work ran at the same time, the CPU seconds of the process say more than the seconds on the clock.
"""


def machine() -> str:
    """The processor, its cores, the memory, the versions, and how busy it was."""
    import torch

    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        names = re.findall(r"model name\s*:\s*(.+)", cpuinfo.read_text())
        model = names[0] if names else model
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    load = os.getloadavg()[0]
    return (
        f"{model}, {os.cpu_count()} cores, {memory:.0f} GB; Python {platform.python_version()}, torch "
        f"{torch.__version__}; load {load:.1f} when it started"
    )


def section(script: Path, printed: str, where: str) -> str:
    """One benchmark: its own words, then what it printed."""
    text = script.read_text().split('"""')[1].strip()
    title, _, rest = text.partition("\n")
    words = re.sub(r"\n*Usage:.*\n", "\n", rest).strip()
    day = datetime.date.today().isoformat()
    return f"## {title.rstrip('.')}\n\n{words}\n\n{day}, {where}\n\n```\n{printed.strip()}\n```\n"


def sections(page: str) -> dict[str, str]:
    """What the page holds: title -> section."""
    parts = re.split(r"^(?=## )", page, flags=re.MULTILINE)[1:]
    return {part.splitlines()[0]: part.strip() + "\n" for part in parts}


def main() -> None:
    scripts = sorted(path for path in HERE.glob("*.py") if not path.stem.startswith("_"))
    asked = sys.argv[1:]
    found = sections(PAGE.read_text() if PAGE.is_file() else "")
    for script in scripts:
        if asked and script.stem not in asked:
            continue
        where = machine()
        print(f"== {script.stem}", flush=True)
        with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True) as process:
            lines = []
            for line in process.stdout or ():
                print(line, end="", flush=True)
                lines.append(line)
        if process.returncode:
            raise SystemExit(f"{script.name} failed")
        part = section(script, "".join(lines), where)
        found[part.splitlines()[0]] = part
        PAGE.parent.mkdir(exist_ok=True)
        PAGE.write_text("\n".join([HEAD, *(found[title] for title in sorted(found))]))


if __name__ == "__main__":
    main()
