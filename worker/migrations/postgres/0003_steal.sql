-- Which other pools may take a task that nobody has claimed yet, and from when: entered with the job, gone with the first
-- claim. The class stands here, too, so that the head of a class is one look into one index.
CREATE TABLE steal (
    task_uid text COLLATE "C" NOT NULL REFERENCES task (uid) ON DELETE CASCADE,
    pool     text COLLATE "C" NOT NULL,
    class    bigint NOT NULL,
    at       bigint NOT NULL,
    PRIMARY KEY (task_uid, pool)
) WITH (autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_threshold = 1000);
CREATE INDEX steal_due ON steal (pool, class, at, task_uid);
