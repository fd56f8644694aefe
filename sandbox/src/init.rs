//! PID 1 of a container: builds the container from inside, forks the steps, reaps what is left
//! behind. Its end is the container's end.
//!
//! ```text
//! shim ── Order ──▶ init                         init ── Report ──▶ shim
//!   Become(image, bounds, user, n) + volumes       Prepared (+ the storage)
//!   n × File(path, mode, length) + bytes           Built
//!   Run(step) + stdin, stdout, stderr, gate        Ended(status)
//!   Kill                                           Failed(stage, why)
//! ```
//!
//! Init is host root until it becomes the container, because mounts, devices and `/proc` have to
//! belong to the host's user namespace; it runs nothing of the job until then. The container's user
//! namespace is made with the process that is parked for the first step. What it keeps
//! afterwards is said in `privileges`.

use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{Pid, WaitOptions};

use crate::cgroup::Birth;
use crate::clock;
use crate::container::files::{discard, make_workdir, open_root, write_file};
use crate::container::idmap::{INIT_ID, Slot};
use crate::container::privileges::{join_user_namespace, restrict_init, set_file_owner};
use crate::container::proc::Proc;
use crate::container::rootfs::{Furniture, HOST_NAME, Storage};
use crate::container::volumes;
use crate::error::{At as _, Result, Stage};
use crate::inherited::Inherited;
use crate::orders::{Container, Ended, Exit, Order, Report, Step};
use crate::spec::{RootUse, User};
use crate::step::{self, Parked, Stdio};
use crate::sys::{self, Fork};
use crate::wire::Channel;

/// Lives as PID 1, from its birth in all namespaces but user and cgroup to its end.
pub(crate) fn main(mut shim: Channel, birth: Birth, inherited: &Inherited<'_>) -> ! {
    let code = match live(&mut shim, birth, inherited) {
        Ok(()) => 0,
        Err(error) => {
            // If the shim is gone too, nobody is left to tell.
            let told = shim.send(&Report::Failed(error.into()), &[]);
            i32::from(told.is_err()) + 1
        }
    };
    sys::exit(code)
}

fn live(shim: &mut Channel, birth: Birth, inherited: &Inherited<'_>) -> Result<()> {
    enter(birth)?;
    let storage = Storage::new(inherited.staging, inherited.slot.host_id(0)).at(Stage::Rootfs)?;
    let proc = Proc::new().at(Stage::Proc)?;
    let (parked, user_namespace) = Parked::new(inherited, &proc)?;
    let furniture = storage.furnish(inherited.slot, (proc, inherited.covers)).at(Stage::Rootfs)?;
    shim.send(&Report::Prepared, &[storage.as_fd()]).at(Stage::Init)?;

    let (order, trees) = match shim.recv() {
        Ok(received) => received,
        // Thrown away unused.
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(()),
        Err(error) => return Err(error).at(Stage::Init),
    };
    let Order::Become(container) = order else {
        return Err(io::Error::other("the first order was not to become a container"))
            .at(Stage::Init);
    };
    let user_namespace = user_namespace.as_fd();
    let ids = (inherited.slot, user_namespace);
    let built = become_container((&container, trees), ids, &storage, &furniture);
    // What keeps the storage is the shim's descriptor, out of reach of any step.
    drop((storage, furniture));
    take_files(shim, &container, built)?;
    shim.send(&Report::Built, &[]).at(Stage::Init)?;
    Init::new(container.user, parked)?.serve(shim, inherited)
}

