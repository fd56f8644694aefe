//! Making processes and becoming another program.

use std::ffi::{CStr, CString, c_char};
use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;

use rustix::process::Pid;

/// clone3(2); libc's constant is deprecated because it does not fit its type.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// Which side of a fork this is.
#[derive(Debug)]
pub(crate) enum Fork {
    /// The caller; its child has this pid.
    Parent(Pid),
    /// The new process.
    Child,
}

/// Namespaces that a new process gets, as `CLONE_NEW*` bits (clone(2)).
#[derive(Debug, Clone, Copy)]
pub(crate) struct Namespaces(u32);

impl Namespaces {
    /// A user namespace alone, in which the new process has no id yet and all capabilities.
    pub(crate) const USER: Self = Self(libc::CLONE_NEWUSER.cast_unsigned());
    /// All that a container is made of, but for the user and the cgroup namespace, which are
    /// entered later.
    pub(crate) const CONTAINER: Self = Self(
        (libc::CLONE_NEWNS
            | libc::CLONE_NEWPID
            | libc::CLONE_NEWNET
            | libc::CLONE_NEWIPC
            | libc::CLONE_NEWUTS)
            .cast_unsigned(),
    );
}

/// Proof that this process has one thread, which is what makes a fork safe: in the child of a
/// process with several, only async-signal-safe calls would be allowed. It is found out once, in
/// the process that all others here descend from, and none of them starts a thread.
#[derive(Debug)]
pub(crate) struct OneThread {
    /// Neither sent to another thread nor shared with one.
    _not_send: PhantomData<*const ()>,
}

impl OneThread {
    /// The proof, or an error if there is a second thread.
    pub(crate) fn verify() -> io::Result<Self> {
        // The count of threads is field 20 of stat(5); the command name before it may hold
        // anything but ends at the last parenthesis.
        let stat = std::fs::read_to_string("/proc/self/stat")?;
        let threads = stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(17));
        match threads {
            Some("1") => Ok(Self { _not_send: PhantomData }),
            _ => Err(io::Error::other("a process with several threads cannot be forked safely")),
        }
    }
}

/// fork(2).
pub(crate) fn fork(_proof: &OneThread) -> io::Result<Fork> {
    // SAFETY: the process has one thread, so no lock is held by a thread that the child lacks,
    // and the child may allocate.
    match unsafe { libc::fork() } {
        0 => Ok(Fork::Child),
        pid => parent(i64::from(pid)),
    }
}

/// A copy of this process in new namespaces, born in `cgroup` if one is given (clone3(2) with
/// `CLONE_INTO_CGROUP`, Linux 5.7, cgroup v2 only).
pub(crate) fn clone_process(
    _proof: &OneThread,
    namespaces: Namespaces,
    cgroup: Option<BorrowedFd<'_>>,
) -> io::Result<Fork> {
    // SAFETY: every field of `clone_args` is an integer, for which zero bits are a value.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = u64::from(namespaces.0);
    args.exit_signal = u64::from(libc::SIGCHLD.cast_unsigned());
    if let Some(cgroup) = cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = u64::from(cgroup.as_raw_fd().cast_unsigned());
    }
    let size = size_of::<libc::clone_args>();
    // SAFETY: `args` is a valid `clone_args` of the given size. Without CLONE_VM and a stack the
    // call is a fork; the process has one thread, so no lock is held by a thread that the child
    // lacks and the child may allocate.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, ptr::from_mut(&mut args), size) };
    if pid == 0 { Ok(Fork::Child) } else { parent(pid) }
}

/// The parent's side of a fork that answered with a pid, or with an error.
fn parent(pid: i64) -> io::Result<Fork> {
    match i32::try_from(pid).ok().and_then(Pid::from_raw) {
        Some(child) if pid > 0 => Ok(Fork::Parent(child)),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Names this process in `ps` and `top`.
pub(crate) fn name_process(name: &CStr) -> io::Result<()> {
    Ok(rustix::thread::set_name(name)?)
}

/// Becomes the program at `path`; returns only if that failed, and why.
pub(crate) fn exec(path: &CStr, argv: &[CString], envp: &[CString]) -> io::Error {
    let argv = pointers(argv);
    let envp = pointers(envp);
    // SAFETY: `path` ends with NUL; both arrays hold pointers to strings that end with NUL and
    // live until the call returns, and end with a null pointer.
    unsafe { libc::execve(path.as_ptr(), argv.as_ptr(), envp.as_ptr()) };
    io::Error::last_os_error()
}

fn pointers(strings: &[CString]) -> Vec<*const c_char> {
    strings.iter().map(|string| string.as_ptr()).chain([ptr::null()]).collect()
}

/// Ends this process at once: no destructor runs, no buffer of an ancestor is flushed twice.
pub(crate) fn exit(code: i32) -> ! {
    // SAFETY: `_exit` has no preconditions.
    unsafe { libc::_exit(code) }
}

/// The kernel's `struct sigaction` on x86-64 and aarch64; all zero is `SIG_DFL` without flags.
#[repr(C)]
#[derive(Default)]
struct KernelSigaction {
    handler: usize,
    flags: u64,
    restorer: usize,
    mask: u64,
}

/// Gives every signal but `SIGPIPE` its default action, for all that descend from this process:
/// whoever started us may have some ignored, and execve(2) keeps what is. `SIGPIPE` stays ignored,
/// as Rust's runtime has it, for those of them that write to pipes.
pub(crate) fn reset_signals() {
    const SIGNALS: i32 = 64;
    (1..=SIGNALS).filter(|signal| *signal != libc::SIGPIPE).for_each(reset_signal);
}

/// The kernel is asked directly, because glibc keeps two signals to itself.
fn reset_signal(signal: i32) {
    let default = KernelSigaction::default();
    // SAFETY: `default` is a valid sigaction for a mask of the given size, and outlives the call.
    // SIGKILL and SIGSTOP refuse with EINVAL, and have their default action already.
    unsafe {
        libc::syscall(
            libc::SYS_rt_sigaction,
            signal,
            ptr::from_ref(&default),
            ptr::null_mut::<KernelSigaction>(),
            size_of::<u64>(),
        )
    };
}

/// Gives `SIGPIPE` its default action, too, and lets all signals through: execve(2) keeps what is
/// ignored and blocked.
pub(crate) fn let_signals_through() {
    reset_signal(libc::SIGPIPE);
    let masked = nix::sys::signal::SigSet::empty().thread_set_mask();
    debug_assert!(masked.is_ok(), "sigprocmask of a valid set cannot fail");
}
