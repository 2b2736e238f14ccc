"""The options that kopia, restic and Borg have for a backup, and which of them take a value: from their own help.

``tests/unit/engines/test_known_options.py`` compares this with the programs. An option not listed here is from another version.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from kopiatomic.immutable import immutable


@immutable
class Known:
    """A program's options, by their long names; ``newer`` ones of either kind are not in the version that is tested."""

    valued: frozenset[str]
    """Options that take a value."""
    switches: frozenset[str]
    """Options that take no value, or only one after ``=``."""
    long: Mapping[str, str]
    """The long name of each short option."""
    newer: frozenset[str] = frozenset()


def _names(text: str) -> frozenset[str]:
    return frozenset(f"--{word}" for word in text.split())


def _both(text: str) -> frozenset[str]:
    """Return switches that have a negative form."""
    return _names(text) | _names(" ".join(f"no-{word}" for word in text.split()))


KOPIA = Known(
    valued=_names(
        """
        adaptive-estimation-threshold checkpoint-interval config-file content-log-dir-max-age content-log-dir-max-files
        content-log-dir-max-total-size-mb content-log-file dangerous-commands description diagnostics-output-directory
        end-time error-notifications file-log-level force-hash initial-update-check-delay log-dir log-dir-detail
        log-dir-max-age log-dir-max-files log-dir-max-total-size-mb log-entry-detail log-file log-level
        max-log-file-segment-size metrics-listen-addr metrics-push-addr metrics-push-format metrics-push-grouping
        metrics-push-interval metrics-push-job metrics-push-password metrics-push-username override-source parallel
        password pin profile-blocking-rate profile-memory-rate profile-mutex-fraction progress-estimation-type
        progress-update-interval start-time stdin-file tags timezone track-releasable update-available-notify-interval
        update-check-interval upgrade-owner-id upload-limit-mb
        """
    ),
    switches=_both(
        """
        all auto-maintenance console-timestamps disable-color disable-content-log disable-file-logging
        disable-repository-log dump-allocator-stats enable-pprof fail-fast file-log-local-tz flush-per-source force-color
        force-disable-actions force-enable-actions help help-full json json-indent json-log-console json-log-file
        json-verbose metrics-store-on-exit otlp-trace persist-credentials profile-cpu profile-go-gc-before-dump
        profile-store-on-exit progress send-snapshot-report trace-storage upgrade-no-block use-keyring version
        wait-for-log-sweep
        """
    ),
    long=MappingProxyType({"-p": "--password"}),
)
"""kopia 0.22.3, including options that its help omits."""

RESTIC = Known(
    valued=_names(
        """
        cacert cache-dir compression exclude exclude-file exclude-if-present exclude-larger-than files-from
        files-from-raw files-from-verbatim host iexclude iexclude-file key-hint limit-download limit-upload option
        pack-size parent password-command password-file repo repository-file stdin-filename tag time tls-client-cert
        group-by http-user-agent read-concurrency retry-lock stuck-request-timeout
        """
    ),
    switches=_names(
        """
        cleanup-cache dry-run exclude-caches force help ignore-ctime ignore-inode insecure-tls json no-cache no-lock
        one-file-system quiet stdin verbose with-atime
        exclude-cloud-files insecure-no-password no-extra-verify no-scan skip-if-unchanged stdin-from-command
        """
    ),
    long=MappingProxyType(
        {
            "-e": "--exclude",
            "-f": "--force",
            "-g": "--group-by",
            "-h": "--help",
            "-H": "--host",
            "-n": "--dry-run",
            "-o": "--option",
            "-p": "--password-file",
            "-q": "--quiet",
            "-r": "--repo",
            "-v": "--verbose",
            "-x": "--one-file-system",
        }
    ),
    newer=_names(
        """
        exclude-cloud-files group-by http-user-agent insecure-no-password no-extra-verify no-scan read-concurrency
        retry-lock skip-if-unchanged stdin-from-command stuck-request-timeout
        """
    ),
)
"""restic 0.14.0, and what was added up to 0.18."""

BORG = Known(
    valued=_names(
        """
        checkpoint-interval chunker-params comment compression debug-profile debug-topic exclude exclude-from
        exclude-if-present files-cache filter lock-wait paths-delimiter pattern patterns-from remote-buffer remote-path
        remote-ratelimit rsh stdin-group stdin-mode stdin-name stdin-user timestamp umask upload-buffer upload-ratelimit
        files-changed
        """
    ),
    switches=_names(
        """
        atime bypass-lock consider-part-files content-from-command critical debug dry-run error exclude-caches
        exclude-nodump help iec info json keep-exclude-tags list log-json no-cache-sync noacls noatime nobirthtime
        nobsdflags noctime noflags noxattrs numeric-ids numeric-owner one-file-system paths-from-command
        paths-from-stdin progress read-special show-rc show-version sparse stats verbose warning
        paths-from-shell-command
        """
    ),
    long=MappingProxyType(
        {
            "-c": "--checkpoint-interval",
            "-C": "--compression",
            "-e": "--exclude",
            "-h": "--help",
            "-n": "--dry-run",
            "-p": "--progress",
            "-s": "--stats",
            "-v": "--verbose",
            "-x": "--one-file-system",
        }
    ),
    newer=_names("files-changed paths-from-shell-command"),
)
"""Borg 1.2.4, and what was added in 1.4."""
