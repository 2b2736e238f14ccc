"""A command of the user's own holds from the moment it says so until its input ends."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from kopiatomic.errors import KopiatomicError, UsageError
from kopiatomic.hooks import kinds
from kopiatomic.hooks.holder import Holder, Wanted
from tests.unit.support.holders import WITHIN, around, eventually, held, held_elsewhere, holder_of


def commanded(line: str, timeout: float = 10, limit: float | None = None) -> Holder:
    wanted = Wanted("command", "", timeout, limit, settings={"command": ["sh", "-c", line]})
    (finding,) = kinds.find(wanted, around())
    assert str(finding) == "command sh: holds what it knows"
    return holder_of([finding])


def reading(lock: Path, then: str = "") -> str:
    """A command that makes a file for as long as it holds."""
    return f"touch {lock}; echo held; read -r line; rm {lock}; {then}"


def test_it_is_held_until_its_input_ends(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    with held(commanded(reading(lock, "true"))) as holder:
        assert lock.exists()
        time.sleep(0.1)
        how = holder.release()
        assert not lock.exists()
    assert (how.proven, how.why) == (True, "it ended when it was asked to, with status 0")
    assert 0.1e9 < how.stall < 5e9


def test_what_fails_at_the_end_is_not_proven(tmp_path: Path) -> None:
    with held(commanded(reading(tmp_path / "lock", "echo it broke >&2; exit 3"))) as holder:
        how = holder.release()
    assert (how.proven, how.why) == (False, "it broke")


def test_what_ends_too_early_is_not_proven(tmp_path: Path) -> None:
    with held(commanded("echo held; exit 0")) as holder:
        time.sleep(0.3)
        how = holder.release()
    assert (how.proven, how.why) == (False, "it ended before it was asked to: exit status 0")


def test_it_ends_when_the_limit_is_over(tmp_path: Path) -> None:
    ended = tmp_path / "ended"
    line = f"trap 'touch {ended}; exit 0' TERM; echo held; while :; do sleep 0.05; done"
    with held(commanded(line, timeout=0.4, limit=0.4)) as holder:
        assert eventually(ended.exists, WITHIN)
        how = holder.release()
    assert (how.proven, how.why) == (False, "it was ended by its limit of 0.4 s")


def test_what_does_not_notice_the_end_of_its_input_is_not_proven() -> None:
    with held(commanded("echo held; exec sleep 30", timeout=0.4, limit=0.4)) as holder:
        how = holder.release()
    assert (how.proven, how.why) == (False, "it did not end when its input had ended")


@pytest.mark.parametrize(
    ("line", "kind", "said"),
    [
        ("sleep 30", "hold-timeout", "could not be held within 0.5 s: it did not print 'held'"),
        ("echo no >&2; exit 3", "hold-failed", "it ended before it held anything: no"),
        ("echo hold; sleep 30", "hold-failed", "it printed hold and not 'held'"),
    ],
)
def test_what_does_not_hold_is_an_error_and_is_ended(line: str, kind: str, said: str, tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    with pytest.raises(KopiatomicError) as caught, held(commanded(f"echo $$ > {pid}; {line}", timeout=0.5)):
        pass
    assert (caught.value.kind, said in caught.value.message) == (kind, True)
    assert eventually(lambda: not Path(f"/proc/{pid.read_text().strip()}").exists())


def test_a_program_that_is_not_there_is_an_error() -> None:
    """Before anything is made."""
    with pytest.raises(KopiatomicError) as caught:
        kinds.find(Wanted("command", settings={"command": ["/none/program"]}), around())
    assert caught.value.kind == "hold-no-client"
    assert "begins with /none/program, which is not there or cannot be executed" in caught.value.message


def test_a_program_that_does_not_start_is_an_error(tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.write_text("#!/none/shell\n")
    program.chmod(0o755)
    wanted = Wanted("command", settings={"command": [str(program)]})
    with pytest.raises(KopiatomicError) as caught, held(holder_of(kinds.find(wanted, around()))):
        pass
    said = "command program failed: it cannot be started: No such file or directory"
    assert (caught.value.kind, caught.value.message) == ("hold-failed", said)


def test_it_notices_that_the_holder_was_killed(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    with held_elsewhere(commanded(reading(lock))) as pid:
        assert lock.exists()
        os.kill(pid, signal.SIGKILL)
        assert eventually(lambda: not lock.exists(), WITHIN)


@pytest.mark.parametrize("settings", [{}, {"command": []}, {"command": [1]}])
def test_it_must_have_a_command(settings: dict[str, list[int]]) -> None:
    with pytest.raises(UsageError, match="the command is missing"):
        kinds.find(Wanted("command", settings=settings), around())
