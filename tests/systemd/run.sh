#!/bin/bash
# The unit as shipped, under a real systemd: see README.md beside this file.
#
#   tests/systemd/run.sh [--deb FILE [--next FILE] | --binary FILE] [--keep]

set -uo pipefail
HERE=$(cd "$(dirname "$0")" && pwd)
TREE=$(cd "$HERE/../.." && pwd)
DEB= NEXT= BINARY= KEEP=
PASSED=0 FAILED=0

die() { echo "tests/systemd: $*" >&2; exit 2; }
say() { echo "--- $*"; }
note() { echo "     $*"; }

# verdict STATUS WORDS: one line for a check.
verdict() {
    if [ "$1" = 0 ]; then
        PASSED=$((PASSED + 1)); echo "PASS $2"
    else
        FAILED=$((FAILED + 1)); echo "FAIL $2"
    fi
}
# check WORDS COMMAND...: the command succeeds.
check() { local words=$1; shift; "$@" > /dev/null 2>&1; verdict $? "$words"; }
# same WORDS WANTED FOUND; at_most WORDS LIMIT FOUND (numbers, may have fractions).
same() { [ "$2" = "$3" ]; verdict $? "$1 (wanted $2, found $3)"; }
at_most() { awk -v most="$2" -v found="$3" 'BEGIN { exit !(found != "" && found + 0 <= most + 0) }'; verdict $? "$1 (at most $2, found $3)"; }

. "$HERE/machine.sh"
. "$HERE/install.sh"
. "$HERE/checks.sh"

while [ $# -gt 0 ]; do
    case $1 in
        --deb) DEB=$(realpath -e "$2") || die "there is no package $2"; shift 2 ;;
        --next) NEXT=$(realpath -e "$2") || die "there is no package $2"; shift 2 ;;
        --binary) BINARY=$(realpath -e "$2") || die "there is no binary $2"; shift 2 ;;
        --keep) KEEP=yes; shift ;;
        *) die "usage: run.sh [--deb FILE [--next FILE] | --binary FILE] [--keep]" ;;
    esac
done
if [ -z "$DEB$BINARY" ]; then
    for BINARY in "$TREE/target/release/sensor" "$TREE/target/debug/sensor" ""; do
        [ -x "$BINARY" ] && break
    done
    [ -n "$BINARY" ] || die "nothing to install: cargo build --release -p sensor, or name --deb or --binary"
fi

check_host
finish() {
    if [ -n "$KEEP" ] && [ -n "$LEADER" ]; then
        echo "the machine runs on: nsenter --target $LEADER --all; enter ends it"; read -r _
    fi
    clean_up
}
trap finish EXIT
trap 'exit 130' INT TERM

say "booting Debian ($SUITE) with ${DEB:-$BINARY}"
boot
all_checks
echo "$PASSED passed, $FAILED failed"
[ $FAILED = 0 ]
