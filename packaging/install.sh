#!/usr/bin/env bash
# Copies the built programs, units, rules and examples to where a Debian or Ubuntu system looks for them.
#
#   [DESTDIR=ROOT] packaging/install.sh [PROGRAMS]
#
# PROGRAMS is the directory of the built `tracker` and `syncer` (default: target/release). Nothing is started or
# enabled, and no configuration is written: README.md, "Install", says what follows.
set -euo pipefail

top=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
programs=${1:-$top/target/release}
dest=${DESTDIR:-}

for program in tracker syncer; do
    if [[ ! -x $programs/$program ]]; then
        echo "install.sh: $programs/$program is missing: cargo build --release -p tracker -p syncer" >&2
        exit 1
    fi
    install -D -m 0755 "$programs/$program" "$dest/usr/bin/$program"
done

cd "$top/packaging"
install -D -m 0644 -t "$dest/usr/lib/systemd/system" systemd/*
install -D -m 0644 -t "$dest/usr/lib/udev/rules.d" udev/*
install -D -m 0644 -t "$dest/usr/lib/sysusers.d" sysusers.d/*
install -D -m 0644 -t "$dest/usr/lib/tmpfiles.d" tmpfiles.d/*
install -D -m 0644 -t "$dest/usr/lib/sysctl.d" sysctl.d/*
install -D -m 0644 -t "$dest/usr/share/doc/longshore/examples" longshore.example.toml examples/*
install -D -m 0644 -t "$dest/usr/share/doc/longshore" ../README.md ../CHANGELOG.md ../LICENSE-MIT ../LICENSE-APACHE
