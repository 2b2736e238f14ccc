"""The port's skeleton says of the program what the program says of itself. Whether it builds, only a FreeBSD can tell."""

import re
import tomllib

from kopiatomic import __version__
from tests.lint.test_lint import TREE

PORT = TREE / "packaging" / "freebsd"
MAKEFILE = (PORT / "Makefile").read_text()


def test_its_version_and_what_it_depends_on_are_the_programs() -> None:
    project = tomllib.loads((TREE / "pyproject.toml").read_text())
    assert re.findall(r"^DISTVERSION=\t(.*)$", MAKEFILE, re.MULTILINE) == [__version__]
    named = set(re.findall(r"PYTHON_PKGNAMEPREFIX}(\w+)(\S+?):", MAKEFILE))
    # Python's own in a package of its own there.
    assert named - {("sqlite3", ">0")} == {
        re.fullmatch(r"(\w+)(\S+)", words).groups()  # type: ignore[union-attr]
        for words in (*project["project"]["dependencies"], *project["build-system"]["requires"])
    }


def test_all_that_it_installs_besides_is_in_its_list() -> None:
    made = re.findall(r"\b(?:bash|fish|zsh):(\S+)", MAKEFILE)
    assert sorted(made) == sorted((PORT / "pkg-plist").read_text().splitlines())


def test_what_is_substituted_is_what_the_ports_system_knows() -> None:
    words = {word for path in (PORT / "files").iterdir() for word in re.findall(r"%%(\w+)%%", path.read_text())}
    assert words == {"PREFIX", "LOCALBASE"}


def test_the_script_at_boot_runs_recover_and_is_off_unless_asked_for() -> None:
    script = (PORT / "files" / "kopiatomic.in").read_text()
    assert "%%PREFIX%%/bin/kopiatomic recover" in script
    assert ": ${kopiatomic_enable:=NO}" in script
