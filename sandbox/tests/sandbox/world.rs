//! What a program sees of the world: its own small one, in which ordinary programs work.

use crate::fixture::{Sandbox, file};
use crate::{Test, tests};

pub(crate) const TESTS: &[Test] = tests![
    it_is_an_ordinary_user_without_capabilities,
    it_has_every_kind_of_namespace_of_its_own,
    it_sees_no_processes_but_its_own,
    it_may_run_on_every_cpu,
    it_sees_no_paths_of_the_host,
    it_has_a_small_root,
    it_has_nothing_open_but_stdio,
    it_has_a_network_of_its_own_with_only_loopback,
    it_has_the_same_host_name_everywhere,
    its_environment_is_built_from_nothing,
    its_devices_are_few_and_work,
    its_standard_streams_can_be_opened_by_name,
    its_pseudo_terminals_work,
    its_threads_and_shared_memory_work,
    its_files_belong_to_it,
    its_cgroup_shows_no_path,
    its_kernel_files_are_masked,
    its_signals_have_their_default_actions,
    nothing_of_one_job_is_seen_by_the_next,
];

fn script(sandbox: &Sandbox, script: &str) -> String {
    sandbox.stdout_of(sandbox.script(script))
}

fn python(sandbox: &Sandbox, program: &str) -> String {
    sandbox.stdout_of(sandbox.python(program))
}

fn it_is_an_ordinary_user_without_capabilities(sandbox: &Sandbox) {
    let status =
        script(sandbox, "id -u; id -g; grep -E '^(Cap|NoNewPrivs|Seccomp)' /proc/self/status");
    let none = "0000000000000000";
    let expected = format!(
        "1000\n1000\nCapInh:\t{none}\nCapPrm:\t{none}\nCapEff:\t{none}\nCapBnd:\t{none}\nCapAmb:\t\
         {none}\nNoNewPrivs:\t1\nSeccomp:\t2\nSeccomp_filters:\t2\n"
    );
    assert_eq!(status, expected);
}

fn it_has_every_kind_of_namespace_of_its_own(sandbox: &Sandbox) {
    let list = "for n in /proc/self/ns/*; do echo $n $(readlink $n); done";
    let inside = script(sandbox, list);
    let kinds = std::fs::read_dir("/proc/self/ns").expect("namespaces").count();
    assert_eq!(inside.lines().count(), kinds);
    for line in inside.lines() {
        let (path, namespace) = line.split_once(' ').expect("two words");
        let outside = std::fs::read_link(path).expect("a link");
        assert_ne!(outside.display().to_string(), namespace, "{path}");
    }
}

fn it_sees_no_processes_but_its_own(sandbox: &Sandbox) {
    let processes = script(sandbox, "ps -e -o comm= > /tmp/processes; cat /tmp/processes");
    assert_eq!(processes, "sh\nps\n");
}

/// Although the server before this one had chosen a CPU: see `main`.
fn it_may_run_on_every_cpu(sandbox: &Sandbox) {
    let inside = script(sandbox, "grep Cpus_allowed_list /proc/self/status");
    let outside = std::fs::read_to_string("/proc/self/status").expect("readable");
    assert!(outside.contains(&inside), "{inside}\n{outside}");
}

fn it_sees_no_paths_of_the_host(sandbox: &Sandbox) {
    let mounts = script(sandbox, "cat /proc/self/mountinfo");
    for line in mounts.lines() {
        let fields: Vec<_> = line.split(' ').collect();
        // Of the host image only the directories that it consists of have a path of their own.
        let root = fields[3];
        let is_host_image = ["/usr", "/etc", "/bin", "/lib", "/sbin", "/lib64"]
            .iter()
            .any(|shown| root.starts_with(shown));
        let is_ours = ["/", "/tmp", "/shm", "/empty/file", "/empty/directory"].contains(&root);
        let is_proc = fields[4].starts_with("/proc/");
        assert!(is_host_image || is_ours || is_proc, "{line}");
        assert!(!line.contains("shared:") && !line.contains("master:"), "{line}");
    }
    assert!(!mounts.contains("lazaret") && !mounts.contains("/run/"), "{mounts}");
}

fn it_has_a_small_root(sandbox: &Sandbox) {
    let root = script(sandbox, "ls /; ls -A /home /root /var /run 2>&1 | sort -u");
    for gone in ["boot", "mnt", "srv", "sys", "work"] {
        assert!(!root.lines().any(|name| name == gone), "{root}");
    }
    assert_eq!(script(sandbox, "pwd; ls -A"), "/workspace\n");
}

fn it_has_nothing_open_but_stdio(sandbox: &Sandbox) {
    let program = "import os\nprint(sorted(int(n) for n in os.listdir('/proc/self/fd'))[:-1])\n\
                   print([os.readlink(f'/proc/self/fd/{n}').split(':')[0] for n in range(3)])";
    assert_eq!(python(sandbox, program), "[0, 1, 2]\n['pipe', 'pipe', 'pipe']\n");
}

fn it_has_a_network_of_its_own_with_only_loopback(sandbox: &Sandbox) {
    let devices = script(sandbox, "tail -n +3 /proc/net/dev | cut -d: -f1 | tr -d ' '");
    assert_eq!(devices, "lo\n");
    let program = "import socket\ns = socket.create_server(('127.0.0.1', 0))\n\
                   c = socket.create_connection(s.getsockname())\np, _ = s.accept()\n\
                   c.sendall(b'ping')\nprint(p.recv(4))";
    assert_eq!(python(sandbox, program), "b'ping'\n");
}

