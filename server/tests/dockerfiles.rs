//! What the words of a Dockerfile mean: as Docker's reference says, where it says so.
#![expect(clippy::expect_used, reason = "a test ends where something is not as expected")]
#![allow(clippy::disallowed_methods, reason = "the tests are users of the command line")]

mod context;
mod registry;

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::process::Command;

use context::{BASE, Context};
use serde_json::json;

#[test]
fn what_an_image_starts_with_is_what_its_dockerfile_says() {
    let context = Context::new(&format!(
        "ARG BASE=base\nARG SUFFIX\n{BASE}ENV FIRST=one PATH=/bin\nCMD [\"of the base\"]\n\
         FROM ${{BASE}}${{SUFFIX:-}}\nARG SUFFIX\nARG WHO=nobody\n\
         ENV SECOND=\"$FIRST and\" \\\n    # a comment\n\n\
         THIRD='$FIRST' \\\n    FOURTH=\"${{WHO:+by $WHO}}\"\n\
         ENV FIFTH two words\nWORKDIR /a\nWORKDIR ../b/./c\nLABEL one=1 \"two words\"=\"2 3\"\n\
         EXPOSE 80 53/udp\nUSER 7:8\nSHELL [\"/bin/sh\", \"-euc\"]\nENTRYPOINT exec $FIRST\n"
    ));
    let told = context.build(&["--build-arg", "WHO=ann", "--build-arg", "UNKNOWN=1"]);
    assert_eq!(told.code, 0, "{told:?}");
    assert!(told.err.contains("no `ARG` asks for `UNKNOWN`"), "{told:?}");
    let config = context.config();
    assert_eq!(
        config["env"],
        json!([
            ["FIRST", "one"],
            ["PATH", "/bin"],
            ["SECOND", "one and"],
            ["THIRD", "$FIRST"],
            ["FOURTH", "by ann"],
            ["FIFTH", "two words"],
        ])
    );
    assert_eq!(config["workdir"], "/b/c");
    assert_eq!(config["user"], "7:8");
    assert_eq!(config["labels"], json!({ "one": "1", "two words": "2 3" }));
    assert_eq!(config["ports"], json!(["53/udp", "80/tcp"]));
    assert_eq!(config["entrypoint"], json!(["/bin/sh", "-euc", "exec $FIRST"]));
    assert_eq!(config["command"], json!([]), "that of the base was for its own entry point");
}

#[test]
fn a_stage_that_is_asked_for_is_built_with_those_that_it_needs() {
    let context = Context::new(&format!(
        "{BASE}ARG V=inherited\nFROM base AS One\nRUN echo one $V > /one\n\
         FROM base AS unneeded\nRUN exit 7\n\
         FROM base AS two\nCOPY --from=one /one /copied\nRUN cat /copied\n"
    ));
    let told = context.build(&["--target", "TWO"]);
    assert_eq!(told.code, 0, "{told:?}");
    assert_eq!(context.shell("cat /copied"), "one inherited\n");
    let told = context.build(&["--target", "one"]);
    assert_eq!(told.code, 0, "{told:?}");
    assert_eq!(context.shell("cat /one; ls /copied 2> /dev/null || true"), "one inherited\n");
    let told = context.build(&["--target", "three"]);
    assert!(told.code == 2 && told.err.contains("no stage `three`"), "{told:?}");
}

#[test]
fn a_step_finds_what_the_one_before_left_and_its_user_may_do_what_is_its_own() {
    let context = Context::new(&format!(
        "{BASE}COPY app/words /tmp/\nRUN test -s /tmp/words && echo a > /tmp/a && stat -c %a /tmp\n\
         RUN cat /tmp/a && echo 'app:x:1000:1000::/home/app:/bin/sh' > /etc/passwd && echo $HOME\n\
         USER app\nWORKDIR /home/app\nRUN touch new && test $HOME = /home/app && id -u\n\
         COPY --chown=1000:1000 app /made/by/copy\nRUN touch /made/by/copy/new /made/new\n"
    ));
    let (_, told) = context.built();
    assert!(told.contains("\n1777\n") && told.contains("\na\n/\n"), "{told}");
    assert!(told.contains("\n1000\n"), "{told}");
    let owners = "stat -c '%u %a' /made /made/by/copy/words /home/app";
    assert_eq!(context.shell(owners), "1000 755\n1000 644\n1000 755\n");
}

