//! Network namespaces of containers, known by ids that the kernel forgets when they are destroyed.
//!
//! The tests have a network namespace of their own. In it the namespace of each container gets an
//! id, which does not keep it alive (linux/net_namespace.h, rtnetlink(7)). Ids are known in one
//! namespace only, so no other server on the machine has a part in this.
//!
//! ```text
//! tests ── RTM_NEWNSID { a process in the namespace, id } ──▶ kernel ── error 0 ──▶ tests
//! tests ── RTM_GETNSID, dump ──▶ kernel ── RTM_NEWNSID { id } … NLMSG_DONE ───────▶ tests
//! ```

use std::collections::BTreeSet;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU32, Ordering};

use nix::sched::{CloneFlags, unshare};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};
use rustix::process::Pid;

/// Attributes of a message about an id (linux/net_namespace.h).
const NETNSA_NSID: u16 = 1;
const NETNSA_PID: u16 = 2;
/// Kinds of messages, in the type that their headers have.
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
/// Flags of requests: each is one, and is either acknowledged or asks for all there are.
const ACKNOWLEDGED: u16 = 0x1 | 0x4;
const DUMP: u16 = 0x1 | 0x300;
/// A `struct nlmsghdr`; a `struct rtgenmsg`, which says that no address family is meant.
const HEADER_BYTES: usize = 16;
const NO_FAMILY: [u8; 4] = [0; 4];
/// What the kernel puts into one datagram of a dump, at the most.
const MAX_DATAGRAM_BYTES: usize = 32 << 10;
/// The first interface of every network namespace.
const LOOPBACK: u32 = 1;
const IFF_UP: u32 = 1;

/// Never used twice: the kernel itself gives the lowest that is free, and then the id of a
/// namespace that is gone could be that of the next.
static NEXT: AtomicU32 = AtomicU32::new(0);

/// The id of a container's network namespace in that of the tests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct NetworkId(u32);

/// Moves this process, which has one thread so far, into a network namespace of its own.
pub(crate) fn enter() {
    unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace");
    let change = [0, LOOPBACK, IFF_UP, IFF_UP].map(u32::to_ne_bytes).concat();
    request(libc::RTM_NEWLINK, ACKNOWLEDGED, &change).expect("a loopback interface");
}

impl NetworkId {
    /// Gives one to the network namespace that a process is in.
    pub(crate) fn give(process: Pid) -> Self {
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        let process = process.as_raw_nonzero().get().unsigned_abs();
        let body =
            [&NO_FAMILY[..], &attribute(NETNSA_PID, process), &attribute(NETNSA_NSID, id)].concat();
        request(libc::RTM_NEWNSID, ACKNOWLEDGED, &body).expect("an id");
        Self(id)
    }

    /// Whether the namespace is still there. Its end comes a little after that of its last user.
    pub(crate) fn is_known(self) -> bool {
        known().contains(&self)
    }
}

/// The ids of all namespaces that are still there.
pub(crate) fn known() -> BTreeSet<NetworkId> {
    let answers = request(libc::RTM_GETNSID, DUMP, &NO_FAMILY).expect("a list");
    answers.iter().map(|body| id_in(body).expect("an id")).collect()
}

/// The id among the attributes of an answer.
fn id_in(body: &[u8]) -> Option<NetworkId> {
    let mut rest = body.get(NO_FAMILY.len()..)?;
    loop {
        let (length, kind) = (usize::from(number_at(rest, 0)?), number_at(rest, 2)?);
        if kind == NETNSA_NSID {
            return Some(NetworkId(u32::from_ne_bytes(*rest.get(4..)?.first_chunk()?)));
        }
        rest = rest.get(length.max(4).next_multiple_of(4)..)?;
    }
}

/// Asks the kernel. Answers with the bodies of all messages that are no acknowledgement.
fn request(kind: u16, flags: u16, body: &[u8]) -> io::Result<Vec<Vec<u8>>> {
    let socket = open()?;
    let length = u32::try_from(HEADER_BYTES + body.len()).map_err(io::Error::other)?;
    // Sequence number and port: the socket is new, so no answer can be another's.
    let header = [&length.to_ne_bytes()[..], &kind.to_ne_bytes(), &flags.to_ne_bytes(), &[0; 8]];
    rustix::net::send(&socket, &[&header.concat(), body].concat(), SendFlags::empty())?;
    let (mut answers, mut buffer) = (Vec::new(), vec![0; MAX_DATAGRAM_BYTES]);
    loop {
        let (bytes, _) = rustix::net::recv(&socket, &mut buffer[..], RecvFlags::empty())?;
        let mut rest = &buffer[..bytes];
        while let Some((kind, body, next)) = split(rest) {
            match kind {
                NLMSG_DONE => return Ok(answers),
                NLMSG_ERROR => return error_in(body).map(|()| answers),
                _ => answers.push(body.to_vec()),
            }
            rest = next;
        }
    }
}

/// A socket of netlink's protocol 0, which is about routes and network namespaces.
fn open() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC;
    Ok(rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None)?)
}

/// Kind and body of the first message, and what comes after it.
fn split(messages: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let length = u32::from_ne_bytes(*messages.first_chunk()?);
    let length = usize::try_from(length).ok()?;
    let body = messages.get(HEADER_BYTES..length)?;
    Some((number_at(messages, 4)?, body, messages.get(length.next_multiple_of(4)..).unwrap_or(&[])))
}

/// The error number that an acknowledgement carries, 0 for none.
fn error_in(body: &[u8]) -> io::Result<()> {
    match body.first_chunk().copied().map(i32::from_ne_bytes) {
        Some(0) => Ok(()),
        Some(error) => Err(io::Error::from_raw_os_error(-error)),
        None => Err(io::Error::other("an acknowledgement that says nothing")),
    }
}

fn number_at(bytes: &[u8], place: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(*bytes.get(place..)?.first_chunk()?))
}

/// A `struct nlattr` with its value.
fn attribute(kind: u16, value: u32) -> Vec<u8> {
    [&8_u16.to_ne_bytes()[..], &kind.to_ne_bytes(), &value.to_ne_bytes()].concat()
}
