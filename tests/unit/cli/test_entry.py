"""The command line means what users of the shell script of the same name know, and says so when it makes no sense."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import kopiatomic.commands.backup
from kopiatomic import __version__
from kopiatomic.cli import entry as cli
from kopiatomic.config.options import Options
from kopiatomic.config.settings import COMMANDS
from kopiatomic.model.report import Report
from kopiatomic.model.user_property import is_user_property
from tests.support.programs import Completed, Kopiatomic, command
from tests.support.without_root import as_nobody

Parse = Callable[..., Options]


@pytest.fixture
def parse(monkeypatch: pytest.MonkeyPatch) -> Parse:
    """What a command line asks for. In place of the run there is a recorder: a run would need root and filesystems."""

    def options(*args: str) -> Options:
        asked: list[Options] = []

        def record(options: Options, *_: object) -> Report:
            asked.append(options)
            return Report("id", "/kopia", dry_run=True)

        monkeypatch.setattr(kopiatomic.commands.backup, "backup", record)
        monkeypatch.setattr(sys, "argv", ["kopiatomic", *args])
        with pytest.raises(SystemExit):
            cli.main()
        (found,) = asked
        return found

    return options


@pytest.mark.parametrize(("word", "meant"), [("histroy", "history"), ("recovr", "recover"), ("schedul", "schedule")])
def test_a_mistyped_command_is_suggested(word: str, meant: str, kopiatomic: Kopiatomic) -> None:
    """It is taken for a dataset, which here is none, with ZFS or without."""
    ended = kopiatomic(word)
    assert ended.returncode == 1, ended
    assert f"If a command was meant: kopiatomic {meant}\n" in ended.stderr
    more = kopiatomic(word, "a b", "-o", "--password=hush")
    assert f"If a command was meant: kopiatomic {meant} 'a b' -o '--password=***'\n" in more.stderr


def test_a_dataset_is_no_mistyped_command(kopiatomic: Kopiatomic) -> None:
    ended = kopiatomic("no-such-pool")
    assert ended.returncode == 1, ended
    assert "a command was meant" not in ended.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="it takes root to be less")
@pytest.mark.parametrize(
    "words",
    [
        ("-r", "ta nk"),
        ("exec", "ta nk", "--", "ls"),
        ("recover", "--dry-run"),
        ("history", "--limit", "3"),
        ("schedule", "show", "home"),
        ("schedule", "remove", "home"),
        ("schedule", "install", "--hourly", "home", "--", "ta nk"),
    ],
)
def test_who_is_not_root_is_told_what_to_type_and_can_copy_it(words: tuple[str, ...], kopiatomic: Kopiatomic) -> None:
    ended = command(*as_nobody(*kopiatomic.argv(*words)), env=kopiatomic.environment, check=False)
    assert ended.returncode == 1, ended
    # To the end of the line.
    assert f"sudo {shlex.join(['kopiatomic', *words])}\n" in ended.stderr


def test_who_has_no_terminal_for_a_shell_is_told_the_command_that_needs_none(kopiatomic: Kopiatomic) -> None:
    ended = kopiatomic("shell", "-r", "ta nk")
    assert ended.returncode == 1, ended
    assert "kopiatomic exec -r 'ta nk' -- ls\n" in ended.stderr


@pytest.mark.parametrize(
    ("words", "said", "hint"),
    [
        (
            ("-n", "--diff-last", "ta nk"),
            "--diff-last is an option of 'kopiatomic plan'",
            "kopiatomic plan --diff-last 'ta nk'",
        ),
        (("--diff-last", "tank"), "--diff-last is an option of 'kopiatomic plan'", "kopiatomic plan --diff-last tank"),
        (("plan", "--diff-last", "-n", "tank"), "not of 'kopiatomic plan'", "kopiatomic plan --diff-last tank"),
        (
            ("--daily", "tank"),
            "of 'kopiatomic schedule install'",
            "'kopiatomic schedule install -h' says what it does.",
        ),
        (("plan", "--user", "x", "tank"), "of 'kopiatomic exec' and 'kopiatomic shell'", "'kopiatomic exec -h' says"),
        (("--diff-lst", "tank"), "No such option", "'kopiatomic -h' shows the options."),
    ],
)
def test_an_option_of_another_command_is_said_to_be_its(
    words: tuple[str, ...], said: str, hint: str, kopiatomic: Kopiatomic
) -> None:
    ended = kopiatomic(*words)
    assert ended.returncode == 2, ended
    assert said in ended.stderr
    assert hint in ended.stderr
    assert "Did you mean" not in ended.stderr


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        ("profile new home -r 'tank/a b'", "profile new home -- -r 'tank/a b'"),
        ("profile new home tank/home", "profile new home -- tank/home"),
        ("schedule install --daily home tank/home", "schedule install --daily home -- tank/home"),
        (
            "schedule install --calendar 02:30 home -a -o --password=x1y2",
            "schedule install --calendar 02:30 home -- -a -o '--password=***'",
        ),
        ("schedule install home -r x --yes", "schedule install home --yes -- -r x"),
        (
            "schedule install home x --calendar 02:30 -a --hourly",
            "schedule install home --calendar 02:30 --hourly -- x -a",
        ),
        ("engine --config-dir /etc/x home snapshots -c", "engine --config-dir /etc/x home -- snapshots -c"),
    ],
)
def test_words_without_the_dashes_before_them_are_said_to_lack_them(
    words: str, shown: str, kopiatomic: Kopiatomic
) -> None:
    ended = kopiatomic(*shlex.split(words))
    assert ended.returncode == 2, ended
    assert (
        ended.stderr.splitlines()[0] == f"kopiatomic: what follows the name must stand behind '--': kopiatomic {shown}"
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("schedule", "install", "home", "--dayly"), "--dayly"),
        (("engine", "-a"), "-a is an option of"),
        (("profile", "new", "home", "--", "-r", "tank", "--bogus"), "\n  'kopiatomic -h' shows the options."),
        (("profile", "new"), "Missing argument 'NAME'"),
    ],
)
def test_other_mistakes_are_not_taken_for_that(words: tuple[str, ...], said: str, kopiatomic: Kopiatomic) -> None:
    ended = kopiatomic(*words)
    assert ended.returncode == 2, ended
    assert said in ended.stderr
    assert "must stand behind" not in ended.stderr


def test_what_is_said_to_be_typed_is_understood(parse: Parse, kopiatomic: Kopiatomic) -> None:
    ended = kopiatomic("-n", "--diff-last", "-r", "ta nk")
    (typed,) = [line.partition("as -n does: kopiatomic ")[2] for line in ended.stderr.splitlines() if "as -n" in line]
    assert (parse(*shlex.split(typed)).dry_run, parse(*shlex.split(typed)).names) == (True, ("ta nk",))


LONG = [
    ("-a", "--all", "everything"),
    ("-n", "--dry-run", "dry_run"),
    ("-r", "--recursive", "recursive"),
]
LONG_WITH_VALUE = [
    ("-c", "--command", "command"),
    ("-o", "--options", "options"),
    ("-p", "--pre-hook", "pre_hook"),
    ("-q", "--post-hook", "post_hook"),
]


@pytest.mark.parametrize(
    ("name", "good"),
    [
        ("kopiatomic:backup", True),
        ("a:b-c._9", True),
        ("compression", False),
        ("a:b,name", False),
        ("-a:b", False),
        ("A:b", False),
        ("a:\tb", False),
        (":" * 257, False),
    ],
)
def test_a_property_is_a_user_property(name: str, good: bool) -> None:
    """As zfsprops(7) has it: any other name would be asked of ZFS as something else."""
    assert is_user_property(name) == good


@pytest.mark.parametrize(("short", "long", "field"), LONG)
def test_every_short_flag_has_a_long_twin(short: str, long: str, field: str, parse: Parse) -> None:
    for flag in (short, long):
        assert getattr(parse(flag, "tank"), field) is True
    assert getattr(parse("tank"), field) is False


@pytest.mark.parametrize(("short", "long", "field"), LONG_WITH_VALUE)
@pytest.mark.parametrize("value", ["x y", "-x", "--dashes", "-", "--", "", "-a", "--json"])
def test_a_flags_value_is_taken_as_it_is_also_with_a_dash(
    short: str, long: str, field: str, value: str, parse: Parse
) -> None:
    for words in ((short, value), (long, value), (f"{long}={value}",)):
        asked = parse("tank", *words)
        assert getattr(asked, field) == value
        assert (asked.names, asked.everything) == (("tank",), False)


def test_flags_may_stand_before_between_and_after_names(parse: Parse) -> None:
    expected = parse("-r", "-n", "-c", "true", "tank/a", "tank/b")
    assert expected.names == ("tank/a", "tank/b")
    assert parse("tank/a", "-r", "tank/b", "-n", "-c", "true") == expected
    assert parse("tank/a", "tank/b", "-rn", "-ctrue") == expected


def test_two_dashes_end_the_flags(parse: Parse) -> None:
    asked = parse("-n", "--", "-r", "--json", "tank")
    assert (asked.names, asked.recursive) == (("-r", "--json", "tank"), False)


def test_a_dataset_named_like_a_command_is_reached_through_backup(parse: Parse) -> None:
    assert parse("backup", "backup").names == ("backup",)
    assert parse("-n", "backup").names == ("backup",)
    assert parse("backup/home").names == ("backup/home",)
    assert parse("--", "backup").names == ("backup",)


def test_backup_spelled_out_is_the_same_command(parse: Parse) -> None:
    words = ("-r", "tank", "--name", "home", "--require-atomic", "--no-maintenance", "--mount-root", "/x")
    assert parse("backup", *words) == parse(*words)


def test_what_is_not_said_has_these_defaults(parse: Parse) -> None:
    assert parse("tank") == Options(names=("tank",))
    assert Options().mount_root == "/kopia"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--no-such-flag", "tank"), "No such option"),
        (("-X",), "No such option"),
        (("tank", "-c"), "requires an argument"),
        (("--hook-timeout", "soon", "tank"), "is not a duration"),
        (("--hook-timeout", "0", "tank"), "is shorter than"),
        (("--stop-timeout", "-1", "tank"), "is not a duration"),
        ((), "no dataset was named"),
        (("backup",), "no dataset was named"),
        (("-c", "'", "tank"), "no closing quotation"),
        (("-o", 'a"', "tank"), "no closing quotation"),
        (("-c", "a\\", "tank"), "no escaped character"),
        (("-c", "  ", "tank"), "the command is empty"),
        (("-c", "true", "--engine", "borg", "tank"), "-c and --engine exclude each other"),
        (("--engine", "tar", "tank"), "'tar' is not one of 'kopia', 'restic', 'borg'"),
        (("--archive", "x", "tank"), "--archive is for --engine borg"),
        (("--repository", "/x", "tank"), "--repository is for --engine restic and borg"),
        *((("--name", name, "tank"), "one path component") for name in ("", ".", "..", "a/b", "/a", "-a")),
    ],
)
def test_a_command_line_that_makes_no_sense_is_exit_code_2(
    words: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["kopiatomic", *words])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    written = capsys.readouterr()
    assert ended.value.code == 2
    assert written.out == ""
    first, second = written.err.splitlines()
    assert first.startswith("kopiatomic: ")
    assert message in first
    assert second.startswith("  ")


# The real command


def test_the_version_is_said(kopiatomic: Kopiatomic) -> None:
    for flag in ("-v", "--version"):
        ended = kopiatomic(flag)
        assert (ended.returncode, ended.stdout, ended.stderr) == (0, f"kopiatomic {__version__}\n", "")


@pytest.mark.parametrize(
    "words",
    [
        ["-v", "tank/home"],
        ["tank/home", "--verbose", "-v"],
        ["backup", "--version", "/home"],
        ["-v", "--", "-a"],
        ["-va"],
        ["--version", "--all"],
        ["-v", "--by-property"],
        ["-rv", "tank", "--json"],
    ],
    ids=" ".join,
)
def test_a_version_beside_something_to_back_up_is_no_success(words: list[str], kopiatomic: Kopiatomic) -> None:
    ended = kopiatomic(*words)
    assert ended.returncode == 2, ended
    assert "--verbose" in ended.stderr
    assert "kopiatomic " + __version__ not in ended.stdout


@pytest.mark.parametrize("words", [["-v", "-r"], ["-v", "--name", "x", "--timeout", "nonsense"], ["--quiet", "-v"]])
def test_a_version_is_said_whatever_else_is_on_the_line(words: list[str], kopiatomic: Kopiatomic) -> None:
    ended = kopiatomic(*words)
    assert (ended.returncode, ended.stdout) == (0, f"kopiatomic {__version__}\n"), ended


def test_help_tells_every_flag_and_every_exit_code(kopiatomic: Kopiatomic) -> None:
    ended = kopiatomic("-h", env={"COLUMNS": "80"})
    assert (ended.returncode, ended.stderr) == (0, "")
    for setting in COMMANDS["backup"]:
        assert all(flag in ended.stdout for flag in setting.flags)
    for code in ("0 saved", "1 failed", "2 usage", "3 saved", "4 saved", "75 another", "128+n"):
        assert code in ended.stdout
    assert max(map(len, ended.stdout.splitlines())) <= 80
    assert kopiatomic("--help").stdout == kopiatomic("backup", "-h").stdout == ended.stdout


def test_help_names_every_command(kopiatomic: Kopiatomic) -> None:
    help_text = " ".join(kopiatomic("-h").stdout.split())
    assert [name for name in cli.cli.commands if f"'kopiatomic {name}" not in help_text] == []


def test_the_help_of_restore_says_what_may_be_left_out_and_is_about_a_restore(kopiatomic: Kopiatomic) -> None:
    help_text = " ".join(kopiatomic("restore", "-h").stdout.split())
    assert help_text.startswith("Usage: kopiatomic restore [OPTIONS] WHAT [PATH]... ")
    assert "What made the backup." in help_text


def test_the_profile_of_that_name_is_suggested(kopiatomic: Kopiatomic, tmp_path: Path) -> None:
    (tmp_path / "home.toml").touch()
    ended = kopiatomic("-n", "home", env={"KOPIATOMIC_CONFIG_DIR": str(tmp_path)})
    assert ended.returncode != 0
    assert "If the profile was meant: kopiatomic run home" in ended.stderr
    other = kopiatomic("-n", "hom", env={"KOPIATOMIC_CONFIG_DIR": str(tmp_path / "none")})
    assert "profile" not in other.stderr


def test_help_is_there_where_nothing_else_works(kopiatomic: Kopiatomic) -> None:
    ended = command(
        *as_nobody(*Kopiatomic.argv("-h")),
        env={"PATH": "/nowhere", "PYTHONPATH": kopiatomic.environment["PYTHONPATH"]},
    )
    assert "Usage: kopiatomic" in ended.stdout


def test_help_needs_no_module_of_the_run(kopiatomic: Kopiatomic) -> None:
    code = (
        "import sys; from kopiatomic.cli import entry\n"
        "print([m for m in sys.modules if m in ('rich', 'kopiatomic.commands.backup')])"
    )
    assert command(sys.executable, "-c", code, env=kopiatomic.environment).stdout == "[]\n"


def test_help_loads_nothing_of_profiles(kopiatomic: Kopiatomic) -> None:
    code = (
        "import atexit, sys; sys.argv = ['kopiatomic', '-h']\n"
        "late = ('tomllib', 'kopiatomic.commands', 'kopiatomic.config.credentials', 'kopiatomic.config.p')\n"
        "atexit.register(lambda: print('loaded:', [m for m in sys.modules if m.startswith(late)]))\n"
        "from kopiatomic.cli.entry import main; main()"
    )
    ended = command(sys.executable, "-c", code, env=kopiatomic.environment)
    assert ended.stdout.startswith("Usage: kopiatomic")
    assert ended.stdout.endswith("\nloaded: []\n")


def test_a_run_loads_nothing_of_another_system(kopiatomic: Kopiatomic) -> None:
    code = "import sys, kopiatomic.commands.backup; from kopiatomic import platforms; platforms.here(); print(*sys.modules)"
    loaded = command(sys.executable, "-c", code, env=kopiatomic.environment).stdout.split()
    assert [name for name in loaded if "freebsd" in name] == []
    assert "kopiatomic.platforms.linux.platform" in loaded


def redirected(kopiatomic: Kopiatomic, shell: str, *args: str) -> Completed:
    """Run the command below a shell that does something to its streams: ``"$@" >&-``."""
    return command("bash", "-c", shell, "bash", *Kopiatomic.argv(*args), env=kopiatomic.environment, check=False)


@pytest.mark.parametrize(
    "shell",
    [
        '"$@" >&-',
        '"$@" >/dev/full',
        '"$@" | head -c 0; exit "${PIPESTATUS[0]}"',
        '"$@" >&- <&- 2>&-',
        '"$@" >/dev/full 2>&1',
    ],
    ids=["closed", "full", "broken pipe", "all closed", "all full"],
)
def test_an_output_that_cannot_be_written_changes_no_exit_code(shell: str, kopiatomic: Kopiatomic) -> None:
    ended = redirected(kopiatomic, shell, "--json")
    assert ended.returncode == 2
    assert "Traceback" not in ended.stderr
    assert "Exception" not in ended.stderr


@pytest.mark.parametrize("flag", ["-h", "-v"])
@pytest.mark.parametrize(
    ("shell", "code", "said"),
    [
        ('"$@" >/dev/full', 1, "kopiatomic: the output could not be written: No space left on device\n"),
        ('"$@" | head -c 0; exit "${PIPESTATUS[0]}"', 0, ""),
    ],
    ids=["full", "broken pipe"],
)
def test_help_that_cannot_be_written_ends_without_a_traceback(
    shell: str, code: int, said: str, flag: str, kopiatomic: Kopiatomic
) -> None:
    ended = redirected(kopiatomic, shell, flag)
    assert ended.returncode == code
    assert ended.stderr == said


@pytest.mark.parametrize("words", [("-c", "true", "tank"), ("plan", "tank"), ("recover",), ("schedule", "show")])
def test_a_module_that_python_lacks_is_named(words: tuple[str, ...], kopiatomic: Kopiatomic) -> None:
    """FreeBSD has sqlite3 in a package of its own."""
    lacking = "import sys; sys.modules['_sqlite3'] = None; from kopiatomic.cli.entry import main; main()"
    ended = command(sys.executable, "-c", lacking, *words, env=kopiatomic.environment, check=False)
    assert ended.returncode == 1
    assert "Traceback" not in ended.stderr
    assert "_sqlite3" in ended.stderr.splitlines()[0]
    assert f"pkg install py{sys.version_info.major}{sys.version_info.minor}-sqlite3" in ended.stderr


def test_bytes_that_are_not_utf8_in_arguments_are_shown_escaped(kopiatomic: Kopiatomic) -> None:
    for locale in ("C", "C.UTF-8"):
        ended = kopiatomic("-n", os.fsdecode(b"/caf\xe9\x1b"), env={"LC_ALL": locale})
        assert "/caf\\xe9\\x1b: No such file or directory" in ended.stderr


def test_usage_errors_are_json_too_where_that_is_asked_for(kopiatomic: Kopiatomic) -> None:
    ended = kopiatomic("--json", "--no-such-flag")
    assert ended.returncode == 2
    document = json.loads(ended.stdout)
    assert (document["exit_code"], document["error"]["kind"]) == (2, "usage")
    assert "--no-such-flag" in ended.stderr


def test_standard_descriptors_that_are_closed_are_not_taken_for_files(kopiatomic: Kopiatomic, tmp_path: Path) -> None:
    """Else the first file that is opened would become standard output, and be written into."""
    ended = redirected(kopiatomic, f'cd {tmp_path}; "$@" <&- >&- 2>&-', "-n", "--json", "/nowhere")
    assert ended.returncode == 1


_RUN_THAT_LOOKS = """
import atexit, sys
import kopiatomic.commands.inside, kopiatomic.commands.backup
from kopiatomic.cli import entry as cli
from kopiatomic.errors import KopiatomicError
from kopiatomic.model.report import CommandReport, Report

