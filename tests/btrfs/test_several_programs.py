"""Several programs in one frozen view, one after the other (tests/support/in_a_view.py)."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from kopiatomic.model.plan import Layout
from kopiatomic.state.records import Records
from tests.btrfs.conftest import children, only_child, wait_for
from tests.support import in_a_view
from tests.support.filesystems import Btrfs
from tests.support.killing import kill_together
from tests.support.programs import Kopiatomic, command

pytestmark = pytest.mark.in_part(7)

Leftovers = Callable[..., list[str]]
LAYOUTS = pytest.mark.parametrize("layout", list(Layout), ids=lambda layout: layout.value)


class Programs:
    """Starts the small command with programs, and reads what it says of them."""

    def __init__(self, kopiatomic: Kopiatomic, root: Path, data: Path, folder: Path) -> None:
        self.kopiatomic = kopiatomic
        self._root = root
        self.data = data
        self.go = folder / "go"

    def seen(self, layout: Layout) -> Path:
        """Where programs see the frozen dataset."""
        return self._root / self.data.relative_to("/") if layout is Layout.MERGED else self.data

    def argv(self, layout: Layout, *steps: Sequence[str] | dict[str, Any]) -> list[str]:
        """The small command, with programs."""
        words = [json.dumps(step if isinstance(step, dict) else {"argv": step}) for step in steps]
        return [sys.executable, in_a_view.__file__, layout.value, str(self._root), str(self.data), *words]

    def environment(self, **more: str) -> dict[str, str]:
        """What it finds its modules with."""
        path = os.pathsep.join([self.kopiatomic.environment["PYTHONPATH"], str(Path(__file__).parents[2])])
        return {**self.kopiatomic.environment, "PYTHONPATH": path, **more}

    @contextmanager
    def started(
        self, layout: Layout, *steps: Sequence[str] | dict[str, Any], **env: str
    ) -> Iterator[subprocess.Popen[str]]:
        with subprocess.Popen(
            self.argv(layout, *steps),
            env=self.environment(**env),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            try:
                yield process
            finally:
                process.kill()

    def later(self, *argv: str, **more: bool) -> dict[str, Any]:
        """A program that is started when the test says so."""
        return {"argv": argv, "until": str(self.go), **more}


def told(process: subprocess.Popen[str]) -> Any:
    """What it says of the next program, at that program's end."""
    assert process.stdout is not None
    return json.loads(process.stdout.readline() or "null")


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    _, errors = process.communicate(timeout=30)
    assert "Traceback" not in errors
    return process.returncode, errors


@pytest.fixture
def data(btrfs: Btrfs) -> Path:
    data = btrfs.subvolume("data")
    (data / "file").write_text("frozen\n")
    return data


@pytest.fixture
def programs(kopiatomic: Kopiatomic, root: Path, data: Path, tmp_path: Path) -> Programs:
    return Programs(kopiatomic, root, data, tmp_path)


@LAYOUTS
def test_all_see_the_same_frozen_tree_while_the_live_one_changes(
    layout: Layout, programs: Programs, root: Path, leftovers: Leftovers
) -> None:
    read = ["sh", "-c", f"ls {programs.seen(layout)}; cat {programs.seen(layout)}/file"]
    with programs.started(layout, read, programs.later(*read), read) as process:
        first = told(process)
        (programs.data / "file").write_text("live\n")
        (programs.data / "new").touch()
        programs.go.touch()
        others = [told(process), told(process)]
        assert ended(process)[0] == 0
    assert [one["stdout"] for one in (first, *others)] == ["file\nfrozen\n"] * 3
    assert [one["problems"] for one in (first, *others)] == [[]] * 3
    assert leftovers(root) == []


@LAYOUTS
def test_each_has_its_own_end_its_own_output_and_its_own_proof_of_reading(
    layout: Layout, programs: Programs, root: Path, leftovers: Leftovers
) -> None:
    top = programs.seen(layout) if layout is Layout.IN_PLACE else root
    steps = (["sh", "-c", "echo one; exit 3"], ["ls", str(top)], ["sh", "-c", "echo three >&2; kill -9 $$"])
    with programs.started(layout, *steps) as process:
        first, second, third = told(process), told(process), told(process)
        ended(process)
    assert [one["status"] for one in (first, second, third)] == [3, 0, -9]
    assert (first["stdout"], first["stderr"]) == ("one\n", "")
    assert (third["stdout"], third["stderr"]) == ("", "three\n")
    assert [one["unread"] for one in (first, second, third)] == [[str(top)], [], [str(top)]]
    assert leftovers(root) == []


