# Starts a server of the page store: as the replica of whom the sentinels name, else of whom the other
# servers know; where nobody answers, all begin, and the first is the primary.
# A primary that comes back is empty, and would make its replicas empty: one of them takes over first.
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

# Whether a server that has pages follows this one.
followed_with_pages() {
  for each in $(echo "$answers" | awk -v self="$self" '$2 == self { print $1 }'); do
    case "$(as_sentinels "$each" info keyspace)" in *db[0-9]*) return 0 ;; esac
  done
  return 1
}

# Has a replica take over: one sentinel alone begins that. It says which, if there is one.
have_it_taken_over() {
  for each in $sentinels; do
    case "$(ask "$each" sentinel master lexico)" in *failover_in_progress*) echo "$each"; return ;; esac
  done
  for each in $sentinels; do
    [ -z "$(ask "$each" sentinel failover lexico)" ] || { echo "$each"; return; }
  done
}

tries=0
begun=""
while [ "$primary" = "$self" ]; do
  answers=$(others)
  another=$(echo "$answers" | awk '$1 == $2 { print $2; exit }')
  if [ -n "$another" ]; then primary=$another; break; fi
  [ -n "$begun" ] || followed_with_pages || break
  tries=$((tries + 1))
  if [ -n "$begun" ]; then most=12; else most=5; fi # before the kubelet loses patience
  [ "$tries" -le "$most" ] || break
  [ -n "$begun" ] || begun=$(have_it_taken_over)
  wait_while "a replica that has the pages takes over"
  primary=$(named) || primary=$self
done
echo "the primary is $primary"
set -- --include /etc/valkey/auth/replication.conf --replica-announce-ip "${self%:*}"
[ "$primary" = "$self" ] || set -- "$@" --replicaof "${primary%:*} ${primary##*:}"
exec valkey-server /etc/valkey/config/valkey.conf "$@"
