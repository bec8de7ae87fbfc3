# What is checked, in order; each part leaves the agent running and the verdict in force for the next. Sourced by
# run.sh.

PORT=9000
ADMIN_RATE=2000 FLOOD_RATE=500
# Until a restart after a failure has to be over: RestartSec, a start, and the machine's load.
RESTART=15

all_checks() {
    installing
    confinement
    journal
    operator
    upgrade
    killed
    hanging "an agent that is stopped (SIGSTOP)" stopped
    hanging "an agent whose poll thread hangs" held
    refused_start "a missing interface" nope0 's|^interfaces = .*|interfaces = ["nope0"]|'
    refused_start "a setting that does not exist" nonsense '1s|^|nonsense = 1\n|'
    out_of_range
    broken_binary
    stopped_between_tries
    stop_and_start
    purge
}

# --- questions

show() { inside systemctl show --value --property "$1" "${2:-sensor.service}"; }
is_active() { [ "$(show ActiveState)" = active ]; }
is_failed() { [ "$(show ActiveState)" = failed ]; }
status_says() { show StatusText | grep -q "$1"; }
waits() { [ "$(show SubState)" = auto-restart ]; }
runs_anew() { is_active && [ "$(show MainPID)" != "$1" ]; }
unpinned() { [ "$(show ActiveState sensor-pins.service)" = inactive ] && ! [ -e "$SCRATCH/bpf/sensor" ]; }
pinned() { python3 "$HERE/links.py" ids "$SCRATCH/bpf/sensor"; }
nothing_of() { [ -z "$(python3 "$HERE/links.py" alive $1)" ]; }
says_since() { inside journalctl -u sensor.service --no-pager -o cat --since "@$1" | grep -qE "$2"; }
seconds_now() { inside date +%s.%N; }
# seconds_from_to PROPERTY PROPERTY: between two of the unit's moments.
seconds_from_to() { echo "$(show "$1") $(show "$2")" | awk '{ printf "%.2f", ($2 - $1) / 1e6 }'; }
flood_verdicts() {
    inside sensor verdicts list --json | python3 -c '
import json, sys
verdicts = json.load(sys.stdin)["verdicts"]
print(" ".join(str(one["id"]) for one in verdicts if "'$FLOOD'" in json.dumps(one)))'
}

# --- traffic: a flow that has to pass whole, and one that is dropped

start_traffic() {
    ip netns exec $NETNS-box python3 "$HERE/traffic.py" receive $PORT > "$SCRATCH/received" &
    RECEIVER=$!
    until_true 10 in_box grep -q "$(printf ':%04X ' $PORT)" /proc/net/udp || die "the receiver does not listen"
    ip netns exec $NETNS-peer python3 "$HERE/traffic.py" send $ADMIN $BOX $PORT $ADMIN_RATE "$1" > "$SCRATCH/admin" &
    SENDERS=$!
    ip netns exec $NETNS-peer python3 "$HERE/traffic.py" send $FLOOD $BOX $PORT $FLOOD_RATE "$1" > "$SCRATCH/flood" &
    SENDERS="$SENDERS $!"
    # So that what follows happens under traffic.
    sleep 1
}

