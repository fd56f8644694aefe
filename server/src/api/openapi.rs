//! The OpenAPI document: collected from the handlers, completed here with what holds for all.

use utoipa::openapi::schema::AdditionalProperties;
use utoipa::openapi::{
    ContactBuilder, Content, InfoBuilder, OpenApi, OpenApiBuilder, Ref, RefOr, ResponseBuilder,
    Schema, Tag,
};

/// The schemas of what clients send: whatever they do not name is refused.
const STRICT: [&str; 5] =
    ["JobRequest", "StepRequest", "LimitsRequest", "FileObject", "PullRequest"];

/// The document before any handler is in it.
pub(super) fn base() -> OpenApi {
    let about = InfoBuilder::new()
        .title("lazaret")
        .version(env!("CARGO_PKG_VERSION"))
        .description(Some(
            "Runs untrusted programs in fresh, limited containers. Unknown request fields are \
             refused by name; unknown response fields must be ignored.",
        ))
        .contact(Some(ContactBuilder::new().name(Some("lazaret")).build()))
        .license(Some(utoipa::openapi::License::new("Apache-2.0")))
        .build();
    let tag = |name: &str, description: &str| {
        let mut tag = Tag::new(name);
        tag.description = Some(description.to_owned());
        tag
    };
    OpenApiBuilder::new()
        .info(about)
        .tags(Some([
            tag("jobs", "Make, watch, end and forget jobs"),
            tag("images", "What jobs can run in"),
            tag("volumes", "What jobs share, and what outlives them"),
            tag("server", "What the server is and allows"),
        ]))
        .build()
}

/// Adds what holds for all: every operation may answer with a problem, and what clients send has
/// no other fields than those that are named.
pub(super) fn complete(mut document: OpenApi) -> OpenApi {
    let problem = ResponseBuilder::new()
        .description("Anything that is not a success")
        .content(
            "application/problem+json",
            Content::new(Some(RefOr::<Schema>::Ref(Ref::from_schema_name("Problem")))),
        )
        .build();
    for item in document.paths.paths.values_mut() {
        let operations = [&mut item.get, &mut item.post, &mut item.put, &mut item.delete];
        for operation in operations.into_iter().flatten() {
            let responses = &mut operation.responses.responses;
            responses.insert("default".to_owned(), RefOr::T(problem.clone()));
        }
    }
    let Some(components) = &mut document.components else { return document };
    for name in STRICT {
        if let Some(RefOr::T(Schema::Object(object))) = components.schemas.get_mut(name) {
            object.additional_properties = Some(Box::new(AdditionalProperties::FreeForm(false)));
        }
    }
    document
}

/// The document as it is committed and served.
///
/// # Errors
/// If it cannot be said in JSON, which no document of ours is known for.
pub fn text() -> serde_json::Result<String> {
    let mut text = super::document().to_pretty_json()?;
    text.push('\n');
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_committed_document_is_the_one_the_code_makes() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../openapi/openapi.json");
        let committed = std::fs::read_to_string(path).unwrap_or_default();
        assert!(
            committed == text().expect("written"),
            "openapi/openapi.json is stale: run `cargo run -p lazaret -- openapi > \
             openapi/openapi.json` and look at the difference"
        );
    }

    #[test]
    fn what_clients_send_is_strict_and_every_operation_may_have_a_problem() {
        let document = serde_json::to_value(super::super::document()).expect("written");
        for name in STRICT {
            let schema = &document["components"]["schemas"][name];
            assert_eq!(schema["additionalProperties"], false, "{name}");
        }
        let mut names = std::collections::BTreeSet::new();
        for (path, item) in document["paths"].as_object().expect("paths") {
            for (method, operation) in item.as_object().expect("operations") {
                assert!(operation["responses"]["default"].is_object(), "{method} {path}");
                let name = operation["operationId"].as_str().expect("a name");
                assert!(names.insert(name.to_owned()), "two operations `{name}`");
            }
        }
    }
}
