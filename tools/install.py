"""Create .venv and install neurograft with the named extra, every version pinned; runs on a bare Python.

Usage: python3 tools/install.py demo|dev, or check to say only what is missing.
"""

import importlib.util
import platform
import shutil
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / ("Scripts" if sys.platform == "win32" else "bin") / "python"
LOG = VENV / "install.log"
CPU_WHEELS = "https://download.pytorch.org/whl/cpu"


def check_python() -> None:
    """Stop with one line if this Python cannot make a virtual environment."""
    if sys.version_info < (3, 11):
        sys.exit(
            f"neurograft needs Python 3.11 or newer, this is {platform.python_version()}: make PYTHON=python3.12 setup"
        )
    if any(importlib.util.find_spec(name) is None for name in ("venv", "ensurepip")):
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        sys.exit(
            f"python3 has no venv module: install it first, on Debian and Ubuntu: sudo apt install python{version}-venv"
        )


def torch_index() -> list[str]:
    """On Linux without an NVIDIA GPU: pip options that find torch's small CPU build, if its server answers."""
    if sys.platform != "linux" or shutil.which("nvidia-smi") or Path("/proc/driver/nvidia").exists():
        return []
    try:
        urllib.request.urlopen(f"{CPU_WHEELS}/torch/", timeout=5).close()
    except OSError:
        return []
    return ["--extra-index-url", CPU_WHEELS]


def run_pip(arguments: list[str]) -> None:
    """Run pip with its full output in a log file and its progress in one line."""
    command = [str(PYTHON), "-m", "pip", "install", "--disable-pip-version-check", *arguments]
    started, shown, live = time.monotonic(), 0, sys.stdout.isatty()
    pip = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    with LOG.open("w", encoding="utf-8") as log:
        for line in pip.stdout or ():
            log.write(line)
            step = line.strip()
            if step.startswith(("Collecting ", "Downloading ", "Building ", "Installing collected")):
                shown += 1
                text = f"[{time.monotonic() - started:4.0f} s] {step[:90]}"
                if live:
                    print(f"\r\033[K{text}", end="", flush=True)
                elif shown % 10 == 1 or step.startswith("Installing"):
                    print(text, flush=True)
    pip.wait()
    if live:
        print("\r\033[K", end="")
    if pip.returncode != 0:
        tail = LOG.read_text(encoding="utf-8").splitlines()[-8:]
        sys.exit("\n".join([*tail, f"pip failed; its whole output is in {LOG.relative_to(ROOT)}"]))


def main() -> None:
    """Install the extra named on the command line."""
    if len(sys.argv) != 2 or sys.argv[1] not in ("demo", "dev", "check"):
        sys.exit(__doc__)
    extra = sys.argv[1]
    check_python()
    if extra == "check":
        return
    started = time.monotonic()
    if not PYTHON.exists():
        print("creating .venv", flush=True)
        subprocess.run([sys.executable, "-m", "venv", str(VENV)], check=True)
    print(f"installing neurograft[{extra}], versions pinned in constraints.txt", flush=True)
    run_pip(["--constraint", "constraints.txt", *torch_index(), "--editable", f".[{extra}]"])
    print(f"ready after {time.monotonic() - started:.0f} s", flush=True)


if __name__ == "__main__":
    main()
