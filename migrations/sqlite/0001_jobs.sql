-- Jobs, what they bring along, what they wrote. Times are microseconds since 1970, UTC.

create table jobs (
    id               blob    not null primary key check (length(id) = 16),
    state            text    not null check (state in ('queued', 'running', 'finished')),
    verdict          text,
    attempt          integer not null,
    version          integer not null,
    cancel_requested integer not null default 0,
    created_at       integer not null,
    started_at       integer,
    finished_at      integer,
    spec             text    not null,
    outcome          text,
    check ((state = 'finished') = (verdict is not null)),
    check ((state = 'finished') = (outcome is not null)),
    check ((state = 'finished') = (finished_at is not null))
) strict;

-- Lists by state, newest first, and finds what is unfinished at the start of the server.
create index jobs_by_state on jobs (state, id);

create table job_labels (
    key    text not null,
    value  text not null,
    job_id blob not null references jobs (id) on delete cascade,
    primary key (key, value, job_id)
) strict, without rowid;

create index job_labels_by_job on job_labels (job_id);

-- Files and stdin of a job that is not finished.
create table job_inputs (
    job_id  blob not null primary key references jobs (id) on delete cascade,
    content blob not null
) strict;

-- Spools of ended attempts that are small enough to be a row.
create table attempt_logs (
    job_id  blob    not null references jobs (id) on delete cascade,
    attempt integer not null,
    content blob    not null,
    primary key (job_id, attempt)
) strict;

create table idempotency_keys (
    key         text    not null primary key,
    fingerprint blob    not null,
    job_id      blob    not null references jobs (id) on delete cascade,
    created_at  integer not null
) strict;

create index idempotency_keys_by_age on idempotency_keys (created_at);
create index idempotency_keys_by_job on idempotency_keys (job_id);
