//! Who pulls: a name and password that were given, or those in docker's `config.json`.

use std::collections::HashMap;
use std::fmt;
use std::io::{ErrorKind, Read as _};
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use oci_client::secrets::RegistryAuth;
use serde::Deserialize;

use super::PullError;

/// The largest `config.json` that is read.
const MAX_FILE_BYTES: u64 = 1 << 20;
/// The names of Docker Hub.
const HUB: [&str; 3] = ["docker.io", "index.docker.io", "registry-1.docker.io"];

/// A text that is never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Keeps `text` from being shown.
    #[must_use]
    pub fn new(text: String) -> Self {
        Self(text)
    }

    /// The text, to be sent.
    pub(super) fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<secret>")
    }
}

/// Who pulls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Credentials {
    /// Nobody in particular.
    Anonymous,
    /// Nobody in particular, but docker has credentials where only a program of this name finds
    /// them.
    InHelper(String),
    /// A user.
    Password {
        /// The user's name.
        username: String,
        /// The user's password, or a token that stands for it.
        password: Secret,
    },
}

/// What is read of docker's `config.json`.
#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct DockerConfig {
    auths: HashMap<String, DockerAuth>,
    cred_helpers: HashMap<String, String>,
    creds_store: Option<String>,
}

/// One registry of docker's `config.json`.
#[derive(Deserialize, Default)]
#[serde(default)]
struct DockerAuth {
    /// Name and password, in base64.
    auth: String,
}

impl Credentials {
    /// What docker's configuration at `path` has for `registry`. No file means nobody.
    ///
    /// # Errors
    /// [`PullError::Refused`] if the file is there and cannot be read.
    pub fn of_docker(path: &Path, registry: &str) -> Result<Self, PullError> {
        let refused = |reason: &dyn fmt::Display| {
            PullError::Refused(format!("`{}` cannot be read: {reason}", path.display()))
        };
        let mut text = String::new();
        let file = match std::fs::File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Self::Anonymous),
            Err(error) => return Err(refused(&error)),
        };
        file.take(MAX_FILE_BYTES).read_to_string(&mut text).map_err(|error| refused(&error))?;
        Self::in_config(&text, registry).map_err(|reason| refused(&reason))
    }

    /// The message must not quote the text: it holds passwords.
    fn in_config(text: &str, registry: &str) -> Result<Self, String> {
        let config: DockerConfig = serde_json::from_str(text).map_err(|error| {
            format!("line {}, column {} is not as docker writes it", error.line(), error.column())
        })?;
        let registry = canonical(registry);
        let known = config.auths.iter().find(|(name, _)| canonical(name) == registry);
        if let Some((name, known)) = known.filter(|(_, known)| !known.auth.is_empty()) {
            return decode(&known.auth).ok_or_else(|| format!("`auths`: `{name}` is damaged"));
        }
        let mut programs = config.cred_helpers.into_iter();
        let own = programs.find(|(name, _)| canonical(name) == registry);
        let program = own.map(|(_, program)| program).or(known.and(config.creds_store));
        Ok(program.map_or(Self::Anonymous, Self::InHelper))
    }

    /// As oci-client has it.
    pub(super) fn for_token(&self) -> RegistryAuth {
        match self {
            Self::Anonymous | Self::InHelper(_) => RegistryAuth::Anonymous,
            Self::Password { username, password } => {
                RegistryAuth::Basic(username.clone(), password.reveal().to_owned())
            }
        }
    }

    /// Who was turned away, and what would help.
    pub(super) fn turned_away(&self) -> String {
        let mend = "give `--username` and `--password-stdin`, or run `docker login`";
        match self {
            Self::Anonymous => format!("everybody: {mend}"),
            Self::InHelper(helper) => format!(
                "everybody, and docker's credential helper `{helper}` is not supported: give \
                 `--username` and `--password-stdin`"
            ),
            Self::Password { username, .. } => {
                format!("user `{username}`: check name, password and permissions")
            }
        }
    }
}

/// `auth` of docker's configuration: name, colon and password, in base64.
fn decode(auth: &str) -> Option<Credentials> {
    let text = String::from_utf8(STANDARD.decode(auth.trim()).ok()?).ok()?;
    let (username, password) = text.split_once(':')?;
    let password = Secret::new(password.trim_end_matches('\0').to_owned());
    Some(Credentials::Password { username: username.to_owned(), password })
}

/// The host of `registry`, which older dockers wrote as a URL; one name for Docker Hub.
fn canonical(registry: &str) -> &str {
    let host = registry.split_once("://").map_or(registry, |(_scheme, rest)| rest);
    let host = host.split('/').next().unwrap_or_default();
    if HUB.contains(&host) { HUB[0] } else { host }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: &str = r#"{
        "auths": {
            "https://index.docker.io/v1/": {"auth": "YW5uOnNlc2FtZTp4"},
            "localhost:5000": {"auth": "Ym9iOnB3"},
            "in.store": {},
            "damaged": {"auth": "!"}
        },
        "credHelpers": {"in.helper": "gcloud"},
        "credsStore": "desktop"
    }"#;

    fn found(registry: &str) -> Credentials {
        Credentials::in_config(CONFIG, registry).expect("read")
    }

    #[test]
    fn docker_s_configuration_is_read_as_docker_reads_it() {
        let user = |username: &str, password: &str| Credentials::Password {
            username: username.into(),
            password: Secret::new(password.into()),
        };
        assert_eq!(found("docker.io"), user("ann", "sesame:x"));
        assert_eq!(found("localhost:5000"), user("bob", "pw"));
        assert_eq!(found("in.store"), Credentials::InHelper("desktop".into()));
        assert_eq!(found("in.helper"), Credentials::InHelper("gcloud".into()));
        assert_eq!(found("elsewhere"), Credentials::Anonymous);
        assert!(Credentials::in_config(CONFIG, "damaged").is_err());
    }

    #[test]
    fn a_password_is_never_shown() {
        assert!(
            !format!("{:?} {}", found("docker.io"), found("docker.io").turned_away())
                .contains("sesame")
        );
        let error = Credentials::in_config(r#"{"auths": {"a": "sesame"}}"#, "a");
        assert!(!error.expect_err("refused").contains("sesame"));
    }
}
