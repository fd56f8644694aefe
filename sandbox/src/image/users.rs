//! Who a step runs as: names looked up in the image's own `/etc/passwd` and `/etc/group`, files
//! that whoever made the image wrote.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, fgetxattr, fstat, openat2};
use rustix::io::Errno;

use super::{Doing as _, Error, Result, tree};
use crate::spec::{MAX_ID, User};

/// How much of each file is read. What lies beyond is as if it were not there.
const MAX_FILE_BYTES: u64 = 1 << 20;
/// The most supplementary groups a user may have.
const MAX_GROUPS: usize = 64;

/// The user that `text`, of the form `name|id[:group]`, means to the image with these layers, the
/// topmost first. A user by id alone need not be in the image; its group is then of the same id.
pub(super) fn resolve(layers: &[PathBuf], text: &str) -> Result<User> {
    let refused = |reason| Error::BadUser { user: text.escape_debug().to_string(), reason };
    let (user, group) = match text.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (text, None),
    };
    if user.is_empty() || group.is_some_and(str::is_empty) {
        return Err(refused("it is not of the form `name|id[:group]`"));
    }
    let accounts = read(layers, "etc/passwd")?;
    let groups = read(layers, "etc/group")?;
    let account = find_account(&accounts, user);
    let Some(uid) = account.as_ref().map(|account| account.uid).or_else(|| number(user)) else {
        return Err(refused("there is no such name in its `/etc/passwd`"));
    };
    let gid = match (group, &account) {
        (Some(group), _) => find_group(&groups, group)
            .or_else(|| number(group))
            .ok_or_else(|| refused("there is no such group in its `/etc/group`"))?,
        (None, Some(account)) => account.gid,
        (None, None) => uid,
    };
    if uid.max(gid) > MAX_ID {
        return Err(refused("the id is above 65534"));
    }
    let supplementary = match (group, &account) {
        (None, Some(account)) => groups_of(&groups, &account.name, gid),
        (Some(_), _) | (None, None) => Vec::new(),
    };
    Ok(User { uid, gid, groups: supplementary })
}

/// The home of the user with this id; the root, if the image does not say.
pub(super) fn home(layers: &[PathBuf], uid: u32) -> Result<String> {
    let accounts = read(layers, "etc/passwd")?;
    let lines = accounts.lines().map(|line| line.split(':').collect::<Vec<_>>());
    let mut homes = lines.filter_map(|fields| match fields.as_slice() {
        [_, _, id, _, _, home, ..] if number(id) == Some(uid) => Some((*home).to_owned()),
        _ => None,
    });
    Ok(homes.find(|home| home.starts_with('/')).unwrap_or_else(|| "/".into()))
}

struct Account {
    name: String,
    uid: u32,
    gid: u32,
}

/// The first account that `user` names. Digits are a name first and an id second.
fn find_account(accounts: &str, user: &str) -> Option<Account> {
    let all = || accounts.lines().filter_map(parse_account);
    let id = number(user);
    all()
        .find(|account| account.name == user)
        .or_else(|| all().find(|account| Some(account.uid) == id))
}

/// A line `name:password:uid:gid:…`.
fn parse_account(line: &str) -> Option<Account> {
    let mut fields = line.split(':');
    let name = fields.next()?.to_owned();
    let uid = number(fields.nth(1)?)?;
    let gid = number(fields.next()?)?;
    Some(Account { name, uid, gid })
}

/// Lines `name:password:gid:member,member`.
fn group_lines(groups: &str) -> impl Iterator<Item = (&str, u32, &str)> {
    groups.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let gid = number(fields.nth(1)?)?;
        Some((name, gid, fields.next().unwrap_or_default()))
    })
}

fn find_group(groups: &str, wanted: &str) -> Option<u32> {
    group_lines(groups).find(|(name, ..)| *name == wanted).map(|(_, gid, _)| gid)
}

/// The groups that list `user`, beside its own.
fn groups_of(groups: &str, user: &str, own: u32) -> Vec<u32> {
    let mut found: Vec<u32> = group_lines(groups)
        .filter(|(_, gid, _)| *gid != own && *gid <= MAX_ID)
        .filter(|(.., members)| members.split(',').any(|member| member == user))
        .map(|(_, gid, _)| gid)
        .collect();
    found.sort_unstable();
    found.dedup();
    found.truncate(MAX_GROUPS);
    found
}

/// A plain decimal number: no sign, no blank.
fn number(text: &str) -> Option<u32> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

/// The topmost file at `path`, or nothing if no layer has one or a layer hides it.
fn read(layers: &[PathBuf], path: &str) -> Result<String> {
    for layer in layers {
        match look(layer, path).doing(|| format!("could not read the image's `/{path}`"))? {
            Found::File(text) => return Ok(text),
            Found::Hidden => break,
            Found::Nothing => {}
        }
    }
    Ok(String::new())
}

