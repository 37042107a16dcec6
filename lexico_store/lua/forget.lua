-- Begins a generation: of one namespace, or of all, which makes those of single ones needless.
-- KEYS[1]  hash of a tenant's generations: namespace, or * for all → microseconds since 1970
-- ARGV[1]  the namespace, or *
-- ARGV[2]  now, in microseconds since 1970
-- ARGV[3]  most fields
-- returns  the generation, or nothing where the hash is full
local former = 0
for _, number in ipairs(redis.call("HVALS", KEYS[1])) do
  former = math.max(former, tonumber(number))
end
if ARGV[1] == "*" then
  redis.call("DEL", KEYS[1])
elseif redis.call("HLEN", KEYS[1]) >= tonumber(ARGV[3]) and redis.call("HEXISTS", KEYS[1], ARGV[1]) == 0 then
  return nil
end
local number = string.format("%.0f", math.max(tonumber(ARGV[2]), former + 1))
redis.call("HSET", KEYS[1], ARGV[1], number)
return number
