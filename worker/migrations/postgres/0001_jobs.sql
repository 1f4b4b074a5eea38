-- The job store on a server. Times are milliseconds since 1970 by the database's own clock; states and phases are the API's
-- words. Names that are compared or sorted have collation C, so that every server sorts them alike. Rows that are often
-- written leave room on their page, so that a write touches no index. Where task rows and their job's are both written, the
-- task is first: two transactions that follow this cannot wait for each other.

CREATE TABLE meta (
    key   text NOT NULL PRIMARY KEY,
    value text NOT NULL
);

-- One row per worker name; a restart is a higher incarnation.
CREATE TABLE worker (
    name          text COLLATE "C" NOT NULL PRIMARY KEY,
    pool          text COLLATE "C" NOT NULL,
    incarnation   bigint NOT NULL,
    registered_at bigint NOT NULL,
    seen_at       bigint NOT NULL
);
CREATE INDEX worker_alive ON worker (pool, seen_at);

-- What a client asked for and reads back.
CREATE TABLE job (
    uid                 text COLLATE "C" NOT NULL PRIMARY KEY,  -- UUIDv7: sorts by acceptance
    tenant              text COLLATE "C" NOT NULL,
    job_id              text COLLATE "C" NOT NULL,
    spec                text   NOT NULL,               -- canonical JSON of the client's asking
    spec_hash           text   NOT NULL,
    class               bigint NOT NULL CHECK (class BETWEEN 0 AND 2),  -- 0 live, 1 normal, 2 batch
    state               text COLLATE "C" NOT NULL CHECK (state IN
                          ('queued', 'running', 'retry_wait', 'succeeded', 'failed', 'cancelled', 'dead')),
    phase               text            CHECK (phase IN ('source', 'probing', 'encoding', 'publishing')),
    pool                text   NOT NULL,               -- where it was accepted, then where it runs
    bucket              text   NOT NULL,               -- where its outputs go, fixed at accept
    worker              text,
    attempt             bigint NOT NULL DEFAULT 0,
    epoch               bigint NOT NULL DEFAULT 0,     -- of the claim that may publish
    progress            text   NOT NULL DEFAULT '{"percent":0.0}',
    manifest            text,                          -- where the outputs lie; readers resolve through it
    error_code          text,
    error_detail        text,
    cancel_requested_at bigint,
    created_at          bigint NOT NULL,
    started_at          bigint,
    finished_at         bigint,
    UNIQUE (tenant, job_id),
    CHECK ((state = 'succeeded') = (manifest IS NOT NULL)),
    CHECK ((phase IS NOT NULL) <= (state = 'running'))
) WITH (fillfactor = 80);
CREATE INDEX job_by_age   ON job (tenant, uid DESC);
CREATE INDEX job_by_state ON job (tenant, state, uid DESC);

-- What workers claim. The lease is here: owner, epoch, expiry. Every claim raises the epoch; a write with a lower one
-- changes nothing. What must wait for its back-off is `delayed`, so that it does not stand at the head of a queue that it
-- may not leave; a claim makes it `waiting` when its time has come.
CREATE TABLE task (
    uid               text COLLATE "C" NOT NULL PRIMARY KEY,
    job_uid           text COLLATE "C" NOT NULL REFERENCES job (uid) ON DELETE CASCADE,
    kind              text   NOT NULL CHECK (kind IN ('source', 'probe', 'video', 'audio', 'thumbnails', 'finalize')),
    ordinal           bigint NOT NULL DEFAULT 0,
    state             text   NOT NULL CHECK (state IN ('waiting', 'delayed', 'running', 'done', 'failed', 'cancelled')),
    pool              text COLLATE "C" NOT NULL,
    class             bigint NOT NULL,
    accepted_by       text COLLATE "C" NOT NULL,
    work_seconds      float8 NOT NULL,                 -- reference-seconds; better known after the probe
    not_before        bigint NOT NULL,
    epoch             bigint NOT NULL DEFAULT 0,
    failures          bigint NOT NULL DEFAULT 0,       -- attempts that count towards giving up
    owner             text COLLATE "C",
    owner_incarnation bigint,
    lease_expires_at  bigint,
    created_at        bigint NOT NULL,
    UNIQUE (job_uid, kind, ordinal),
    CHECK ((state = 'running') = (owner IS NOT NULL AND lease_expires_at IS NOT NULL))
) WITH (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_threshold = 1000);
CREATE INDEX task_waiting  ON task (pool, class, created_at, uid) WHERE state = 'waiting';
CREATE INDEX task_orphaned ON task (class, created_at, uid)       WHERE state = 'waiting' AND epoch > 0;
CREATE INDEX task_delayed  ON task (not_before)                   WHERE state = 'delayed';
CREATE INDEX task_accepted ON task (accepted_by)                  WHERE state IN ('waiting', 'delayed');
CREATE INDEX task_queued   ON task (pool) INCLUDE (work_seconds)  WHERE state IN ('waiting', 'delayed');
CREATE INDEX task_leased   ON task (lease_expires_at)             WHERE state = 'running';
CREATE INDEX task_owned    ON task (owner)                        WHERE state = 'running';

-- One row per try, kept for ever: who tried, how it ended.
CREATE TABLE attempt (
    task_uid   text COLLATE "C" NOT NULL REFERENCES task (uid) ON DELETE CASCADE,
    number     bigint NOT NULL,                        -- the epoch of the claim
    worker     text   NOT NULL,
    pool       text   NOT NULL,
    started_at bigint NOT NULL,
    ended_at   bigint,
    outcome    text CHECK (outcome IN ('succeeded', 'failed', 'released', 'cancelled', 'lease_lost')),
    code       text,
    detail     text,
    PRIMARY KEY (task_uid, number)
);

-- The outbox: everything a listener may want to know. Of one job the numbers rise as its events were committed, because
-- whoever enters one holds the job's row; of several jobs a lower number may appear after a higher one.
CREATE TABLE event (
    seq     bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    job_uid text COLLATE "C" NOT NULL REFERENCES job (uid) ON DELETE CASCADE,
    at      bigint NOT NULL,
    kind    text   NOT NULL,
    body    jsonb  NOT NULL
);
CREATE INDEX event_by_job ON event (job_uid, seq);
