"""Secrets are kept out of what is shown and recorded, and nothing else is."""

from __future__ import annotations

import shlex

import pytest

from kopiatomic.secrets.masking import MASK, Secrets, credentials, is_secret, masked


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("--password=hunter22", "--password=***"),
        ("--password hunter22", "--password ***"),
        ("--password='two words'", "--password=***"),
        ('--sftp-password "x"', "--sftp-password ***"),
        ("PGPASSWORD=hunter22 pg_dump", "PGPASSWORD=*** pg_dump"),
        ("AWS_SECRET_ACCESS_KEY=abc/def cmd", "AWS_SECRET_ACCESS_KEY=*** cmd"),
        ("--secret-access-key=abc/def", "--secret-access-key=***"),
        ("--password-file=/root/pw", "--password-file=/root/pw"),
        ("--password-command 'cat /root/pw'", "--password-command 'cat /root/pw'"),
        ("--parallel=8 --tags token:1", "--parallel=8 --tags token:1"),
        ("tank/password", "tank/password"),
        ("--password=one' two'\\ \"three\" four", "--password=*** four"),
        ("--password=one\\ two\\'three\\\"four five", "--password=*** five"),
        ("sh -c 'a --password=hunter22'", "sh -c 'a --password=***'"),
        ("mysqldump -ppw -u x", "mysqldump -p*** -u x"),
        ("true;mysqldump -pabc | gzip -pv", "true;mysqldump -p*** | gzip -pv"),
        ("docker exec db mysqldump -p1 all\ncp -p1 a b", "docker exec db mysqldump -p*** all\ncp -p1 a b"),
        ("curl -u a:b http://h", "curl -u a:*** http://h"),
        ("curl -sSu a:b -H 'Authorization: Bearer x'", "curl -sSu a:*** -H 'Authorization: ***'"),
        ("Authorization: Bearer x", "Authorization: ***"),
        ("sshpass -p x ssh host -p 22", "sshpass -p *** ssh host -p 22"),
        ("borg create --rsh='sshpass -p x ssh' -v", "borg create '--rsh=sshpass -p *** ssh' -v"),
        ("-o sftp.command='sshpass -p x ssh h'", "-o 'sftp.command=sshpass -p *** ssh h'"),
        ("BORG_RSH='sshpass -p x ssh' borg info", "'BORG_RSH=sshpass -p *** ssh' borg info"),
        ("kopiatomic -o '-p ab' /x", "kopiatomic -o '-p ***' /x"),
        ("kopiatomic -ro -pab /x", "kopiatomic -ro -p*** /x"),
        ("kopiatomic exec tank -- mysqldump -pab", "kopiatomic exec tank -- mysqldump -p***"),
        ("kopiatomic engine home snapshot list -p ab", "kopiatomic engine home snapshot list -p ***"),
        ("sudo kopiatomic engine home -- snapshot list -pab", "sudo kopiatomic engine home -- snapshot list -p***"),
        ("RCLONE_CONFIG_PASS=x rclone --sftp-pass y", "RCLONE_CONFIG_PASS=*** rclone --sftp-pass ***"),
        ("Repository ssh://u:p@ss@h/r does not exist.", "Repository ssh://u:***@h/r does not exist."),
        ("https://a.net/c?sv=1&sig=ab%2F&x=1", "https://a.net/c?sv=1&sig=***&x=1"),
        ("AccountName=x;AccountKey=ab==;Suffix=core", "AccountName=x;AccountKey=***;Suffix=core"),
        ("mount -o username=a,password=b,uid=0 x", "mount -o username=a,password=***,uid=0 x"),
        ('{"password":"x","user":"y"}', '{"password":"***","user":"y"}'),
    ],
)
def test_what_looks_like_a_secret_is_masked(text: str, shown: str) -> None:
    assert Secrets([text], {}).hide(text) == shown


