-- For scripts about a partition as it is. KEYS[1] cg:{p}:workers
local prefix = string.sub(KEYS[1], 1, -#'workers' - 1)
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
