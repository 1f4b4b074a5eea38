-- Where else a job's bytes lie, or shall: the second copy of a `dual` job's input, copies of outputs in other pools, and what
-- a job left in a bucket that it was moved away from. Each row is a task of the job's own, with a lease and epochs like
-- the others; it stands in a table of its own because it takes no slot, holds up no other part of its job, and may outlive
-- the job's end.
CREATE TABLE replica (
    job_uid    text COLLATE "C" NOT NULL REFERENCES job (uid) ON DELETE CASCADE,
    what       text COLLATE "C" NOT NULL CHECK (what IN ('input', 'outputs', 'left')),
    pool       text COLLATE "C" NOT NULL,              -- whose bucket it is in, or shall be
    -- `later` is for the job's success; `waiting` is claimed by whoever comes, once `not_before` has come: a claim moves that
    -- to its own end, so that of a dead one another follows.
    state      text   NOT NULL CHECK (state IN ('later', 'waiting', 'done', 'cancelled')),
    not_before bigint NOT NULL,
    epoch      bigint NOT NULL DEFAULT 0,
    failures   bigint NOT NULL DEFAULT 0,
    owner      text,
    code       text,                                   -- of the last try that failed
    detail     text,
    copy       bigint NOT NULL DEFAULT 0,              -- the epoch that did it
    bytes      bigint,
    sha256     text,
    done_at    bigint,
    gone_at    bigint,                                 -- nobody reads it from then on; its bytes go later
    swept      bigint NOT NULL DEFAULT 0,
    PRIMARY KEY (job_uid, what, pool)
);
CREATE INDEX replica_waiting ON replica (not_before) WHERE state = 'waiting';
-- What may be past its time: never what stays as long as its job's outputs do, of which there may be many.
CREATE INDEX replica_kept    ON replica (pool)          WHERE swept < 2 AND gone_at IS NULL AND what <> 'outputs';
CREATE INDEX replica_gone    ON replica (pool, gone_at) WHERE swept < 2 AND gone_at IS NOT NULL;

-- The copies follow the job, whoever changes it: with its end nobody copies its input any more, with its success its outputs
-- are copied, and with another series of attempts all begins again.
CREATE FUNCTION replica_follow() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    now bigint := (extract(epoch FROM clock_timestamp()) * 1000)::bigint;
BEGIN
    IF new.state IN ('succeeded', 'failed', 'cancelled', 'dead') THEN
        UPDATE replica SET state = 'cancelled', owner = NULL
            WHERE job_uid = new.uid AND what = 'input' AND state = 'waiting';
        IF new.state = 'succeeded' THEN
            UPDATE replica SET state = 'waiting', not_before = now, failures = 0, owner = NULL
                WHERE job_uid = new.uid AND what = 'outputs' AND state = 'later' AND pool <> new.bucket;
        END IF;
    ELSE
        UPDATE replica SET state = 'waiting', not_before = now, failures = 0, owner = NULL, code = NULL, detail = NULL,
                done_at = NULL, gone_at = NULL, swept = 0
            WHERE job_uid = new.uid AND what = 'input' AND (state = 'cancelled' OR gone_at IS NOT NULL);
        UPDATE replica SET state = 'later', owner = NULL, done_at = NULL
            WHERE job_uid = new.uid AND what = 'outputs' AND state <> 'later';
    END IF;
    RETURN NULL;
END
$$;
-- With a job's outputs go their copies.
CREATE FUNCTION replica_go() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE replica SET gone_at = new.outputs_gone_at WHERE job_uid = new.uid AND what = 'outputs' AND gone_at IS NULL;
    RETURN NULL;
END
$$;
CREATE TRIGGER replica_go AFTER UPDATE OF outputs_gone_at ON job FOR EACH ROW
WHEN (old.outputs_gone_at IS NULL AND new.outputs_gone_at IS NOT NULL)
EXECUTE FUNCTION replica_go();
CREATE TRIGGER replica_follow AFTER UPDATE OF state ON job FOR EACH ROW
WHEN (old.state <> new.state AND (new.state IN ('succeeded', 'failed', 'cancelled', 'dead')
    OR old.state IN ('succeeded', 'failed', 'cancelled', 'dead')))
EXECUTE FUNCTION replica_follow();
