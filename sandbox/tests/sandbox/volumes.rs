//! Volumes: what one container leaves for the next, and what none may do by it.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use lazaret_sandbox::outcome::Verdict;
use lazaret_sandbox::spec::{Access, ContainerSpec, User, VolumeMount};
use lazaret_sandbox::volume::{Error, VolumeName, VolumeStore};
use rustix::mount::{MountPropagationFlags, UnmountFlags, mount_bind, mount_change, unmount};
use rustix::process::{Signal, kill_process};

use crate::fixture::{Sandbox, await_that, bytes, file};
use crate::{Test, image, lifecycle, tests};

pub(crate) const TESTS: &[Test] = tests![
    what_one_job_writes_the_next_reads_in_another_image,
    a_read_only_volume_refuses_every_write,
    a_job_that_did_not_ask_sees_no_volume,
    two_jobs_use_one_volume_at_once,
    a_volume_in_use_is_not_removed,
    a_volume_that_has_gone_is_our_fault,
    what_a_job_leaves_in_a_volume_harms_neither_the_next_nor_the_host,
    a_link_or_a_file_where_a_volume_goes_is_refused,
    volumes_go_where_there_is_something_and_where_there_is_nothing,
    a_working_directory_may_be_in_a_volume,
    a_link_on_the_way_to_a_host_directory_is_refused,
    a_host_directory_is_shown_as_it_is_at_the_start,
    a_bound_is_held_or_refused,
    what_goes_to_the_disk_is_throttled,
    a_throttled_job_is_killed_at_once,
    a_killed_shim_leaves_neither_a_throttle_nor_a_hold,
];

fn store(sandbox: &Sandbox) -> VolumeStore {
    VolumeStore::open(&sandbox.directory().join("volumes")).expect("opened")
}

/// A new volume.
fn volume(sandbox: &Sandbox) -> VolumeName {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let name = format!("volume-{}", COUNT.fetch_add(1, Ordering::Relaxed));
    let now = "2026-01-01T00:00:00Z".parse().expect("a time");
    store(sandbox).create(&name, None, now).expect("created").name
}

/// The same container with a volume at `/cache`.
fn with(
    sandbox: &Sandbox,
    name: &VolumeName,
    access: Access,
    spec: ContainerSpec,
) -> ContainerSpec {
    at(sandbox, name, ("/cache", access), spec)
}

fn at(
    sandbox: &Sandbox,
    name: &VolumeName,
    (target, access): (&str, Access),
    mut spec: ContainerSpec,
) -> ContainerSpec {
    spec.volumes.push(store(sandbox).mount(name, target.into(), access));
    spec
}

/// What a script that has to succeed says, with the volume at `/cache`.
fn stdout_with(sandbox: &Sandbox, name: &VolumeName, script: &str) -> String {
    sandbox.stdout_of(with(sandbox, name, Access::ReadWrite, sandbox.script(script)))
}

fn root() -> User {
    User { uid: 0, gid: 0, groups: Vec::new() }
}

fn what_one_job_writes_the_next_reads_in_another_image(sandbox: &Sandbox) {
    let cache = volume(sandbox);
    stdout_with(sandbox, &cache, "umask 077; mkdir /cache/d; echo kept > /cache/d/f");
    let show = "stat -c %u:%g:%a /cache/d/f; cat /cache/d/f; stat -c %a /cache";
    assert_eq!(stdout_with(sandbox, &cache, show), "1000:1000:600\nkept\n777\n");
    let other = image::spec(sandbox, "other", |_| (), show);
    assert!(other.rootfs.is_id_mapped);
    let other = with(sandbox, &cache, Access::ReadWrite, other);
    assert_eq!(sandbox.stdout_of(other), "1000:1000:600\nkept\n777\n");
    let stranger = User { uid: 1001, gid: 1001, groups: Vec::new() };
    let script = sandbox.script("cat /cache/d/f || echo refused; echo own > /cache/own");
    let spec = with(sandbox, &cache, Access::ReadWrite, ContainerSpec { user: stranger, ..script });
    assert_eq!(sandbox.stdout_of(spec), "refused\n");
}

