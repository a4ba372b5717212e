"""Records are whole or absent, and name what a run needs to be repeated."""

from __future__ import annotations

import errno
import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from lmgraft import records
from lmgraft.errors import LmgraftError, RunError


class TestAtomicPath:
    def test_appears_only_at_the_end(self, tmp_path: Path) -> None:
        target = tmp_path / "new" / "folder" / "x.txt"
        with records.atomic_path(target) as temporary:
            temporary.write_text("whole")
            assert not target.exists()
            assert temporary.parent == target.parent
        assert target.read_text() == "whole"
        assert list(target.parent.iterdir()) == [target]

    def test_an_error_leaves_the_old_file(self, tmp_path: Path) -> None:
        target = tmp_path / "x.txt"
        target.write_text("old")

        def fail() -> None:
            with records.atomic_path(target) as temporary:
                temporary.write_text("ha")
                raise RuntimeError("power cut")

        with pytest.raises(RuntimeError, match="power cut"):
            fail()
        assert target.read_text() == "old"
        assert list(tmp_path.iterdir()) == [target]

    def test_a_failing_rename_leaves_the_old_file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        target = tmp_path / "x.txt"
        target.write_text("old")

        def refuse(*_: object) -> None:
            raise OSError("read-only file system")

        monkeypatch.setattr(records.os, "replace", refuse)
        with pytest.raises(OSError, match="read-only"):
            records.write_text(target, "new")
        assert target.read_text() == "old"
        assert list(tmp_path.iterdir()) == [target]

    def test_permissions_follow_the_umask(self, tmp_path: Path) -> None:
        before = os.umask(0o027)
        try:
            records.write_text(tmp_path / "x.txt", "x")
            assert os.umask(0o027) == 0o027  # reading the umask put it back
        finally:
            os.umask(before)
        assert stat.S_IMODE((tmp_path / "x.txt").stat().st_mode) == 0o640

    def test_two_writers_have_their_own_temporaries(self, tmp_path: Path) -> None:
        target = tmp_path / "x.txt"
        with records.atomic_path(target) as one, records.atomic_path(target) as two:
            assert one != two
            one.write_text("one")
            two.write_text("two")
        assert target.read_text() == "one"  # the outer one closed last

    def test_sweep_removes_only_temporaries(self, tmp_path: Path) -> None:
        with records.temporary_file(tmp_path, "model.ckpt") as temporary:
            killed = tmp_path / temporary.name.replace(".model", ".model2")
            killed.write_bytes(b"half")
        for kept in ("model.ckpt", "notes.tmp", ".hidden"):
            (tmp_path / kept).touch()
        (tmp_path / "sub").mkdir()
        (tmp_path / "sub" / ".a.tmp").touch()
        records.sweep_temporaries(tmp_path)
        assert sorted(p.name for p in tmp_path.iterdir()) == [".hidden", "model.ckpt", "notes.tmp", "sub"]
        assert (tmp_path / "sub" / ".a.tmp").exists()

    def test_sweep_of_a_missing_folder(self, tmp_path: Path) -> None:
        records.sweep_temporaries(tmp_path / "none")
        assert not (tmp_path / "none").exists()


class TestJson:
    def test_round_trip(self, tmp_path: Path) -> None:
        value = {"name": "Ünïcode", "numbers": [1, 2.5, None], "deep": {"a": True}}
        records.write_json(tmp_path / "x.json", value)
        assert records.read_json(tmp_path / "x.json") == value
        assert (tmp_path / "x.json").read_bytes().endswith(b"}\n")

    def test_a_value_that_is_no_json_leaves_the_old_file(self, tmp_path: Path) -> None:
        records.write_json(tmp_path / "x.json", 1)
        with pytest.raises(TypeError):
            records.write_json(tmp_path / "x.json", object())
        assert records.read_json(tmp_path / "x.json") == 1
        assert len(list(tmp_path.iterdir())) == 1

    def test_missing(self, tmp_path: Path) -> None:
        with pytest.raises(RunError, match=r"none\.json is missing"):
            records.read_json(tmp_path / "none.json")

    @pytest.mark.parametrize("data", [b"", b'{"a": 1', b"\xff\xfe{}", b"nonsense"])
    def test_damaged(self, tmp_path: Path, data: bytes) -> None:
        (tmp_path / "x.json").write_bytes(data)
        with pytest.raises(RunError, match=r"x\.json is not readable JSON"):
            records.read_json(tmp_path / "x.json")


class TestEnvironment:
    def test_what_is_recorded(self) -> None:
        found = records.environment()
        assert set(found) == {"versions", "python", "platform", "cpu_count", "git_commit"}
        assert found["versions"]["torch"]
        assert found["versions"]["lmgraft"]
        assert found["python"] == ".".join(map(str, sys.version_info[:3]))
        assert json.loads(json.dumps(found)) == found

    def test_an_absent_package_is_none(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(records, "_RECORDED", ("no-such-package-here",))
        assert records.environment()["versions"] == {"no-such-package-here": None}


class TestGitCommit:
    @pytest.fixture
    def tracked(self, tmp_path: Path) -> Path:
        def git(*arguments: str) -> None:
            identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
            subprocess.run(["git", "-C", str(tmp_path), *identity, *arguments], check=True, capture_output=True)

        git("init")
        (tmp_path / "a.py").write_text("1")
        git("add", "a.py")
        git("commit", "-m", "one")
        return tmp_path / "a.py"

    def test_clean_and_dirty(self, tracked: Path) -> None:
        clean = records.git_commit(tracked)
        assert clean is not None
        assert len(clean) == 40
        tracked.write_text("2")
        assert records.git_commit(tracked) == clean + "-dirty"

    def test_untracked_files_do_not_count(self, tracked: Path) -> None:
        """A virtual environment inside some checkout is not that checkout's code."""
        other = tracked.with_name("b.py")
        other.touch()
        assert records.git_commit(other) is None
        assert not str(records.git_commit(tracked)).endswith("-dirty")

    def test_no_checkout_and_no_git(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        assert records.git_commit(tmp_path / "a.py") is None
        monkeypatch.setenv("PATH", "")
        assert records.git_commit(tmp_path / "a.py") is None


class TestErrors:
    def test_remedy_is_shown_and_survives_pickling(self) -> None:
        import pickle

        error = RunError("run 3 is gone", "start it again")
        assert str(error) == "run 3 is gone\n  What to do: start it again"
        back = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own bytes
        assert isinstance(back, RunError)
        assert (back.message, back.remedy) == (error.message, error.remedy)
        assert isinstance(back, LmgraftError)
        assert str(LmgraftError("alone")) == "alone"


def test_a_lock_is_one_holders_and_free_again_after(tmp_path):
    file = tmp_path / "new" / ".lock"
    with records.only_one(file, "it"):
        for wait in (0, 0.1):
            with (
                pytest.raises(records.HeldError, match="another process is at it"),
                records.only_one(file, "it", wait=wait),
            ):
                pass
    with records.only_one(file, "it", wait=-1):
        pass
    assert file.exists()


def test_where_a_file_system_has_no_locks_everyone_gets_in(tmp_path, monkeypatch):
    import fcntl

    def none(*_):
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    with records.only_one(tmp_path / ".lock", "it"), records.only_one(tmp_path / ".lock", "it"):
        pass
