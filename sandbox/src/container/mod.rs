//! What a container is made of: one kernel facility a file.

pub(crate) mod devices;
pub(crate) mod files;
pub(crate) mod idmap;
pub(crate) mod mounts;
pub(crate) mod privileges;
pub(crate) mod proc;
pub(crate) mod rlimits;
pub(crate) mod rootfs;
pub(crate) mod seccomp;
pub(crate) mod volumes;
