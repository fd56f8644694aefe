//! What a hostile program tries first, and is refused. The large suite is a later one; this holds
//! the locks that every job relies on.

use std::net::TcpListener;
use std::path::Path;

use lazaret_sandbox::outcome::Verdict;

use crate::fixture::{Sandbox, file};
use crate::{Test, tests};

pub(crate) const TESTS: &[Test] = tests![
    dangerous_calls_are_refused,
    unknown_calls_look_as_if_the_kernel_had_none,
    calls_of_another_architecture_are_fatal,
    sockets_that_reach_the_host_are_refused,
    pages_are_given_away_to_nobody,
    buffers_of_sockets_stay_as_they_are,
    namespaces_are_forbidden_twice,
    init_cannot_be_touched,
    devices_cannot_be_made,
    nothing_outside_its_own_files_can_be_written,
    secrets_of_the_host_cannot_be_read,
    loopback_of_the_host_cannot_be_reached,
    limits_cannot_be_raised,
    setuid_programs_give_nothing,
    the_program_of_init_cannot_be_opened,
];

const EPERM: i32 = 1;
const ENOSYS: i32 = 38;
const EAFNOSUPPORT: i32 = 97;

/// Makes system calls by number and prints the error number of each, 0 for none.
const PRELUDE: &str = "import ctypes, os\nlibc = ctypes.CDLL(None, use_errno=True)\n\
    def call(*args):\n    ctypes.set_errno(0)\n    \
    libc.syscall(*[ctypes.c_long(a) if isinstance(a, int) else a for a in args])\n    \
    print(ctypes.get_errno())\n";

/// The error numbers that these calls are answered with, in a process of their own each.
fn errors(sandbox: &Sandbox, calls: &[&str]) -> Vec<i32> {
    let lines = calls.iter().map(|call| format!("call({call})\n"));
    let program = PRELUDE.to_owned() + &lines.collect::<String>();
    let stdout = sandbox.stdout_of(sandbox.python(&program));
    stdout.lines().map(|line| line.parse().expect("a number")).collect()
}

fn assert_errors(sandbox: &Sandbox, calls: &[(&str, &str)], expected: i32) {
    let numbers: Vec<_> = calls.iter().map(|(_, call)| *call).collect();
    for ((name, _), error) in calls.iter().zip(errors(sandbox, &numbers)) {
        assert_eq!(error, expected, "{name}");
    }
}

fn dangerous_calls_are_refused(sandbox: &Sandbox) {
    let calls = [
        ("ptrace of init", "101, 16, 1, 0, 0"),
        ("mount", "165, b'none', b'/tmp', b'tmpfs', 0, 0"),
        ("umount2", "166, b'/tmp', 2"),
        ("pivot_root", "155, b'.', b'.'"),
        ("unshare of users", "272, 0x10000000"),
        ("unshare of mounts", "272, 0x20000"),
        ("setns", "308, 0, 0"),
        ("clone with a user namespace", "56, 0x10000011, 0, 0, 0, 0"),
        ("clone with upper bits set", "56, 0x1_1000_0011, 0, 0, 0, 0"),
        ("fsopen", "430, b'tmpfs', 0"),
        ("open_tree", "428, -100, b'/', 1"),
        ("move_mount", "429, -1, b'', -1, b'', 0"),
        ("mount_setattr", "442, -100, b'/', 0, 0, 0"),
        ("keyctl", "250, 0, 0"),
        ("add_key", "248, b'user', b'x', b'y', 1, -2"),
        ("request_key", "249, b'user', b'x', 0, -2"),
        ("bpf", "321, 0, 0, 0"),
        ("perf_event_open", "298, 0, 0, -1, -1, 0"),
        ("io_uring_setup", "425, 1, 0"),
        ("userfaultfd", "323, 0"),
        ("process_vm_readv", "310, 1, 0, 0, 0, 0, 0"),
        ("pidfd_getfd", "438, 0, 0, 0"),
        ("kcmp", "312, 1, 1, 0, 0, 0"),
        ("open_by_handle_at", "304, -100, 0, 0"),
        ("reboot", "169, 0, 0, 0, 0"),
        ("init_module", "175, 0, 0, b''"),
        ("kexec_load", "246, 0, 0, 0, 0"),
        ("sethostname", "170, b'x', 1"),
        ("clock_settime", "227, 0, 0"),
        ("syslog", "103, 3, 0, 0"),
        ("swapon", "167, b'/tmp', 0"),
        ("acct", "163, 0"),
        ("iopl", "172, 3"),
        ("modify_ldt", "154, 0, 0, 0"),
        ("fanotify_init", "300, 0, 0"),
        ("vmsplice", "278, 1, 0, 0, 0"),
        ("personality without randomization of exec", "135, 0x0400000"),
        ("TIOCSTI", "16, 0, 0x5412, b'x'"),
        ("TIOCSTI with upper bits set", "16, 0, 0x1_0000_5412, b'x'"),
        ("TIOCLINUX", "16, 0, 0x541C, b'x'"),
        ("prlimit64 of init", "302, 1, 7, 0, 0"),
    ];
    assert_errors(sandbox, &calls, EPERM);
}

