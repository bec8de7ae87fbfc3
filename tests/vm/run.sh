#!/bin/bash
# Boots a kernel under qemu and runs the agent in it: [ARCH=aarch64] tests/vm/run.sh KERNEL_IMAGE [MODULES_DIR].
# See README.md. Output: one PASS or FAIL line per check, then the whole console where a check failed. Exit status 0: all passed.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
image=${1:?"usage: $0 KERNEL_IMAGE [MODULES_DIR]"}
modules=${2:-$(dirname "$image")/..}
arch=${ARCH:-x86_64}
sensor=${SENSOR:-$root/target/release/sensor}
model=${MODEL:-$root/models/sensor.onnx}
busybox=${BUSYBOX:-$(command -v busybox || true)}

# Without KVM on purpose: the same everywhere, and the kernel's verifier does not depend on it.
case $arch in
    x86_64)
        # cx16 is off because qemu 7.2's emulation of cmpxchg16b crashes kernels that use it in their allocator (6.12).
        machine=(-machine q35 -cpu max,-cx16)
        append="console=ttyS0 mitigations=off tsc=reliable"
        ;;
    aarch64)
        # Pointer authentication as the architecture has it costs most of the time of an emulated boot.
        machine=(-machine virt -cpu max,pauth-impdef=on)
        append="console=ttyAMA0 mitigations=off"
        ;;
    *) echo "ARCH=$arch is neither x86_64 nor aarch64" >&2; exit 2 ;;
esac

for program in "qemu-system-$arch" cpio; do
    command -v "$program" > /dev/null || { echo "$program is missing: see $here/README.md" >&2; exit 2; }
done
for file in "$image" "$sensor" "$model" "$busybox"; do
    [ -f "$file" ] || { echo "there is no file \"$file\": see $here/README.md" >&2; exit 2; }
done

work=$(mktemp -d)
trap 'rm -r "$work"' EXIT
initrd=$work/root
mkdir -p "$initrd"/{bin,modules,lib64}
cp "$busybox" "$initrd/bin/busybox"
cp "$here/init" "$initrd/init"
cp "$here/sensor.toml" "$initrd/sensor.toml"
cp "$model" "$initrd/sensor.onnx"
cp "$sensor" "$initrd/bin/sensor"
# The libraries that the agent is linked with, at the paths where it looks for them; a static one has none.
if [ "$arch" = "$(uname -m)" ]; then
    { ldd "$sensor" 2> /dev/null || true; } | { grep -oE '/[^ ]+' || true; } | while read -r library; do
        install -D "$library" "$initrd$library"
    done
fi

# The distribution's kernels have these as modules; a kernel that has them built in needs none.
for name in veth sch_ingress cls_bpf; do
    module=$(find "$modules" -name "$name.ko*" | head -n 1)
    case $module in
        '') ;;
        *.xz) xz -dc "$module" > "$initrd/modules/$name.ko" ;;
        *.zst) zstd -qdc "$module" > "$initrd/modules/$name.ko" ;;
        *) cp "$module" "$initrd/modules/$name.ko" ;;
    esac
done
(cd "$initrd" && find . | cpio --quiet -o -H newc | gzip -1) > "$work/initrd"

log=$work/console
timeout "${TIMEOUT:-300}" "qemu-system-$arch" "${machine[@]}" -accel tcg -smp 1 -m 1024 \
    -nodefaults -nographic -no-reboot -net none -serial stdio -kernel "$image" -initrd "$work/initrd" \
    -append "$append quiet panic=-1" < /dev/null 2>&1 | tr -d '\r' > "$log" || true

grep -aE '^(PASS|FAIL|INFO) ' "$log" || true
if grep -aq '^FAIL ' "$log" || ! grep -aq '^DONE' "$log"; then
    echo "--- console"
    cat "$log"
    exit 1
fi
