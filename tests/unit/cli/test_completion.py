"""A shell completes what the program takes, and is never held up by a pool that does not answer."""

from __future__ import annotations

import os
import pty
import re
import select
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import pytest
from click.shell_completion import CompletionItem, ShellComplete

from kopiatomic.cli import completion
from kopiatomic.cli import entry as cli
from kopiatomic.system import host, linux_host, mountinfo, pools
from kopiatomic.system.freebsd_host import FreeBSDHost
from tests.support.freebsd_shim import Shim
from tests.support.programs import Completed, Kopiatomic, command
from tests.unit.support.plans import mounts

Complete = Callable[..., list[str]]

NAMES = ["other", "tank", "tank/a:b", "tank/a:c", "tank/home", "tank/my data"]


def asked(kopiatomic: Kopiatomic, shell: str, **words: str) -> Completed:
    return kopiatomic(env={"_KOPIATOMIC_COMPLETE": shell, **words})


@pytest.fixture
def zfs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Put a ``zfs`` on PATH that does this; returns where it writes its words."""
    words = tmp_path / "words"

    def make(script: str) -> Path:
        program = tmp_path / "zfs"
        program.write_text(f'#!/bin/sh\necho "$@" > {words}\n{script}\n')
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
        return words

    return make


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """One with a pool, a mounted dataset of it, a snapshot that is mounted, and Btrfs."""
    table = mounts(("/tank", "zfs", "tank/data"), ("/snap", "zfs", "tank@x"), ("/data", "btrfs", "/dev/sdb"))
    monkeypatch.setattr(mountinfo, "read", lambda: list(table))
    monkeypatch.setattr(pools, "answering", lambda: ["tank"])


@pytest.fixture
def complete(zfs: Callable[[str], Path]) -> Complete:
    """What the last of some words is completed to; what is left to the shell is ``dir:`` or ``file:`` and the word."""
    zfs(f"printf '%s\\n' {shlex.join(NAMES)}")

    def values(*words: str) -> list[str]:
        found = ShellComplete(cli.cli, {}, "kopiatomic", "").get_completions(list(words[:-1]), words[-1])
        return [item.value if item.type == "plain" else f"{item.type}:{item.value}" for item in found]

    return values


# What is completed


@pytest.mark.parametrize("name", sorted(cli.cli.commands))
def test_the_options_completed_are_those_of_the_command(name: str, complete: Complete) -> None:
    """None missing, none too many. ``-h`` is click's own."""
    wanted = {
        flag
        for parameter in cli.cli.commands[name].params
        if isinstance(parameter, click.Option)
        for flag in (*parameter.opts, *parameter.secondary_opts)
    } | {"-h", "--help"}
    assert set(complete(name, "-")) == wanted
    assert set(complete(name, "--")) == {flag for flag in wanted if flag.startswith("--")}
    if name == "backup":
        assert complete("-") == complete(name, "-")
        assert complete("tank", "-") == complete(name, "-")


def test_a_first_word_may_be_a_command_or_a_dataset(complete: Complete) -> None:
    assert complete("pl") == ["plan"]
    assert complete("") == ["/data", *sorted([*NAMES, "tank/data"]), *cli.cli.commands]
    assert complete("tank", "pl") == []


@pytest.mark.parametrize(
    "before", [(), ("plan",), ("exec",), ("shell",), ("-r", "other"), ("--exclude",), ("-n", "--exclude")]
)
def test_names_of_datasets_are_completed(before: tuple[str, ...], complete: Complete) -> None:
    assert complete(*before, "tank/h") == ["tank/home"]


def test_paths_are_left_to_the_shell(complete: Complete) -> None:
    for path in ("/", "/ho", "./x", "../x", "~/x"):
        assert complete(path) == [f"dir:{path}"]
    for option in ("--writable", "--mount-root", "--state-dir", "--repository"):
        assert complete(option, "x") == ["dir:x"]
    assert complete("plan", "--from-facts", "x") == ["file:x"]


def test_what_follows_two_dashes_in_exec_is_the_commands_and_so_files(complete: Complete) -> None:
    assert complete("exec", "tank", "--", "tar", "ta") == ["file:ta"]


