"""Where tests find the data that lies beside the project's folder."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared() -> Path:
    """The shared folder (parity files, data sets); the test is skipped where there is none."""
    named = os.environ.get("NEUROGRAFT_SHARED")
    folder = Path(named) if named else Path(__file__).resolve().parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip(f"no shared folder at {folder}; set NEUROGRAFT_SHARED to run this test")
    return folder
