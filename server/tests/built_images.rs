//! Images from Dockerfiles: built, built again, read and run by others, given to a registry.
#![expect(clippy::expect_used, reason = "a test ends where something is not as expected")]
#![allow(clippy::disallowed_methods, reason = "other engines run what was built")]

mod context;
mod registry;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use context::Context;
use registry::client::{Client, Told};
use registry::debian::Debian;
use serde_json::Value;

/// Six steps. The fourth prints something that no other run of it prints.
const SIX_STEPS: &str = r#"FROM scratch
COPY busybox /bin/busybox
RUN ["/bin/busybox", "--install", "/bin"]
COPY app /app/
RUN echo "ran $(cat /proc/uptime)" && mkdir -p /etc && \
    echo 'app:x:1000:1000::/app:/bin/sh' > /etc/passwd
RUN sort /app/words > /app/sorted
CMD ["/bin/cat", "/app/sorted"]
"#;

#[test]
fn after_a_change_only_the_steps_from_there_on_run_again() {
    let context = Context::new(SIX_STEPS);
    assert_eq!(context.built().0, 0);
    let (as_before, _) = context.built();
    assert_eq!(as_before, 5, "all that make layers");
    context.write("Dockerfile", &SIX_STEPS.replace("sort /app", "sort -r /app"));
    let (as_before, told) = context.built();
    assert_eq!(as_before, 4, "{told}");
    assert!(!told.contains("\nran "), "{told}");
    assert_eq!(context.shell("cat /app/sorted"), "pear\napple\n");
    context.write("app/words", "fig\n");
    let (as_before, told) = context.built();
    assert_eq!(as_before, 2, "{told}");
    assert!(told.contains("\nran "), "{told}");
    // When a file was written does not matter.
    context.write("app/words", "fig\n");
    assert_eq!(context.built().0, 5);
    let told = context.build(&["--no-cache"]);
    assert!(told.code == 0 && !told.err.contains("as before"), "{told:?}");
}

#[test]
fn the_data_directory_may_be_named_from_here() {
    let context = Context::new(SIX_STEPS);
    let mut command = Command::new(env!("CARGO_BIN_EXE_lazaret"));
    command.args(["image", "build", "-t", "here:1", "--data", "data", "."]);
    let told: Told = command.current_dir(context.path()).output().expect("ran").into();
    assert_eq!(told.code, 0, "{told:?}");
}

#[test]
fn others_read_and_run_what_is_exported() {
    let context = Context::new(SIX_STEPS);
    context.built();
    let layout = context.path().join("layout");
    let told = context.client.run(&["image", "export", "built:1", layout.to_str().expect("UTF-8")]);
    assert_eq!(told.code, 0, "{told:?}");
    let source = format!("oci:{}:1", layout.display());
    let inspected = run("skopeo", &["inspect", "--config", &source]);
    let config: Value = serde_json::from_str(&inspected.out).expect("JSON");
    assert_eq!(config["config"]["Cmd"], serde_json::json!(["/bin/cat", "/app/sorted"]), "{config}");
    let bundle = context.path().join("bundle");
    let image = format!("{}:1", layout.display());
    run("umoci", &["unpack", "--image", &image, bundle.to_str().expect("UTF-8")]);
    assert_eq!(run_by_crun(&bundle), "apple\npear\n");
}

/// What the program of a bundle prints. `crun` takes the hierarchies of hosts with both versions of
/// cgroup for none of the two, unless it does not see the second.
fn run_by_crun(bundle: &Path) -> String {
    let path = bundle.join("config.json");
    let text = fs::read(&path).expect("read");
    let mut config: Value = serde_json::from_slice(&text).expect("JSON");
    config["process"]["terminal"] = false.into();
    fs::write(&path, config.to_string()).expect("written");
    let name = format!("lazaret-test-{}", std::process::id());
    let script = "umount /sys/fs/cgroup/unified 2> /dev/null; \
                  exec crun --cgroup-manager=disabled run -b \"$0\" \"$1\"";
    run("unshare", &["-m", "sh", "-c", script, bundle.to_str().expect("UTF-8"), &name]).out
}

