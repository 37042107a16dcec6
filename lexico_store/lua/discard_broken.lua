-- Removes a page that no commit leaves so: not a hash, or a frame of it is missing, empty or too long.
-- KEYS[1]  name of the page
-- ARGV[1]  most frames of a page
-- ARGV[2]  most bytes of a frame
-- returns  1 if it was there and is gone, 0 if it is whole or not there
local function broken()
  local fields = redis.pcall("HLEN", KEYS[1])
  if type(fields) == "table" then
    assert(string.find(fields.err, "WRONGTYPE", 1, true), fields.err)
    return true
  end
  if fields == 0 then
    return false
  end
  local frames = 0
  for group = 0, ARGV[1] - 1 do
    local length = redis.call("HSTRLEN", KEYS[1], "g" .. group)
    if length > tonumber(ARGV[2]) then
      return true
    end
    if length > 0 then
      if group > frames then
        return true
      end
      frames = frames + 1
    end
  end
  -- An empty frame at the end counts for nothing above. Earlier releases did not note how many there are.
  local noted = redis.call("HGET", KEYS[1], "m")
  if noted and noted ~= "" then
    return tonumber(noted) ~= frames
  end
  return frames == 0 or redis.call("HEXISTS", KEYS[1], "g" .. frames) == 1
end
if broken() then
  redis.call("UNLINK", KEYS[1])
  return 1
end
return 0