#[test]
fn copies_go_by_the_names_that_were_written() {
    let context = Context::new(&format!(
        "{BASE}COPY lib*.so* /lib/\nCOPY app/words app/wor* other /same/\nCOPY app/words /name.\n"
    ));
    context.write("other/words", "the last one\n");
    context.write("libx.so.1", "x");
    symlink("libx.so.1", context.path().join("libx.so")).expect("linked");
    context.built();
    let look = "ls /lib /same; cat /same/words; stat -c %F /lib/libx.so /name.";
    assert_eq!(
        context.shell(look),
        "/lib:\nlibx.so\nlibx.so.1\n\n/same:\nwords\nthe last one\nregular file\nregular file\n"
    );
    context.write(".dockerignore", "app/*\n!other\n");
    let told = context.build(&[]);
    assert!(told.code == 2 && told.err.contains("line 5: `app/words` is not in"), "{told:?}");
}

#[test]
fn archives_are_unpacked_by_add_alone_with_the_owners_that_they_have() {
    let context = Context::new(&format!(
        "{BASE}ADD made.tar.gz app/words /added/\nCOPY made.tar.gz /copied/\n\
         ADD --chown=3:4 made.tar.gz /given/\n"
    ));
    fs::set_permissions(context.path().join("app/words"), fs::Permissions::from_mode(0o640))
        .expect("set");
    let tar = |owner: &str| {
        let mut command = Command::new("tar");
        command.args(["-czf", "made.tar.gz", "--owner", owner, "--group", owner, "app"]);
        assert!(command.current_dir(context.path()).status().expect("tar").success());
    };
    tar("1000");
    context.built();
    let look = "ls /added /copied; stat -c '%u %a' /added/app/words /added/words /given/app/words";
    assert_eq!(
        context.shell(look),
        "/added:\napp\nwords\n\n/copied:\nmade.tar.gz\n1000 640\n0 640\n3 640\n"
    );
    // Whose the files in it are is of the step, too.
    tar("2000");
    context.built();
    assert_eq!(context.shell("stat -c %u /added/app/words"), "2000\n");
    context.write("made.tar.gz", "BZh91AY&SY");
    let told = context.build(&[]);
    assert!(told.code == 2 && told.err.contains("gzip and zstd are"), "{told:?}");
}

#[test]
fn a_step_is_done_again_if_anything_that_it_depends_on_is_another() {
    let context = Context::new("");
    let build = |before: &str| {
        let open = "RUN mkdir -m 777 /open";
        let step = "RUN cat /proc/uptime > /open/ran";
        context.write("Dockerfile", &format!("{BASE}{open}\n{before}\n{step}\n"));
        context.built();
        context.shell("cat /open/ran")
    };
    let first = build("");
    for nothing_to_it in ["", "LABEL a=b", "CMD [\"x\"]", "EXPOSE 80"] {
        assert_eq!(build(nothing_to_it), first, "{nothing_to_it}");
    }
    for before in [
        "ENV A=b",
        "ARG A=b",
        "WORKDIR /elsewhere",
        "USER 5",
        "RUN echo x > /x",
        "SHELL [\"/bin/sh\", \"-ec\"]",
        "COPY app/words /words",
        "COPY --chmod=600 app/words /words",
        "COPY --chown=9:9 app/words /words",
    ] {
        let ran = build(before);
        assert_ne!(ran, first, "{before}");
        assert_eq!(build(before), ran, "{before}");
    }
}

#[test]
fn what_a_fresh_build_has_made_anew_is_what_later_steps_are_done_on() {
    let text =
        |last: &str| format!("{BASE}RUN cat /proc/uptime > /first\nRUN cp /first /second{last}");
    let context = Context::new(&text(""));
    context.built();
    context.write("Dockerfile", &text(" && exit 3"));
    let told = context.build(&["--no-cache"]);
    assert!(told.code == 2 && told.err.contains("exit code 3"), "{told:?}");
    context.write("Dockerfile", &text(""));
    context.built();
    assert_eq!(context.shell("cmp /first /second && echo same"), "same\n");
}

#[test]
fn what_a_step_may_use_is_bounded() {
    let context = Context::new(&format!("{BASE}RUN head -c 3145728 /dev/zero > /large\n"));
    let told = context.build(&["--disk", "8M"]);
    assert_eq!(told.code, 0, "{told:?}");
    for (more, words) in [
        (["--disk", "2M"], "disk_limit"),
        (["--memory", "1M"], ""),
        (["--wall-time", "0"], "is not a time"),
    ] {
        let told = context.build(&[&more[..], &["--no-cache"]].concat());
        assert!(told.code == 2 && told.err.contains(words), "{more:?}: {told:?}");
    }
    context.write("Dockerfile", &format!("{BASE}RUN sleep 60\n"));
    let told = context.build(&["--wall-time", "500ms"]);
    assert!(told.code == 2 && told.err.contains("wall_limit"), "{told:?}");
}
