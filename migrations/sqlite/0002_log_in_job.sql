-- The end of a job as one statement: its small log goes into its row, and what it brought along goes
-- away with the state that needed it. Each statement of a change is a trip between two threads, and
-- each table that it touches is a page that has to be synced.

-- The spool of the attempt that ended the job, if it is small enough. Those of earlier attempts stay
-- in attempt_logs. The last column: who reads the others does not read its pages.
alter table jobs add column log blob;

create trigger inputs_go_when_a_job_finishes
after update of state on jobs
when new.state = 'finished'
begin
    delete from job_inputs where job_id = new.id;
end;
