//! Pulls that others meet: they are killed, made twice at once, and pruned under.
#![expect(clippy::expect_used, reason = "a test ends where something is not as expected")]
#![allow(clippy::print_stderr, reason = "who sees a test fail wants to see it again")]

mod registry;

use std::time::{Duration, Instant, SystemTime};

use registry::client::{Client, Told};
use registry::images::{self, Made};
use registry::{Fault, Registry, blob_path};

/// The layer that stands for all layers of the built-in image.
const HOST_LAYERS: usize = 1;
/// How often a pull is killed.
const KILLS: u32 = 10;
/// Nothing that a test waits for takes longer.
const PATIENCE: Duration = Duration::from_secs(30);

/// An image that can be run, and whose layers take a while to come from a slow registry.
fn large() -> Made {
    let (busybox, noise) = (images::busybox(), images::noise(3 << 18));
    images::image(&[
        &[("bin/cat", &busybox)],
        &[("one", &noise[..1 << 18])],
        &[("two/two", &noise[1 << 18..2 << 18])],
        &[("three", &noise[2 << 18..]), ("name", b"large")],
        &[("four", b"4")],
        &[("five", b"5")],
    ])
}

/// Numbers that look drawn, and are the same for the same seed.
struct Draw(u64);

impl Draw {
    /// A seed of the clock, or the one that a run before has told and this is compiled with.
    #[expect(clippy::disallowed_methods, reason = "each run is another one")]
    fn new() -> Self {
        let told = option_env!("LAZARET_TEST_SEED");
        let seed = told.map(|text| text.parse().expect("a number")).unwrap_or_else(|| {
            let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
            u64::from(now.expect("after 1970").subsec_nanos())
        });
        eprintln!("again with LAZARET_TEST_SEED={seed}");
        Self(seed)
    }

    /// A number of at least 0 and less than 1 (SplitMix64).
    fn fraction(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        f64::from(u32::try_from((mixed ^ (mixed >> 31)) >> 32).expect("32 bits")) / 2_f64.powi(32)
    }
}

#[test]
fn a_pull_that_is_killed_at_any_moment_leaves_nothing_or_the_whole() {
    let (registry, made) = (Registry::start_slow(Duration::from_millis(10)), large());
    registry.put("latest", &made);
    let reference = registry.reference("test/image");
    let name = registry.reference("test/image:latest");
    let start = Instant::now();
    assert_eq!(Client::new().pull(&reference, &[]).code, 0);
    let length = start.elapsed();
    let (mut draw, client) = (Draw::new(), Client::new());
    let mut unfinished = 0;
    for kill in 0..KILLS {
        // One in each tenth of it.
        let moment = length.mul_f64((f64::from(kill) + draw.fraction()) / f64::from(KILLS));
        let mut child = client.start_pull(&reference);
        std::thread::sleep(moment);
        child.kill().expect("killed");
        let told = Told::from(child.wait_with_output().expect("ended"));
        let images = client.images();
        assert!(images.is_empty() || client.layers_of(&name).len() == made.layers.len());
        assert!(told.code != 0 || images.len() == 1, "{moment:?}: {told:?}");
        unfinished += usize::from(images.is_empty());
        let told = client.pull(&reference, &[]);
        assert_eq!(told.code, 0, "{moment:?}: {told:?}");
        assert_eq!(client.images()[0]["digest"], made.manifest.digest, "{moment:?}");
        assert_eq!(client.name_in(&name), "large", "{moment:?}");
        assert_eq!(client.run(&["image", "prune"]).code, 0);
        assert_eq!(client.layers(), (HOST_LAYERS + made.layers.len(), 0), "{moment:?}");
        assert!(client.layers_of(&name).iter().all(|layer| layer.is_dir()), "{moment:?}");
        assert_eq!(client.run(&["image", "rm", &name]).code, 0);
        assert_eq!(client.run(&["image", "prune"]).code, 0);
        assert_eq!(client.layers(), (HOST_LAYERS, 0), "{moment:?}");
    }
    assert!(unfinished > 0, "every pull was done before it was killed");
}

/// Waits until a blob was asked for so often.
fn wait_for(registry: &Registry, path: &str, times: usize) {
    let start = Instant::now();
    while registry.asked(path).len() < times {
        assert!(start.elapsed() < PATIENCE, "{path} is not asked for in time");
        std::thread::yield_now();
    }
}

#[test]
fn two_processes_that_pull_an_image_at_once_have_it_once() {
    let (registry, client, made) = (Registry::start(), Client::new(), images::named("shared"));
    registry.put("latest", &made);
    let base = blob_path(&made.layers[0]);
    registry.fail(&base, &[Fault::Held, Fault::Held]);
    let reference = registry.reference("test/image");
    let pulls = [client.start_pull(&reference), client.start_pull(&reference)];
    wait_for(&registry, &base, 2);
    registry.release();
    for pull in pulls {
        let told = Told::from(pull.wait_with_output().expect("ended"));
        assert_eq!(told.code, 0, "{told:?}");
    }
    assert_eq!(client.images().len(), 1);
    assert_eq!(client.layers(), (HOST_LAYERS + 2, 0));
    assert_eq!(client.known_layers(), 2);
    assert_eq!(client.name_in(&registry.reference("test/image:latest")), "shared");
}

#[test]
fn a_prune_takes_no_layer_from_a_pull_that_needs_it() {
    let (registry, client, made) = (Registry::start(), Client::new(), images::named("pruned"));
    registry.put("latest", &made);
    let [base, top] = [&made.layers[0], &made.layers[1]].map(blob_path);
    registry.fail(&base, &[Fault::Held]);
    let pull = client.start_pull(&registry.reference("test/image"));
    let start = Instant::now();
    while client.known_layers() == 0 {
        assert!(start.elapsed() < PATIENCE, "no layer comes");
        std::thread::yield_now();
    }
    let told = client.run(&["image", "prune"]);
    assert!(told.code == 0 && told.out.contains("removed 0 images and 0 layers"), "{told:?}");
    registry.release();
    let told = Told::from(pull.wait_with_output().expect("ended"));
    assert_eq!(told.code, 0, "{told:?}");
    assert_eq!((registry.asked(&base).len(), registry.asked(&top).len()), (1, 1));
    assert_eq!(client.name_in(&registry.reference("test/image:latest")), "pruned");
    assert_eq!(client.layers(), (HOST_LAYERS + 2, 0));
}