@LAYOUTS
def test_one_that_cannot_be_started_does_not_keep_the_next_from_it(
    layout: Layout, programs: Programs, root: Path, leftovers: Leftovers
) -> None:
    with programs.started(layout, {"argv": ["no-such-program"], "anyway": True}, ["echo", "runs"]) as process:
        assert told(process) == {"error": "engine-start"}
        assert told(process)["stdout"] == "runs\n"
        assert ended(process)[0] == 0
    with programs.started(layout, ["no-such-program"], ["echo", "runs"]) as process:
        assert told(process) == {"error": "engine-start"}
        assert told(process) is None
        code, errors = ended(process)
    assert (code, "no-such-program cannot be started" in errors) == (1, True)
    assert leftovers(root) == []


def test_what_one_leaves_running_is_gone_before_the_next_starts(
    programs: Programs, root: Path, tmp_path: Path, leftovers: Leftovers
) -> None:
    """The pipes too: the main process waits for their end."""
    stray = f"setsid sh -c 'echo $$ > {tmp_path}/stray; while :; do sleep 0.01; date > {tmp_path}/beat; done' &"
    leave = ["sh", "-c", f"{stray} sleep 100 & while [ ! -s {tmp_path}/beat ]; do sleep 0.01; done"]
    look = ["sh", "-c", f"cd /proc; echo [0-9]*; rm {tmp_path}/beat; sleep 0.3; ls {tmp_path}/beat"]
    with programs.started(Layout.MERGED, leave, look, ["true"]) as process:
        first, second, third = told(process), told(process), told(process)
        assert ended(process)[0] == 0
    # The shell that writes has a child most of the time.
    assert first["strays"] in {2, 3}
    assert (second["strays"], third["strays"]) == (0, 0)
    # The launcher and the shell itself.
    assert len(second["stdout"].split()) == 2
    assert second["status"] != 0
    assert leftovers(root) == []


def test_the_mounts_are_checked_after_each(programs: Programs, btrfs: Btrfs, root: Path, leftovers: Leftovers) -> None:
    with programs.started(Layout.MERGED, ["true"], programs.later("true")) as process:
        assert told(process)["problems"] == []
        (snapshot,) = (name for name in btrfs.snapshots() if "kopiatomic_" in name)
        command("btrfs", "property", "set", "-ts", btrfs.mountpoint / snapshot, "ro", "false")
        command("btrfs", "subvolume", "delete", btrfs.mountpoint / snapshot)
        programs.go.touch()
        (problem,) = told(process)["problems"]
        ended(process)
    assert str(programs.data) in problem
    assert leftovers(root) == []


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_during_the_second_ends_it_and_no_other_is_started(
    signum: signal.Signals, programs: Programs, root: Path, tmp_path: Path, leftovers: Leftovers
) -> None:
    wait = ["sh", "-c", f"touch {tmp_path}/second; exec sleep 100"]
    with programs.started(Layout.MERGED, ["true"], wait, ["touch", str(tmp_path / "third")]) as process:
        assert told(process)["status"] == 0
        wait_for((tmp_path / "second").exists, "the start of the second")
        process.send_signal(signum)
        second = told(process)
        code, errors = ended(process)
    assert (second["status"], second["stopped"]) == (-signal.SIGTERM, True)
    assert (code, f"stopped by {signum.name}" in errors) == (128 + signum, True)
    assert not (tmp_path / "third").exists()
    assert leftovers(root) == []


def test_one_that_ignores_the_signal_is_killed(
    programs: Programs, root: Path, tmp_path: Path, leftovers: Leftovers
) -> None:
    stubborn = ["sh", "-c", f"trap '' TERM; touch {tmp_path}/second; while :; do sleep 0.05; done"]
    with programs.started(Layout.MERGED, ["true"], stubborn) as process:
        wait_for((tmp_path / "second").exists, "the start of the second")
        process.send_signal(signal.SIGTERM)
        assert told(process)["status"] == 0
        assert told(process)["status"] == -signal.SIGKILL
        assert ended(process)[0] == 143
    assert leftovers(root) == []


