-- Who is told of what: webhooks, event sinks. And the words by which jobs are found.

-- Which jobs tell their end, entered at accept.
CREATE TABLE job_webhook (
    job_uid  text COLLATE "C" NOT NULL PRIMARY KEY REFERENCES job (uid) ON DELETE CASCADE,
    receiver text COLLATE "C" NOT NULL          -- host and port: of one receiver only so many are told at once
);

-- One row per end that is to be told. A claim is a try: it counts one up and moves `due_at` to its own end.
CREATE TABLE webhook (
    seq        bigint NOT NULL PRIMARY KEY REFERENCES event (seq) ON DELETE CASCADE,
    job_uid    text COLLATE "C" NOT NULL REFERENCES job (uid) ON DELETE CASCADE,
    kind       text   NOT NULL,
    receiver   text COLLATE "C" NOT NULL,
    state      text   NOT NULL DEFAULT 'pending' CHECK (state IN ('pending', 'delivered', 'given_up')),
    tries      bigint NOT NULL DEFAULT 0,
    due_at     bigint NOT NULL,
    detail     text,                            -- how the last try failed
    created_at bigint NOT NULL,
    ended_at   bigint,
    CHECK ((state = 'pending') = (ended_at IS NULL))
);
CREATE INDEX webhook_due    ON webhook (due_at) WHERE state = 'pending';
CREATE INDEX webhook_by_job ON webhook (job_uid, seq);

-- In the transaction that ends the job, whoever ends it.
CREATE FUNCTION webhook_enter() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO webhook (seq, job_uid, kind, receiver, due_at, created_at)
        SELECT new.seq, new.job_uid, new.kind, receiver, new.at, new.at FROM job_webhook WHERE job_uid = new.job_uid;
    RETURN NULL;
END
$$;
CREATE TRIGGER webhook_enter AFTER INSERT ON event FOR EACH ROW
WHEN (new.kind IN ('succeeded', 'failed', 'dead', 'cancelled'))
EXECUTE FUNCTION webhook_enter();

-- How far each event sink is, and who feeds it: one worker at a time.
CREATE TABLE sink (
    name   text COLLATE "C" NOT NULL PRIMARY KEY,
    sent   bigint NOT NULL,                     -- it has every event up to this one
    feeder text   NOT NULL,
    until  bigint NOT NULL
);

-- The words of titles and labels, as wire cuts them, and the tenant's name behind a colon, which no word has. Not in the
-- job's own row, which is written often. Jobs from before have none.
CREATE TABLE job_words (
    job_uid text COLLATE "C" NOT NULL PRIMARY KEY REFERENCES job (uid) ON DELETE CASCADE,
    words   tsvector NOT NULL
);
CREATE INDEX job_words_by_word ON job_words USING gin (words);
