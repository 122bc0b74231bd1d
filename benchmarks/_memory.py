"""How much memory a process holds that is no mapped file, for the benchmarks that ask."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


def anonymous_bytes(process: int | str = "self") -> int:
    """What a process holds in memory that is no mapped file; 0 if it has ended."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon")), 0)


@dataclass
class Peak:
    """Bytes before, and the most while something was done."""

    before: int
    most: int

    @property
    def extra(self) -> int:
        return max(0, self.most - self.before)


@contextmanager
def watched(every: float = 0.01) -> Iterator[Peak]:
    """Watch this process's memory, once in so many seconds."""
    now = anonymous_bytes()
    peak, done = Peak(now, now), threading.Event()

    def watch() -> None:
        while not done.wait(every):
            peak.most = max(peak.most, anonymous_bytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield peak
    finally:
        done.set()
        watcher.join()
