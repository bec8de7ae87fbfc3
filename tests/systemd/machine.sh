# A Debian (12, if not told otherwise) with a systemd of its own, booted by systemd-nspawn on this host's kernel.
# Sourced by run.sh.
#
#   netns $NETNS-peer [eth0: ADMIN, FLOOD] ──veth── [eth0: BOX] netns $NETNS-box = the machine's network
#
# Everything it makes has a name that begins with sn-svc, or is under $SCRATCH; clean_up takes all of it away again.

CACHE=${XDG_CACHE_HOME:-$HOME/.cache}/sensor
SUITE=${SENSOR_DEBIAN_SUITE:-bookworm}
MIRROR=${SENSOR_DEBIAN_MIRROR:-http://deb.debian.org/debian}
BASE=$CACHE/$SUITE-systemd-1.tar.gz
INCLUDE=systemd,systemd-sysv,dbus,init-system-helpers

# The default gateway is on the never-drop list by itself, so the flow that is to be dropped comes from another address.
BOX=198.18.77.1 ADMIN=198.18.77.2 FLOOD=198.18.77.3

# With the number of this process, so that two runs at a time do not take away each other's.
NETNS=sn-svc-$$
SCRATCH= ROOT= NSPAWN= LEADER=

# Packages that the suite needs on this host.
check_host() {
    [ "$(id -u)" = 0 ] || die "run this as root: it boots a machine and makes network namespaces"
    local tool missing=
    for tool in debootstrap systemd-nspawn nsenter ip python3 tar curl; do
        command -v "$tool" > /dev/null || missing="$missing $tool"
    done
    [ -z "$missing" ] || die "missing:$missing (Debian: apt-get install debootstrap systemd-container util-linux iproute2 python3 curl)"
}

# The base system, made once and kept as a tarball.
base() {
    [ -s "$BASE" ] && return
    say "debootstrap of $SUITE from $MIRROR, once, into $BASE"
    mkdir -p "$CACHE"
    debootstrap --variant=minbase --include=$INCLUDE $SUITE "$SCRATCH/base" "$MIRROR" > "$SCRATCH/debootstrap.log" 2>&1 ||
        die "debootstrap failed: $(tail -3 "$SCRATCH/debootstrap.log")"
    rm -rf "$SCRATCH"/base/var/cache/apt/archives/*.deb
    tar -C "$SCRATCH/base" -czf "$BASE.new" .
    mv "$BASE.new" "$BASE"
    rm -rf "$SCRATCH/base"
}

network() {
    ip netns add $NETNS-box
    ip netns add $NETNS-peer
    ip -n $NETNS-box link add eth0 type veth peer name eth0 netns $NETNS-peer
    ip -n $NETNS-box addr add $BOX/24 dev eth0
    ip -n $NETNS-peer addr add $ADMIN/24 dev eth0
    ip -n $NETNS-peer addr add $FLOOD/24 dev eth0
    local netns
    for netns in $NETNS-box $NETNS-peer; do
        ip -n $netns link set lo up
        ip -n $netns link set eth0 up
    done
    ip -n $NETNS-box route add default via $ADMIN
}

# A fresh copy of the base system, booted. Its BPF file system is one of its own.
boot() {
    SCRATCH=$(mktemp -d /var/tmp/sn-svc.XXXXXX)
    ROOT=$SCRATCH/root
    base
    mkdir -p "$ROOT" "$SCRATCH/bpf"
    tar -C "$ROOT" -xzf "$BASE"
    echo sn-svc > "$ROOT/etc/hostname"
    mount -t bpf -o mode=0700 sn-svc-bpf "$SCRATCH/bpf"
    network
    systemd-nspawn --quiet --directory="$ROOT" --machine=$NETNS --register=no --keep-unit --boot --link-journal=no \
        --network-namespace-path=/run/netns/$NETNS-box --bind="$SCRATCH/bpf:/sys/fs/bpf" --console=pipe \
        --capability=CAP_BPF,CAP_NET_ADMIN,CAP_PERFMON --system-call-filter="bpf perf_event_open" \
        < /dev/null > "$SCRATCH/boot.log" 2>&1 &
    NSPAWN=$!
    until_true 60 is_up || die "the machine does not boot: $(tail -5 "$SCRATCH/boot.log")"
}

is_up() {
    kill -0 "$NSPAWN" 2> /dev/null || die "systemd-nspawn ended: $(tail -5 "$SCRATCH/boot.log")"
    LEADER=$(pgrep -P "$NSPAWN" -x systemd) && inside systemctl is-system-running 2> /dev/null | grep -qE "running|degraded"
}

# A command in the machine; and one of this host's in its network.
inside() { nsenter --target "$LEADER" --all -- "$@"; }
in_box() { ip netns exec $NETNS-box "$@"; }
in_peer() { ip netns exec $NETNS-peer "$@"; }

clean_up() {
    local pid
    for pid in $(jobs -p); do
        [ "$pid" = "$NSPAWN" ] || kill "$pid" 2> /dev/null
    done
    if [ -n "$NSPAWN" ]; then
        # SIGTERM ends the machine's processes, and with its pins' file system its programs go.
        kill "$NSPAWN" 2> /dev/null
        until_true 20 gone "$NSPAWN" || kill -KILL "$NSPAWN" 2> /dev/null
        wait "$NSPAWN" 2> /dev/null
    fi
    ip netns del $NETNS-peer 2> /dev/null
    ip netns del $NETNS-box 2> /dev/null
    if [ -n "$SCRATCH" ]; then
        rm -rf "$SCRATCH"/bpf/sensor 2> /dev/null
        umount "$SCRATCH/bpf" 2> /dev/null
        rm -rf "$SCRATCH"
    fi
}

gone() { ! kill -0 "$1" 2> /dev/null; }

# until_true SECONDS COMMAND...: whether it came true in time.
until_true() {
    local end=$((SECONDS + $1))
    shift
    until "$@"; do
        [ $SECONDS -lt $end ] || return 1
        sleep 0.1
    done
}
