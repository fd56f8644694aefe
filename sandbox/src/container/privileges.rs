//! Giving up privileges: first init's, by joining the user namespace, then all that are left,
//! in the step.

use std::io;
use std::os::fd::BorrowedFd;

use nix::sched::{CloneFlags, setns};
use rustix::fs::{Gid, Mode, OFlags, Uid};
use rustix::process::{DumpableBehavior, Signal, set_dumpable_behavior};
use rustix::thread::{
    CapabilitiesSecureBits, CapabilitySet, CapabilitySets, remove_capability_from_bounding_set,
    set_capabilities, set_capabilities_secure_bits, set_no_new_privs, set_thread_groups,
    set_thread_res_gid, set_thread_res_uid,
};

use super::idmap::INIT_ID;
use crate::error::Context;
use crate::spec::User;

/// What init keeps inside its user namespace: to give steps their ids, take their capabilities
/// and end them.
const INIT_CAPABILITIES: CapabilitySet = CapabilitySet::SETUID
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::SETPCAP)
    .union(CapabilitySet::KILL);

/// What a step that runs as root keeps, inside the user namespace: docker's default set, without
/// which apt and pip do not work, less the two that make raw sockets and devices.
const ROOT_CAPABILITIES: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::SETUID)
    .union(CapabilitySet::SETFCAP)
    .union(CapabilitySet::SETPCAP)
    .union(CapabilitySet::NET_BIND_SERVICE)
    .union(CapabilitySet::SYS_CHROOT)
    .union(CapabilitySet::KILL)
    .union(CapabilitySet::AUDIT_WRITE);

/// Limits of nested namespaces, `/proc/sys/user/max_*` (namespaces(7)).
const NAMESPACE_LIMITS: [&str; 8] = [
    "max_cgroup_namespaces",
    "max_ipc_namespaces",
    "max_mnt_namespaces",
    "max_net_namespaces",
    "max_pid_namespaces",
    "max_time_namespaces",
    "max_user_namespaces",
    "max_uts_namespaces",
];

/// Joins the user namespace, as init, with all capabilities over it and none over the other
/// namespaces, which belong to the host's root.
pub(crate) fn join_user_namespace(user_namespace: BorrowedFd<'_>) -> io::Result<()> {
    setns(user_namespace, CloneFlags::CLONE_NEWUSER)
        .context(|| "could not join the user namespace".into())?;
    set_ids(&User { uid: INIT_ID, gid: INIT_ID, groups: Vec::new() })?;
    // After the last change of ids, which resets both (prctl(2)).
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    Ok(rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?)
}

/// Sets the limits of all namespaces below this one to none: a second lock beside seccomp. The
/// files, in `/proc/sys/user`, answer for the user namespace of whoever opens them, so this comes
/// by a process that is in it.
pub(crate) fn forbid_namespaces(user_limits: BorrowedFd<'_>) -> io::Result<()> {
    for name in NAMESPACE_LIMITS {
        let flags = OFlags::WRONLY | OFlags::CLOEXEC;
        match rustix::fs::openat(user_limits, name, flags, Mode::empty()) {
            Ok(file) => {
                rustix::io::write(&file, b"0").context(|| format!("could not lower `{name}`"))?;
            }
            // A kernel without that kind of namespace.
            Err(rustix::io::Errno::NOENT) => {}
            Err(error) => return Err(error).context(|| format!("could not open `{name}`")),
        }
    }
    Ok(())
}

/// Keeps of init's capabilities those that it needs, and those that it has to hand on: what a step
/// of root lacks before exec it does not gain there, because of `no_new_privs`.
pub(crate) fn restrict_init(user: &User) -> io::Result<()> {
    let permitted = INIT_CAPABILITIES | capabilities_of(user);
    let inheritable = CapabilitySet::empty();
    let sets = CapabilitySets { effective: INIT_CAPABILITIES, permitted, inheritable };
    Ok(set_capabilities(None, sets)?)
}

/// What a step keeps.
fn capabilities_of(user: &User) -> CapabilitySet {
    if user.uid == 0 { ROOT_CAPABILITIES } else { CapabilitySet::empty() }
}

/// Becomes the step's user. None of the ids involved is 0 in the namespace or the new user is 0,
/// so capabilities stay as they are until they are dropped (capabilities(7)).
pub(crate) fn set_ids(user: &User) -> io::Result<()> {
    let groups: Vec<Gid> = user.groups.iter().copied().map(Gid::from_raw).collect();
    let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
    set_thread_groups(&groups)?;
    set_thread_res_gid(gid, gid, gid)?;
    Ok(set_thread_res_uid(uid, uid, uid)?)
}

/// Leaves the step without capabilities, for good; a step of root keeps those of
/// [`ROOT_CAPABILITIES`] inside its user namespace. The bounding set was narrowed to these before.
pub(crate) fn drop_capabilities(user: &User) -> io::Result<()> {
    let kept = capabilities_of(user);
    for capability in ROOT_CAPABILITIES.difference(kept).iter() {
        remove_capability_from_bounding_set(capability)?;
    }
    if user.uid != 0 {
        set_capabilities_secure_bits(
            CapabilitiesSecureBits::NO_ROOT
                | CapabilitiesSecureBits::NO_ROOT_LOCKED
                | CapabilitiesSecureBits::NO_SETUID_FIXUP
                | CapabilitiesSecureBits::NO_SETUID_FIXUP_LOCKED
                | CapabilitiesSecureBits::KEEP_CAPS_LOCKED
                | CapabilitiesSecureBits::NO_CAP_AMBIENT_RAISE
                | CapabilitiesSecureBits::NO_CAP_AMBIENT_RAISE_LOCKED,
        )?;
    }
    let sets =
        CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() };
    set_capabilities(None, sets)?;
    Ok(set_no_new_privs(true)?)
}

/// Takes out of the bounding set what no step keeps, whoever its user is.
pub(crate) fn narrow_bounding_set() -> io::Result<()> {
    for bit in 0..u64::BITS {
        let capability = CapabilitySet::from_bits_retain(1 << bit);
        if ROOT_CAPABILITIES.contains(capability) {
            continue;
        }
        match remove_capability_from_bounding_set(capability) {
            Ok(()) => {}
            // The first number beyond the last capability of this kernel.
            Err(rustix::io::Errno::INVAL) => break,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Files made from here on belong to this user and group, while the process keeps its own ids.
pub(crate) fn set_file_owner(uid: u32, gid: u32) {
    // These two calls report no error: they answer with the id before (setfsuid(2)).
    nix::unistd::setfsgid(nix::unistd::Gid::from_raw(gid));
    nix::unistd::setfsuid(nix::unistd::Uid::from_raw(uid));
}