/// What one layer says about a file.
enum Found {
    /// Its content.
    File(String),
    /// It is not there, and lower layers are not to be asked.
    Hidden,
    /// It is not in this layer.
    Nothing,
}

fn look(layer: &Path, path: &str) -> io::Result<Found> {
    let root = tree::open_directory(layer)?;
    // Links of the image lead where they would lead inside; no device or pipe is waited for.
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let open = |path: &str| openat2(&root, path, flags, Mode::empty(), resolve);
    let file = match open(path) {
        Ok(file) => file,
        Err(Errno::NOENT) => {
            let parent = path.rsplit_once('/').map_or(".", |(parent, _)| parent);
            let is_opaque = open(parent).is_ok_and(|parent| {
                fgetxattr(&parent, "trusted.overlay.opaque", &mut [0; 1]) == Ok(1)
            });
            return Ok(if is_opaque { Found::Hidden } else { Found::Nothing });
        }
        // A whiteout, a link in a circle, a file for a parent: nothing a program could open.
        Err(Errno::NXIO | Errno::LOOP | Errno::NOTDIR | Errno::NODEV) => return Ok(Found::Hidden),
        Err(error) => return Err(error.into()),
    };
    if FileType::from_raw_mode(fstat(&file)?.st_mode) != FileType::RegularFile {
        return Ok(Found::Hidden);
    }
    let mut bytes = Vec::new();
    File::from(file).take(MAX_FILE_BYTES).read_to_end(&mut bytes)?;
    Ok(Found::File(String::from_utf8_lossy(&bytes).into_owned()))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n\
        # not a line\n\
        broken:x:one:1::\n\
        app:x:1001:1002:::\n\
        77:x:1077:1077:::\n\
        high:x:70000:1:::\n";
    const GROUP: &str = "root:x:0:\nstaff:x:50:app,other\naudio:x:29:app\napp:x:1002:app\nx\n";

    fn layer(files: &[(&str, &str)]) -> tempfile::TempDir {
        let layer = tempfile::tempdir().expect("a directory");
        fs::create_dir(layer.path().join("etc")).expect("made");
        for (path, content) in files {
            fs::write(layer.path().join(path), content).expect("written");
        }
        layer
    }

    fn user(uid: u32, gid: u32, groups: &[u32]) -> User {
        User { uid, gid, groups: groups.to_vec() }
    }

    #[test]
    fn names_and_ids_mean_what_the_image_says() {
        let layer = layer(&[("etc/passwd", PASSWD), ("etc/group", GROUP)]);
        let layers = [layer.path().to_owned()];
        for (text, expected) in [
            ("root", user(0, 0, &[])),
            ("app", user(1001, 1002, &[29, 50])),
            ("1001", user(1001, 1002, &[29, 50])),
            ("app:staff", user(1001, 50, &[])),
            ("app:7", user(1001, 7, &[])),
            ("77", user(1077, 1077, &[])),
            ("1000", user(1000, 1000, &[])),
            ("1000:0", user(1000, 0, &[])),
            ("65534", user(65534, 65534, &[])),
        ] {
            assert_eq!(resolve(&layers, text).expect(text), expected, "{text}");
        }
        for text in [
            "", ":", "app:", ":app", "nobody", "app:none", "high", "65535", "-1", "+1", "1 ", "a\0",
        ] {
            assert!(matches!(resolve(&layers, text), Err(Error::BadUser { .. })), "{text:?}");
        }
    }

    #[test]
    fn the_topmost_layer_that_has_the_file_is_asked() {
        let (top, middle, bottom) = (
            layer(&[]),
            layer(&[("etc/passwd", "app:x:1:1:::\n")]),
            layer(&[("etc/passwd", "app:x:2:2:::\n")]),
        );
        let layers = [&top, &middle, &bottom].map(|layer| layer.path().to_owned());
        assert_eq!(resolve(&layers, "app").expect("found").uid, 1);
    }

    #[test]
    fn a_link_to_the_hosts_file_leads_into_the_image() {
        let layer = layer(&[("etc/real", "app:x:5:5:::\n")]);
        std::os::unix::fs::symlink("/../../etc/real", layer.path().join("etc/passwd"))
            .expect("linked");
        assert_eq!(resolve(&[layer.path().to_owned()], "app").expect("found").uid, 5);
        fs::remove_file(layer.path().join("etc/passwd")).expect("removed");
        std::os::unix::fs::symlink("passwd", layer.path().join("etc/passwd")).expect("linked");
        assert!(resolve(&[layer.path().to_owned()], "root").is_err());
    }

    #[test]
    fn what_is_no_file_is_not_read() {
        let layer = layer(&[]);
        fs::create_dir(layer.path().join("etc/passwd")).expect("made");
        nix::unistd::mkfifo(&layer.path().join("etc/group"), nix::sys::stat::Mode::S_IRWXU)
            .expect("made");
        assert_eq!(resolve(&[layer.path().to_owned()], "3").expect("an id"), user(3, 3, &[]));
    }
}