fn it_has_the_same_host_name_everywhere(sandbox: &Sandbox) {
    let names = script(sandbox, "uname -n; cat /etc/hostname; grep -c lazaret /etc/hosts");
    assert_eq!(names, "lazaret\nlazaret\n2\n");
}

fn its_environment_is_built_from_nothing(sandbox: &Sandbox) {
    let environment = sandbox.stdout_of(sandbox.command(&["env"]));
    assert_eq!(environment, "PATH=/usr/local/bin:/usr/bin:/bin\n");
}

fn its_devices_are_few_and_work(sandbox: &Sandbox) {
    let names = script(sandbox, "ls /dev | tr '\\n' ' '");
    let expected = "fd full null ptmx pts random shm stderr stdin stdout tty urandom zero ";
    assert_eq!(names, expected);
    let use_them = "echo x > /dev/null; head -c 4 /dev/zero | od -An -tx1; \
                    head -c 8 /dev/urandom | wc -c; echo x 2>/dev/null > /dev/full || echo full";
    assert_eq!(script(sandbox, use_them), " 00 00 00 00\n8\nfull\n");
}

fn its_standard_streams_can_be_opened_by_name(sandbox: &Sandbox) {
    let ran = sandbox.run(sandbox.script("echo out > /dev/stdout; echo err > /dev/stderr"));
    assert_eq!((ran.stdout(0).as_str(), ran.stderr(0).as_str()), ("out\n", "err\n"));
}

fn its_pseudo_terminals_work(sandbox: &Sandbox) {
    let program = "import os, pty\na, b = pty.openpty()\nos.write(b, b'x')\n\
                   print(os.ttyname(b), os.read(a, 1))";
    assert_eq!(python(sandbox, program), "/dev/pts/0 b'x'\n");
}

fn its_threads_and_shared_memory_work(sandbox: &Sandbox) {
    let program = "import multiprocessing, threading\n\
                   v = multiprocessing.Value('i', 0)\ndef f():\n with v.get_lock(): v.value += 1\n\
                   ps = [multiprocessing.Process(target=f) for _ in range(3)]\n\
                   ps += [threading.Thread(target=f) for _ in range(3)]\n\
                   [p.start() for p in ps]\n[p.join() for p in ps]\nprint(v.value)";
    assert_eq!(python(sandbox, program), "6\n");
}

fn its_files_belong_to_it(sandbox: &Sandbox) {
    let mut spec = sandbox.script("stat -c '%u:%g %a %s %n' . src src/main.c run; ./run");
    spec.files = vec![file("src/main.c", "int main;"), file("run", "#!/bin/sh\necho ran\n")];
    spec.files[1].mode = 0o755;
    let expected = "1000:1000 755 .\n1000:1000 755 src\n1000:1000 644 9 src/main.c\n\
                    1000:1000 755 19 run\nran\n";
    let stdout = sandbox.stdout_of(spec);
    // The size of a directory is the file system's own affair.
    let without_sizes: Vec<_> = stdout
        .lines()
        .map(|line| match line.split(' ').collect::<Vec<_>>().as_slice() {
            [owner, mode, _, name @ ("." | "src")] => format!("{owner} {mode} {name}"),
            _ => line.to_owned(),
        })
        .collect();
    assert_eq!(without_sizes.join("\n") + "\n", expected);
}

fn its_cgroup_shows_no_path(sandbox: &Sandbox) {
    let cgroups = script(sandbox, "cat /proc/self/cgroup");
    for line in cgroups.lines() {
        let path = line.splitn(3, ':').nth(2).expect("three fields");
        // Hierarchies that we leave alone may have a place for the host's own session.
        let is_ours = ["cpu", "cpuacct", "memory", "pids", "cpu,cpuacct"]
            .iter()
            .any(|name| line.contains(&format!(":{name}:")));
        assert!(!is_ours || path == "/", "{line}");
        assert!(!line.contains("lazaret"), "{line}");
    }
}

fn its_kernel_files_are_masked(sandbox: &Sandbox) {
    let sizes = script(
        sandbox,
        "for f in kallsyms keys key-users kmsg timer_list interrupts vmallocinfo slabinfo; do \
         [ ! -e /proc/$f ] || wc -c < /proc/$f; done | sort -u; ls -A /proc/acpi /proc/scsi \
         2>/dev/null | grep -v : | tr -d '\\n'",
    );
    assert_eq!(sizes, "0\n");
}

fn its_signals_have_their_default_actions(sandbox: &Sandbox) {
    let status = script(sandbox, "grep -E '^Sig(Blk|Ign)' /proc/self/status");
    assert_eq!(status, "SigBlk:\t0000000000000000\nSigIgn:\t0000000000000000\n");
}

fn nothing_of_one_job_is_seen_by_the_next(sandbox: &Sandbox) {
    let leave = "import os, ctypes\nfor p in ['/tmp/t', '/dev/shm/t', '/workspace/t', '/etc/t']:\n \
                 try: open(p, 'w').write('x')\n except OSError: pass\n\
                 c = ctypes.CDLL(None)\nprint(c.shmget(0x1234, 4096, 0o1666) >= 0)";
    let look = "import os, ctypes\nprint([p for p in ['/tmp/t', '/dev/shm/t', '/workspace/t', \
                '/etc/t'] if os.path.exists(p)])\n\
                c = ctypes.CDLL(None)\nprint(c.shmget(0x1234, 4096, 0o666) >= 0)";
    assert_eq!(python(sandbox, leave), "True\n");
    assert_eq!(python(sandbox, look), "[]\nFalse\n");
}
