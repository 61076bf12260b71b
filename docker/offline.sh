#!/bin/sh
# Makes the image ashlar:latest without any network but a crate cache: the binary, a shell, and the
# tools of a mount, each with the libraries that it is linked with, from this host.
#
#   docker/offline.sh             builds the binary first (cargo build --release)
#   ASHLAR_BIN=path docker/offline.sh
set -eu
cd "$(dirname "$0")/.."

image="${ASHLAR_IMAGE:-ashlar:latest}"
if [ -z "${ASHLAR_BIN:-}" ]; then
  cargo build --release --locked
  ASHLAR_BIN="${CARGO_TARGET_DIR:-target}/release/ashlar"
fi

# Not in the sources: two runs must not meet, and nothing is left behind.
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
root="$work/dist"
mkdir -p "$root/usr/bin" "$root/usr/share/ashlar" "$root/etc" "$root/tmp" "$root/run" \
  "$root/mnt" "$root/var/lib/ashlar" "$root/proc" "$root/sys" "$root/dev"
ln -s usr/bin "$root/bin"
ln -s usr/bin "$root/sbin"

# A program under the name that scripts call it by, and its libraries where it looks for them.
take() {
  program="$(readlink -f "$1")"
  cp "$program" "$root/usr/bin/$2"
  ldd "$program" 2>/dev/null | while read -r word rest; do
    case "$rest" in "=> /"*) library="${rest#=> }" ;; *) library="$word" ;; esac
    library="${library%% (*}"
    case "$library" in
      /*)
        mkdir -p "$root$(dirname "$library")"
        [ -e "$root$library" ] || cp -L "$library" "$root$library"
        ;;
    esac
  done
}

PATH="$PATH:/usr/sbin:/sbin"
take "$ASHLAR_BIN" ashlar
for tool in sh mkdir rm sleep; do take "$(command -v "$tool")" "$tool"; done
# Without them the client serves an NBD socket only.
for tool in mkfs.ext4 mount umount; do
  if path="$(command -v "$tool")"; then take "$path" "$tool"; fi
done
echo 'root:x:0:0::/:/bin/sh' >"$root/etc/passwd"
cp docker/entry.sh docker/client.sh "$root/usr/share/ashlar/"
cp Dockerfile "$work/"
DOCKER_BUILDKIT=0 docker build -q --target static -t "$image" "$work"