fn unknown_calls_look_as_if_the_kernel_had_none(sandbox: &Sandbox) {
    let calls = [
        ("clone3, so that libcs fall back to clone", "435, 0, 0"),
        ("a number beyond all calls", "999"),
        ("x32", "0x40000000 + 39"),
        ("io_setup", "206, 1, 0"),
        ("lookup_dcookie", "212, 0, 0, 0"),
    ];
    assert_errors(sandbox, &calls, ENOSYS);
}

fn calls_of_another_architecture_are_fatal(sandbox: &Sandbox) {
    let source = "int main(void) { int r; __asm__ volatile (\"int $0x80\" : \"=a\"(r) : \
                  \"a\"(20)); return 0; }";
    let mut spec = sandbox.script("gcc -o /tmp/entry entry.c && /tmp/entry; echo $?");
    spec.files = vec![file("entry.c", source)];
    // SIGSYS, as the shell shows it.
    assert_eq!(sandbox.stdout_of(spec), "159\n");
}

fn sockets_that_reach_the_host_are_refused(sandbox: &Sandbox) {
    let calls = [
        ("AF_VSOCK", "41, 40, 1, 0"),
        ("AF_VSOCK with upper bits set", "41, 0x1_0000_0028, 1, 0"),
        ("AF_ALG", "41, 38, 5, 0"),
        ("AF_PACKET", "41, 17, 3, 0"),
        ("AF_BLUETOOTH", "41, 31, 3, 0"),
        ("AF_KEY", "41, 15, 3, 2"),
        ("AF_XDP", "41, 44, 3, 0"),
        ("raw IPv4", "41, 2, 3, 1"),
        ("raw IPv4 with flags", "41, 2, 0x80803, 1"),
        ("raw IPv6", "41, 10, 3, 58"),
        ("SOCK_PACKET", "41, 2, 10, 3"),
        ("netlink about routes", "41, 16, 3, 0"),
        ("netlink about audit", "41, 16, 3, 9"),
    ];
    assert_errors(sandbox, &calls, EAFNOSUPPORT);
    let allowed = ["41, 1, 1, 0", "41, 2, 1, 0"];
    assert_eq!(errors(sandbox, &allowed), [0; 2]);
    // A kernel without IPv6 says the same as the filter.
    if Path::new("/proc/net/if_inet6").exists() {
        assert_eq!(errors(sandbox, &["41, 10, 2, 0"]), [0]);
    }
}

/// Of pages that were spliced into a socket or a pipe no cgroup knows.
fn pages_are_given_away_to_nobody(sandbox: &Sandbox) {
    let calls = [
        ("sendfile", "40, 1, 0, 0, 1"),
        ("splice", "275, 0, 0, 1, 0, 1, 0"),
        ("tee", "276, 0, 1, 1, 0"),
    ];
    assert_errors(sandbox, &calls, ENOSYS);
}

fn buffers_of_sockets_stay_as_they_are(sandbox: &Sandbox) {
    let program = "import socket as s\na = s.socket()\n\
                   for name in (s.SO_SNDBUF, s.SO_RCVBUF):\n \
                   before = a.getsockopt(s.SOL_SOCKET, name)\n \
                   a.setsockopt(s.SOL_SOCKET, name, 4 << 20)\n \
                   print(a.getsockopt(s.SOL_SOCKET, name) == before)";
    assert_eq!(sandbox.stdout_of(sandbox.python(program)), "True\nTrue\n");
}

/// Seccomp refuses to make namespaces; were it to fail, so would their number.
fn namespaces_are_forbidden_twice(sandbox: &Sandbox) {
    let limits = sandbox.script("cat /proc/sys/user/max_*_namespaces | sort -u");
    assert_eq!(sandbox.stdout_of(limits), "0\n");
}

