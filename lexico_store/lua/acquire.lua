-- Takes a lease, or prolongs it for the one who holds it already.
-- KEYS[1]  name of the lease
-- ARGV[1]  the caller's token
-- ARGV[2]  life in milliseconds
-- returns  1 if the lease is the caller's now, 0 if another holds it
if redis.call("SET", KEYS[1], ARGV[1], "NX", "PX", ARGV[2]) then
  return 1
end
if redis.call("GET", KEYS[1]) == ARGV[1] then
  return redis.call("PEXPIRE", KEYS[1], ARGV[2])
end
return 0
