# shellcheck shell=sh disable=SC2086
# Who the store's primary is, by what others say. For start.sh and sentinel.sh, which set `self`, the
# HOST:PORT of who asks, and `tls`, options of valkey-cli.
stores="lexico-store-0.lexico-store:6379 lexico-store-1.lexico-store:6379 lexico-store-2.lexico-store:6379"
sentinels="lexico-sentinel-0.lexico-sentinel:26379 lexico-sentinel-1.lexico-sentinel:26379 lexico-sentinel-2.lexico-sentinel:26379"

# HOST:PORT WORDS...: its answer on one line; nothing from one who gives none within three seconds.
ask() {
  node=$1
  shift
  timeout 3 valkey-cli $tls -e -h "${node%:*}" -p "${node##*:}" "$@" 2>/dev/null | tr '\n' ' '
}

# HOST:PORT WORDS...: a server's answer to sentinels' user, who may ask `role` and `info`.
as_sentinels() (
  REDISCLI_AUTH=$(sed -n 's/^sentinel auth-pass lexico //p' /etc/valkey/auth/sentinel.conf)
  export REDISCLI_AUTH
  node=$1
  shift
  ask "$node" --user "$(sed -n 's/^sentinel auth-user lexico //p' /etc/valkey/auth/sentinel.conf)" "$@"
)

# HOST:PORT of a server: whom it follows, itself where it is a primary.
follows() {
  set -- "$1" $(as_sentinels "$1" role)
  case "${2:-}" in
    master) echo "$1" ;;
    slave) echo "$3:$4" ;;
  esac
}

# HOST:PORT: the same, if it is one of the stores, and does not say that it follows another.
unless_it_denies() {
  case " $stores " in *" $1 "*) ;; *) return 1 ;; esac
  said=$(follows "$1")
  [ "${said:-$1}" = "$1" ] && echo "$1"
}

# The primary that the other sentinels name, those that answer, if it is one.
named() {
  found=""
  for each in $sentinels; do
    [ "$each" != "$self" ] || continue
    set -- $(ask "$each" sentinel get-master-addr-by-name lexico)
    [ $# = 2 ] || continue
    [ "${found:-$1:$2}" = "$1:$2" ] || return 1
    found=$1:$2
  done
  unless_it_denies "$found"
}

# The primary of two of the three stores: there are no two such.
followed() {
  unless_it_denies "$(for each in $stores; do follows "$each"; done | sort | uniq -d)"
}

# What is wrong, once, and a while until it is asked again.
wait_while() {
  [ "${reason:-}" = "$1" ] || echo "waiting: $1" >&2
  reason=$1
  sleep 2
}