fn run(program: &str, words: &[&str]) -> Told {
    let mut command = Command::new(program);
    let output = command.args(words).output().expect("`packaging/setup` installs it");
    let told = Told::from(output);
    assert_eq!(told.code, 0, "{program}: {told:?}");
    told
}

#[test]
fn what_is_pushed_comes_back_the_same_and_is_sent_once() {
    let (context, registry) = (Context::new(SIX_STEPS), Debian::start());
    context.built();
    let target = registry.reference("team/fruit:2");
    let push = || context.client.run(&["image", "push", "built:1", &target, "--plain-http"]);
    let told = push();
    assert_eq!((told.code, told.err.matches(": uploaded,").count()), (0, 5), "{told:?}");
    let told = push();
    assert_eq!((told.code, told.err.matches(": exists,").count()), (0, 5), "{told:?}");
    // One more layer, and one more is sent.
    context.write("Dockerfile", &format!("{SIX_STEPS}RUN echo more > /more\n"));
    context.built();
    let told = push();
    let counts = [": exists,", ": uploaded,"].map(|state| told.err.matches(state).count());
    assert_eq!((told.code, counts), (0, [5, 1]), "{told:?}");

    let elsewhere = Client::new();
    let told = elsewhere.pull(&target, &["--as", "other:name"]);
    assert_eq!(told.code, 0, "{told:?}");
    let told = elsewhere.run(&["run", "--image", "other:name"]);
    assert_eq!((told.code, told.out.as_str()), (0, "apple\npear\n"), "{told:?}");
    // Whoever built it has all of its layers.
    let layers = context.client.layers();
    let told = context.client.pull(&target, &["--as", "other:name"]);
    assert_eq!(told.err.matches(": exists,").count(), 6, "{told:?}");
    assert_eq!(context.client.layers(), layers);
    // Another repository of the same registry is given nothing that the registry has.
    let moved = registry.reference("other/fruit:2");
    for client in [&context.client, &elsewhere] {
        let name = if client.images().len() > 1 { "built:1" } else { "other:name" };
        let told = client.run(&["image", "push", name, &moved, "--plain-http"]);
        assert_eq!((told.code, told.err.matches(": exists,").count()), (0, 6), "{told:?}");
    }
    // What came from a registry goes back as it came.
    let other = registry.reference("team/fruit:3");
    let told = elsewhere.run(&["image", "push", "other:name", &other, "--plain-http"]);
    assert_eq!((told.code, told.err.matches(": exists,").count()), (0, 6), "{told:?}");
}

#[test]
fn an_image_that_is_not_here_is_pulled_and_a_registry_that_refuses_is_named() {
    let (context, registry) = (Context::new(SIX_STEPS), Debian::start());
    context.built();
    let base = registry.reference("base:1");
    let told = context.client.run(&["image", "push", "built:1", &base, "--plain-http"]);
    assert_eq!(told.code, 0, "{told:?}");
    let other = Context::new(&format!("FROM {base}\nRUN echo on top > /top\n"));
    let told = other.build(&["--plain-http"]);
    assert_eq!(told.code, 0, "{told:?}");
    assert_eq!(other.shell("cat /app/sorted /top"), "apple\npear\non top\n");
    for (words, reason) in [
        (vec!["image", "push", "none", &base, "--plain-http"], "there is no image `none`"),
        (vec!["image", "push", "host", &base, "--plain-http"], "no copy is made"),
        (vec!["image", "push", "built:1", "127.0.0.1:1/x:1", "--plain-http"], "127.0.0.1:1"),
    ] {
        let told = context.client.run(&words);
        assert!(told.code != 0 && told.err.contains(reason), "{reason}: {told:?}");
    }
}

