//! Every `unsafe` block of the workspace: the calls that neither std nor nix nor rustix offer as
//! safe functions. What is here is as small as it can be and knows nothing of containers.
#![expect(unsafe_code, reason = "this is the one place where it may be; see ARCHITECTURE.md")]

mod fd;
mod heap;
mod mount;
mod net;
mod process;
mod quota;

pub(crate) use fd::close_on_exec_from;
pub(crate) use heap::bound_heap;
pub(crate) use mount::{MountAttributes, set_mount_attributes};
pub(crate) use net::raise_loopback;
pub(crate) use process::{
    Fork, Namespaces, OneThread, clone_process, exec, exit, fork, let_signals_through,
    name_process, reset_signals,
};
pub(crate) use quota::{
    ProjectLimits, enforces_project_quotas, join_project, limit_project, project_of,
};