fn a_read_only_volume_refuses_every_write(sandbox: &Sandbox) {
    let cache = volume(sandbox);
    stdout_with(sandbox, &cache, "echo kept > /cache/f");
    let script = "cat /cache/f; for c in 'touch /cache/f' 'touch /cache/g' 'mkdir /cache/d' \
         'rm -f /cache/f' 'chmod 600 /cache/f' 'mount -o remount,rw /cache'; do \
         $c 2>/dev/null && echo \"$c\"; done; touch /cache/g";
    for user in [root(), sandbox.script("").user] {
        let script = ContainerSpec { user, ..sandbox.script(script) };
        let ran = sandbox.run(with(sandbox, &cache, Access::ReadOnly, script));
        assert_eq!(ran.stdout(0), "kept\n", "{}", ran.stderr(0));
        assert!(ran.stderr(0).contains("Read-only file system"), "{}", ran.stderr(0));
        assert_eq!(ran.outcome.verdict, Verdict::Failure);
    }
}

fn a_job_that_did_not_ask_sees_no_volume(sandbox: &Sandbox) {
    let cache = volume(sandbox);
    stdout_with(sandbox, &cache, "echo kept > /cache/f");
    let script = "ls /cache 2>/dev/null; wc -l < /proc/self/mountinfo";
    let without: u32 = sandbox.stdout_of(sandbox.script(script)).trim().parse().expect("a number");
    let with = stdout_with(sandbox, &cache, script);
    assert_eq!(with, format!("f\n{}\n", without + 1));
}

fn two_jobs_use_one_volume_at_once(sandbox: &Sandbox) {
    let cache = volume(sandbox);
    let wait = "echo waits; while [ ! -e /cache/word ]; do sleep 0.01; done; cat /cache/word";
    let wait = with(sandbox, &cache, Access::ReadOnly, sandbox.script(wait));
    let mut first = sandbox.start_container(wait);
    first.await_output();
    stdout_with(sandbox, &cache, "echo go > /cache/new; mv /cache/new /cache/word");
    assert_eq!(first.finish(sandbox).stdout(0), "waits\ngo\n");
}

fn a_volume_in_use_is_not_removed(sandbox: &Sandbox) {
    let (store, cache) = (store(sandbox), volume(sandbox));
    let sleep = with(sandbox, &cache, Access::ReadOnly, sandbox.command(&["sleep", "1000"]));
    let mut live = sandbox.start_container(sleep);
    live.await_start(0);
    // Nobody but the container's own shim holds it.
    assert!(matches!(store.remove(cache.as_str()), Err(Error::InUse(_))));
    live.container.cancel().expect("asked");
    assert_eq!(live.finish(sandbox).outcome.verdict, Verdict::Cancelled);
    assert!(store.get(cache.as_str()).expect("read").is_some());
    let hold = store.hold(&cache).expect("there");
    assert!(matches!(store.remove(cache.as_str()), Err(Error::InUse(_))));
    drop(hold);
    store.remove(cache.as_str()).expect("removed");
    assert!(store.get(cache.as_str()).expect("read").is_none());
    assert!(matches!(store.hold(&cache), Err(Error::NotFound(_))));
    assert!(matches!(store.remove(cache.as_str()), Err(Error::NotFound(_))));
}

fn a_volume_that_has_gone_is_our_fault(sandbox: &Sandbox) {
    let cache = volume(sandbox);
    let spec = with(sandbox, &cache, Access::ReadWrite, sandbox.script("true"));
    store(sandbox).remove(cache.as_str()).expect("removed");
    let outcome = sandbox.run(spec).outcome;
    assert_eq!(outcome.verdict, Verdict::Fault);
    let detail = outcome.detail.expect("a reason");
    assert!(detail.contains(&format!("/{cache}` has been removed")), "{detail}");
}

