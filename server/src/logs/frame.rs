//! The events of a log, and the three forms in which they are told.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use lazaret_sandbox::spool::{Entry, Record, Stream};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::job::{State, seq};

/// One event of a job's log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Frame {
    /// A step wrote something. Either `text` or `base64` is there.
    Output {
        /// Position in the log.
        seq: u64,
        /// Milliseconds since the attempt's first step started.
        t_ms: u64,
        /// Index of the step.
        step: u16,
        /// Which stream.
        stream: StreamName,
        /// What it wrote, if it is UTF-8.
        #[serde(skip_serializing_if = "Option::is_none")]
        text: Option<String>,
        /// What it wrote, if it is not.
        #[serde(skip_serializing_if = "Option::is_none")]
        base64: Option<String>,
    },
    /// A step started, or ended with a verdict.
    Step {
        /// Position in the log.
        seq: u64,
        /// Milliseconds since the attempt's first step started.
        t_ms: u64,
        /// Index of the step.
        step: u16,
        /// The step's name.
        name: String,
        /// How it ended; not there at its start.
        #[serde(skip_serializing_if = "Option::is_none")]
        verdict: Option<String>,
        /// What it exited with; only at its end, and only if it exited.
        #[serde(skip_serializing_if = "Option::is_none")]
        exit_code: Option<i32>,
    },
    /// We failed, and the job starts once more: what follows is of this attempt.
    Attempt {
        /// Position in the log.
        seq: u64,
        /// The number of the attempt.
        attempt: u32,
    },
    /// Where the job is now. Told to those who follow it live, so it has no position.
    State {
        /// The state.
        state: State,
    },
    /// The job has finished; nothing follows.
    End {
        /// Position in the log.
        seq: u64,
        /// How the job ended.
        verdict: String,
    },
}

/// The name of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum StreamName {
    /// Descriptor 1.
    Stdout,
    /// Descriptor 2.
    Stderr,
}

impl From<Stream> for StreamName {
    fn from(stream: Stream) -> Self {
        match stream {
            Stream::Stdout => Self::Stdout,
            Stream::Stderr => Self::Stderr,
        }
    }
}

/// How a log is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Server-sent events.
    EventStream,
    /// One JSON object a line.
    JsonLines,
    /// The bytes of the output and nothing else.
    Text,
}

impl Format {
    /// The media type of the answer.
    #[must_use]
    pub const fn media_type(self) -> &'static str {
        match self {
            Self::EventStream => "text/event-stream",
            Self::JsonLines => "application/jsonl",
            Self::Text => "text/plain; charset=utf-8",
        }
    }
}

impl Frame {
    /// What a record of attempt `attempt` tells.
    #[must_use]
    pub fn of_record(attempt: u32, record: Record) -> Self {
        let Record { number, t_ms, step, entry } = record;
        let seq = seq(attempt, number);
        match entry {
            Entry::Output(stream, bytes) => {
                let (text, base64) = match String::from_utf8(bytes) {
                    Ok(text) => (Some(text), None),
                    Err(error) => (None, Some(BASE64_STANDARD.encode(error.as_bytes()))),
                };
                Self::Output { seq, t_ms, step, stream: stream.into(), text, base64 }
            }
            Entry::StepStarted(name) => {
                Self::Step { seq, t_ms, step, name, verdict: None, exit_code: None }
            }
            Entry::StepEnded(outcome) => Self::Step {
                seq,
                t_ms,
                step,
                name: outcome.name,
                verdict: Some(outcome.verdict.as_str().into()),
                exit_code: outcome.exit_code,
            },
        }
    }

    /// The word that server-sent events are dispatched by.
    const fn event(&self) -> &'static str {
        match self {
            Self::Output { .. } => "output",
            Self::Step { .. } => "step",
            Self::Attempt { .. } => "attempt",
            Self::State { .. } => "state",
            Self::End { .. } => "end",
        }
    }

    /// Where in the log it stands, if anywhere.
    #[must_use]
    pub const fn position(&self) -> Option<u64> {
        match self {
            Self::Output { seq, .. }
            | Self::Step { seq, .. }
            | Self::Attempt { seq, .. }
            | Self::End { seq, .. } => Some(*seq),
            Self::State { .. } => None,
        }
    }

    /// Appends the frame in one of the three forms.
    ///
    /// # Errors
    /// If it cannot be said in JSON, which no frame of ours is known for.
    pub fn write(&self, format: Format, out: &mut Vec<u8>) -> serde_json::Result<()> {
        match format {
            Format::EventStream => {
                out.extend_from_slice(b"event: ");
                out.extend_from_slice(self.event().as_bytes());
                if let Some(seq) = self.position() {
                    out.extend_from_slice(format!("\nid: {seq}").as_bytes());
                }
                // JSON has its newlines escaped, so one `data` line holds any output.
                out.extend_from_slice(b"\ndata: ");
                serde_json::to_writer(&mut *out, self)?;
                out.extend_from_slice(b"\n\n");
            }
            Format::JsonLines => {
                serde_json::to_writer(&mut *out, self)?;
                out.push(b'\n');
            }
            // Raw output is written from its record: see `follow`.
            Format::Text => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn output(bytes: &[u8]) -> Frame {
        let entry = Entry::Output(Stream::Stderr, bytes.to_vec());
        Frame::of_record(1, Record { number: 3, t_ms: 12, step: 0, entry })
    }

    fn written(frame: &Frame, format: Format) -> String {
        let mut out = Vec::new();
        frame.write(format, &mut out).expect("written");
        String::from_utf8(out).expect("text")
    }

    #[test]
    fn an_event_is_one_data_line_whatever_the_output() {
        let text = written(&output(b"a\n\ndata: b\r\n"), Format::EventStream);
        let expected = "event: output\nid: 4294967299\ndata: {\"event\":\"output\",\
             \"seq\":4294967299,\"t_ms\":12,\"step\":0,\"stream\":\"stderr\",\
             \"text\":\"a\\n\\ndata: b\\r\\n\"}\n\n";
        assert_eq!(text, expected);
    }

    #[test]
    fn output_that_is_not_utf_8_is_base64() {
        let text = written(&output(b"\xff\x00"), Format::JsonLines);
        assert!(text.contains("\"base64\":\"/wA=\""), "{text}");
        assert!(!text.contains("\"text\""), "{text}");
        assert!(text.ends_with("}\n"), "{text}");
    }

    #[test]
    fn a_state_has_no_position_to_come_back_to() {
        let text = written(&Frame::State { state: State::Queued }, Format::EventStream);
        let expected = "event: state\ndata: {\"event\":\"state\",\"state\":\"queued\"}\n\n";
        assert_eq!(text, expected);
    }
}