fn init_cannot_be_touched(sandbox: &Sandbox) {
    let tries = "kill -KILL 1 2>/dev/null && echo killed; kill -KILL -- -1 2>/dev/null; \
                 cat /proc/1/environ /proc/1/maps /proc/1/mem 2>/dev/null; \
                 ls /proc/1/fd /proc/1/root /proc/1/cwd 2>/dev/null; true";
    let ran = sandbox.run(sandbox.script(tries));
    assert_eq!(ran.stdout(0), "");
    // `kill -1` may well end the shell itself, but never init.
    assert_ne!(ran.outcome.verdict, Verdict::Fault);
}

fn devices_cannot_be_made(sandbox: &Sandbox) {
    let calls = [
        ("mknod of a character device", "133, b'/tmp/mem', 0o20666, 0x101"),
        ("mknod of a block device", "133, b'/tmp/vda', 0o60666, 0xfe00"),
        ("mknodat", "259, -100, b'/tmp/null', 0o20666, 0x103"),
    ];
    assert_errors(sandbox, &calls, EPERM);
    let fifo = sandbox.stdout_of(sandbox.script("mkfifo /tmp/fifo && echo made"));
    assert_eq!(fifo, "made\n");
}

fn nothing_outside_its_own_files_can_be_written(sandbox: &Sandbox) {
    let places = "/usr/x /usr/bin/sh /etc/x /dev/x /x /proc/sysrq-trigger \
                  /proc/sys/kernel/hostname /proc/sys/kernel/core_pattern \
                  /proc/sys/user/max_user_namespaces";
    let script = format!("for p in {places}; do (echo 0 > $p) 2>/dev/null && echo $p; done; true");
    assert_eq!(sandbox.stdout_of(sandbox.script(&script)), "");
    assert!(!Path::new("/usr/x").exists());
}

fn secrets_of_the_host_cannot_be_read(sandbox: &Sandbox) {
    let script = "cat /etc/shadow /etc/sudoers /etc/ssh/ssh_host* 2>/dev/null; \
                  find /root /home /var /boot /run -type f 2>/dev/null; \
                  cat /proc/kcore /proc/kmsg 2>/dev/null; true";
    assert_eq!(sandbox.stdout_of(sandbox.script(script)), "");
}

fn loopback_of_the_host_cannot_be_reached(sandbox: &Sandbox) {
    let server = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = server.local_addr().expect("an address").port();
    let program = format!(
        "import socket\nfor address in (('127.0.0.1', {port}), ('192.0.2.1', 80)):\n s = \
         socket.socket()\n s.settimeout(5)\n print(s.connect_ex(address))"
    );
    // Connection refused; network unreachable.
    assert_eq!(sandbox.stdout_of(sandbox.python(&program)), "111\n101\n");
}

fn limits_cannot_be_raised(sandbox: &Sandbox) {
    let program = "import os, resource\nfor r in (resource.RLIMIT_NOFILE, resource.RLIMIT_CORE, \
                   resource.RLIMIT_MEMLOCK):\n s, h = resource.getrlimit(r)\n try:\n  \
                   resource.setrlimit(r, (h + 1, h + 1))\n  print('raised', r)\n except \
                   (ValueError, PermissionError): pass\ntry: os.nice(-5)\nexcept PermissionError: \
                   print('not nicer')";
    assert_eq!(sandbox.stdout_of(sandbox.python(program)), "not nicer\n");
}

fn setuid_programs_give_nothing(sandbox: &Sandbox) {
    let script = "cp /usr/bin/id /tmp/id; chmod 6755 /tmp/id; /tmp/id -u; \
                  grep CapEff /proc/self/status";
    assert_eq!(sandbox.stdout_of(sandbox.script(script)), "1000\nCapEff:\t0000000000000000\n");
}

fn the_program_of_init_cannot_be_opened(sandbox: &Sandbox) {
    let own = std::env::current_exe().expect("a path");
    let before = std::fs::metadata(&own).expect("readable").modified().expect("a time");
    let program = "import os\nfor p in ('/proc/1/exe', '/proc/self/../1/exe'):\n for flags in \
                   (os.O_RDONLY, os.O_WRONLY):\n  try:\n   os.open(p, flags)\n   print('opened', \
                   p)\n  except OSError: pass";
    assert_eq!(sandbox.stdout_of(sandbox.python(program)), "");
    let after = std::fs::metadata(&own).expect("readable").modified().expect("a time");
    assert_eq!(before, after);
}
