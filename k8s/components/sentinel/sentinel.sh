# Starts a sentinel, with what it had found before if its volume still has it.
set -eu
file=/data/sentinel.conf
if [ ! -s "$file" ]; then
  { cat /etc/valkey/config/sentinel.conf /etc/valkey/auth/sentinel.conf
    echo "sentinel announce-ip $POD_NAME.lexico-sentinel"; } > "$file"
fi
exec valkey-sentinel "$file"
