# Starts a sentinel, with what it had found before if its volume still has it.
set -eu
file=/data/sentinel.conf
tls=/etc/valkey/store/tls.conf
if [ ! -s "$file" ]; then
  { cat /etc/valkey/config/sentinel.conf /etc/valkey/auth/sentinel.conf
    echo "sentinel announce-ip $POD_NAME.lexico-sentinel"
    [ ! -f "$tls" ] || { cat "$tls"; echo "tls-port 26379"; }; } > "$file"
fi
exec valkey-sentinel "$file"
