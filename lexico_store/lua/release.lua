-- Ends a lease, but only for its holder.
-- KEYS[1]  name of the lease
-- ARGV[1]  the holder's token
-- returns  1 if the lease was the holder's and is gone, 0 if it had expired or belongs to another
if redis.call("GET", KEYS[1]) == ARGV[1] then
  return redis.call("DEL", KEYS[1])
end
return 0