@pytest.mark.parametrize(
    "text",
    [
        "find / -print",
        "cp -pv a b",
        "mkdir -p /x && tar -pcf b",
        "kopiatomic -p 'mkdir -p /x' -q 'cp -p a b' tank",
        "kopiatomic -c 'tar -pc' -o '-p' tank",
        "kopiatomic tank engine -p 'cp -p a b'",
        "kopiatomic -r engine -p 'mkdir -p /x'",
        "ssh -p 2222 host",
        "docker run -u 1000:1000 x",
        "rsync -u a:b c",
        "mysql -P 3306 -u a:b -p database",
        "--password-file=/root/pw",
        "BORG_PASSCOMMAND='cat /root/pw' borg create",
        "RESTIC_PASSWORD_COMMAND='pass show x' restic",
        "SSH_ASKPASS=/usr/bin/x ssh",
        "--insecure-no-password /srv",
        "--key-hint 12ab",
        "--ssh-key=/root/.ssh/id",
        "--public-key=abc --sort-key=name",
        "--credential KOPIA_PASSWORD=/root/kopia.pw",
        "kopiatomic schedule install --credential KOPIA_PASSWORD=/root/kopia.pw mail -- tank",
        "Set KOPIA_PASSWORD, or connect with the password stored (--persist-credentials).",
        "--bypass x --passive --keyring /x",
        "PWD=/root OLDPWD=/ KEYMAP=us",
        "it's \\ no \"secret",
        "/kopia/tank/pass word",
        "ssh://borg@host:22/./repo",
    ],
)
def test_words_that_must_stay(text: str) -> None:
    assert Secrets([text], {}).hide(text) == text
    assert Secrets([], {}).hide_words(text.split()) == text.split()


def test_a_secret_is_masked_wherever_it_stands() -> None:
    secrets = Secrets(["-o", "--password=hunter22"], {"KOPIA_PASSWORD": "correct horse"}, ["p-form"])
    told = {"a": ["said hunter22", {"b": "correct horse, p-form"}], "n": 3, "none": None}
    assert secrets.hide_in(told) == {"a": ["said ***", {"b": "***, ***"}], "n": 3, "none": None}


def test_quotes_in_the_middle_of_a_secret_let_no_part_of_it_through() -> None:
    secrets = Secrets([], {}, ["one two'three\"four"])
    for word in (shlex.quote("one two'three\"four"), "one\\ two\\'three\\\"four", "'one 'two\\'\"three\\\"four\""):
        assert secrets.hide(f"-p {word} --tags a") == "-p *** --tags a"
        assert secrets.hide(f"-p{word}") == "-p***"


def test_switches_and_short_values_do_not_blot_out_other_texts() -> None:
    secrets = Secrets([], {"KOPIA_USE_PASSWORD_CACHE": "true", "TOKEN": "a"})
    assert secrets.hide("true: a word") == "true: a word"


def test_a_command_line_is_quoted_and_printable() -> None:
    secrets = Secrets(["--password=x y"], {})
    assert secrets.command_line(["kopiatomic", "-o", "--password=abcd", "a b", "c\nd"]).startswith(
        "kopiatomic -o '--password=***' 'a b' 'c\\x0ad'"
    )


@pytest.mark.parametrize(
    "text", ["'a b'\"", "x\\ y\\", "\"a 'b c' d", "'\"' x\\ \"", "token " + "a." * 4000, "'" * 4001 + " token"]
)
def test_whatever_quotes_there_are_an_end_is_found(text: str) -> None:
    assert Secrets([], {}).hide(text) == text
    assert Secrets([], {}).hide(f"{text} --password=x") != f"{text} --password=x"


def test_a_short_secret_is_masked_in_its_place_alone() -> None:
    secrets = Secrets(["-o", "-p ab", "tab"], {})
    assert secrets.command_line(["kopiatomic", "-o", "-p ab", "tab"]) == "kopiatomic -o '-p ***' tab"
    assert (secrets.found, secrets.values) == (True, [])