/// Comes to be in the container's cgroup, of which no descriptor is left then, and finishes the
/// namespaces that depend on it.
fn enter(birth: Birth) -> Result<()> {
    if let Birth::Enter(tasks) = birth {
        for tasks in tasks {
            rustix::io::write(tasks, b"0").at(Stage::Cgroup)?;
        }
    }
    sys::name_process(c"lazaret-init").at(Stage::Init)?;
    // What is made from here on has the permissions that are asked for.
    rustix::process::umask(Mode::empty());
    // The server's terminal or log is nothing for a container to hold.
    let null = rustix::fs::open("/dev/null", OFlags::RDWR, Mode::empty()).at(Stage::Init)?;
    rustix::stdio::dup2_stderr(&null).at(Stage::Init)?;
    finish_namespaces().at(Stage::Namespaces)?;
    rustix::process::setsid().at(Stage::Namespaces)?;
    nix::unistd::sethostname(HOST_NAME).at(Stage::Namespaces)?;
    sys::raise_loopback().at(Stage::Namespaces)
}

/// The cgroup namespace begins where this process is now. The time namespace is for what is forked
/// from here on; kernels may be built without it.
fn finish_namespaces() -> nix::Result<()> {
    let cgroup = CloneFlags::CLONE_NEWCGROUP;
    let time = CloneFlags::from_bits_retain(libc::CLONE_NEWTIME);
    match unshare(cgroup | time) {
        Err(nix::errno::Errno::EINVAL) => unshare(cgroup),
        done => done,
    }
}

