-- Takes a page back, within the MULTI that stored it, if it was forgotten since it set out.
-- KEYS[1]  name of the page
-- KEYS[2]  its mark: when it was forgotten, in microseconds since 1970
-- ARGV[1]  when it set out
-- returns  1 if the page stays
-- What is no time, as somebody else may have written there, is no mark.
local mark = redis.pcall("GET", KEYS[2])
local forgotten = type(mark) == "string" and string.find(mark, "^%d+$") and #mark < 20 and tonumber(mark)
if forgotten and forgotten >= tonumber(ARGV[1]) then
  redis.call("UNLINK", KEYS[1])
  return 0
end
return 1
