-- What the object store shall lose, and when.

-- What upkeep asks of a spec, entered at accept: a spec may hold what this server reads as no JSON (a NUL in a label), so
-- nothing here looks into one. Jobs from before need neither, for their uploads were never entered below.
ALTER TABLE job ADD COLUMN retention_days bigint;
ALTER TABLE job ADD COLUMN input_path     text COLLATE "C";
-- From then on a job's outputs are not there for anybody; their bytes go later.
ALTER TABLE job ADD COLUMN outputs_gone_at  bigint;
ALTER TABLE job ADD COLUMN outputs_swept_at bigint;
-- How often what a lost attempt wrote was removed: a zombie may write again after the first time.
ALTER TABLE attempt ADD COLUMN swept bigint NOT NULL DEFAULT 0;

CREATE INDEX job_kept_by_default ON job (finished_at)
    WHERE state = 'succeeded' AND outputs_gone_at IS NULL AND retention_days IS NULL;
CREATE INDEX job_kept_by_spec ON job ((finished_at + retention_days * 86400000))
    WHERE state = 'succeeded' AND outputs_gone_at IS NULL AND retention_days IS NOT NULL;
CREATE INDEX job_outputs_gone ON job (outputs_gone_at)
    WHERE outputs_gone_at IS NOT NULL AND outputs_swept_at IS NULL;
CREATE INDEX job_by_input ON job (input_path)
    WHERE input_path IS NOT NULL;
CREATE INDEX attempt_lost ON attempt (ended_at)
    WHERE ended_at IS NOT NULL AND outcome <> 'succeeded' AND swept < 2;

-- Every upload that a URL was given out for.
CREATE TABLE upload (
    bucket  text COLLATE "C" NOT NULL,
    key     text COLLATE "C" NOT NULL,
    parts   text,                -- the object store's name for an upload in parts that is not complete
    look_at bigint NOT NULL,     -- when the sweeper looks at it next
    gone_at bigint,              -- no job may name it any more; its bytes go at look_at
    PRIMARY KEY (bucket, key)
);
CREATE INDEX upload_to_look_at ON upload (bucket, look_at);

-- Who sweeps a bucket: one worker at a time.
CREATE TABLE sweeping (
    bucket  text COLLATE "C" NOT NULL PRIMARY KEY,
    sweeper text NOT NULL,
    until   bigint NOT NULL
);
