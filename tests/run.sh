#!/usr/bin/env bash
# Runs every check of this repository from a fresh clone: tools, style, lints, tests, licences, units, quick start.
#
#   tests/run.sh [--quick]
#
# --quick   without the tools of others (rclone, b2, cargo-deny, filesystems other than the one here): no comparison
#           with them, no licences, no quick start
#
# As root, or with sudo that asks for no password, missing tools are installed. Else they are named, and what needs
# them is skipped with a line that begins with "skipped:". With CI=true a skip is a failure.
set -euo pipefail
shopt -s inherit_errexit

top=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$top"
quick='' failed=() times=() scratch='' step_name='' step_began=0 bin='' tools=''

usage() { sed -n '/^#   tests/,/^set -e/{/^set -e/d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}"; }

while (($#)); do
    case $1 in
        --quick) quick=1 ;;
        -h | --help) usage; exit 0 ;;
        *) usage >&2; exit 2 ;;
    esac
    shift
done

begin() {
    step_name=$1
    step_began=$SECONDS
    printf '\n=== %s\n' "$step_name"
}

end() {
    local took=$((SECONDS - step_began))
    times+=("$(printf '%5d s  %s' "$took" "$step_name")")
    printf -- '--- %s: %d s\n' "$step_name" "$took"
}

# A step that fails does not hide what the later ones find. In a subshell, and not before `||`: there the shell would
# go on after a command that failed.
step() {
    local name=$1 code
    shift
    begin "$name"
    set +e
    (set -e && "$@")
    code=$?
    set -e
    if ((code)); then
        failed+=("$name")
        printf -- '--- FAILED: %s\n' "$name" >&2
    fi
    end
}

skip() { printf 'skipped: %s\n' "$*" | tee -a "$scratch/skipped"; }

clean_up() {
    local code=$?
    trap - EXIT
    set +e
    if [[ $scratch ]]; then
        # What a test that was killed left mounted below its temporary directory; the newest first.
        awk -v top="$scratch/" 'index($5, top) == 1 { print $5 }' /proc/self/mountinfo | tac | while IFS= read -r mount; do
            printf 'run.sh: left mounted, taken down: %s\n' "$mount" >&2
            umount -l -- "$(printf '%b' "$mount")"
        done
        rm -rf --one-file-system -- "$scratch"
    fi
    exit "$code"
}

tests() {
    if cargo nextest --version >/dev/null 2>&1; then
        cargo nextest run --workspace --no-fail-fast
    else
        cargo test --workspace --no-fail-fast
    fi
}

scripts() {
    local files=(packaging/*.sh tests/*.sh .ci/run) file
    for file in "${files[@]}"; do bash -n "$file"; done
    if command -v shellcheck >/dev/null; then shellcheck "${files[@]}"; else skip "shellcheck is not here"; fi
}

# As they would lie on a machine, in a root of their own. A word on standard error is a failure, too.
units() {
    local root=$scratch/root said
    DESTDIR=$root packaging/install.sh "$bin"
    # Units that ours are ordered by, from this machine.
    cp -n /usr/lib/systemd/system/*.target /usr/lib/systemd/system/-.slice "$root/usr/lib/systemd/system/" 2>/dev/null || true
    install -D -m 0644 packaging/examples/dir-leg.conf "$root/etc/systemd/system/longshore-syncer@disk2.service.d/dir-leg.conf"
    said=$(systemd-analyze verify --root="$root" --man=no longshore-tracker.service longshore-syncer@b2.service \
        longshore-syncer@b2.timer longshore-syncer@disk2.service longshore-udev@1234-ABCD.service 2>&1) || {
        printf '%s\n' "$said"
        return 1
    }
    if ((EUID == 0)); then
        said+=$(systemd-sysusers --root="$root" longshore.conf 2>&1 >/dev/null | grep -v '^Creating ' || true)
        said+=$(systemd-tmpfiles --root="$root" --create longshore.conf 2>&1 || true)
        [[ $(stat -c %a "$root/var/lib/longshore") == 2770 ]] || said+='the state directory has not mode 2770'
    fi
    if udevadm verify --help >/dev/null 2>&1; then
        said+=$(udevadm verify --no-summary packaging/udev/*.rules 2>&1 || true)
    fi
    printf '%s' "$said"
    [[ ! $said ]]
}

quick_start() { LONGSHORE_BIN=$bin packaging/quickstart.sh --once --yes; }

# The build of this clone may lie where others cannot look.
quick_start_as_nobody() {
    local place=$scratch/ordinary
    mkdir -p "$place/home" "$place/bin"
    cp packaging/quickstart.sh "$bin/tracker" "$bin/syncer" "$place/bin/"
    chown -R 65534:65534 "$place/home"
    chmod -R a+rX "$place"
    (cd "$place/home" && setpriv --reuid=65534 --regid=65534 --clear-groups --inh-caps=-all --bounding-set=-all \
        env -i PATH=/usr/local/bin:/usr/bin:/bin HOME="$place/home" TMPDIR="$place/home" LONGSHORE_BIN="$place/bin" \
        bash "$place/bin/quickstart.sh" --once --yes)
}

main() {
    local target
    command -v cargo >/dev/null || { echo "run.sh: Rust is missing: install it with rustup" >&2; exit 1; }
    trap clean_up EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM HUP
    target=$(cargo metadata --no-deps --format-version 1 | sed 's/.*"target_directory":"\([^"]*\)".*/\1/')
    bin=$target/release
    tools=${LONGSHORE_TEST_TOOLS:-$target/test-tools}
    export PATH=$tools/bin:$PATH:/usr/sbin:/sbin
    scratch=$(mktemp -d "${TMPDIR:-/tmp}/longshore-tests.XXXXXX")
    # Tests that give up their rights need a way in.
    chmod 1777 "$scratch"
    export TMPDIR=$scratch

    begin "tools"
    tests/tools.sh ${quick:+--quick} "$tools" || skip "what needs a tool that is missing"
    if [[ -x $tools/b2/bin/b2 ]]; then export LONGSHORE_B2_CLI=${LONGSHORE_B2_CLI:-$tools/b2/bin/b2}; fi
    end
    step "format" cargo fmt --all --check
    step "scripts" scripts
    step "lints" cargo clippy --workspace --all-targets -- -D warnings
    step "release build" cargo build --release -p tracker -p syncer
    export LONGSHORE_BIN=$bin
    step "tests" tests
    step "units" units
    if [[ $quick ]]; then
        printf '\nleft out by --quick: licences, quick start, comparisons with the tools of others\n'
    else
        # Advisories are not asked: their database comes from the network, and changes without us.
        step "licences, bans, sources" cargo deny --log-level error check licenses bans sources
        step "quick start" quick_start
        if ((EUID == 0)); then
            step "quick start as an ordinary user" quick_start_as_nobody
        else
            skip "the quick start as root: this is an ordinary user"
        fi
    fi

    printf '\n=== times\n'
    printf '%s\n' "${times[@]}"
    if [[ -e $scratch/skipped ]]; then cat "$scratch/skipped"; fi
    if ((${#failed[@]})); then
        printf 'FAILED: %s\n' "${failed[@]}"
        exit 1
    fi
    if [[ ${CI:-} == true && -e $scratch/skipped ]]; then
        echo "FAILED: with CI=true nothing may be skipped"
        exit 1
    fi
    echo "all steps passed"
}

main
