-- Where else a job's bytes lie, or shall: the second copy of a `dual` job's input, copies of outputs in other pools, and what
-- a job left in a bucket that it was moved away from. Each row is a task of the job's own, with a lease and epochs like
-- the others; it stands in a table of its own because it takes no slot, holds up no other part of its job, and may outlive
-- the job's end.
CREATE TABLE replica (
    job_uid    TEXT    NOT NULL REFERENCES job (uid) ON DELETE CASCADE,
    what       TEXT    NOT NULL CHECK (what IN ('input', 'outputs', 'left')),
    pool       TEXT    NOT NULL,                       -- whose bucket it is in, or shall be
    -- `later` is for the job's success; `waiting` is claimed by whoever comes, once `not_before` has come: a claim moves that
    -- to its own end, so that of a dead one another follows.
    state      TEXT    NOT NULL CHECK (state IN ('later', 'waiting', 'done', 'cancelled')),
    not_before INTEGER NOT NULL,
    epoch      INTEGER NOT NULL DEFAULT 0,
    failures   INTEGER NOT NULL DEFAULT 0,
    owner      TEXT,
    code       TEXT,                                   -- of the last try that failed
    detail     TEXT,
    copy       INTEGER NOT NULL DEFAULT 0,             -- the epoch that did it
    bytes      INTEGER,
    sha256     TEXT,
    done_at    INTEGER,
    gone_at    INTEGER,                                -- nobody reads it from then on; its bytes go later
    swept      INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (job_uid, what, pool)
) STRICT;
CREATE INDEX replica_waiting ON replica (not_before) WHERE state = 'waiting';
CREATE INDEX replica_kept    ON replica (pool)       WHERE swept < 2 AND state <> 'later';

-- The copies follow the job, whoever changes it: with its end nobody copies its input any more, with its success its outputs
-- are copied, and with another series of attempts all begins again.
CREATE TRIGGER replica_ended AFTER UPDATE OF state ON job
WHEN new.state IN ('succeeded', 'failed', 'cancelled', 'dead') AND old.state <> new.state
BEGIN
    UPDATE replica SET state = 'cancelled', owner = NULL
        WHERE job_uid = new.uid AND what = 'input' AND state = 'waiting';
    UPDATE replica SET state = 'waiting', not_before = CAST(unixepoch('subsec') * 1000 AS INTEGER), failures = 0, owner = NULL
        WHERE job_uid = new.uid AND what = 'outputs' AND state = 'later' AND pool <> new.bucket AND new.state = 'succeeded';
END;
CREATE TRIGGER replica_again AFTER UPDATE OF state ON job
WHEN old.state IN ('succeeded', 'failed', 'cancelled', 'dead') AND new.state NOT IN ('succeeded', 'failed', 'cancelled', 'dead')
BEGIN
    UPDATE replica SET state = 'waiting', not_before = CAST(unixepoch('subsec') * 1000 AS INTEGER), failures = 0,
            owner = NULL, code = NULL, detail = NULL, done_at = NULL, gone_at = NULL, swept = 0
        WHERE job_uid = new.uid AND what = 'input' AND (state = 'cancelled' OR gone_at IS NOT NULL);
    UPDATE replica SET state = 'later', owner = NULL, done_at = NULL
        WHERE job_uid = new.uid AND what = 'outputs' AND state <> 'later';
END;
