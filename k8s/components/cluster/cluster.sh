# Makes one cluster of the servers in NODES, or has those that know each other meet again. It can be
# run at any time, and changes nothing where all is well. Its user's password is in REDISCLI_AUTH.
set -eu
tls=""
[ ! -f /etc/valkey/config/tls.conf ] || tls="--tls --cacert /etc/valkey/tls/ca.crt"
ask() { # HOST:PORT COMMAND...
  node=$1
  shift
  # shellcheck disable=SC2086
  valkey-cli $tls -e --user operator -h "${node%:*}" -p "${node##*:}" "$@"
}
tries=0
for node in $NODES; do
  until ask "$node" ping >/dev/null 2>&1; do
    tries=$((tries + 1))
    [ "$tries" -lt "${TRIES:-150}" ] || { echo "no answer from $node" >&2; exit 1; }
    sleep 2
  done
done
addresses=""
for node in $NODES; do # CLUSTER MEET takes addresses alone
  address=$(getent hosts "${node%:*}" | awk 'NR == 1 { print $1 }')
  addresses="$addresses ${address:?$node has no address}:${node##*:}"
done
first=${NODES%% *}
if ask "$first" cluster info | grep -q '^cluster_slots_assigned:0'; then
  # shellcheck disable=SC2086
  valkey-cli $tls --user operator --cluster create $addresses --cluster-replicas "${REPLICAS:-1}" --cluster-yes
else
  for address in $addresses; do
    ask "$first" cluster meet "${address%:*}" "${address##*:}" >/dev/null
  done
fi
until ask "$first" cluster info | grep -q '^cluster_state:ok'; do
  tries=$((tries + 1))
  [ "$tries" -lt "${TRIES:-150}" ] || { echo "the cluster is not whole" >&2; exit 1; }
  sleep 2
done
ask "$first" cluster info | head -n 6
