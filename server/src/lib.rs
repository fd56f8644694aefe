//! The server of lazaret: takes jobs over HTTP, stores them, runs each in a container of its own,
//! and shows what became of them. ARCHITECTURE.md follows a job through these modules.

pub mod api;
pub mod build;
pub mod cli;
pub mod clock;
pub mod commit;
pub mod config;
pub mod dispatch;
mod feed;
pub mod holds;
pub mod job;
pub mod listener;
pub mod live;
pub mod logs;
pub mod pool;
pub mod registry;
pub mod request;
pub mod runner;
pub mod scheduler;
pub mod store;
pub mod telemetry;
pub mod volumes;