fn what_a_job_leaves_in_a_volume_harms_neither_the_next_nor_the_host(sandbox: &Sandbox) {
    let canary = tempfile::tempdir_in(sandbox.directory()).expect("a directory");
    fs::write(canary.path().join("canary"), "alive").expect("written");
    let cache = volume(sandbox);
    let leave = format!(
        "cd /cache; ln -s /etc/shadow shadow; ln -s {} canary; cp /usr/bin/id id; chown 0:0 id; \
         chmod 6755 id; mkfifo pipe; mknod disk b 8 0 2>/dev/null || echo no; \
         mknod null c 1 3 2>/dev/null || echo no; mkdir closed; chmod 0 closed",
        canary.path().display()
    );
    let spec = ContainerSpec { user: root(), ..sandbox.script(&leave) };
    let spec = with(sandbox, &cache, Access::ReadWrite, spec);
    assert_eq!(sandbox.stdout_of(spec), "no\nno\n");
    let look = "cd /cache; cat shadow canary/canary 2>/dev/null; ./id -u; ./id -g";
    assert_eq!(stdout_with(sandbox, &cache, look), "1000\n1000\n");
    store(sandbox).remove(cache.as_str()).expect("removed");
    assert!(canary.path().join("canary").exists());
    // What it had has the ids of nobody on the host while it is there, and is closed to all others.
    let tenant = sandbox.directory().join("volumes/default");
    for closed in [sandbox.directory().join("volumes"), tenant] {
        assert_eq!(fs::metadata(closed).expect("there").permissions().mode() & 0o777, 0o700);
    }
}

fn a_link_or_a_file_where_a_volume_goes_is_refused(sandbox: &Sandbox) {
    let cache = volume(sandbox);
    let alter = |root: &Path| {
        symlink("/etc", root.join("link")).expect("linked");
        symlink("/proc", root.join("to-proc")).expect("linked");
        fs::write(root.join("file"), "").expect("written");
    };
    for target in ["/link", "/link/below", "/to-proc/tty", "/file", "/file/below", "/proc/self/cwd"]
    {
        let spec = image::spec(sandbox, "linked", alter, "true");
        let spec = at(sandbox, &cache, (target, Access::ReadWrite), spec);
        let ran = sandbox.run(spec);
        assert_eq!(ran.outcome.verdict, Verdict::Failure, "{target}: {:?}", ran.outcome);
        let told = ran.stderr(0);
        assert!(told.contains(&format!("could not show a volume at `{target}`")), "{told}");
    }
}

fn volumes_go_where_there_is_something_and_where_there_is_nothing(sandbox: &Sandbox) {
    let (one, other) = (volume(sandbox), volume(sandbox));
    let targets = ["/tmp/x", "/workspace/deep/x", "/srv/a/b", "/var/lib", "/usr/share"];
    for target in targets {
        let script = format!("cd {target}; echo {target} > one; stat -c %u:%g . ..; pwd -P");
        let spec = at(sandbox, &one, (target, Access::ReadWrite), sandbox.script(&script));
        let spec = at(sandbox, &other, ("/other", Access::ReadOnly), spec);
        let stdout = sandbox.stdout_of(spec);
        assert!(stdout.ends_with(&format!("{target}\n")), "{stdout}");
        if target.starts_with("/srv") {
            assert!(stdout.contains("1000:1000\n"), "what was made is the job's: {stdout}");
        }
    }
    assert_eq!(stdout_with(sandbox, &one, "cat /cache/one"), "/usr/share\n");
}

fn a_working_directory_may_be_in_a_volume(sandbox: &Sandbox) {
    let cache = volume(sandbox);
    for (workdir, files) in [("/cache", 1), ("/cache/a/b", 2), ("/cache/a", 3), ("/cache/a/b", 3)] {
        let mut spec = sandbox.script("pwd; cat in; echo \"$PWD\" > out; find /cache -name in");
        spec.workdir = workdir.into();
        spec.files = vec![file("in", "here\n")];
        let stdout = sandbox.stdout_of(with(sandbox, &cache, Access::ReadWrite, spec));
        assert!(stdout.starts_with(&format!("{workdir}\nhere\n")), "{stdout}");
        assert_eq!(stdout.lines().count(), 2 + files, "{stdout}");
    }
    // The volume itself stays as it was made; what is in it is the job's.
    let owners = stdout_with(sandbox, &cache, "cd /cache; stat -c %u . a a/b a/b/in");
    assert_eq!(owners, "0\n1000\n1000\n1000\n");
    let mut spec = at(sandbox, &cache, ("/tmp", Access::ReadWrite), sandbox.script("stat -c %u ."));
    spec.workdir = "/tmp".into();
    assert_eq!(sandbox.stdout_of(spec), "0\n");
    let mut spec = sandbox.script("pwd; cat out; touch x");
    spec.workdir = "/cache/a".into();
    let ran = sandbox.run(with(sandbox, &cache, Access::ReadOnly, spec));
    assert_eq!((ran.stdout(0).as_str(), ran.step(0).exit_code), ("/cache/a\n/cache/a\n", Some(1)));
}

