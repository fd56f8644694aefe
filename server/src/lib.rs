//! The server of lazaret: takes jobs over HTTP, stores them, runs each in a container of its own,
//! and shows what became of them. ARCHITECTURE.md follows a job through these modules.

pub mod config;
pub mod job;
pub mod scheduler;
pub mod store;
