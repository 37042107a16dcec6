# Starts a server of the page store: as the replica of whom the sentinels name, else of whom the other
# servers know; where nobody answers, all begin, and the first is the primary.
# A primary that comes back empty makes its replicas empty: pages are computed again then.
set -eu
self="$POD_NAME.lexico-store:6379"
tls=""
[ ! -f /etc/valkey/config/tls.conf ] || tls="--tls --cacert /etc/valkey/tls/ca.crt"
. /etc/valkey/start/primary.sh

# Each of the other servers that answer, and whom it follows.
others() {
  for each in $stores; do
    [ "$each" != "$self" ] || continue
    name=$(follows "$each")
    [ -z "$name" ] || echo "$each $name"
  done
}

tries=0
until primary=$(named); do
  answers=$(others)
  # Who says it of itself knows better than who follows it.
  primary=$(echo "$answers" | awk '$1 == $2 { print $2 }')
  [ -n "$primary" ] || primary=$(echo "$answers" | awk 'NF { print $2 }' | sort -u)
  # shellcheck disable=SC2086
  set -- $primary
  [ $# != 1 ] || break
  if [ $# = 0 ]; then
    tries=$((tries + 1)) # the network of a new pod may not be there at once
    if [ "$tries" -ge "${TRIES:-3}" ]; then primary=${stores%% *}; break; fi
    wait_while "nobody answers"
  else
    wait_while "stores follow different primaries: $*"
  fi
done
echo "the primary is $primary"
set -- --include /etc/valkey/auth/replication.conf --replica-announce-ip "${self%:*}"
[ "$primary" = "$self" ] || set -- "$@" --replicaof "${primary%:*} ${primary##*:}"
exec valkey-server /etc/valkey/config/valkey.conf "$@"
