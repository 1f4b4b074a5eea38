-- Who is told of what: webhooks, event sinks. And the words by which jobs are found.

-- Which jobs tell their end, entered at accept.
CREATE TABLE job_webhook (
    job_uid  TEXT NOT NULL PRIMARY KEY REFERENCES job (uid) ON DELETE CASCADE,
    receiver TEXT NOT NULL                       -- host and port: of one receiver only so many are told at once
) STRICT;

-- One row per end that is to be told. A claim is a try: it counts one up and moves `due_at` to its own end.
CREATE TABLE webhook (
    seq        INTEGER NOT NULL PRIMARY KEY REFERENCES event (seq) ON DELETE CASCADE,
    job_uid    TEXT    NOT NULL REFERENCES job (uid) ON DELETE CASCADE,
    kind       TEXT    NOT NULL,
    receiver   TEXT    NOT NULL,
    state      TEXT    NOT NULL DEFAULT 'pending' CHECK (state IN ('pending', 'delivered', 'given_up')),
    tries      INTEGER NOT NULL DEFAULT 0,
    due_at     INTEGER NOT NULL,
    detail     TEXT,                             -- how the last try failed
    created_at INTEGER NOT NULL,
    ended_at   INTEGER,
    CHECK ((state = 'pending') = (ended_at IS NULL))
) STRICT;
CREATE INDEX webhook_due    ON webhook (due_at) WHERE state = 'pending';
CREATE INDEX webhook_by_job ON webhook (job_uid, seq);

-- In the transaction that ends the job, whoever ends it.
CREATE TRIGGER webhook_enter AFTER INSERT ON event
WHEN new.kind IN ('succeeded', 'failed', 'dead', 'cancelled')
BEGIN
    INSERT INTO webhook (seq, job_uid, kind, receiver, due_at, created_at)
        SELECT new.seq, new.job_uid, new.kind, receiver, new.at, new.at FROM job_webhook WHERE job_uid = new.job_uid;
END;

-- How far each event sink is, and who feeds it: one worker at a time.
CREATE TABLE sink (
    name   TEXT    NOT NULL PRIMARY KEY,
    sent   INTEGER NOT NULL,                     -- it has every event up to this one
    feeder TEXT    NOT NULL,
    until  INTEGER NOT NULL
) STRICT;

-- The words of titles and labels, as wire cuts them; marks are kept with their letters. Jobs from before have none.
CREATE VIRTUAL TABLE job_words USING fts5 (
    job_uid UNINDEXED, tenant, words,
    tokenize = "unicode61 remove_diacritics 0 categories 'L* N* Co Mn Mc Me'"
);
