//! `COPY` and `ADD`: files of the context, of a stage or of an image become a layer.

use std::io::Read as _;

use lazaret_sandbox::image::{self, Bounds, Copying, Kind, Place};
use lazaret_sandbox::spec::User;
use serde_json::json;

use super::context::Files;
use super::plan::{self, Archives};
use super::stage::{Stage, absolute, put};
use super::{Build, BuildError};

/// The first bytes of archives that cannot be unpacked here: xz and bzip2.
const OTHER_ARCHIVES: [&[u8]; 2] = [b"\xfd7zXZ\0", b"BZh"];
/// So many bytes tell them.
const MAGIC_BYTES: u64 = 8;

/// Where files go, and as whose.
#[derive(Debug, Clone)]
struct Target {
    destination: Vec<u8>,
    owner: Option<(u32, u32)>,
    mode: Option<u32>,
}

impl Build<'_> {
    /// Copies files; they are the next layer.
    pub(super) fn copy(
        &self,
        stage: &mut Stage,
        files: &plan::Files,
        place: usize,
    ) -> Result<(), BuildError> {
        let _hold;
        let from = match &files.from {
            None => Files::of_directory(&self.request.context)?,
            Some(name) => {
                let stage = self.plan.stage(name, place).and_then(|place| self.done.get(&place));
                let layers = match stage {
                    Some(stage) => stage.layers.clone(),
                    None => self.image(name)?.layers,
                };
                let pruned = || image::Error::NotFound { name: name.clone() };
                _hold = self.images.hold_layers(&layers, pruned)?;
                Files::of_tree(self.images.files(&layers)?)
            }
        };
        let mut sources = Vec::new();
        let mut archives = Vec::new();
        for source in &files.sources {
            let source = self.word(stage, source)?;
            refuse_remote(&source)?;
            for place in from.find(&source)? {
                match self.unpacked(&from, &place, files.archives)? {
                    Some(archive) => archives.push(archive),
                    None => sources.push(place),
                }
            }
        }
        let destination = self.word(stage, &files.destination)?;
        let several = sources.len() + archives.len() > 1;
        let into_directory = several || is_directory(&destination);
        let destination = absolute(stage, &destination).into_bytes();
        let owner = files.owner.as_deref().map(|owner| self.owner(stage, owner)).transpose()?;
        let mode = files.mode.as_deref().map(|mode| octal(&self.word(stage, mode)?)).transpose()?;
        let target = Target { destination, mode, owner: owner.map(|user| (user.uid, user.gid)) };
        if !sources.is_empty() {
            let own = Target { owner: target.owner.or(Some((0, 0))), ..target.clone() };
            self.put_files(stage, &from, sources, (&own, into_directory))?;
        }
        for archive in archives {
            let root = archive.tree.place(b"")?;
            // As the archive has them, if nobody says otherwise.
            self.put_files(stage, &archive, vec![root], (&target, true))?;
        }
        Ok(())
    }

    /// The files of an archive, if it is one and is to be unpacked.
    fn unpacked(
        &self,
        from: &Files,
        place: &Place,
        archives: Archives,
    ) -> Result<Option<Files>, BuildError> {
        if archives == Archives::Copied || place.kind != Some(Kind::File) {
            return Ok(None);
        }
        let unreadable = |error: std::io::Error| BuildError::Failed(error.to_string());
        let mut start = Vec::new();
        from.tree.open(place)?.take(MAGIC_BYTES).read_to_end(&mut start).map_err(unreadable)?;
        if OTHER_ARCHIVES.iter().any(|magic| start.starts_with(magic)) {
            let name = String::from_utf8_lossy(place.path()).into_owned();
            let why = "is compressed in a way that is not unpacked here: gzip and zstd are";
            return Err(BuildError::refused(format!("`{name}` {why}")));
        }
        let tree = self.images.unpack_files(from.tree.open(place)?, Bounds::default())?;
        Ok(tree.map(Files::of_tree))
    }

    fn put_files(
        &self,
        stage: &mut Stage,
        from: &Files,
        sources: Vec<Place>,
        (target, into_directory): (&Target, bool),
    ) -> Result<(), BuildError> {
        let copy = Copying {
            from: &from.tree,
            sources,
            chooser: &|path| from.choose(path),
            destination: target.destination.clone(),
            into_directory,
            owner: target.owner,
            mode: target.mode,
        };
        let Target { destination, owner, mode } = target;
        let digest = copy.digest(Bounds::default())?;
        let what = json!(["COPY", digest, destination, into_directory, owner, mode]);
        let key = stage.key_of(&what);
        if self.put_known(stage, key)? {
            return Ok(());
        }
        let (made, copied) = self.images.copy(&stage.layers, &copy, Bounds::default())?;
        if copied == digest {
            return self.put_new(stage, key, made);
        }
        // Somebody writes to it: the next build looks again.
        self.engine.say("what is copied was changed meanwhile");
        put(stage, made)
    }

    fn owner(&self, stage: &Stage, text: &str) -> Result<User, BuildError> {
        Ok(self.images.resolve_user_of(&stage.layers, &self.word(stage, text)?)?)
    }
}

/// Whether a destination can only be a directory.
fn is_directory(destination: &str) -> bool {
    matches!(destination.rsplit('/').next(), Some("" | "." | ".."))
}

fn octal(text: &str) -> Result<u32, BuildError> {
    let mode = u32::from_str_radix(text, 8).ok().filter(|mode| *mode <= 0o7777);
    mode.ok_or_else(|| BuildError::refused(format!("`--chmod={text}`: up to four octal digits")))
}

fn refuse_remote(source: &str) -> Result<(), BuildError> {
    let is_remote = ["http://", "https://", "git://", "git@"];
    if is_remote.iter().any(|start| source.starts_with(start)) {
        let why = "is not on this host: get it first, and copy it";
        return Err(BuildError::refused(format!("`{source}` {why}")));
    }
    Ok(())
}