# Sets ADMIN_SENT, ADMIN_GOT, ADMIN_GAP, ADMIN_PORT, FLOOD_SENT, FLOOD_GOT.
end_traffic() {
    wait $SENDERS
    kill "$RECEIVER"
    wait "$RECEIVER"
    read -r ADMIN_SENT ADMIN_PORT < "$SCRATCH/admin"
    read -r FLOOD_SENT _ < "$SCRATCH/flood"
    read -r ADMIN_GOT ADMIN_GAP FLOOD_GOT < <(python3 -c '
import json, sys
seen = json.load(open(sys.argv[1]))
admin, flood = seen.get(sys.argv[2], [0, 0]), seen.get(sys.argv[3], [0, 0])
print(admin[0], admin[1], flood[0])' "$SCRATCH/received" $ADMIN $FLOOD)
}

nothing_was_lost() {
    same "$1: no packet is lost at $ADMIN_RATE a second" "$ADMIN_SENT" "$ADMIN_GOT"
    note "longest time between two packets: $ADMIN_GAP s"
}

# Packets of the flow that passes, in its record.
recorded() {
    inside sensor flows --json | python3 -c '
import json, sys
print(sum(flow["initiator_packets"] for flow in json.load(sys.stdin) if flow["sport"] == '"$ADMIN_PORT"' and flow["dport"] == '$PORT'))'
}

# --- parts

installing() {
    say "installing"
    local begun=$EPOCHREALTIME
    install_sensor > "$SCRATCH/install.log" 2>&1
    verdict $? "it installs"
    note "the whole of it took $(awk -v a="$begun" -v b="$EPOCHREALTIME" 'BEGIN { printf "%.2f", b - a }') s"
    check "the unit is enabled" inside systemctl is-enabled sensor.service
    check "the unit is active" is_active
    is_active || die "nothing else can be checked: $(tail -5 "$SCRATCH/install.log"
        inside journalctl -u sensor.service -o cat --no-pager | tail -5)"
    at_most "ready after seconds" 3 "$(seconds_from_to ExecMainStartTimestampMonotonic ActiveEnterTimestampMonotonic)"
    check "systemd-analyze verify has nothing to say" \
        quiet inside systemd-analyze verify --man=no sensor.service sensor-pins.service
    at_most "exposure of sensor.service" 2.0 "$(exposure sensor.service)"
    at_most "exposure of sensor-pins.service" 2.0 "$(exposure sensor-pins.service)"
}

quiet() { [ -z "$("$@" 2>&1)" ]; }
exposure() {
    inside systemd-analyze security --no-pager "$1" 2>&1 |
        sed -n 's/.*Overall exposure level for .*: \([0-9.]*\) .*/\1/p'
}

confinement() {
    say "what it may do"
    local pid status
    pid=$(show MainPID)
    status=$(inside cat "/proc/$pid/status")
    same "it runs as the user sensor" "$(inside id -u sensor)" "$(sed -n 's/^Uid:\t\([0-9]*\).*/\1/p' <<< "$status")"
    # CAP_NET_ADMIN (12), CAP_PERFMON (38), CAP_BPF (39).
    same "it has three capabilities" 000000c000001000 "$(sed -n 's/^CapEff:\t//p' <<< "$status")"
    same "and can get no other" 000000c000001000 "$(sed -n 's/^CapBnd:\t//p' <<< "$status")"
    same "nor new privileges" 1 "$(sed -n 's/^NoNewPrivs:\t//p' <<< "$status")"
    same "the directory of pins is its own" "700 sensor" "$(inside stat -c '%a %U' /sys/fs/bpf/sensor)"
    same "the BPF file system is as it was" "700 root" "$(inside stat -c '%a %U' /sys/fs/bpf | sed 's/^1//')"
    check "programs are pinned" test -n "$(pinned)"
    check "metrics answer" in_box curl -sf http://127.0.0.1:9469/metrics
    check "systemctl status says the mode" until_true 5 status_says "mode observe on eth0"
    check "the control socket answers root" inside sensor status
    check "and nobody else" not inside setpriv --reuid=65534 --clear-groups sensor status
    check "it has opened what it writes" inside sh -c 'test -s /var/lib/sensor/audit.jsonl'
    same "and its state is for nobody else" 750 "$(inside stat -c %a /var/lib/sensor)"
}

not() { ! "$@"; }
# signal NAME PID: the machine has no kill(1).
signal() { [ "${2:-0}" -gt 1 ] && inside sh -c "kill -$1 $2"; }

journal() {
    say "what it says"
    inside journalctl --sync
    inside journalctl -u sensor.service -o json --no-pager > "$SCRATCH/journal"
    python3 - "$SCRATCH/journal" << 'PY'
import json, sys
lines = [json.loads(line) for line in open(sys.argv[1])]
own = [line for line in lines if line.get("SYSLOG_IDENTIFIER") == "sensor"]
ready = [line for line in own if line["MESSAGE"] == "ready"]
assert len(ready) == 1, f"ready is there {len(ready)} times"
assert ready[0]["PRIORITY"] == "6" and ready[0]["SENSOR_VERSION"] and ready[0]["SENSOR_TARGET"].startswith("sensor"), ready
assert all(line["_TRANSPORT"] == "journal" for line in own), "something went over standard error"
assert not any("\x1b" in str(line["MESSAGE"]) for line in own), "colours"
PY
    verdict $? "the journal has each line once, with its fields"
}

