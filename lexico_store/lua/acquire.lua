-- Takes a lease, or prolongs it for the one who holds it already. The value says until when it is held: the name's
-- own expiry is later than that of pages, so that a full server does not let leases go first.
-- KEYS[1]  name of the lease
-- ARGV[1]  the caller's token
-- ARGV[2]  life in milliseconds
-- ARGV[3]  milliseconds after which nobody asks for it any more
-- returns  1 if the lease is the caller's now, 0 if another holds it
local time = redis.call("TIME")
local now = time[1] * 1000 + math.floor(time[2] / 1000)
-- What is no lease, or ends when none does, as somebody else may have written there, holds nothing.
local most = now + math.max(ARGV[2], ARGV[3])
local held = redis.pcall("GET", KEYS[1])
local colon = type(held) == "string" and string.find(held, ":", 1, true)
local ends = colon and tonumber(string.sub(held, 1, colon - 1))
if ends and string.sub(held, colon + 1) ~= ARGV[1] and ends > now and ends <= most then
  return 0
end
redis.call("SET", KEYS[1], string.format("%.0f:", now + ARGV[2]) .. ARGV[1], "PX", math.max(ARGV[2], ARGV[3]))
return 1