#[test]
fn files_go_where_links_of_the_image_lead_and_directories_stay_as_they_are() {
    let context = Context::new(
        "FROM scratch AS base\nCOPY busybox /bin/\n\
         RUN [\"/bin/busybox\", \"--install\", \"/bin\"]\n\
         RUN mkdir -p /usr/lib /closed /old && ln -s usr/lib /lib && chmod 700 /closed && \
             chown 7:8 /closed && echo old > /old/file && ln -s /old/file /link\n\
         FROM base\nCOPY app/words /lib/words\nCOPY app/words /closed/\nCOPY app/words /link\n\
         COPY --from=base /old/file /old/again /deep/er/\nWORKDIR rel\n\
         COPY --chmod=0755 --chown=5:6 . .\n",
    );
    context.write("Dockerfile.dockerignore-is-not-read", "x");
    context.write(".dockerignore", "Dockerfile*\n*.log\n");
    context.write("run.log", "not copied");
    context.write("sub/run.log", "copied: the pattern names the top only");
    let told = context.build(&[]);
    assert!(told.code == 2 && told.err.contains("`/old/again` is not in"), "{told:?}");
    let text = fs::read_to_string(context.path().join("Dockerfile")).expect("read");
    context.write("Dockerfile", &text.replace(" /old/again", ""));
    context.built();
    let stat = "stat -c '%n %F %a %u %g' /lib /closed /link /deep/er/file /rel /rel/app/words; \
                cat /usr/lib/words /old/file; find /rel -type f ! -name busybox | sort";
    assert_eq!(
        context.shell(stat),
        "/lib symbolic link 777 0 0\n/closed directory 700 7 8\n/link symbolic link 777 0 0\n\
         /deep/er/file regular file 644 0 0\n/rel directory 755 1000 1000\n\
         /rel/app/words regular file 755 5 6\npear\napple\npear\napple\n\
         /rel/.dockerignore\n/rel/app/words\n/rel/sub/run.log\n"
    );
}

#[test]
fn nothing_outside_of_the_context_is_copied() {
    let context = Context::new("FROM scratch\nCOPY escape /e\n");
    let secret = context.path().with_extension("secret");
    fs::write(&secret, "secret").expect("written");
    for target in [secret.clone(), PathBuf::from("../").join(secret.file_name().expect("a name"))] {
        let link = context.path().join("escape");
        std::os::unix::fs::symlink(&target, &link).expect("linked");
        let told = context.build(&[]);
        assert!(told.code == 2 && told.err.contains("line 2: `escape` is not in"), "{told:?}");
        fs::remove_file(link).expect("removed");
    }
    fs::remove_file(secret).expect("removed");
}

#[test]
fn what_cannot_be_done_is_refused_by_its_line() {
    let base = "FROM scratch\nCOPY busybox /bin/sh\n";
    for (text, reason) in [
        (format!("{base}RUN exit 3\n"), "line 3: exit code 3"),
        (format!("{base}RUN [\"/none\"]\n"), "line 3: exit code 127"),
        (format!("{base}\n\nCOPY none /\n"), "line 5: `none` is not in"),
        (format!("{base}ADD https://example.org/x /\n"), "line 3: `https://example.org/x`"),
        (format!("{base}RUN --mount=type=cache,target=/x true\n"), "`--mount` is not supported"),
        (format!("{base}EXPOSE http\n"), "line 3: `http` is not a port"),
        (format!("{base}ENV \"a\n"), "line 3: "),
        (format!("{base}USER nobody\nRUN true\n"), "line 4: user `nobody`"),
        (format!("{base}COPY app/words /bin\n"), ""),
        (format!("{base}COPY app /bin/sh\n"), "is no directory"),
        (format!("{base}ONBUILD RUN true\n"), "`ONBUILD` is not supported"),
        ("FROM host\nRUN true\n".into(), "`host` is this machine itself"),
        ("FROM --platform=linux/s390x scratch\n".into(), "`linux/s390x` is not this machine"),
        ("RUN true\n".into(), "expected FROM"),
        ("FROM scratch\nNONSENSE\n".into(), "unknown instruction"),
    ] {
        let context = Context::new(&text);
        let told = context.build(&[]);
        let is_expected = told.err.contains(reason) && (told.code == 2) != reason.is_empty();
        assert!(is_expected, "{text}: {told:?}");
        assert_eq!(context.client.images().len(), usize::from(reason.is_empty()), "{told:?}");
    }
}