def test_values_that_are_known_are_completed(complete: Complete) -> None:
    assert complete("--engine", "re") == ["restic"]
    assert complete("plan", "--layout", "") == ["merged", "in-place"]


# Where the names come from


def test_zfs_is_asked_for_pools_that_answer_and_for_nothing_else(
    zfs: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = zfs("echo tank/unmounted")
    assert completion.datasets() == {"tank/data", "tank/unmounted", "/data"}
    assert words.read_text() == "list -H -o name -s name -t filesystem,volume -r tank\n"
    words.unlink()
    monkeypatch.setattr(pools, "answering", list)
    assert completion.datasets() == {"tank/data", "/data"}
    monkeypatch.setattr(pools, "answering", lambda: None)
    for loaded in (False, True):
        assert not words.exists()
        monkeypatch.setattr(type(host.here()), "has_zfs", lambda _, loaded=loaded: loaded)
        completion.datasets()
    assert words.read_text() == "list -H -o name -s name -t filesystem,volume -r\n"


def test_a_suspended_pool_is_none_that_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    for pool, state in (("tank", "ONLINE"), ("lost", "SUSPENDED"), ("worn", "DEGRADED")):
        (tmp_path / pool).mkdir()
        (tmp_path / pool / "state").write_text(f"{state}\n")
    (tmp_path / "arcstats").write_text("")
    monkeypatch.setattr(linux_host, "KSTAT", tmp_path)
    assert pools.answering() == ["tank", "worn"]
    monkeypatch.setattr(linux_host, "KSTAT", tmp_path / "none")
    assert pools.answering() == []
    monkeypatch.setattr(host, "here", lambda: FreeBSDHost(Shim().kernel))
    assert pools.answering() is None


def test_a_zfs_that_does_not_answer_holds_nobody_up(zfs: Callable[[str], Path]) -> None:
    zfs("trap '' TERM INT; sleep 60; echo tank/late")
    began = time.monotonic()
    assert completion.datasets() == {"tank/data", "/data"}
    assert time.monotonic() - began < completion.LIMIT + 1


@pytest.mark.parametrize("script", ["exit 1", "kill -9 $$", "printf '\\377\\n'"])
def test_a_zfs_that_fails_costs_only_its_names(script: str, zfs: Callable[[str], Path]) -> None:
    zfs(script)
    assert completion.datasets() >= {"tank/data", "/data"}


def test_completion_imports_nothing_of_a_run(kopiatomic: Kopiatomic) -> None:
    code = """
import atexit, sys
from kopiatomic.cli import entry as cli
late = "rich", "kopiatomic.commands.backup", "kopiatomic.planning.gather", "ctypes"
atexit.register(lambda: print([m for m in sys.modules if m in late]))
cli.main()
"""
    environment = {**kopiatomic.environment, "_KOPIATOMIC_COMPLETE": "bash_complete", "COMP_WORDS": "kopiatomic --vol"}
    assert command(sys.executable, "-c", code, env=environment).stdout.splitlines() == ["plain,--volumes", "[]"]


# The shells


@pytest.mark.parametrize(
    ("shell", "function"),
    [
        ("bash", "_kopiatomic_completion() {"),
        ("zsh", "_kopiatomic_completion() {"),
        ("fish", "function _kopiatomic_completion;"),
    ],
)
def test_each_shell_gets_its_completion_script(shell: str, function: str, kopiatomic: Kopiatomic) -> None:
    ended = asked(kopiatomic, f"{shell}_source")
    assert ended.returncode == 0
    assert function in ended.stdout


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
@pytest.mark.parametrize("words", ["kopiatomic --re", "kopiatomic backup --re", "kopiatomic tank --re"])
def test_flags_are_completed_in_each_shell(words: str, shell: str, kopiatomic: Kopiatomic) -> None:
    number = "--re" if shell == "fish" else str(len(words.split()) - 1)
    ended = asked(kopiatomic, f"{shell}_complete", COMP_WORDS=words, COMP_CWORD=number)
    assert "--recursive" in ended.stdout
    assert "--require-atomic" in ended.stdout
    assert "--json" not in ended.stdout


@pytest.mark.parametrize("quote", ["'", '"'])
@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_word_begun_with_a_quote_is_completed_like_any_other(shell: str, quote: str, kopiatomic: Kopiatomic) -> None:
    """fish hands the quote over with the word."""
    for begun, completed in (("--eng", "--engine"), ("--engine=re", "restic")):
        word = f"{quote}{begun}"
        number = word if shell == "fish" else "1"
        ended = asked(kopiatomic, f"{shell}_complete", COMP_WORDS=f"kopiatomic {word}", COMP_CWORD=number)
        assert completed in ended.stdout
        assert quote not in ended.stdout.partition("\t")[0]


@pytest.mark.parametrize(
    ("line", "name", "replied"),
    [
        ('kopiatomic "tank/m', 'tank/m $x `"y\\z', 'tank/m \\$x \\`\\"y\\\\z'),
        ("kopiatomic 'tank/m", "tank/m'x", "tank/m'\\''x"),
        ('kopiatomic ta"nk/m', "tank/my data", "nk/my data"),
        ("kopiatomic 'a b' tank/\\ \"m", "tank/ my", "my"),
    ],
)
def test_bash_gets_what_follows_the_quote(line: str, name: str, replied: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMP_WORDS", line)
    complete = completion._Bash(cli.cli, {}, "kopiatomic", "")
    complete.get_completion_args()
    assert complete.format_completion(CompletionItem(name)) == f"plain,{replied}"


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_a_value_behind_an_equals_sign_keeps_its_option_where_the_shell_replaces_the_word(
    shell: str, kopiatomic: Kopiatomic
) -> None:
    number = "--engine=re" if shell == "fish" else "1"
    ended = asked(kopiatomic, f"{shell}_complete", COMP_WORDS="kopiatomic --engine=re", COMP_CWORD=number)
    assert re.findall(r"\S*restic\b", ended.stdout.replace(",", " ")) == ["--engine=restic"]


@pytest.fixture
def bash(kopiatomic: Kopiatomic, tmp_path: Path, zfs: Callable[[str], Path]) -> Iterator[Callable[[str, str], str]]:
    """Type a line and a tab in a real bash; returns the screen from the line on when it shows what is waited for."""
    zfs(f"printf '%s\\n' {shlex.join(NAMES)}")
    program = tmp_path / "kopiatomic"
    patch = "from kopiatomic.system import pools; pools.answering = lambda: ['tank']"
    start = f"{patch}; from kopiatomic.cli.entry import main; main()"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -c "{start}" "$@"\n')
    program.chmod(0o755)
    (tmp_path / "folder").mkdir()
    environment = {**kopiatomic.environment, "PATH": os.environ["PATH"], "TERM": "dumb", "PS1": "$ "}
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(tmp_path)
        os.execvpe("bash", ["bash", "--norc", "--noprofile", "-i"], environment)  # noqa: S606 - it is what is tested
    seen = ""

    def wait(text: str) -> str:
        nonlocal seen
        deadline = time.monotonic() + 30
        while text not in seen and time.monotonic() < deadline:
            if select.select([terminal], [], [], 0.1)[0]:
                seen += os.read(terminal, 1 << 16).decode()
        shown, seen = seen, ""
        assert text in shown
        return shown

    def press(line: str, wanted: str) -> str:
        # An emptied line, in case the one before is still there.
        os.write(terminal, b"\x15" + line.encode() + b"\t")
        return wait(wanted)

    os.write(terminal, b'eval "$(_KOPIATOMIC_COMPLETE=bash_source kopiatomic)"; echo re""ady\n')
    wait("ready")
    yield press
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    os.close(terminal)


def test_bash_completes_what_it_takes_apart_itself_and_what_has_to_be_quoted(bash: Callable[[str, str], str]) -> None:
    bash("kopiatomic --dry", "--dry-run ")
    bash("kopiatomic --engine=re", "--engine=restic ")
    bash("kopiatomic tank/ho", "tank/home ")
    bash("kopiatomic tank/m", "tank/my\\ data ")
    bash('kopiatomic "tank/m', '"tank/my data" ')
    bash("kopiatomic 'tank/m", "'tank/my data' ")
    bash('kopiatomic tank/"m', '"my data" ')
    bash("kopiatomic plan ./fo", "./folder/")
    bash("kopiatomic tank/a:b", "tank/a:b ")
