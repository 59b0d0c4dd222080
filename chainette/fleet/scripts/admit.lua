-- The next root: repeatable by any coordinator, since the cursor must be where the caller thinks it is.
-- A: run, epoch, k, root, rows, record, effects, entry ("" for none), token
local RUN = need(A.run, 'string', 'run')
local EPOCH = need(A.epoch, 'number', 'epoch')
local P = prefix_of(RUN, EPOCH)
