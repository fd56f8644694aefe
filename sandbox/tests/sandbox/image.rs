//! Containers of an imported image, whose layers are id-mapped.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use lazaret_sandbox::outcome::Verdict;
use lazaret_sandbox::spec::{ContainerSpec, User};

use crate::fixture::Sandbox;
use crate::{Test, tests};

pub(crate) const TESTS: &[Test] = tests![
    an_imported_directory_runs_with_its_own_owners,
    root_inside_is_nobody_outside,
    layers_are_never_written,
    a_link_of_the_image_leads_to_no_place_but_its_own,
    hostile_mount_points_are_covered,
];

/// Programs that the image consists of.
const PROGRAMS: [&str; 6] = ["sh", "ls", "id", "stat", "cat", "touch"];

/// A root file system of a few of this machine's programs and the libraries they need.
fn make_root(root: &Path) {
    for directory in ["bin", "etc", "data", "lib64"] {
        fs::create_dir_all(root.join(directory)).expect("made");
    }
    for program in PROGRAMS {
        let from = fs::canonicalize(Path::new("/bin").join(program)).expect("a program");
        for library in libraries(&from) {
            let to = root.join(library.strip_prefix("/").expect("absolute"));
            fs::create_dir_all(to.parent().expect("a parent")).expect("made");
            fs::copy(fs::canonicalize(&library).expect("there"), &to).expect("copied");
        }
        fs::copy(&from, root.join("bin").join(program)).expect("copied");
    }
    fs::write(root.join("data/owned"), "x").expect("written");
    std::os::unix::fs::chown(root.join("data/owned"), Some(1234), Some(65_000)).expect("owned");
    fs::write(root.join("etc/passwd"), "root:x:0:0::/:/bin/sh\njob:x:77:78::/:/bin/sh\n")
        .expect("written");
}

/// Absolute paths in a program's list of needed files, as its loader prints them.
fn libraries(program: &Path) -> Vec<PathBuf> {
    #[expect(clippy::disallowed_methods, reason = "a test's own tool, outside any container")]
    let lists = std::process::Command::new("ldd").arg(program).output().expect("ldd");
    let text = String::from_utf8(lists.stdout).expect("text");
    text.split_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from).collect()
}

/// The image of this name, imported if it was not yet.
pub(crate) fn spec(
    sandbox: &Sandbox,
    name: &str,
    alter: impl Fn(&Path),
    script: &str,
) -> ContainerSpec {
    let root = tempfile::tempdir_in(sandbox.directory()).expect("a directory");
    fs::set_permissions(root.path(), fs::Permissions::from_mode(0o755)).expect("set");
    make_root(root.path());
    alter(root.path());
    let now = "2026-01-01T00:00:00Z".parse().expect("a time");
    sandbox.images().import(root.path(), name, now).expect("imported");
    let mut spec = sandbox.script(script);
    spec.rootfs = sandbox.rootfs(name);
    spec
}

fn an_imported_directory_runs_with_its_own_owners(sandbox: &Sandbox) {
    let script = "id -u; stat -c %u:%g /data/owned /bin/sh /";
    let spec = spec(sandbox, "owners", |_| (), script);
    assert!(spec.rootfs.is_id_mapped);
    assert_eq!(sandbox.stdout_of(spec), "1000\n1234:65000\n0:0\n0:0\n");
}

fn root_inside_is_nobody_outside(sandbox: &Sandbox) {
    let script = "id -u; touch /made /data/owned; stat -c %u /made; cat /proc/self/uid_map";
    let mut spec = spec(sandbox, "root", |_| (), script);
    spec.user = User { uid: 0, gid: 0, groups: Vec::new() };
    let stdout = sandbox.stdout_of(spec);
    let lines: Vec<_> = stdout.lines().collect();
    assert_eq!(&lines[..2], ["0", "0"]);
    let map: Vec<u32> =
        lines[2].split_whitespace().map(|number| number.parse().expect("a number")).collect();
    assert_eq!((map[0], map[2]), (0, 65_536));
    assert!(map[1] >= 0x7000_0000, "{map:?}");
}

fn layers_are_never_written(sandbox: &Sandbox) {
    let script = "echo changed > /data/owned; rm /bin/cat; mkdir /new; echo $?";
    let mut spec = spec(sandbox, "kept", |_| (), script);
    spec.user = User { uid: 0, gid: 0, groups: Vec::new() };
    let layer = spec.rootfs.paths()[0].clone();
    let ran = sandbox.run(spec);
    assert_ne!(ran.outcome.verdict, Verdict::Fault, "{:?}", ran.outcome);
    assert_eq!(fs::read_to_string(layer.join("data/owned")).expect("readable"), "x");
    assert!(layer.join("bin/cat").exists() && !layer.join("new").exists());
}

/// Directories of `/proc` have one owner for the whole host.
fn a_link_of_the_image_leads_to_no_place_but_its_own(sandbox: &Sandbox) {
    let owner = || fs::metadata("/proc/tty").expect("there").uid();
    let before = owner();
    let places = ["/proc/tty", "/proc/tty/driver", "/proc", "/proc/sys", "/dev", "/dev/pts", "/no"];
    for (number, place) in places.into_iter().enumerate() {
        let alter = |root: &Path| symlink(place, root.join("link")).expect("linked");
        let mut spec = spec(sandbox, &format!("link-{number}"), alter, "pwd");
        spec.workdir = "/link".into();
        let outcome = sandbox.run(spec).outcome;
        assert_eq!(outcome.verdict, Verdict::Failure, "{place}: {outcome:?}");
        assert_eq!(owner(), before, "{place}");
    }
    let alter = |root: &Path| symlink("/tmp", root.join("link")).expect("linked");
    let mut spec = spec(sandbox, "link", alter, "pwd -P; touch x");
    spec.workdir = "/link".into();
    assert_eq!(sandbox.stdout_of(spec), "/tmp\n");
}

/// An image may hold anything where the container's own mounts go.
fn hostile_mount_points_are_covered(sandbox: &Sandbox) {
    let canary = tempfile::tempdir().expect("a directory");
    let outside = canary.path().to_owned();
    let alter = move |root: &Path| {
        symlink(&outside, root.join("proc")).expect("linked");
        symlink("/etc", root.join("dev")).expect("linked");
        fs::write(root.join("tmp"), "a file").expect("written");
        symlink(outside.join("hosts"), root.join("etc/hosts")).expect("linked");
    };
    let script = "cat /proc/self/comm; ls /dev/null; ls -d /tmp/; cat /etc/hostname";
    let spec = spec(sandbox, "hostile", alter, script);
    assert_eq!(sandbox.stdout_of(spec), "cat\n/dev/null\n/tmp/\nlazaret\n");
    assert_eq!(fs::read_dir(canary.path()).expect("readable").count(), 0);
}