def test_a_signal_between_two_ends_the_run(
    programs: Programs, root: Path, tmp_path: Path, leftovers: Leftovers
) -> None:
    with programs.started(Layout.MERGED, ["true"], programs.later("touch", str(tmp_path / "second"))) as process:
        assert told(process)["status"] == 0
        process.send_signal(signal.SIGTERM)
        assert told(process) is None
        assert ended(process)[0] == 143
    assert not (tmp_path / "second").exists()
    assert leftovers(root) == []


@pytest.mark.parametrize("later", [False, True], ids=["during", "between"])
def test_a_time_limit_is_that_of_all_of_them(
    later: bool, programs: Programs, root: Path, tmp_path: Path, leftovers: Leftovers
) -> None:
    second = programs.later("true") if later else {"argv": ["sleep", "100"]}
    with programs.started(Layout.MERGED, ["true"], second, ["touch", str(tmp_path / "third")], LIMIT="2") as process:
        assert told(process)["status"] == 0
        code, errors = ended(process)
    assert (code, "the time limit of 2 s" in errors) == (1, True)
    assert not (tmp_path / "third").exists()
    assert leftovers(root) == []


@LAYOUTS
@pytest.mark.parametrize("victim", ["main", "keeper", "launcher", "everyone"])
def test_a_death_between_two_leaves_nothing(
    victim: str, layout: Layout, programs: Programs, root: Path, tmp_path: Path, leftovers: Leftovers
) -> None:
    with programs.started(layout, ["true"], programs.later("touch", str(tmp_path / "second"))) as process:
        assert told(process)["status"] == 0
        keeper = only_child(process.pid)
        family = {"main": process.pid, "keeper": keeper, "launcher": only_child(keeper)}
        wait_for(lambda: not children(family["launcher"]), "the end of all that ran")
        kill_together(family.values() if victim == "everyone" else [family[victim]])
        programs.go.touch()
        code, errors = ended(process)
    if victim in {"keeper", "launcher"}:
        assert (code, "of this run was killed" in errors) == (1, True)
    else:
        assert code == -9
    if victim == "everyone":
        recovered = programs.kopiatomic("recover")
        assert recovered.returncode == 0, str(recovered)
    assert not (tmp_path / "second").exists()
    assert leftovers(root, within=10) == []
    (run,) = Records(programs.kopiatomic.environment["KOPIATOMIC_STATE_DIR"]).history(5)
    assert run.result == ("failed" if victim in {"keeper", "launcher"} else "interrupted")


def test_what_the_host_unmounts_between_two_is_free(
    programs: Programs, root: Path, make_btrfs: Callable[[], Btrfs], tmp_path: Path, leftovers: Leftovers
) -> None:
    """Where the host's propagation is private, only the launcher can let go of its copy of a mount."""
    other = make_btrfs()
    # In the namespace that plays the host its mount must be the only one.
    command("umount", other.mountpoint)
    script = f"""
        set -e
        mount --make-rprivate /
        # A device that stays ours when nothing is mounted of it.
        device=$(losetup -f --show {other.image})
        trap 'touch {programs.go}; losetup -d $device' EXIT
        mount $device {other.mountpoint}
        "$@" &
        while [ ! -e {tmp_path}/first ]; do sleep 0.02; kill -0 $!; done
        sleep 0.5
        umount {other.mountpoint}
        free() {{ python3 -c 'import os, sys; os.close(os.open(sys.argv[1], os.O_RDWR | os.O_EXCL))' $device; }}
        for i in 1 2 3 4 5 6 7 8 9; do free 2>/dev/null && break; sleep 0.2; done
        free
        touch {programs.go}
        wait $!
    """
    argv = programs.argv(Layout.MERGED, ["touch", str(tmp_path / "first")], programs.later("true"))
    ended = command(
        *("unshare", "-m", "--propagation", "private", "bash", "-c", script, "bash", *argv),
        env=programs.environment(),
        check=False,
    )
    command("mount", "-o", "loop", other.image, other.mountpoint)
    assert ended.returncode == 0, str(ended)
    assert leftovers(root) == []
