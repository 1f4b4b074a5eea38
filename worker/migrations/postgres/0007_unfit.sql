-- When a worker last said that it lacks its pool's bucket. A `dual` job that waits with a bucket leaves it only while every
-- living worker of the pool says so.
ALTER TABLE worker ADD COLUMN unfit_at bigint NOT NULL DEFAULT 0;
