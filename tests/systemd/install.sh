# How Sensor gets on the machine and off it again: as a package, or by hand with a binary and the files of the tree, as
# packaging/systemd/README.md says. Sourced by run.sh.

CONFIG=/etc/sensor/sensor.toml

# install_sensor: for the first time.
install_sensor() {
    if [ -n "$DEB" ]; then
        cp "$DEB" "$ROOT/root/sensor.deb"
        inside env DEBIAN_FRONTEND=noninteractive dpkg --install /root/sensor.deb
        return
    fi
    by_hand
    inside systemctl enable --now --quiet sensor.service
}

# The next version, as an upgrade brings it: a restart of the unit.
upgrade_sensor() {
    if [ -n "$DEB" ]; then
        cp "${NEXT:-$DEB}" "$ROOT/root/next.deb"
        inside env DEBIAN_FRONTEND=noninteractive dpkg --install /root/next.deb
        return
    fi
    by_hand
    inside systemctl try-restart sensor.service
}

purge_sensor() {
    if [ -n "$DEB" ]; then
        inside env DEBIAN_FRONTEND=noninteractive dpkg --purge sensor
        rm -f "$ROOT/root/sensor.deb" "$ROOT/root/next.deb"
        return
    fi
    inside systemctl disable --now --quiet sensor.service
    inside systemctl stop sensor-pins.service
    inside rm -rf /usr/bin/sensor /usr/share/sensor /usr/lib/systemd/system/sensor.service \
        /usr/lib/systemd/system/sensor-pins.service /usr/lib/sysusers.d/sensor.conf /usr/lib/tmpfiles.d/sensor.conf \
        /etc/sensor /var/lib/sensor
    inside systemctl daemon-reload
}

by_hand() {
    install -D -m 755 "$BINARY" "$ROOT/usr/bin/sensor.new"
    mv "$ROOT/usr/bin/sensor.new" "$ROOT/usr/bin/sensor"
    install -D -m 644 "$TREE/models/sensor.onnx" "$ROOT/usr/share/sensor/sensor.onnx"
    local files=$TREE/packaging/systemd unit
    for unit in sensor.service sensor-pins.service; do
        install -D -m 644 "$files/$unit" "$ROOT/usr/lib/systemd/system/$unit"
    done
    install -D -m 644 "$files/sensor.sysusers.conf" "$ROOT/usr/lib/sysusers.d/sensor.conf"
    install -D -m 644 "$files/sensor.tmpfiles.conf" "$ROOT/usr/lib/tmpfiles.d/sensor.conf"
    if ! [ -e "$ROOT$CONFIG" ]; then
        mkdir -p "$ROOT/etc/sensor"
        "$BINARY" config --default | sed 's|^path = "models/sensor.onnx"|path = "/usr/share/sensor/sensor.onnx"|' > "$ROOT$CONFIG"
    fi
    inside systemd-sysusers sensor.conf
    inside systemd-tmpfiles --create sensor.conf
    inside systemctl daemon-reload
}
