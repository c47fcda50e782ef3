"""Locks between processes, here between two openings of the same path, which the system keeps apart just as well."""

import errno
import threading

import pytest

from flaxformer_lab import locking
from flaxformer_lab.locking import file_lock


@pytest.fixture(params=["file", "folder"])
def path(request, tmp_path):
    return tmp_path if request.param == "folder" else tmp_path / "cell.lock"


def test_one_holder_at_a_time(path):
    with file_lock(path) as first, file_lock(path) as second:
        assert first and not second
    with file_lock(path) as third:
        assert third


def test_a_locked_folder_stays_as_it_is(tmp_path):
    with file_lock(tmp_path):
        assert list(tmp_path.iterdir()) == []


def test_who_waits_gets_the_lock_when_it_is_free(path):
    held = []

    def wait():
        with file_lock(path, wait=True) as is_held:
            held.append(is_held)

    waiting = threading.Thread(target=wait)
    with file_lock(path):
        waiting.start()
        assert held == []
    waiting.join(60)
    assert held == [True]


def test_an_exception_frees_the_lock(path):
    with pytest.raises(ValueError, match="no"), file_lock(path):
        raise ValueError("no")
    with file_lock(path) as is_held:
        assert is_held


def test_a_file_system_without_locks_is_tolerated(path, monkeypatch):
    def refuse(descriptor, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(locking.fcntl, "flock", refuse)
    with file_lock(path) as is_held:
        assert is_held


def test_a_path_that_cannot_be_opened_is_an_error(tmp_path):
    with pytest.raises(OSError, match="No such file"), file_lock(tmp_path / "nowhere" / "cell.lock"):
        pass