operator() {
    say "an operator's verdict"
    check "mode enforce" inside sensor mode enforce
    check "a verdict is added" inside sensor verdicts add drop $FLOOD --for 1h
    VERDICT=$(flood_verdicts)
    start_traffic 2
    end_traffic
    nothing_was_lost "beside the verdict"
    same "nothing of the dropped flow passes ($FLOOD_SENT sent)" 0 "$FLOOD_GOT"
    check "systemctl status says the mode, and the verdict" until_true 20 status_says "mode enforce on eth0: .* 1 verdicts"
}

upgrade() {
    say "the next version, under traffic"
    local before
    before=$(show MainPID)
    start_traffic 10
    upgrade_sensor > "$SCRATCH/upgrade.log" 2>&1
    verdict $? "it installs"
    check "another agent is ready" runs_anew "$before"
    note "from the start of its process to ready: $(seconds_from_to ExecMainStartTimestampMonotonic ActiveEnterTimestampMonotonic) s"
    end_traffic
    nothing_was_lost "upgrade"
    same "nothing of the dropped flow passes ($FLOOD_SENT sent)" 0 "$FLOOD_GOT"
    same "the verdict is the same" "$VERDICT" "$(flood_verdicts)"
    sleep 1
    same "the flow's record goes on, and has every packet" "$ADMIN_SENT" "$(recorded)"
}

killed() {
    say "SIGKILL, under traffic"
    local before
    before=$(show MainPID)
    start_traffic 10
    signal KILL "$before"
    check "it is started again" until_true $RESTART runs_anew "$before"
    end_traffic
    nothing_was_lost "SIGKILL"
    same "nothing of the dropped flow passes ($FLOOD_SENT sent)" 0 "$FLOOD_GOT"
    same "the verdict is the same" "$VERDICT" "$(flood_verdicts)"
}

# hanging WHAT COMMAND...: the command, with the numbers of the agent's process in the machine and on this host behind
# it, makes it hang.
hanging() {
    local what=$1 before limit since
    shift
    say "$what, under traffic"
    before=$(show MainPID)
    limit=$(($(show WatchdogUSec | sed 's/s$//') + RESTART))
    since=$(seconds_now)
    start_traffic $limit
    "$@" "$before" "$(pgrep -P "$LEADER" -x sensor)" &
    check "it is started again within $limit s" until_true $limit runs_anew "$before"
    note "after $(awk -v a="$since" -v b="$(seconds_now)" 'BEGIN { printf "%.1f", b - a }') s"
    check "because of the watchdog" says_since "$since" "[Ww]atchdog timeout"
    end_traffic
    nothing_was_lost "$what"
    check "the lease had ended: the dropped flow passed meanwhile ($FLOOD_GOT of $FLOOD_SENT)" test "$FLOOD_GOT" -gt 0
    start_traffic 2
    end_traffic
    same "it is dropped again ($FLOOD_SENT sent)" 0 "$FLOOD_GOT"
    inside systemctl reset-failed sensor.service
}

stopped() { signal STOP "$1"; }
held() { python3 "$HERE/hold.py" "$2" sensor-poll 60; }

# refused_start WHAT WORD SED: a restart with a configuration that cannot work.
refused_start() {
    say "$1, under traffic"
    local since ids
    since=$(seconds_now)
    ids=$(pinned)
    cp "$ROOT$CONFIG" "$SCRATCH/good.toml"
    sed -i "$3" "$ROOT$CONFIG"
    start_traffic 8
    check "systemctl restart fails" not inside systemctl restart sensor.service
    inside journalctl --sync
    check "the journal says why" says_since "$since" "sensor: error: .*$2"
    inside journalctl -u sensor.service -p err -o cat --since "@$since" | grep -m1 "sensor: error" | sed 's/^/     /'
    check "so does systemctl status" grep -q "$2" <(inside systemctl status --no-pager sensor.service)
    check "the unit has failed in the end" until_true 60 is_failed
    check "and then nothing is pinned" until_true 20 unpinned
    check "or attached" until_true 5 nothing_of "$ids"
    end_traffic
    nothing_was_lost "$1"
    restored
}

