# Whether this sentinel answers.
tls=""
[ ! -f /etc/valkey/store/tls.conf ] || tls="--tls --cacert /etc/valkey/tls/ca.crt"
# shellcheck disable=SC2086
exec valkey-cli $tls -e -p 26379 ping
