//! A server on what earlier versions left.

mod served;

use serde_json::json;
use served::{Server, execute};

/// Makes a database what the first migration alone would have made of it.
const TO_FIRST_MIGRATION: &str = "insert into attempt_logs (job_id, attempt, content) \
         select id, attempt, log from jobs where log is not null; \
     drop trigger inputs_go_when_a_job_finishes; \
     alter table jobs drop column log; \
     delete from _sqlx_migrations where version > 1";

#[test]
fn a_database_of_the_first_migration_serves_its_jobs_and_their_logs() {
    let dir = tempfile::tempdir().expect("a directory");
    let data = dir.path().join("data");
    // One CPU, so that the second job waits for the first.
    let config = "capacity.cpus = 1.0";
    let server = Server::start_with(&data, config);
    let old = server.run(&json!({"script": "echo old"}));
    let path = format!("/v1/jobs/{}", old["id"].as_str().expect("an id"));
    let interrupted = server.submit(&json!({"script": "cat; sleep 1", "stdin": "interrupted"}));
    let queued = server.submit(&json!({"command": ["cat"], "stdin": "queued"}));
    server.wait_for(&interrupted, "running");
    server.signal("KILL");
    assert!(!server.ended().success());
    execute(&data, TO_FIRST_MIGRATION);

    let server = Server::start_with(&data, config);
    assert_eq!(server.get(&path).json(), old);
    assert_eq!(server.get(&format!("{path}/logs")).body, "old\n");
    for (id, stdout) in [(interrupted, "interrupted"), (queued, "queued")] {
        let job = server.wait_for(&id, "finished");
        assert_eq!(
            (&job["verdict"], &job["steps"][0]["stdout"]),
            (&json!("success"), &json!(stdout))
        );
    }
    assert_eq!(server.call("DELETE", &path, &[], "").status, 204);
    assert_eq!(server.get(&format!("{path}/logs")).status, 404);
}