/// The same container with a host directory at `/cache`.
fn of_host(source: &Path, mut spec: ContainerSpec) -> ContainerSpec {
    let (source, target) = (source.to_owned(), "/cache".into());
    spec.volumes.push(VolumeMount { source, held: None, target, access: Access::ReadOnly });
    spec
}

/// A second name of a directory, as long as this lives.
struct Bound(PathBuf);

impl Bound {
    fn new(source: &Path, at: &Path) -> Self {
        mount_bind(source, at).expect("mounted");
        Self(at.to_owned())
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        unmount(&self.0, UnmountFlags::DETACH).expect("unmounted");
    }
}

/// Not as it was when its container was made, ahead of time, nor with what is mounted there later.
fn a_host_directory_is_shown_as_it_is_at_the_start(sandbox: &Sandbox) {
    let host = tempfile::tempdir_in(sandbox.directory()).expect("a directory");
    let place = host.path().canonicalize().expect("there");
    for made in ["disk/below", "shown", "other"] {
        fs::create_dir_all(place.join(made)).expect("made");
    }
    fs::write(place.join("disk/f"), "mounted\n").expect("written");
    fs::write(place.join("other/later"), "").expect("written");
    let made_before = sandbox.spawn();
    let shown = place.join("shown");
    let _bound = Bound::new(&place.join("disk"), &shown);
    mount_change(&shown, MountPropagationFlags::SHARED).expect("shared");
    let script = "cat /cache/f; while [ ! -e /cache/go ]; do sleep 0.01; done; ls /cache/below";
    let mut live = sandbox.start_in(made_before, of_host(&shown, sandbox.script(script)));
    live.await_output();
    let _later = Bound::new(&place.join("other"), &shown.join("below"));
    assert!(shown.join("below/later").exists());
    fs::write(place.join("disk/go"), "").expect("written");
    assert_eq!(live.finish(sandbox).stdout(0), "mounted\n");
}

fn a_link_on_the_way_to_a_host_directory_is_refused(sandbox: &Sandbox) {
    let host = tempfile::tempdir_in(sandbox.directory()).expect("a directory");
    let place = host.path().canonicalize().expect("there");
    fs::create_dir_all(place.join("real/inner")).expect("made");
    fs::write(place.join("real/inner/f"), "shown\n").expect("written");
    symlink("real", place.join("link")).expect("linked");
    let show = |source: &str| {
        sandbox.run(of_host(&place.join(source), sandbox.script("cat /cache/f; touch /cache/f")))
    };
    let ran = show("real/inner");
    assert_eq!((ran.stdout(0).as_str(), ran.step(0).exit_code), ("shown\n", Some(1)));
    for source in ["link", "link/inner", "real/inner/f", "nothing"] {
        let outcome = show(source).outcome;
        assert_eq!(outcome.verdict, Verdict::Fault, "{source}: {outcome:?}");
    }
}

/// Whether the file system of the tests' data holds projects to their quotas.
fn has_project_quotas(sandbox: &Sandbox) -> bool {
    let mounts = fs::read_to_string("/proc/self/mounts").expect("readable");
    mounts.lines().any(|line| {
        let fields: Vec<_> = line.split(' ').collect();
        let is_above = fields[1] != "/" && sandbox.directory().starts_with(fields[1]);
        is_above && fields[3].split(',').any(|option| option == "prjquota")
    })
}

