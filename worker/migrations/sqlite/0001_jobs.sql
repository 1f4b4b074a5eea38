-- The job store. Times are milliseconds since 1970 by the database's own clock; states and phases are the API's words.

CREATE TABLE meta (
    key   TEXT NOT NULL PRIMARY KEY,
    value TEXT NOT NULL
) STRICT;

-- One row per worker name; a restart is a higher incarnation.
CREATE TABLE worker (
    name          TEXT    NOT NULL PRIMARY KEY,
    pool          TEXT    NOT NULL,
    incarnation   INTEGER NOT NULL,
    registered_at INTEGER NOT NULL,
    seen_at       INTEGER NOT NULL
) STRICT;

-- What a client asked for and reads back.
CREATE TABLE job (
    uid                 TEXT    NOT NULL PRIMARY KEY,  -- UUIDv7: sorts by acceptance
    tenant              TEXT    NOT NULL,
    job_id              TEXT    NOT NULL,
    spec                TEXT    NOT NULL,              -- canonical JSON of the client's asking
    spec_hash           TEXT    NOT NULL,
    class               INTEGER NOT NULL CHECK (class BETWEEN 0 AND 2),  -- 0 live, 1 normal, 2 batch
    state               TEXT    NOT NULL CHECK (state IN
                          ('queued', 'running', 'retry_wait', 'succeeded', 'failed', 'cancelled', 'dead')),
    phase               TEXT             CHECK (phase IN ('source', 'probing', 'encoding', 'publishing')),
    pool                TEXT    NOT NULL,              -- where it was accepted, then where it runs
    bucket              TEXT    NOT NULL,              -- where its outputs go, fixed at accept
    worker              TEXT,
    attempt             INTEGER NOT NULL DEFAULT 0,
    epoch               INTEGER NOT NULL DEFAULT 0,    -- of the claim that may publish
    progress            TEXT    NOT NULL DEFAULT '{"percent":0.0}',
    manifest            TEXT,                          -- where the outputs lie; readers resolve through it
    error_code          TEXT,
    error_detail        TEXT,
    cancel_requested_at INTEGER,
    created_at          INTEGER NOT NULL,
    started_at          INTEGER,
    finished_at         INTEGER,
    UNIQUE (tenant, job_id),
    CHECK ((state = 'succeeded') = (manifest IS NOT NULL)),
    CHECK ((phase IS NOT NULL) <= (state = 'running'))
) STRICT;
CREATE INDEX job_by_age   ON job (tenant, uid DESC);
CREATE INDEX job_by_state ON job (tenant, state, uid DESC);

-- What workers claim. A job has one video task for now; ranges, audio and thumbnails become further rows.
-- The lease is here: owner, epoch, expiry. Every claim raises the epoch; a write with a lower one changes nothing.
CREATE TABLE task (
    uid               TEXT    NOT NULL PRIMARY KEY,
    job_uid           TEXT    NOT NULL REFERENCES job (uid) ON DELETE CASCADE,
    kind              TEXT    NOT NULL CHECK (kind IN ('source', 'probe', 'video', 'audio', 'thumbnails', 'finalize')),
    ordinal           INTEGER NOT NULL DEFAULT 0,
    state             TEXT    NOT NULL CHECK (state IN ('waiting', 'running', 'done', 'failed', 'cancelled')),
    pool              TEXT    NOT NULL,
    class             INTEGER NOT NULL,
    accepted_by       TEXT    NOT NULL,
    work_seconds      REAL    NOT NULL,                -- reference-seconds; better known after the probe
    not_before        INTEGER NOT NULL,
    epoch             INTEGER NOT NULL DEFAULT 0,
    failures          INTEGER NOT NULL DEFAULT 0,      -- attempts that count towards giving up
    owner             TEXT,
    owner_incarnation INTEGER,
    lease_expires_at  INTEGER,
    created_at        INTEGER NOT NULL,
    UNIQUE (job_uid, kind, ordinal),
    CHECK ((state = 'running') = (owner IS NOT NULL AND lease_expires_at IS NOT NULL))
) STRICT;
CREATE INDEX task_waiting  ON task (pool, class, created_at) WHERE state = 'waiting';
CREATE INDEX task_accepted ON task (accepted_by)             WHERE state = 'waiting';
CREATE INDEX task_leased   ON task (lease_expires_at)        WHERE state = 'running';
CREATE INDEX task_owned    ON task (owner)                   WHERE state = 'running';

-- One row per try, kept for ever: who tried, how it ended.
CREATE TABLE attempt (
    task_uid   TEXT    NOT NULL REFERENCES task (uid) ON DELETE CASCADE,
    number     INTEGER NOT NULL,                       -- the epoch of the claim
    worker     TEXT    NOT NULL,
    pool       TEXT    NOT NULL,
    started_at INTEGER NOT NULL,
    ended_at   INTEGER,
    outcome    TEXT CHECK (outcome IN ('succeeded', 'failed', 'released', 'cancelled', 'lease_lost')),
    code       TEXT,
    detail     TEXT,
    PRIMARY KEY (task_uid, number)
) STRICT;

-- The outbox: everything a listener may want to know, in order.
CREATE TABLE event (
    seq     INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    job_uid TEXT    NOT NULL REFERENCES job (uid) ON DELETE CASCADE,
    at      INTEGER NOT NULL,
    kind    TEXT    NOT NULL,
    body    TEXT    NOT NULL
) STRICT;
CREATE INDEX event_by_job ON event (job_uid, seq);
