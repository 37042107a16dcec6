-- Ends a lease, but only for its holder.
-- KEYS[1]  name of the lease
-- ARGV[1]  the holder's token
-- returns  1 if the lease was the holder's and is gone, 0 if it had expired or belongs to another
local held = redis.pcall("GET", KEYS[1])
local colon = type(held) == "string" and string.find(held, ":", 1, true)
if not colon or string.sub(held, colon + 1) ~= ARGV[1] then
  return 0
end
redis.call("DEL", KEYS[1])
local time = redis.call("TIME")
local now = time[1] * 1000 + math.floor(time[2] / 1000)
return (tonumber(string.sub(held, 1, colon - 1)) or 0) > now and 1 or 0
