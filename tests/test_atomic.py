"""Atomic writes: what a kill leaves is taken over by the next writer, a living writer's is not."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from everyway.atomic import atomic_write

KILLED = """
import os, signal, sys
from everyway.atomic import atomic_write
with atomic_write(sys.argv[1]) as temporary:
    temporary.write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_a_killed_writer_left_is_taken_over(tmp_path):
    path = tmp_path / "state"
    path.write_bytes(b"former")
    environment = {"PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run([sys.executable, "-c", KILLED, str(path)], env=environment)
    assert done.returncode == -signal.SIGKILL
    assert path.read_bytes() == b"former" and len(names(tmp_path)) == 2
    with atomic_write(path) as temporary:
        temporary.write_bytes(b"next")
    assert path.read_bytes() == b"next" and names(tmp_path) == ["state"]


def test_two_writers_of_one_file_do_not_meet(tmp_path):
    path = tmp_path / "state"
    with atomic_write(path) as first:
        first.write_bytes(b"first")
        with atomic_write(path) as second:
            second.write_bytes(b"second")
            assert first != second and first.read_bytes() == b"first"
        assert path.read_bytes() == b"second"
    assert path.read_bytes() == b"first" and names(tmp_path) == ["state"]


def test_what_is_raised_within_leaves_the_former(tmp_path):
    path = tmp_path / "new" / "state"
    with pytest.raises(ValueError), atomic_write(path):
        raise ValueError
    assert names(tmp_path) == []
