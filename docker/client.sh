#!/bin/sh
# A client in a container: makes a volume in zone a, attaches it, and mounts it on /mnt/NAME if the
# host has FUSE and loop devices; otherwise the volume is an NBD socket, /run/NAME.sock.
#
# Writes a file and reads it back before it says that it is ready; a later start finds it again.
set -eu

name="${ASHLAR_VOLUME:-demo}"
place="/mnt/$name"
socket="/run/$name.sock"
state=/var/lib/ashlar/attach
export ASHLAR_ATTACH_DIR="$state"

# The zone may still be forming.
tries=0
until ashlar volume show "$name" >/run/volume 2>&1 \
  || ashlar volume create "$name" --zone a --size "${ASHLAR_SIZE:-1GiB}" \
    --client-token "compose-$name"; do
  tries=$((tries + 1))
  if [ "$tries" -ge 30 ]; then exit 1; fi
  sleep 1
done

ashlar attach "$name" --foreground --nbd "$socket" &
daemon=$!
# Ends with its container: the file system is clean, the volume free for another client.
finish() {
  rm -f /run/ashlar-ready
  ashlar umount "$place" 2>/dev/null || true
  kill "$daemon" 2>/dev/null || true
  wait "$daemon" || true
  exit 0
}
trap finish TERM INT

tries=0
until [ -S "$socket" ]; do
  tries=$((tries + 1))
  if [ "$tries" -ge 60 ] || ! kill -0 "$daemon" 2>/dev/null; then exit 1; fi
  sleep 1
done

mounted() {
  # Only the first mount makes a file system, and only on an empty volume.
  ashlar mount "$name" "$place" || ashlar mount "$name" "$place" --mkfs ext4
}
if mounted; then
  if [ ! -e "$place/first" ]; then
    echo "written through $name" >"$place/first"
  fi
  read -r line <"$place/first"
  [ "$line" = "written through $name" ]
  echo "volume $name is mounted on $place, written and read"
else
  echo "volume $name is not mounted on this host; use $socket"
fi
: >/run/ashlar-ready
wait "$daemon"
