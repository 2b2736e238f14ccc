# shellcheck shell=bash
# shellcheck disable=SC2034 # tree is for those who source this
# Shared by the scripts in this folder and by ./test: messages, apt packages, and the cache of built artefacts.
# Source it after `set -euo pipefail`.

shopt -s inherit_errexit

tree=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
cache=${KOPIATOMIC_CACHE:-/var/cache/kopiatomic-dev}

say() { printf '%s\n' "$*" >&2; }

# die MESSAGE WHAT-TO-DO
die() {
    printf 'error: %s\n' "$1" >&2
    printf '  -> %s\n' "${2:?every error says what to do}" >&2
    exit 1
}

# help_if_asked WORD...: where a word before -- is -h or --help, prints the comment that begins the script, and ends it
help_if_asked() {
    local word
    for word; do
        case $word in
            --) return ;;
            -h | --help)
                sed -n '2,$ { /^#/!q; s/^# \{0,1\}//p; }' "$0"
                exit 0
                ;;
        esac
    done
}

need_root() {
    ((EUID == 0)) || die "this needs root (it mounts filesystems and installs packages)" "run it as root: sudo $0"
}

test_packages() {
    printf '%s\n' acl attr borgbackup btrfs-progs fuse3 mandoc mariadb-client mariadb-server-core mount postgresql restic rsync shellcheck strace systemd
}
venv_packages() { printf '%s\n' ca-certificates python3 python3-venv; }
uml_packages() { printf '%s\n' debian-archive-keyring e2fsprogs mmdebstrap python3 util-linux; }
qemu_packages() {
    printf '%s\n' cpio debian-archive-keyring e2fsprogs mmdebstrap python3 qemu-system-x86 xz-utils zstd
}
root_packages() { printf '%s\n' debian-archive-keyring mmdebstrap util-linux; }

