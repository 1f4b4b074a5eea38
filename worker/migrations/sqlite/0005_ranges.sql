-- A job in ranges. Its first task ('video' 0) is done when the plan is committed; 'video' 1 … n are the ranges then, 'audio' is
-- the sound, and 'finalize' comes when all of them are done.
CREATE TABLE plan (
    job_uid  TEXT NOT NULL PRIMARY KEY REFERENCES job (uid) ON DELETE CASCADE,
    plan     TEXT NOT NULL,
    encoder  TEXT,                   -- of the first range that was done; only equal ones do the rest
    closed_at INTEGER,  -- the job ended long enough ago: what it left besides its outputs is nobody's
    swept_at  INTEGER   -- and removed
) STRICT;
CREATE INDEX plan_unswept ON plan (job_uid) WHERE swept_at IS NULL;

-- The encoder that must do it; empty where any may.
ALTER TABLE task ADD COLUMN encoder    TEXT NOT NULL DEFAULT '';
-- What a part of a job left, for the finalizer.
ALTER TABLE task ADD COLUMN result     TEXT;
-- Seconds of media in it, and how many of them are done.
ALTER TABLE task ADD COLUMN media      REAL NOT NULL DEFAULT 0;
ALTER TABLE task ADD COLUMN media_done REAL NOT NULL DEFAULT 0;
-- What a worker encodes with, and when it was heard of last; unlike seen_at this stays when it says goodbye.
ALTER TABLE worker ADD COLUMN encoder  TEXT NOT NULL DEFAULT '';
ALTER TABLE worker ADD COLUMN beat_at  INTEGER NOT NULL DEFAULT 0;
-- How long it leaves alone what an encoder began that is not heard of.
ALTER TABLE worker ADD COLUMN patience INTEGER NOT NULL DEFAULT 300000;
