# Starts a server of the page store: as the replica of whom the sentinels name, or of the first.
# A primary that comes back empty makes its replicas empty: pages are computed again then.
set -eu
host="$POD_NAME.lexico-store"
tls=""
[ ! -f /etc/valkey/config/tls.conf ] || tls="--tls --cacert /etc/valkey/tls/ca.crt"
# shellcheck disable=SC2086
primary=$(valkey-cli $tls -h lexico-sentinel -p 26379 sentinel get-master-addr-by-name lexico 2>/dev/null \
  | head -n 1) || primary=""
case "$primary" in *.lexico-store) ;; *) primary="lexico-store-0.lexico-store" ;; esac
set -- --include /etc/valkey/auth/replication.conf --replica-announce-ip "$host"
[ "$primary" = "$host" ] || set -- "$@" --replicaof "$primary 6379"
exec valkey-server /etc/valkey/config/valkey.conf "$@"
