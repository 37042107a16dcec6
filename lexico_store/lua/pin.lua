-- Notes a pin of a tenant, if all of its pins together then hold no more than they may.
-- KEYS[1]  hash of pins: name → a line of JSON with `bytes`, and the keys of its pages
-- ARGV[1]  the pin's name
-- ARGV[2]  what to note
-- ARGV[3]  what was noted of it when it was read; empty for nothing
-- ARGV[4]  most bytes of all pins; below 0 for no bound
-- ARGV[5]  most pins
-- returns  1 if it is noted, 0 over the bytes, -1 for a pin too many, -2 if somebody else changed it
local function bytes(value)
  return cjson.decode(string.match(value, "^[^\n]*")).bytes
end
local former = redis.call("HGET", KEYS[1], ARGV[1]) or ""
if former ~= ARGV[3] and former ~= ARGV[2] then
  return -2
end
local total, others = bytes(ARGV[2]), 0
local record = redis.call("HGETALL", KEYS[1])
for i = 1, #record, 2 do
  if record[i] ~= ARGV[1] then
    total, others = total + bytes(record[i + 1]), others + 1
  end
end
if others >= tonumber(ARGV[5]) then
  return -1
end
if tonumber(ARGV[4]) >= 0 and total > tonumber(ARGV[4]) then
  return 0
end
redis.call("HSET", KEYS[1], ARGV[1], ARGV[2])
return 1