def run(kind):
    def run(*given):
        given[-2].phase("reading")
        before.update(sys.modules)
        given[-2].warning("beware")
        return kind("id", "/kopia", error=KopiatomicError("it failed", kind="kind", hint="do this"))
    return run

before = set()
kopiatomic.commands.backup.backup, kopiatomic.commands.inside.run = run(Report), run(CommandReport)
late = lambda: [m for m in sys.modules if m not in before and m.split(".")[0] in ("click", "kopiatomic", "rich")]
atexit.register(lambda: print("late:", late()))
cli.main()
"""


@pytest.mark.parametrize("words", [("tank",), ("tank", "--json"), ("exec", "tank", "--", "true")])
@pytest.mark.parametrize("terminal", [False, True])
def test_a_run_that_has_begun_reads_no_more_of_the_program(
    words: tuple[str, ...], terminal: bool, kopiatomic: Kopiatomic
) -> None:
    """It may be replaced by another version meanwhile, and a file that holds all of it then cannot be read any more."""
    argv = [sys.executable, "-c", _RUN_THAT_LOOKS, *words]
    if terminal:
        argv = ["script", "-qec", shlex.join(argv), "/dev/null"]
    ended = command(*argv, env={**kopiatomic.environment, "TERM": "xterm"}, check=False)
    assert "late: []" in ended.stdout, ended


def test_the_module_and_the_program_are_the_same(kopiatomic: Kopiatomic) -> None:
    as_program = [
        sys.executable,
        "-c",
        "import sys; sys.argv[0] = 'kopiatomic'; from kopiatomic.cli.entry import main; main()",
    ]
    ended = subprocess.run([*as_program, "-h"], env=kopiatomic.environment, capture_output=True, text=True, check=True)
    assert ended.stdout == kopiatomic("-h").stdout


def test_ctrl_c_before_anything_has_begun_is_told(kopiatomic: Kopiatomic) -> None:
    """Our handlers are those of a run; until then it is Python that hears SIGINT, here while it imports the run's modules."""
    program = (
        "import os, signal, sys; from kopiatomic.cli import entry as cli\n"
        "class Interrupt:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'kopiatomic.commands.backup': os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Interrupt()); sys.argv = ['kopiatomic', '-n', '/']; cli.main()\n"
    )
    ended = command(sys.executable, "-c", program, env=kopiatomic.environment, check=False)
    assert ended.returncode == 130
    assert "kopiatomic: stopped by SIGINT" in ended.stderr