# The good configuration again, and the agent with its verdict.
restored() {
    cp "$SCRATCH/good.toml" "$ROOT$CONFIG"
    inside systemctl reset-failed sensor.service
    check "with the old configuration it starts" inside systemctl start sensor.service
    same "and the verdict is back" "$VERDICT" "$(flood_verdicts)"
}

# The agent that runs is asked first, and goes on.
out_of_range() {
    inside sensor reload --help > /dev/null 2>&1 || return
    say "a reload with a value out of range"
    local before
    before=$(show MainPID)
    cp "$ROOT$CONFIG" "$SCRATCH/good.toml"
    sed -i 's|^verdict_ttl = .*|verdict_ttl = "1ms"|' "$ROOT$CONFIG"
    check "systemctl reload fails" not inside systemctl reload sensor.service
    check "the agent goes on" test "$before" = "$(show MainPID)"
    cp "$SCRATCH/good.toml" "$ROOT$CONFIG"
    check "systemctl reload with the old file" inside systemctl reload sensor.service
    check "the agent goes on" test "$before" = "$(show MainPID)"
}

# The worst next version: not even `sensor detach` works.
broken_binary() {
    say "a binary that does not run"
    local ids
    ids=$(pinned)
    mv "$ROOT/usr/bin/sensor" "$SCRATCH/sensor"
    cp "$ROOT/bin/false" "$ROOT/usr/bin/sensor"
    check "systemctl restart fails" not inside systemctl restart sensor.service
    check "the unit has failed in the end" until_true 60 is_failed
    check "and then nothing is pinned" until_true 20 test ! -e "$SCRATCH/bpf/sensor"
    check "or attached" until_true 5 nothing_of "$ids"
    mv "$SCRATCH/sensor" "$ROOT/usr/bin/sensor"
    inside systemctl reset-failed sensor.service sensor-pins.service
    check "with the old binary it starts" inside systemctl start sensor.service
    same "and the verdict is back" "$VERDICT" "$(flood_verdicts)"
}

stopped_between_tries() {
    say "a stop between two tries"
    local ids
    ids=$(pinned)
    signal KILL "$(show MainPID)"
    until_true 5 waits || note "the agent was up again before it could be stopped"
    check "systemctl stop" inside systemctl stop sensor.service
    check "nothing is pinned" until_true 10 unpinned
    check "or attached" until_true 5 nothing_of "$ids"
    inside systemctl reset-failed sensor.service
    check "it starts" inside systemctl start sensor.service
}

stop_and_start() {
    say "stop"
    local ids
    ids=$(pinned)
    check "systemctl stop" inside systemctl stop sensor.service
    # At once: the agent itself has taken everything off.
    check "nothing is attached when it returns" nothing_of "$ids"
    check "the directory of pins is gone" until_true 10 unpinned
    start_traffic 2
    end_traffic
    same "the flow that was dropped passes" "$FLOOD_SENT" "$FLOOD_GOT"
    same "the unit has not failed" inactive "$(show ActiveState)"
    check "it starts again" inside systemctl start sensor.service
    same "and the verdict is back" "$VERDICT" "$(flood_verdicts)"
}

purge() {
    say "purge"
    local ids left
    ids=$(pinned)
    purge_sensor > "$SCRATCH/purge.log" 2>&1
    verdict $? "it goes"
    check "nothing is attached when it returns" nothing_of "$ids"
    check "nothing is pinned" test ! -e "$SCRATCH/bpf/sensor"
    check "no process" not inside sh -c 'cat /proc/[0-9]*/comm | grep -qx sensor'
    left=$(inside find / -xdev '(' -path /proc -o -path /sys ')' -prune -o -name '*sensor*' -print |
        grep -vE '^/usr/(lib|share)/.*(lm-sensors|libsensors|perl|python)' | sort | tr '\n' ' ')
    same "no file" "" "$left"
    same "but for the user" sensor "$(inside getent passwd sensor | cut -d: -f1)"
}