# packages NAME...: installs those that are missing
packages() {
    local name wanted=()
    for name; do
        dpkg-query -W -f '${db:Status-Status}\n' "$name" 2>/dev/null | grep -qx installed || wanted+=("$name")
    done
    ((${#wanted[@]})) || return 0
    command -v apt-get >/dev/null || die "these Debian packages are missing and there is no apt-get: ${wanted[*]}" \
        "use Debian 12, Debian 13 or Ubuntu 24.04"
    say "Installing packages: ${wanted[*]}"
    # Two of our own runs wait for each other here; apt itself waits for any other apt.
    (
        flock 9
        apt_get update || die "apt-get update failed (its output is above)" "check the network and /etc/apt/sources.list*"
        apt_get install --no-install-recommends "${wanted[@]}" ||
            die "apt-get could not install: ${wanted[*]}" "its output is above; 'apt-get install ${wanted[*]}' repeats it"
    ) 9>"$cache/apt.lock"
}

apt_get() {
    DEBIAN_FRONTEND=noninteractive apt-get -qq -o Dpkg::Use-Pty=0 -o DPkg::Lock::Timeout=300 -y "$@" >&2
}

# Prints the Debian archive that this machine itself uses, or nothing (mmdebstrap then takes its default).
debian_mirror() {
    # shellcheck disable=SC2016 # apt's own variables
    apt-get indextargets --format '$(ORIGIN) $(COMPONENT) $(SITE)' 'Created-By: Packages' 2>/dev/null |
        awk '$1 == "Debian" && $2 == "main" && $3 ~ /\/debian\/?$/ && !found++ { print $3 }'
}

# debian_lines RELEASE...: prints lines for apt that name the archives of these releases
debian_lines() {
    local mirror release
    mirror=$(debian_mirror)
    for release; do
        printf 'deb %s %s main contrib\n' "${mirror:-http://deb.debian.org/debian}" "$release"
    done
}

make_cache() {
    mkdir -p -- "$cache"
    # Programs from here run as root: nobody else may own the folder or write to it.
    [[ -O $cache && ! -L $cache ]] || die "$cache is not a folder of root's own" "remove it, or set KOPIATOMIC_CACHE"
    chmod 0700 -- "$cache"
}

# fingerprint: a short hash of standard input
fingerprint() { sha256sum | cut -c1-16; }

# artefact NAME KEY COMMAND...: prints the folder that `COMMAND... FOLDER` has filled for this key, running it
# only if there is none yet. Folders of other keys are removed: their inputs are gone.
# Call it as a plain command or `x=$(artefact ...)`: within if, && or || bash would run past a build's errors.
artefact() {
    local name=$1 began=$SECONDS building status final=$cache/$1/$2
    shift 2
    mkdir -p -- "$cache/$name"
    (
        if ! flock -n 9; then
            say "Waiting for another run that is building $name ..."
            flock 9
        fi
        if [[ ! -d $final ]]; then
            # A build that was killed may have left programs and mounts: nothing is removed beyond them.
            find "$cache/$name" -mindepth 1 -maxdepth 1 ! -name lock -exec rm -rf --one-file-system -- {} + ||
                die "cannot remove what an earlier build left in $cache/$name" "unmount what is mounted there, then run this again"
            building=$cache/$name/building
            mkdir -- "$building"
            say "Building $name ..."
            # A build must not keep the lock through a program that it leaves running.
            set +e
            (
                set -e
                "$@" "$building"
            ) 9>&- >&2
            status=$?
            set -e
            ((status == 0)) || die "building $name failed (its output is above)" "mend what it names, then run this again"
            mv -T -- "$building" "$final"
            say "Built $name in $(((SECONDS - began) / 60)) min $(((SECONDS - began) % 60)) s."
        fi
    ) 9>"$cache/$name/lock"
    printf '%s\n' "$final"
}

# A guest is what tests/zfs run in: a Debian, and an OpenZFS.
guests=(trixie bookworm backports)
the_guest() { printf '%s\n' "${KOPIATOMIC_VM_GUEST:-${guests[0]}}"; }

# guest_suite GUEST: prints the Debian suite it is made of
guest_suite() {
    case $1 in
        trixie | bookworm) printf '%s\n' "$1" ;;
        # Debian 13 with the newer OpenZFS of its backports.
        backports) printf 'trixie\n' ;;
        *) die "there is no guest '$1'" "set KOPIATOMIC_VM_GUEST to one of: ${guests[*]}" ;;
    esac
}

# guest_emulator GUEST: prints what runs it unless somebody asks for the other. User-Mode Linux wants a kernel that Debian 12's
# OpenZFS does not know.
guest_emulator() {
    case $1 in
        bookworm) printf 'qemu\n' ;;
        *) printf 'uml\n' ;;
    esac
}

# Changing this list makes ./test build the guests anew.
guest_packages=(
    acl attr borgbackup btrfs-progs busybox-static fdisk iproute2 kmod procps psmisc python3 python3-click python3-jsonschema
    python3-pytest python3-rich restic rsync strace zfsutils-linux
)
# What tests/zfs/test_databases.py needs, in the default guest alone.
database_packages=(mariadb-client mariadb-server-core postgresql)
without_documents=(
    --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' --dpkgopt='path-exclude=/usr/share/doc/*'
)

# make_disk FOLDER IMAGE SIZE: an ext4 disk with the folder's content, which needs no mount
make_disk() {
    truncate -s "$3" -- "$2"
    mkfs.ext4 -q -F -O ^has_journal -m 0 -E lazy_itable_init=1,nodiscard -d "$1" "$2"
}

# kopia_disk: prints the folder with the disk that a guest has kopia from
kopia_disk() {
    local kopia
    kopia=$("$tree/dev/kopia")
    artefact vm-kopia "$({ declare -f build_kopia_disk; printf '%s' "$kopia"; } | fingerprint)" build_kopia_disk "$kopia"
}

build_kopia_disk() {
    local kopia=$1 out=$2
    mkdir -- "$out/content"
    ln -- "$kopia" "$out/content/kopia"
    make_disk "$out/content" "$out/kopia.ext4" 160M
    rm -rf -- "$out/content"
}

# Sourced without words of its own, so these are the script's.
help_if_asked "${1-}"