def test_each_secret_is_found_once_and_a_masked_one_not_at_all() -> None:
    text = 'rest:https://me:hush22@host/?token=abcd {"password":"x"} Authorization: y'
    assert credentials(text) == ["hush22", "y", "x", "abcd"]
    assert credentials(masked(text)) == []
    assert not is_secret("BORG_REPO", masked("ssh://me:hush22@host/"))


def test_a_password_is_known_without_the_escapes_of_its_url_as_well() -> None:
    secrets = Secrets([], {"BORG_REPO": "ssh://u:p%40ssw@h/r"})
    assert secrets.hide("refused: p@ssw, p%40ssw") == "refused: ***, ***"


SECRET = {
    "KOPIA_PASSWORD": "x",
    "AWS_SECRET_ACCESS_KEY": "y",
    "B2_ACCOUNT_KEY": "y",
    "AZURE_ACCOUNT_KEY": "/y==",
    "AZURE_ACCOUNT_SAS": "?sig=x",
    "RCLONE_CONFIG_PASS": "x",
    "SSHPASS": "x",
    "DBPASS": "x",
    "LDAP_BINDPW": "x",
    "DB_CREDS": "u:x",
    "GITHUB_PAT": "x",
    "REDISCLI_AUTH": "x",
    "MYSQL_PWD": "x",
    "GITHUB_TOKEN": "x",
    "clientSecret": "x",
    "http_proxy": "http://a:b@proxy/",
    "AZURE_STORAGE_CONNECTION_STRING": "AccountName=x;AccountKey=y",
    "SUDO_COMMAND": "/usr/bin/kopiatomic -o --password=x /",
    "BORG_PASSCOMMAND": "echo x",
    "RESTIC_PASSWORD_CMD": "/usr/bin/printf %s x",
}
NONE = {
    "HOME": "/root",
    "PWD": "/root",
    "RESTIC_PASSWORD_FILE": "/root/pw",
    "RESTIC_PASSWORD_COMMAND": "cat /root/pw",
    "RCLONE_PASSWORD_COMMAND": "cat /root/echo",
    "SSH_COMMAND": "echo x",
    "BORG_PASSPHRASE_FD": "3",
    "SSH_ASKPASS": "/usr/bin/x",
    "SSH_AUTH_SOCK": "/tmp/ssh/agent",
    "GOOGLE_APPLICATION_CREDENTIALS": "/root/google.json",
    "KOPIA_USE_PASSWORD_CACHE": "true",
    "XAUTHORITY": "/root/.Xauthority",
    "PROXY_BYPASS": "localhost",
    "DBUS_SESSION_BUS_ADDRESS": "unix:path=/run/user/0/bus",
}


@pytest.mark.parametrize(("name", "value"), [*SECRET.items(), *NONE.items()])
def test_which_variables_hold_a_secret(name: str, value: str) -> None:
    assert is_secret(name, value) == (name in SECRET)


def test_an_environment_loses_its_secrets_alone() -> None:
    secrets = Secrets([], {"KOPIA_PASSWORD": "hunter22"})
    assert secrets.withheld_from({**SECRET, **NONE, "NOTE": "hunter22 it is"}) == NONE


def test_a_password_that_is_a_common_word_takes_no_other_variable_away() -> None:
    secrets = Secrets([], {"KOPIA_PASSWORD": "root"})
    assert secrets.withheld_from({"HOME": "/root", "USER": "root", "NOTE": "x"}) == {"HOME": "/root", "NOTE": "x"}


def test_words_of_ours_in_a_document_are_never_masked() -> None:
    """Programs compare them, and a password may be equal to a part of one."""
    secrets = Secrets([], {"KOPIA_PASSWORD": "kopia"})
    document = {"format": "kopiatomic-run-1", "error": {"kind": "kopia-password", "message": "kopia: kopia"}}
    assert secrets.hide_in(document) == {
        "format": "kopiatomic-run-1",
        "error": {"kind": "kopia-password", "message": f"{MASK}: {MASK}"},
    }
