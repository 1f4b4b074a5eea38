-- A job in ranges. Its first task ('video' 0) is done when the plan is committed; 'video' 1 … n are the ranges then, 'audio' is
-- the sound, and 'finalize' comes when all of them are done. Where rows of several tables are written, their order is task,
-- job, plan; and whoever has the job's row takes further tasks' only as far as nobody holds them.
CREATE TABLE plan (
    job_uid  text COLLATE "C" NOT NULL PRIMARY KEY REFERENCES job (uid) ON DELETE CASCADE,
    plan     text NOT NULL,
    encoder  text COLLATE "C",       -- of the first range that was done; only equal ones do the rest
    closed_at bigint,  -- the job ended long enough ago: what it left besides its outputs is nobody's
    swept_at  bigint   -- and removed
);
CREATE INDEX plan_unswept ON plan (job_uid) WHERE swept_at IS NULL;

-- The encoder that must do it; empty where any may.
ALTER TABLE task ADD COLUMN encoder    text COLLATE "C" NOT NULL DEFAULT '';
-- What a part of a job left, for the finalizer.
ALTER TABLE task ADD COLUMN result     text;
-- Seconds of media in it, and how many of them are done.
ALTER TABLE task ADD COLUMN media      float8 NOT NULL DEFAULT 0;
ALTER TABLE task ADD COLUMN media_done float8 NOT NULL DEFAULT 0;
-- What a worker encodes with, and when it was heard of last; unlike seen_at this stays when it says goodbye.
ALTER TABLE worker ADD COLUMN encoder  text COLLATE "C" NOT NULL DEFAULT '';
ALTER TABLE worker ADD COLUMN beat_at  bigint NOT NULL DEFAULT 0;
-- How long it leaves alone what an encoder began that is not heard of.
ALTER TABLE worker ADD COLUMN patience bigint NOT NULL DEFAULT 300000;

DROP INDEX task_waiting;
CREATE INDEX task_waiting ON task (pool, encoder, class, created_at, uid) WHERE state = 'waiting';
-- What any pool may take of lost work: whole jobs.
DROP INDEX task_orphaned;
CREATE INDEX task_orphaned ON task (class, created_at, uid)
    WHERE state = 'waiting' AND epoch > 0 AND kind = 'video' AND ordinal = 0;