/// Builds the container around this process, its volumes from their mounts; answers with its
/// working directory.
fn become_container(
    (container, trees): (&Container, Vec<OwnedFd>),
    (slot, user_namespace): (&Slot, BorrowedFd<'_>),
    storage: &Storage,
    furniture: &Furniture,
) -> Result<OwnedFd> {
    storage.resize(container.disk_bytes).at(Stage::Rootfs)?;
    let volumes = volumes::id_map(&container.volumes, trees, user_namespace).at(Stage::Volumes)?;
    let root = (&container.rootfs, container.root_use);
    storage.become_root(root, user_namespace, furniture).at(Stage::Rootfs)?;
    // Still as the host's root: the owner of a directory of the host image has no id inside.
    let user = &container.user;
    let owner = (slot.host_id(user.uid), slot.host_id(user.gid));
    let devices = volumes::place(&volumes, owner).at(Stage::Files)?;
    let workdir = match container.root_use {
        RootUse::Job => make_workdir(&container.workdir, owner, &devices),
        RootUse::Build => open_root(),
    };
    let workdir = workdir.at(Stage::Files)?;
    join_user_namespace(user_namespace).at(Stage::Privileges)?;
    restrict_init(user).at(Stage::Privileges)?;
    Ok(workdir)
}

/// Takes the job's files, which are on their way whatever has become of the container, and writes
/// them into its working directory. Answers with the first failure.
fn take_files(shim: &mut Channel, container: &Container, mut built: Result<OwnedFd>) -> Result<()> {
    set_file_owner(container.user.uid, container.user.gid);
    for _ in 0..container.files {
        let (order, _) = shim.recv().at(Stage::Init)?;
        let Order::File { path, mode, bytes } = order else {
            return Err(io::Error::other("fewer files came than were announced")).at(Stage::Init);
        };
        let source = (&mut *shim, bytes);
        built = match built {
            Ok(workdir) => {
                write_file(workdir.as_fd(), &path, mode, source).at(Stage::Files).map(|()| workdir)
            }
            Err(error) => discard(source).at(Stage::Init).and(Err(error)),
        };
    }
    set_file_owner(INIT_ID, INIT_ID);
    built.map(drop)
}

/// Init once it is the container.
struct Init {
    user: User,
    children: SignalFd,
    /// What becomes the first step.
    parked: Option<Parked>,
    /// The main process of the step that runs.
    main: Option<Pid>,
}

impl Init {
    fn new(user: User, parked: Parked) -> Result<Self> {
        let mut signals = SigSet::empty();
        signals.add(Signal::SIGCHLD);
        signals.thread_block().at(Stage::Init)?;
        let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        let children = SignalFd::with_flags(&signals, flags).at(Stage::Init)?;
        Ok(Self { user, children, parked: Some(parked), main: None })
    }

    /// Carries out orders until the shim closes its end.
    fn serve(&mut self, shim: &mut Channel, inherited: &Inherited<'_>) -> Result<()> {
        loop {
            while let Some((order, fds)) = receive(shim)? {
                let Some(order) = order else { return Ok(()) };
                if let Err(error) = self.carry_out(order, fds, inherited) {
                    shim.send(&Report::Failed(error.into()), &[]).at(Stage::Init)?;
                }
            }
            if let Some(ended) = self.reap()? {
                shim.send(&Report::Ended(ended), &[]).at(Stage::Init)?;
            }
            self.wait(shim)?;
        }
    }

    fn carry_out(
        &mut self,
        order: Order,
        fds: Vec<OwnedFd>,
        inherited: &Inherited<'_>,
    ) -> Result<()> {
        match order {
            Order::Become(_) | Order::File { .. } => {
                Err(io::Error::other("a container is made once only")).at(Stage::Init)
            }
            Order::Run(step) => self.start(step, fds, inherited),
            Order::Kill => kill_all(),
        }
    }

    fn start(&mut self, step: Step, fds: Vec<OwnedFd>, inherited: &Inherited<'_>) -> Result<()> {
        let stdio = Stdio::try_from(fds).at(Stage::Step)?;
        let pid = if let Some(parked) = self.parked.take() {
            parked.release(step, &self.user, &stdio)?
        } else {
            match sys::fork(inherited.one_thread).at(Stage::Step)? {
                Fork::Child => step::main(&step, &self.user, stdio, inherited.filters),
                Fork::Parent(pid) => pid,
            }
        };
        self.main = Some(pid);
        Ok(())
    }

    /// Reaps what has ended. If the step's main process is among it, kills and reaps the rest.
    fn reap(&mut self) -> Result<Option<Ended>> {
        // Consumed before the children are looked at, so that none that ends later is missed.
        while self.children.read_signal().at(Stage::Init)?.is_some() {}
        let mut ended = None;
        loop {
            // With the main process gone, wait for everyone; a killed process does not linger.
            let options = if ended.is_some() { WaitOptions::empty() } else { WaitOptions::NOHANG };
            let (pid, status) = match rustix::process::wait(options) {
                Ok(Some(reaped)) => reaped,
                Ok(None) | Err(Errno::CHILD) => return Ok(ended),
                Err(Errno::INTR) => continue,
                Err(error) => return Err(error).at(Stage::Init),
            };
            // Raw numbers: real-time signals have no name.
            let Some(exit) = Exit::of(status) else { continue };
            if self.main == Some(pid) {
                self.main = None;
                ended = Some(Ended { exit, at: clock::now() });
                kill_all()?;
            }
        }
    }

    fn wait(&self, shim: &Channel) -> Result<()> {
        let mut fds =
            [PollFd::new(shim, PollFlags::IN), PollFd::new(&self.children, PollFlags::IN)];
        rustix::io::retry_on_intr(|| poll(&mut fds, None)).at(Stage::Init)?;
        Ok(())
    }
}

/// The next order if it has arrived; the inner `None` says that the shim has closed its end.
fn receive(shim: &mut Channel) -> Result<Option<(Option<Order>, Vec<OwnedFd>)>> {
    match shim.try_recv() {
        Ok(Some((order, fds))) => Ok(Some((Some(order), fds))),
        Ok(None) => Ok(None),
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => Ok(Some((None, Vec::new()))),
        Err(error) => Err(error).at(Stage::Init),
    }
}

/// Kills every process of the container but this one. The kernel does it in one go, with forks
/// held off, so that none escapes by being born meanwhile (kill(2), pid -1).
fn kill_all() -> Result<()> {
    match nix::sys::signal::kill(nix::unistd::Pid::from_raw(-1), Signal::SIGKILL) {
        Ok(()) | Err(nix::errno::Errno::ESRCH) => Ok(()),
        Err(error) => Err(error).at(Stage::Init),
    }
}
