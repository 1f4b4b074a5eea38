-- What the object store shall lose, and when. Numbered far from the others: it stands on the tables of jobs alone.

-- From then on a job's outputs are not there for anybody; their bytes go later.
ALTER TABLE job ADD COLUMN outputs_gone_at  INTEGER;
ALTER TABLE job ADD COLUMN outputs_swept_at INTEGER;
-- How often what a lost attempt wrote was removed: a zombie may write again after the first time.
ALTER TABLE attempt ADD COLUMN swept INTEGER NOT NULL DEFAULT 0;

CREATE INDEX job_kept_by_default ON job (finished_at)
    WHERE state = 'succeeded' AND outputs_gone_at IS NULL AND json_extract(spec, '$.retention_days') IS NULL;
CREATE INDEX job_kept_by_spec ON job (finished_at + json_extract(spec, '$.retention_days') * 86400000)
    WHERE state = 'succeeded' AND outputs_gone_at IS NULL AND json_extract(spec, '$.retention_days') IS NOT NULL;
CREATE INDEX job_outputs_gone ON job (outputs_gone_at)
    WHERE outputs_gone_at IS NOT NULL AND outputs_swept_at IS NULL;
CREATE INDEX job_by_input ON job (json_extract(spec, '$.input_path'))
    WHERE json_extract(spec, '$.input_path') IS NOT NULL;
CREATE INDEX attempt_lost ON attempt (ended_at)
    WHERE ended_at IS NOT NULL AND outcome <> 'succeeded' AND swept < 2;

-- Every upload that a URL was given out for.
CREATE TABLE upload (
    bucket  TEXT    NOT NULL,
    key     TEXT    NOT NULL,
    parts   TEXT,                -- the object store's name for an upload in parts that is not complete
    look_at INTEGER NOT NULL,    -- when the sweeper looks at it next
    gone_at INTEGER,             -- no job may name it any more; its bytes go at look_at
    PRIMARY KEY (bucket, key)
) STRICT;
CREATE INDEX upload_to_look_at ON upload (bucket, look_at);

-- Who sweeps a bucket: one worker at a time.
CREATE TABLE sweeping (
    bucket  TEXT    NOT NULL PRIMARY KEY,
    sweeper TEXT    NOT NULL,
    until   INTEGER NOT NULL
) STRICT;
