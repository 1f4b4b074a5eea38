//! Pieces that several statements have in common.

/// Milliseconds since 1970 by the database's clock, which goes on inside a transaction. A subquery, because a condition on a
/// volatile function could not use an index.
macro_rules! now {
    () => {
        "(SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint)"
    };
}

/// Needs `now!` beside it. Enters an event of a kind for every job in the statement's `j`, which must be how the jobs stand after it; `$body` is a
/// jsonb expression over its columns with what belongs to the kind.
///
/// The row's words go in as they are: one of a later version must not keep this one from writing.
macro_rules! event {
    ($kind:literal, $body:expr) => {
        concat!(
            "INSERT INTO event (job_uid, at, kind, body) SELECT uid, ",
            now!(),
            ", ",
            $kind,
            ", ",
            $body,
            " || jsonb_build_object('job', jsonb_strip_nulls(jsonb_build_object('job_id', job_id, 'state', state, \
             'phase', phase, 'progress', progress::jsonb, 'pool', pool, 'worker', worker, 'attempt', attempt, \
             'error', CASE WHEN error_code IS NOT NULL THEN \
             jsonb_build_object('code', error_code, 'detail', coalesce(error_detail, '')) END))) FROM j"
        )
    };
}

/// How many jobs worker `$1` holds, running ones and those that it accepted and nobody claimed; not counted past `$2`.
macro_rules! held {
    () => {
        "SELECT (SELECT count(*) FROM (SELECT FROM task WHERE state IN ('waiting', 'delayed') AND accepted_by = $1 LIMIT $2) w) \
         + (SELECT count(*) FROM task WHERE state = 'running' AND owner = $1) AS jobs"
    };
}

pub(super) use {event, held, now};
