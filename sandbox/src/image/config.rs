//! What an image says about running it, as in an OCI image's config.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

/// Where programs are looked for if an image does not say.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What a job starts with when it does not say otherwise.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ImageConfig {
    /// Environment variables and their values, in order.
    pub env: Vec<(String, String)>,
    /// The working directory.
    pub workdir: Option<String>,
    /// Who steps run as: `name|id[:group]`.
    pub user: Option<String>,
    /// Arguments of the entry point, or a whole command if there is none.
    pub command: Vec<String>,
    /// What `command` is given to.
    pub entrypoint: Vec<String>,
    /// Notes of the image's maker.
    pub labels: BTreeMap<String, String>,
    /// Ports that it listens on, each with its protocol: `80/tcp`. Only told.
    pub ports: BTreeSet<String>,
}

impl ImageConfig {
    /// What its maker meant to be run: the entry point with its arguments. Empty if nothing was.
    #[must_use]
    pub fn own_command(&self) -> Vec<String> {
        [self.entrypoint.as_slice(), &self.command].concat()
    }
}

impl Default for ImageConfig {
    /// That of a plain root file system: nothing but a `PATH`.
    fn default() -> Self {
        Self {
            env: vec![("PATH".into(), DEFAULT_PATH.into())],
            workdir: None,
            user: None,
            command: Vec::new(),
            entrypoint: Vec::new(),
            labels: BTreeMap::new(),
            ports: BTreeSet::new(),
        }
    }
}