/// Most file systems hold no bound: then a volume with one is refused, and not made.
fn a_bound_is_held_or_refused(sandbox: &Sandbox) {
    let store = store(sandbox);
    let now = "2026-01-01T00:00:00Z".parse().expect("a time");
    for size in [0, (1 << 20) - 1, (1 << 60) + 1] {
        let refused = store.create("bounded", Some(size), now).expect_err("refused");
        assert!(refused.to_string().contains("choose 1048576 to"), "{refused}");
    }
    match store.create("bounded", Some(1 << 20), now) {
        Ok(volume) => {
            let fill = "head -c 2M /dev/zero > /cache/f; wc -c < /cache/f";
            let size: u64 = stdout_with(sandbox, &volume.name, fill).trim().parse().expect("bytes");
            assert!((1 << 19..=1 << 20).contains(&size), "{size}");
            let fill = "rm /cache/f; cd /cache; seq 3000 | xargs touch 2>&1; ls | wc -l";
            let stdout = stdout_with(sandbox, &volume.name, fill);
            assert!(stdout.contains("Disk quota exceeded"), "{stdout}");
            let files: u32 = stdout.lines().last().expect("a line").parse().expect("a number");
            assert!((2000..=2048).contains(&files), "{files}");
            store.remove("bounded").expect("removed");
        }
        Err(error) => {
            assert!(matches!(error, Error::NoBound { .. }), "{error}");
            assert!(!has_project_quotas(sandbox), "{error}");
            let told = error.to_string();
            assert!(told.contains("project quotas") && told.contains("`prjquota`"), "{told}");
            assert!(store.get("bounded").expect("read").is_none());
        }
    }
    let left = fs::read_dir(sandbox.directory().join("volumes/default")).expect("read");
    let left = left.map(|entry| entry.expect("read").file_name());
    assert!(left.into_iter().all(|name| !name.to_string_lossy().contains("bounded")));
}

/// The tests' data have to be on a disk: choose a `TMPDIR` that is, if this fails.
fn what_goes_to_the_disk_is_throttled(sandbox: &Sandbox) {
    const RATE: u64 = 4 << 20;
    const MIB: u64 = 8;
    let cache = volume(sandbox);
    for command in [
        "dd if=/dev/zero of=/cache/f bs=1M count=8 oflag=direct",
        "dd if=/cache/f of=/dev/null bs=1M count=8 iflag=direct",
    ] {
        let mut spec = with(sandbox, &cache, Access::ReadWrite, sandbox.script(command));
        spec.io_bytes_per_s = bytes(RATE);
        let (step, _) = sandbox.run_one(spec);
        assert_eq!(step.verdict, Verdict::Success, "{command}: {step:?}");
        // The kernel gives some of it in advance.
        let least_us = (MIB << 20) * 1_000_000 / RATE * 3 / 4;
        assert!(step.usage.wall_us >= least_us, "{command}: {} µs", step.usage.wall_us);
    }
}

/// A process that waits for the disk cannot be killed, so it has to be let go first.
fn a_throttled_job_is_killed_at_once(sandbox: &Sandbox) {
    let cache = volume(sandbox);
    let command = "exec dd if=/dev/zero of=/cache/f bs=64M count=1 oflag=direct";
    let mut spec = with(sandbox, &cache, Access::ReadWrite, sandbox.script(command));
    spec.io_bytes_per_s = bytes(1 << 20);
    spec.steps[0].limits.wall_ms = bytes(1500);
    let (step, _) = sandbox.run_one(spec);
    assert_eq!(step.verdict, Verdict::WallLimit, "{step:?}");
    assert!(step.usage.wall_us < 20_000_000, "{} µs", step.usage.wall_us);
}

/// Also while its program waits for the disk.
fn a_killed_shim_leaves_neither_a_throttle_nor_a_hold(sandbox: &Sandbox) {
    let cache = volume(sandbox);
    let command = "echo starts; exec dd if=/dev/zero of=/cache/f bs=64M count=1 oflag=direct";
    let mut spec = with(sandbox, &cache, Access::ReadWrite, sandbox.script(command));
    spec.io_bytes_per_s = bytes(1 << 20);
    let mut live = sandbox.start_container(spec);
    live.await_output();
    await_that("nothing was written", || {
        fs::metadata(sandbox.directory().join(format!("volumes/default/{cache}/files/f")))
            .is_ok_and(|file| file.len() > 0 || file.blocks() > 0)
    });
    let shim = lifecycle::shim(sandbox, live.container.id());
    kill_process(shim, Signal::KILL).expect("killed");
    live.footprint.assert_gone(sandbox.settings());
    store(sandbox).remove(cache.as_str()).expect("nobody holds it");
}
