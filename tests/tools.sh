#!/usr/bin/env bash
# Looks for the tools that the tests use, installs what is missing where it may, and says what it could not get.
#
#   tests/tools.sh [--quick] DIRECTORY
#
# DIRECTORY takes what comes from package registries (b2, cargo-deny). --quick leaves the foreign tools out.
# Ends with 1 if something is missing at the end, after naming it on standard error.
set -euo pipefail

B2_VERSION=5.0.0
DENY_VERSION=0.20.2

quick=''
if [[ ${1:-} == --quick ]]; then
    quick=1
    shift
fi
tools=${1:?a directory for the tools}
missing=()

# command or file that must be there, Debian's package that brings it
SYSTEM=(
    cc gcc
    /usr/include/stdio.h libc6-dev
    pkg-config pkg-config
    libudev.pc libudev-dev
    setpriv util-linux
    diff diffutils
    systemd-analyze systemd
)
FOREIGN=(
    mkfs.ext4 e2fsprogs
    mkfs.xfs xfsprogs
    mkfs.btrfs btrfs-progs
    setfattr attr
    setfacl acl
    bindfs bindfs
    fusermount3 fuse3
    systemd-nspawn systemd-container
    dbus-daemon dbus
    rclone rclone
    python3 python3
    shellcheck shellcheck
)

is_there() {
    case $1 in
        *.pc) pkg-config --exists "${1%.pc}" 2>/dev/null ;;
        /*) [[ -e $1 ]] ;;
        *) PATH=$PATH:/usr/sbin:/sbin command -v "$1" >/dev/null ;;
    esac
}

as_root() {
    if ((EUID == 0)); then "$@"; else sudo -n "$@"; fi
}

# Packages of those tools that are not there.
absent_packages() {
    while (($#)); do
        is_there "$1" || printf '%s\n' "$2"
        shift 2
    done
}

system_tools() {
    local wanted=("${SYSTEM[@]}") packages
    [[ $quick ]] || wanted+=("${FOREIGN[@]}")
    mapfile -t packages < <(absent_packages "${wanted[@]}")
    # Debian's Python comes without what makes a virtual environment.
    if [[ ! $quick && ! -x $tools/b2/bin/b2 ]] && ! python3 -c 'import ensurepip, venv' 2>/dev/null; then
        packages+=(python3-venv)
    fi
    ((${#packages[@]})) || return 0
    echo "missing: ${packages[*]}"
    if command -v apt-get >/dev/null && as_root true 2>/dev/null; then
        as_root env DEBIAN_FRONTEND=noninteractive apt-get update -qq || true
        as_root env DEBIAN_FRONTEND=noninteractive apt-get install -qq -y -o Dpkg::Use-Pty=0 --no-install-recommends "${packages[@]}" || true
    fi
    mapfile -t packages < <(absent_packages "${wanted[@]}")
    ((${#packages[@]} == 0)) || missing+=("packages: ${packages[*]}")
}

rust_tools() {
    if ! cargo fmt --version >/dev/null 2>&1 || ! cargo clippy --version >/dev/null 2>&1; then
        rustup component add rustfmt clippy || missing+=("rustfmt and clippy: rustup component add rustfmt clippy")
    fi
    [[ ! $quick ]] || return 0
    if ! PATH=$tools/bin:$PATH cargo deny --version >/dev/null 2>&1; then
        cargo install --quiet --locked --root "$tools" "cargo-deny@$DENY_VERSION" || missing+=("cargo-deny $DENY_VERSION")
    fi
}

# Backblaze's own command line, in a place of its own.
b2_tool() {
    local venv=$tools/b2
    [[ ! $quick ]] || return 0
    if [[ $("$venv/bin/b2" version 2>/dev/null) == *"version $B2_VERSION "* ]]; then return 0; fi
    rm -rf -- "$venv"
    if ! python3 -m venv "$venv" || ! "$venv/bin/pip" install --quiet "b2==$B2_VERSION"; then
        rm -rf -- "$venv"
        missing+=("b2 $B2_VERSION: python3 -m venv, then pip install b2==$B2_VERSION")
    fi
}

mkdir -p -- "$tools"
system_tools
rust_tools
b2_tool
if ((${#missing[@]})); then
    printf 'tools.sh: not there and not to be had here: %s\n' "${missing[@]}" >&2
    exit 1
fi
