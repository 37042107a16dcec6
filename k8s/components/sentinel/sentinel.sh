# Starts a sentinel: with what it had found before if its volume still has it, else at the primary
# that others know. A guess would be a replica after a failover, and nobody would correct it.
set -eu
self="$POD_NAME.lexico-sentinel:26379"
file=/data/sentinel.conf
tls=""
[ ! -f /etc/valkey/store/tls.conf ] || tls="--tls --cacert /etc/valkey/tls/ca.crt"
. /etc/valkey/config/primary.sh
if [ ! -s "$file" ]; then
  until primary=$(named) || primary=$(followed); do
    wait_while "no sentinel names a primary, nor do two stores follow the same one"
  done
  echo "the primary is $primary"
  { cat /etc/valkey/config/sentinel.conf /etc/valkey/auth/sentinel.conf
    echo "sentinel announce-ip ${self%:*}"
    echo "sentinel monitor lexico ${primary%:*} ${primary##*:} 2"
    for each in $stores; do # so that one takes over from a primary that never answered us
      [ "$each" = "$primary" ] || echo "sentinel known-replica lexico ${each%:*} ${each##*:}"
    done
    [ -z "$tls" ] || { cat /etc/valkey/store/tls.conf; echo "tls-port ${self##*:}"; }; } > "$file.new"
  mv "$file.new" "$file"
fi
exec valkey-sentinel "$file"
