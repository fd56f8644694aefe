//! What a container wrote, as a layer.

use std::fs;
use std::os::unix::fs::MetadataExt as _;

use lazaret_sandbox::image::{Bounds, Error};
use lazaret_sandbox::outcome::Verdict;
use lazaret_sandbox::spec::User;

use crate::fixture::{Sandbox, bytes};
use crate::image::spec;
use crate::{Test, tests};

pub(crate) const TESTS: &[Test] = tests![
    an_image_is_made_of_what_was_written_and_runs,
    only_a_container_that_succeeded_gives_what_it_wrote,
    what_was_written_is_kept_to_the_bounds_of_a_layer,
    what_others_left_of_much_is_gone_before_it_is_read,
    images_of_many_layers_run,
];

fn an_image_is_made_of_what_was_written_and_runs(sandbox: &Sandbox) {
    let script = "echo new > /made; echo more >> /data/owned; \
                  touch /data/second; cat /data/owned";
    let mut base = spec(sandbox, "to-commit", |_| (), script);
    base.user = User { uid: 0, gid: 0, groups: Vec::new() };
    let (outcome, upper) = sandbox.start_container(base).take_upper(sandbox);
    assert_eq!(outcome.verdict, Verdict::Success, "{outcome:?}");
    let image = sandbox.images().get("to-commit").expect("read").expect("there");
    let now = "2026-01-02T00:00:00Z".parse().expect("a time");
    let name = "committed".parse().expect("a name");
    let upper = upper.expect("what it wrote");
    let image =
        sandbox.images().commit(&image, &upper, name, (now, Bounds::default())).expect("committed");
    assert_eq!(image.layers.len(), 2);
    let again = sandbox.images().commit_layer(&upper, Bounds::default()).expect("the same");
    assert_eq!(again.layer, image.layers[0]);
    // In the layer the owners are those of the image, not of the container on this host.
    let layer = &sandbox.rootfs("committed").paths()[0];
    let owned = fs::metadata(layer.join("data/owned")).expect("there");
    assert_eq!((owned.uid(), owned.gid()), (1234, 65_000));
    assert_eq!(fs::metadata(layer.join("made")).expect("there").uid(), 0);
    let mut next = sandbox.script("cat /made /data/owned; stat -c %u:%g /data/owned /made");
    next.rootfs = sandbox.rootfs("committed");
    assert_eq!(sandbox.stdout_of(next), "new\nxmore\n1234:65000\n0:0\n");
}

fn only_a_container_that_succeeded_gives_what_it_wrote(sandbox: &Sandbox) {
    for (script, is_given) in [("true", true), ("false", false), ("kill -9 $$", false)] {
        let live = sandbox.start_container(sandbox.script(script));
        let (outcome, upper) = live.take_upper(sandbox);
        assert_eq!(upper.is_some(), is_given, "{script}: {outcome:?}");
    }
}

fn what_was_written_is_kept_to_the_bounds_of_a_layer(sandbox: &Sandbox) {
    let spec = spec(sandbox, "bounded", |_| (), "echo 12345 > /workspace/six");
    let (_, upper) = sandbox.start_container(spec).take_upper(sandbox);
    let upper = upper.expect("what it wrote");
    // The root, the working directory, the file.
    let exactly = Bounds { unpacked_bytes: 6, entries: 3 };
    sandbox.images().commit_layer(&upper, exactly).expect("within");
    for less in [Bounds { unpacked_bytes: 5, ..exactly }, Bounds { entries: 2, ..exactly }] {
        let refused = sandbox.images().commit_layer(&upper, less);
        assert!(matches!(refused, Err(Error::TooLarge { .. })), "{refused:?}");
    }
}

/// The shim takes the container away while what it wrote is still read.
fn what_others_left_of_much_is_gone_before_it_is_read(sandbox: &Sandbox) {
    let script = "i=0; while [ $i -lt 200 ]; do echo $i > file$i; i=$((i + 1)); done; \
                  head -c 33554432 /dev/zero | tr '\\0' x > large";
    let mut spec = sandbox.script(script);
    spec.disk_bytes = bytes(64 << 20);
    let (outcome, upper) = sandbox.start_container(spec).take_upper(sandbox);
    assert_eq!(outcome.verdict, Verdict::Success, "{outcome:?}");
    let upper = upper.expect("what it wrote");
    let layer = sandbox.images().commit_layer(&upper, Bounds::default()).expect("committed");
    assert!(layer.layer.size_bytes > 32 << 20, "{layer:?}");
}

/// More layers than fit the options of fsconfig(2), and as many as there may be.
fn images_of_many_layers_run(sandbox: &Sandbox) {
    let base = spec(sandbox, "lowest", |_| (), "cat /top");
    let name = |number: usize| format!("{number:030}");
    let mut held = Vec::new();
    for number in 0..127 {
        let directory = base.rootfs.directory.join(name(number));
        fs::create_dir(&directory).expect("made");
        // Who cleans the store leaves what somebody needs.
        let lock = fs::File::open(&directory).expect("opened");
        lock.lock_shared().expect("locked");
        held.push(lock);
        fs::write(directory.join("top"), format!("{number}\n")).expect("written");
    }
    for number in [8, 29, 127] {
        let mut many = base.clone();
        many.rootfs.layers.splice(0..0, (0..number).rev().map(name));
        assert_eq!(sandbox.stdout_of(many), format!("{}\n", number - 1));
    }
}
