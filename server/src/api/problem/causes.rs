//! What other errors are to clients.

use std::io::ErrorKind;

use lazaret_sandbox::volume;

use super::{Code, Problem};
use crate::dispatch::{DeleteError, SubmitError};
use crate::logs::LogError;
use crate::registry::{PullError, TooMany};
use crate::request::{CheckError, FieldError};
use crate::store::StoreError;

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Closed => {
                Self::new(Code::Draining, "the server is stopping").with_retry_after()
            }
            StoreError::Database(_) if error.is_full() => {
                tracing::error!(%error, "the store has no room");
                let detail = "the disk is full: nothing can be stored until there is room";
                Self::new(Code::Unavailable, detail).with_retry_after()
            }
            StoreError::Database(_) | StoreError::Nonsense(_) => {
                tracing::error!(%error, "the store failed a request");
                Self::internal()
            }
        }
    }
}

impl From<CheckError> for Problem {
    fn from(error: CheckError) -> Self {
        match error {
            CheckError::Refused(errors) => Self::invalid(errors),
            CheckError::Images(error) => error.into(),
            CheckError::Volumes(error) => error.into(),
        }
    }
}

impl From<lazaret_sandbox::image::Error> for Problem {
    fn from(error: lazaret_sandbox::image::Error) -> Self {
        match code_of(&error) {
            Some(Code::Unavailable) => {
                tracing::error!(%error, "the image store has no room");
                no_room_for_images()
            }
            Some(code) => Self::new(code, error.to_string()),
            None => {
                tracing::error!(%error, "the image store failed a request");
                Self::internal()
            }
        }
    }
}

fn no_room_for_images() -> Problem {
    let detail = "the disk is full: no image can be stored until there is room";
    Problem::new(Code::Unavailable, detail).with_retry_after()
}

/// What an answer of the image store means for the client; none if it is our failure.
fn code_of(error: &lazaret_sandbox::image::Error) -> Option<Code> {
    use lazaret_sandbox::image::Error;
    match error {
        Error::NotFound { .. } => Some(Code::NotFound),
        Error::InUse { .. } => Some(Code::Conflict),
        Error::BadName { .. } | Error::BadUser { .. } => Some(Code::Invalid),
        Error::NoArchive
        | Error::NoImage { .. }
        | Error::BadArchive { .. }
        | Error::WrongDigest { .. }
        | Error::TooLarge { .. } => Some(Code::BadImage),
        Error::InLayer { error, .. } => code_of(error),
        Error::Io { .. } => error.is_full_disk().then_some(Code::Unavailable),
    }
}

impl From<volume::Error> for Problem {
    fn from(error: volume::Error) -> Self {
        use volume::Error;
        let code = match &error {
            Error::NotFound(_) => Code::NotFound,
            Error::Exists(_) | Error::InUse(_) => Code::Conflict,
            Error::BadName(_) | Error::NoBound { .. } => Code::Invalid,
            Error::Io(source) => {
                tracing::error!(%error, "the volumes failed a request");
                if source.kind() != ErrorKind::StorageFull {
                    return Self::internal();
                }
                let detail = "the disk is full: no volume can be made until there is room";
                return Self::new(Code::Unavailable, detail).with_retry_after();
            }
        };
        Self::new(code, error.to_string())
    }
}

impl From<LogError> for Problem {
    fn from(error: LogError) -> Self {
        tracing::error!(%error, "a log could not be read");
        Self::internal()
    }
}

impl From<DeleteError> for Problem {
    fn from(error: DeleteError) -> Self {
        match error {
            DeleteError::Files(_) => {
                tracing::error!(%error, "a job could not be deleted");
                Self::internal()
            }
            DeleteError::Store(error) => error.into(),
        }
    }
}

impl From<SubmitError> for Problem {
    fn from(error: SubmitError) -> Self {
        match error {
            SubmitError::Full => {
                Self::new(Code::QueueFull, "as many jobs wait as may: send it again later")
                    .with_retry_after()
            }
            SubmitError::Draining => {
                Self::new(Code::Draining, "the server takes no more jobs").with_retry_after()
            }
            SubmitError::KeyReused => Self::new(
                Code::IdempotencyKeyReused,
                "`Idempotency-Key` stands for another request: choose a new one",
            ),
            SubmitError::ImageGone(_) => {
                let (pointer, detail) = ("/image".to_owned(), error.to_string());
                Self::invalid(vec![FieldError { pointer, detail }])
            }
            SubmitError::VolumeGone(_) => {
                let (pointer, detail) = ("/volumes".to_owned(), error.to_string());
                Self::invalid(vec![FieldError { pointer, detail }])
            }
            SubmitError::Images(error) => error.into(),
            SubmitError::Volumes(error) => error.into(),
            SubmitError::Store(error) => error.into(),
        }
    }
}

impl From<TooMany> for Problem {
    fn from(_: TooMany) -> Self {
        Self::new(Code::QueueFull, "as many images are pulled as may: send it again later")
            .with_retry_after()
    }
}

impl From<&PullError> for Problem {
    /// Whoever pulled has logged it.
    fn from(error: &PullError) -> Self {
        let detail = error.to_string();
        match error {
            PullError::Refused(_) => Self::new(Code::Invalid, detail),
            PullError::Denied { .. } => Self::new(Code::ImageDenied, detail),
            PullError::NotFound { .. } => Self::new(Code::ImageNotFound, detail),
            PullError::RateLimited { retry_after: Some(wait), .. } => {
                Self::new(Code::RegistryBusy, detail).retry_after(wait.as_secs())
            }
            PullError::RateLimited { retry_after: None, .. } => {
                Self::new(Code::RegistryBusy, detail).with_retry_after()
            }
            PullError::Unreachable { .. } | PullError::Broken { .. } => {
                Self::new(Code::RegistryUnreachable, detail)
            }
            PullError::Interrupted { .. } => Self::new(Code::Draining, detail).with_retry_after(),
            PullError::Image { source, .. } | PullError::Layer { source, .. }
                if code_of(source) == Some(Code::Unavailable) =>
            {
                no_room_for_images()
            }
            PullError::Image { .. } | PullError::Layer { .. } if error.is_failure() => {
                Self::internal()
            }
            PullError::Image { .. } | PullError::Layer { .. } => Self::new(Code::BadImage, detail),
        }
    }
}
