-- Which other pools may take a task that nobody has claimed yet, and from when: entered with the job, gone with the first
-- claim.
CREATE TABLE steal (
    task_uid TEXT    NOT NULL REFERENCES task (uid) ON DELETE CASCADE,
    pool     TEXT    NOT NULL,
    class    INTEGER NOT NULL,
    at       INTEGER NOT NULL,
    PRIMARY KEY (task_uid, pool)
) STRICT, WITHOUT ROWID;
CREATE INDEX steal_due ON steal (pool, at);
