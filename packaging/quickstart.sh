#!/usr/bin/env bash
# Shows Longshore at work: builds it, tracks a directory, mirrors it into another one and follows its changes.
#
#   packaging/quickstart.sh [--once] [--yes] [SOURCE] [DESTINATION]
#
# SOURCE       the tree to mirror; it is only read. Without it: a copy of a few thousand files of this machine
# DESTINATION  where the mirror goes: a new or empty directory, or the one of a former quick start of this SOURCE.
#              Without it: a temporary directory, removed at the end
# --once       no following: make some changes, sync them, compare both sides, remove everything temporary.
#              Ends with 0 only if both sides are equal. A SOURCE of yours is not changed, only compared
# --yes        install what is missing without asking
#
# LONGSHORE_BIN=DIR uses the programs `tracker` and `syncer` of that directory instead of building them.
set -euo pipefail
shopt -s inherit_errexit

top=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
once='' yes='' source='' destination=''
work='' state='' runtime='' config='' bin=''
tracker_pid='' syncer_pid='' own_source='' interrupted='' said=''

say() { printf '\n== %s\n' "$*"; }
note() { printf '   %s\n' "$*"; }
die() {
    printf 'quickstart: %s\n' "$*" >&2
    exit 1
}
usage() { sed -n '/^#   packaging/,/^set -e/{/^set -e/d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}"; }

parse_arguments() {
    local places=()
    while (($#)); do
        case $1 in
            --once) once=1 ;;
            --yes | -y) yes=1 ;;
            -h | --help) usage; exit 0 ;;
            --) shift; places+=("$@"); break ;;
            -*) usage >&2; printf '\nquickstart: there is no option %s\n' "$1" >&2; exit 2 ;;
            *) places+=("$1") ;;
        esac
        shift
    done
    ((${#places[@]} <= 2)) || { usage >&2; exit 2; }
    source=${places[0]:-}
    destination=${places[1]:-}
}

# --- what is missing --------------------------------------------------------------------------------------------

install_missing() {
    local missing=() packages=() root=()
    command -v cargo >/dev/null || die "Rust is missing: install it with rustup, then call this again"
    if ! command -v cc >/dev/null; then missing+=('a C compiler'); packages+=(gcc libc6-dev); fi
    if ! command -v pkg-config >/dev/null; then missing+=('pkg-config'); packages+=(pkg-config); fi
    if ! pkg-config --exists libudev 2>/dev/null; then missing+=('the headers of libudev'); packages+=(libudev-dev); fi
    ((${#missing[@]})) || return 0
    say "Missing for the build: $(printf '%s, ' "${missing[@]}" | sed 's/, $//')"
    command -v apt-get >/dev/null || die "there is no apt-get here: install them by your system's means"
    if ((EUID != 0)); then
        command -v sudo >/dev/null || die "ask an administrator for: apt-get install ${packages[*]}"
        root=(sudo)
    fi
    if [[ ! $yes ]]; then
        [[ -t 0 ]] || die "call it with --yes, or first: apt-get install ${packages[*]}"
        read -r -p "   Install ${packages[*]} with apt-get? [y/N] " answer
        [[ $answer == [yY]* ]] || die "nothing was installed"
    fi
    "${root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get update -qq
    "${root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -qq -y -o Dpkg::Use-Pty=0 --no-install-recommends "${packages[@]}"
}

build() {
    if [[ ${LONGSHORE_BIN:-} ]]; then
        bin=$(realpath -e -- "$LONGSHORE_BIN") || die "LONGSHORE_BIN names no directory"
    else
        install_missing
        say "Building (the first time takes some minutes)"
        (cd "$top" && cargo build --release -p tracker -p syncer)
        bin=$(cd "$top" && cargo metadata --no-deps --format-version 1 | sed 's/.*"target_directory":"\([^"]*\)".*/\1/')/release
    fi
    [[ -x $bin/tracker && -x $bin/syncer ]] || die "there is no tracker and syncer in $bin"
}

# --- places -----------------------------------------------------------------------------------------------------

# True if $1 is $2 or lies below it.
is_within() { [[ $1/ == "${2%/}"/* ]]; }

# The first of the directories given that exists, can be written and lies in neither SOURCE nor DESTINATION.
outside() {
    local dir
    for dir in "$@"; do
        dir=$(realpath -e -- "$dir" 2>/dev/null) || continue
        [[ -w $dir && -x $dir ]] || continue
        if [[ $source ]] && is_within "$dir" "$source"; then continue; fi
        if [[ $destination ]] && is_within "$dir" "$destination"; then continue; fi
        printf '%s\n' "$dir"
        return 0
    done
    return 1
}

check_places() {
    if [[ $source ]]; then
        [[ -d $source ]] || die "SOURCE is no directory: $source"
        source=$(realpath -e -- "$source")
    fi
    if [[ $destination ]]; then
        destination=$(realpath -m -- "$destination")
        if is_within "$destination" "$source"; then die "DESTINATION lies in SOURCE: the mirror would feed itself"; fi
        if is_within "$source" "$destination"; then die "SOURCE lies in DESTINATION: the mirror would replace it"; fi
        check_destination
    fi
    local path
    for path in "$source" "$destination"; do
        [[ $path != *[[:cntrl:]]* ]] || die "a path with control characters is too much for a quick start"
    done
}

# Not empty is fine only if a former quick start of this SOURCE made it.
check_destination() {
    [[ -e $destination ]] || return 0
    [[ -d $destination ]] || die "DESTINATION is no directory: $destination"
    [[ $(find "$destination" -mindepth 1 -maxdepth 1 ! -name lost+found -print -quit) ]] || return 0
    local marker=$destination/.longshore/quickstart
    [[ -f $marker ]] || die "DESTINATION is not empty, and no quick start made it: $destination"
    [[ $(<"$marker") == "$source" ]] || die "DESTINATION is the mirror of another SOURCE: $(<"$marker")"
}

prepare_places() {
    local base hash
    base=$(outside "${TMPDIR:-/tmp}" /tmp /var/tmp /dev/shm "${XDG_RUNTIME_DIR:-/tmp}") ||
        die "there is no place for temporary files outside of SOURCE and DESTINATION: set TMPDIR to one"
    work=$(mktemp -d "$base/longshore-quickstart.XXXXXXXX")
    if [[ ! $source ]]; then
        own_source=1
        source=$work/source
        mkdir "$source"
    fi
    # A socket's path has room for 107 bytes.
    base=$(outside "${XDG_RUNTIME_DIR:-/tmp}" /tmp /var/tmp /dev/shm) || base=$work
    runtime=$(mktemp -d "$base/longshore-run.XXXXXXXX")
    if [[ $destination && ! $own_source ]]; then
        mkdir -p -- "${XDG_STATE_HOME:-${HOME:-/nonexistent}/.local/state}" 2>/dev/null || true
        base=$(outside "${XDG_STATE_HOME:-${HOME:-/nonexistent}/.local/state}" /var/tmp) ||
            die "there is no place for the state outside of SOURCE and DESTINATION: set XDG_STATE_HOME to one"
        hash=$(printf '%s\n' "$source" "$destination" | sha256sum | cut -c 1-16)
        state=$base/longshore-quickstart-$EUID/$hash
        (umask 077 && mkdir -p -- "${state%/*}")
        [[ -O ${state%/*} ]] || die "${state%/*} belongs to somebody else"
        mkdir -p -- "$state"
    else
        state=$work/state
        mkdir "$state"
    fi
    destination=${destination:-$work/mirror}
    mkdir -p -- "$destination/.longshore"
    printf '%s\n' "$source" >"$destination/.longshore/quickstart"
    exec 9>"$state/quickstart.lock"
    flock -n 9 || die "another quick start of this SOURCE and DESTINATION is running"
}

# --- the tree that is used when none is named -------------------------------------------------------------------

files_in() { find "$1" -xdev -type f -printf . | wc -c; }

# Real names, links, sizes and times; at most 5,000 names of each place, no file above 1 MiB.
fill_source() {
    local place
    say "A tree to work on, copied from this machine: $source"
    for place in /usr/share /usr/lib /usr/include /etc; do
        [[ -d $place ]] || continue
        mkdir -p "$source$place"
        # What an ordinary user cannot read is left out; the first name in order is the place itself.
        { find "$place" -xdev \( -type d -o -type l -o -type f -readable -size -1024k \) -printf './%P\0' 2>/dev/null || true; } |
            sort -z | sed -z -n '2,5001p' |
            { tar -C "$place" --no-recursion --null -T - -cf - 2>/dev/null || true; } |
            tar -xpf - -C "$source$place"
        (($(files_in "$source") < 2000)) || break
    done
    awkward_files
    note "$(files_in "$source") files, $(du -sh "$source" | cut -f 1)"
}

awkward_files() {
    local dir=$source/awkward
    mkdir -p "$dir/old name/below" "$dir/"$'new\nline'
    echo one >"$dir/old name/below/one"
    echo two >"$dir/old name/two"
    echo bytes >"$dir/"$'not-utf8-\xff\xfe'
    echo empty-name >"$dir/ leading and trailing "
    : >"$dir/empty"
    truncate -s 4M "$dir/sparse"
    echo linked >"$dir/linked"
    ln "$dir/linked" "$dir/linked too"
    ln -s nowhere "$dir/dangling"
    chmod 0640 "$dir/empty"
    touch -d '2001-02-03 04:05:06.789012345' "$dir/old name/two"
    local i
    for i in 1 2 3 4 5 6; do echo "$i" >"$dir/file $i"; done
    if command -v setfattr >/dev/null; then setfattr -n user.longshore -v quickstart "$dir/linked" 2>/dev/null || true; fi
}

# Only ever in the tree that `fill_source` made. Prints how many changes it made.
change_source() {
    local dir=$source/awkward changes=0 file
    [[ $own_source ]] || { echo 0; return; }
    while IFS= read -r -d '' file; do
        printf 'a line more\n' >>"$file"
        changes=$((changes + 1))
    done < <(find "$source/usr" -type f -writable -print0 | sort -z | sed -z -n '1~40p' | sed -z -n '1,60p')
    while IFS= read -r -d '' file; do
        cp -p "$file" "$file.copied"
        changes=$((changes + 1))
    done < <(find "$source/usr" -type f -readable -size -64k -print0 | sort -z | sed -z -n '7~50p' | sed -z -n '1,40p')
    mv "$dir/old name" "$dir/new name"
    mv "$dir/file 1" "$dir/file 1 renamed"
    mv "$dir/file 2" "$dir/new name/below/moved"
    rm "$dir/file 3"
    rm -r "$dir/"$'new\nline'
    chmod 0600 "$dir/file 4"
    touch -d '2010-01-01 00:00:00.5' "$dir/file 5"
    rm "$dir/file 6" && mkdir "$dir/file 6" && echo inside >"$dir/file 6/inside"
    ln -sfn somewhere "$dir/dangling"
    ln "$dir/linked" "$dir/linked three"
    echo more >>"$dir/linked"
    printf 'data' | dd of="$dir/sparse" bs=1 seek=2000000 conv=notrunc status=none
    mkdir -p "$dir/a/b/c" && echo deep >"$dir/a/b/c/deep"
    echo $((changes + 13))
}

# --- the programs -----------------------------------------------------------------------------------------------

quote() {
    local text=${1//\\/\\\\}
    printf '"%s"' "${text//\"/\\\"}"
}

write_config() {
    config=$state/longshore.toml
    {
        printf '# Written by packaging/quickstart.sh.\nstate_dir = %s\nruntime_dir = %s\n\n' "$(quote "$state")" "$(quote "$runtime")"
        "$bin/tracker" identify --subdir "$source" | sed 's/^name = .*/name = "source"/'
        printf '\n[[leg]]\nname = "mirror"\nkind = "dir"\nroots = ["source"]\npath = %s\n' "$(quote "$destination")"
    } >"$config"
    "$bin/tracker" --config "$config" config check
    "$bin/syncer" --config "$config" config check
    say "The configuration: $config"
    sed 's/^/   /' "$config"
}

# In a session of its own, so that Ctrl-C reaches this script alone; and it dies with this script, come what may.
launch() { exec setsid setpriv --pdeathsig TERM -- "$@"; }

start_tracker() {
    say "Starting the tracker on $source"
    launch "$bin/tracker" --config "$config" run >"$work/tracker.log" 2>&1 9>&- &
    tracker_pid=$!
    local deadline=$((SECONDS + 120))
    until "$bin/tracker" --config "$config" flush 2>/dev/null; do
        if ! kill -0 "$tracker_pid" 2>/dev/null; then
            cat "$work/tracker.log" >&2
            die "the tracker ended"
        fi
        [[ ! $interrupted ]] || exit 130
        if ((SECONDS >= deadline)); then
            cat "$work/tracker.log" >&2
            die "the tracker was not ready within 120 s"
        fi
        sleep 0.1
    done
}

# Waits for a child so that a signal is heard at once; its exit code.
await() {
    local code=0
    while :; do
        wait "$1" && code=0 || code=$?
        kill -0 "$1" 2>/dev/null || return "$code"
        [[ ! $interrupted ]] || return 130
    done
}

sync_once() {
    local code=0
    launch "$bin/syncer" --config "$config" run --leg mirror 9>&- &
    syncer_pid=$!
    await "$syncer_pid" || code=$?
    [[ $code == 130 && $interrupted ]] && exit 130
    syncer_pid=''
    return "$code"
}

now() { date +%s.%N; }
seconds_since() { awk -v a="$1" -v b="$(now)" 'BEGIN { printf "%.2f", b - a }'; }

stats() {
    say "tracker stats"
    "$bin/tracker" --config "$config" stats | sed 's/^/   /'
}

# --- comparison -------------------------------------------------------------------------------------------------

# Kind, mode, owner, size, mtime, links and link target of everything below $1. The size of a directory and the
# links to it are the filesystem's own business.
attributes() {
    (
        cd "$1"
        find . -mindepth 1 -path ./.longshore -prune -o -path ./lost+found -prune -o \
            -type d -printf '%P: %y %m %U:%G mtime %T@\0' -o -printf '%P: %y %m %U:%G mtime %T@ size %s links %n -> %l\0' | sort -z
        if command -v getfattr >/dev/null; then
            find . -mindepth 1 -path ./.longshore -prune -o -path ./lost+found -prune -o -print0 | sort -z |
                xargs -0 -r getfattr -h -d -m '^(user\.|security\.capability|system\.posix_acl)' -e hex -- 2>/dev/null || true
        fi
    ) | tr '\0' '\n'
}

compare() {
    local equal=0
    diff -r --no-dereference -x .longshore -x lost+found "$source" "$destination" >"$work/content.diff" || equal=1
    attributes "$source" >"$work/source.attributes"
    attributes "$destination" >"$work/mirror.attributes"
    diff "$work/source.attributes" "$work/mirror.attributes" >"$work/attributes.diff" || equal=1
    if ((equal)); then
        say "DIFFERENT"
        sed -n '1,40p' "$work/content.diff"
        sed -n '1,40p' "$work/attributes.diff"
    fi
    return "$equal"
}

# --- the end ----------------------------------------------------------------------------------------------------

stop() {
    local pid=$1 tries
    [[ $pid ]] && kill -TERM "$pid" 2>/dev/null || return 0
    for ((tries = 0; tries < 150; tries++)); do
        kill -0 "$pid" 2>/dev/null || break
        sleep 0.1
    done
    if kill -KILL "$pid" 2>/dev/null; then note "a process had to be killed: $pid"; fi
    wait "$pid" 2>/dev/null || true
}

clean_up() {
    local code=$?
    trap - EXIT
    trap '' INT TERM HUP
    set +e
    stop "$syncer_pid"
    stop "$tracker_pid"
    if [[ $runtime ]]; then rm -rf -- "$runtime"; fi
    if [[ $work ]]; then
        # Copied directories may be closed to their owner.
        ((EUID == 0)) || chmod -R u+rwX -- "$work" 2>/dev/null
        rm -rf -- "$work"
    fi
    if [[ $said && ! $once ]]; then
        case $destination in
            "$work"/*) note "stopped; everything temporary is removed" ;;
            *) note "stopped; the mirror stays in $destination, what is known of it in $state" ;;
        esac
    fi
    exit "$code"
}

follow() {
    local code=0
    say "Following changes until Ctrl-C: change something below $source, look below $destination"
    launch "$bin/syncer" --config "$config" watch --leg mirror 9>&- &
    syncer_pid=$!
    await "$syncer_pid" || code=$?
    if [[ $interrupted ]]; then
        echo
        exit 0
    fi
    syncer_pid=''
    die "syncer watch ended by itself with exit code $code"
}

main() {
    local first second started changes code=0
    parse_arguments "$@"
    check_places
    trap clean_up EXIT
    trap 'interrupted=1' INT TERM HUP
    build
    [[ ! $interrupted ]] || exit 130
    prepare_places
    if [[ $own_source ]]; then fill_source; fi
    write_config
    start_tracker
    said=1

    say "First sync: $source -> $destination"
    started=$(now)
    sync_once || code=$?
    first=$(seconds_since "$started")
    note "took $first s, exit code $code"
    case $code in
        0) ;;
        3) [[ ! $once ]] || die "some paths were not synced" ;;
        *) die "the first sync failed with exit code $code" ;;
    esac
    stats
    [[ $once ]] || follow

    say "Changing files"
    changes=$(change_source)
    if [[ ! $own_source ]]; then note "none: SOURCE is yours, it is only compared"; fi
    note "$changes changes; second sync"
    started=$(now)
    sync_once || die "the second sync failed with exit code $?"
    second=$(seconds_since "$started")
    stats
    say "Comparing both sides by content and attributes"
    compare || exit 1
    say "EQUAL"
    note "files:       $(files_in "$source")"
    note "bytes:       $(find "$source" -xdev -type f -printf '%s\n' | awk '{ sum += $1 } END { printf "%d", sum }')"
    note "first sync:  $first s"
    note "changes:     $changes"
    note "second sync: $second s"
}

main "$@"
