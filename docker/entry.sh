#!/bin/sh
# Starts one part of Ashlar in a container, and says how it is.
#
#   entry.sh member ZONE NUMBER    a member of the zone's control plane
#   entry.sh node ZONE NUMBER      a storage node
#   entry.sh client                a client: makes, attaches and mounts a volume (client.sh)
#   entry.sh health                how the part of this container is, for Docker
#   entry.sh COMMAND ...           ashlar COMMAND ...
#
# Writes the part's configuration from where it is: addresses follow docker-compose.yml, zone z (a is
# 1, b is 2, c is 3) has its nodes at PREFIX.z.NUMBER and its members at PREFIX.z.(100 + NUMBER), on
# the primary network; nodes have the same numbers on the replication network. Deliberately without
# tools beyond a shell: the image of an offline host has none.
set -eu

: "${ASHLAR_ZONES:=a}" "${ASHLAR_DATA:=/var/lib/ashlar}"
: "${ASHLAR_PRIMARY:=10.71}" "${ASHLAR_REPLICATION:=10.72}"
readonly MEMBERS="1 2 3" PORT=7100 NODE_PORT=7000

zone_number() {
  case "$1" in
    a) echo 1 ;;
    b) echo 2 ;;
    c) echo 3 ;;
    *)
      echo "no zone $1: this file knows a, b and c" >&2
      exit 2
      ;;
  esac
}

# Addresses of a zone's members: PREFIX and SUFFIX around each.
members_of() {
  local zone="$1" before="$2" after="$3" member
  zone="$(zone_number "$zone")"
  for member in $MEMBERS; do
    printf '%s%s.%s.%s:%s%s' "$before" "$ASHLAR_PRIMARY" "$zone" $((100 + member)) "$PORT" "$after"
  done
}

# All members of all zones, for the command line.
endpoints() {
  local zone list=""
  for zone in $ASHLAR_ZONES; do list="$list$(members_of "$zone" '' ,)"; done
  echo "${list%,}"
}

config_of_member() {
  local zone="$1" number="$2" z member other
  z="$(zone_number "$zone")"
  echo "zone = \"$zone\""
  echo "member = $number"
  echo "data_dir = \"$ASHLAR_DATA/$zone-member-$number\""
  echo "listen = \"$ASHLAR_PRIMARY.$z.$((100 + number)):$PORT\""
  # Once all members were up, one with an empty folder has lost something and must not vote.
  if [ ! -e "$ASHLAR_DATA/$zone-formed" ]; then echo "bootstrap = true"; fi
  echo "[peers]"
  for member in $MEMBERS; do
    echo "$member = \"$ASHLAR_PRIMARY.$z.$((100 + member)):$PORT\""
  done
  echo "[zones]"
  for other in $ASHLAR_ZONES; do echo "$other = [$(members_of "$other" '"' '", ')]"; done
}

config_of_node() {
  local zone="$1" number="$2" z
  z="$(zone_number "$zone")"
  echo "zone = \"$zone\""
  echo "node = $number"
  echo "data_dir = \"$ASHLAR_DATA/$zone-node-$number\""
  echo "primary_address = \"$ASHLAR_PRIMARY.$z.$number:$NODE_PORT\""
  echo "replication_address = \"$ASHLAR_REPLICATION.$z.$number:$NODE_PORT\""
  echo "control = [$(members_of "$zone" '"http://' '", ')]"
  echo "capacity_bytes = ${ASHLAR_CAPACITY:-17179869184}"
  echo "journal_bytes = 67108864"
}

# Health needs to know which part this container is.
note_part() { echo "part=$1 zone=${2:-} number=${3:-}" >/run/ashlar-part; }

health() {
  local part zone number said
  . /run/ashlar-part
  case "$part" in
    member)
      said="$(ashlar --timeout 3 controlplane members --zone "$zone" \
        --endpoint "$ASHLAR_PRIMARY.$(zone_number "$zone").$((100 + number)):$PORT")"
      case "$said" in
        *unreachable*) ;;
        *) : >"$ASHLAR_DATA/$zone-formed" ;;
      esac
      ;;
    node)
      said="$(ashlar --timeout 3 node list --zone "$zone" --endpoint "$(members_of "$zone" '' ,)")"
      case "$said" in
        *"node-$number  up"*) ;;
        *) echo "$said" && return 1 ;;
      esac
      ;;
    client) [ -e /run/ashlar-ready ] ;;
  esac
}

mkdir -p /run "$ASHLAR_DATA"
case "${1:-}" in
  member)
    note_part "$@"
    config_of_member "$2" "$3" >/run/ashlar.toml
    exec ashlar controlplane run --config /run/ashlar.toml
    ;;
  node)
    note_part "$@"
    config_of_node "$2" "$3" >/run/ashlar.toml
    exec ashlar node run --config /run/ashlar.toml
    ;;
  client)
    note_part client
    ASHLAR_ENDPOINT="$(endpoints)"
    export ASHLAR_ENDPOINT
    exec /bin/sh /usr/share/ashlar/client.sh
    ;;
  health) health ;;
  *)
    ASHLAR_ENDPOINT="${ASHLAR_ENDPOINT:-$(endpoints)}"
    export ASHLAR_ENDPOINT
    exec ashlar "$@"
    ;;
esac
