//! The same description as a Postman collection (schema 2.1), so that somebody can try the API by hand.
//!
//! Made of the OpenAPI document and of nothing else: a call that is described is in it.

use serde_json::{Map, Value, json};

/// What a collection is.
const SCHEMA: &str = "https://schema.getpostman.com/json/collection/v2.1.0/collection.json";
/// Where the API is until somebody says otherwise.
const BASE_URL: &str = "http://127.0.0.1:8080";
/// Deepest that examples are made up.
const DEPTH_MAX: usize = 6;

/// The collection of [`super::document`].
pub fn collection() -> Value {
    let document = super::document();
    let mut folders: Vec<(String, Value, Vec<Value>)> = Vec::new();
    for tag in array(&document["tags"]) {
        folders.push((text(&tag["name"]), tag["description"].clone(), Vec::new()));
    }
    for (path, calls) in document["paths"].as_object().into_iter().flatten() {
        for (method, call) in calls.as_object().into_iter().flatten() {
            let tag = text(&call["tags"][0]);
            if let Some((.., items)) = folders.iter_mut().find(|(name, ..)| *name == tag) {
                items.push(item(&document, path, method, call));
            }
        }
    }
    let folder =
        |(name, description, items)| json!({ "name": name, "description": description, "item": items });
    let mut collection = json!({
        "info": {
            "name": document["info"]["title"],
            "description": document["info"]["description"],
            "schema": SCHEMA,
        },
        "variable": [
            { "key": "baseUrl", "value": BASE_URL, "type": "string" },
            { "key": "apiKey", "value": "", "type": "string" },
        ],
        // An empty key is none, where nobody is asked for one.
        "auth": { "type": "apikey", "apikey": [
            { "key": "key", "value": "x-api-key", "type": "string" },
            { "key": "value", "value": "{{apiKey}}", "type": "string" },
            { "key": "in", "value": "header", "type": "string" },
        ] },
        "item": folders.into_iter().map(folder).collect::<Vec<_>>(),
    });
    drop_nulls(&mut collection);
    collection
}

/// What is not said is not there.
fn drop_nulls(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.retain(|_, value| !value.is_null());
            fields.values_mut().for_each(drop_nulls);
        }
        Value::Array(values) => values.iter_mut().for_each(drop_nulls),
        _ => {}
    }
}

/// The collection as it stands in its file.
pub fn text_of_collection() -> String {
    let mut text = serde_json::to_string_pretty(&collection()).expect("a collection is plain data");
    text.push('\n');
    text
}

fn array(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn item(document: &Value, path: &str, method: &str, call: &Value) -> Value {
    let parameters = |place: &str| {
        let there = array(&call["parameters"]).iter().filter(move |one| one["in"] == place);
        there.map(|one| (text(&one["name"]), one)).collect::<Vec<_>>()
    };
    // What is optional is there to be switched on.
    let optional = |(name, one): &(String, &Value)| {
        json!({
            "key": name,
            "value": plain(&example(document, &one["schema"], 0)),
            "description": one["description"],
            "disabled": one["required"] != true,
        })
    };
    let segments = path.trim_start_matches('/').split('/').map(|segment| {
        let name = segment.strip_prefix('{').and_then(|name| name.strip_suffix('}'));
        name.map_or_else(|| segment.to_owned(), |name| format!(":{name}"))
    });
    let segments: Vec<String> = segments.collect();
    let variables = parameters("path").into_iter().map(|(name, one)| {
        json!({ "key": name, "value": plain(&example(document, &one["schema"], 0)), "description": one["description"] })
    });
    let description = [text(&call["summary"]), text(&call["description"])].join("\n\n");
    let mut request = json!({
        "method": method.to_ascii_uppercase(),
        "description": description.trim(),
        "header": parameters("header").iter().map(optional).collect::<Vec<_>>(),
        "url": {
            "raw": format!("{{{{baseUrl}}}}/{}", segments.join("/")),
            "host": ["{{baseUrl}}"],
            "path": segments,
            "query": parameters("query").iter().map(optional).collect::<Vec<_>>(),
            "variable": variables.collect::<Vec<_>>(),
        },
    });
    if let Some(body) = call["requestBody"]["content"].as_object() {
        request["body"] = self::body(document, body);
    }
    if array(&call["security"]).iter().any(|one| *one == json!({})) && array(&call["security"]).len() == 1 {
        request["auth"] = json!({ "type": "noauth" });
    }
    json!({ "name": text(&call["summary"]), "request": request, "response": [] })
}

/// A form where there is one, because people have files; else JSON, else the file itself.
fn body(document: &Value, kinds: &Map<String, Value>) -> Value {
    if let Some(form) = kinds.get("multipart/form-data") {
        let schema = resolved(document, &form["schema"]);
        let part = |(name, part): (&String, &Value)| {
            let is_file = part["contentMediaType"].is_string() || part["format"] == "binary";
            let required = array(&schema["required"]).contains(&json!(name));
            let mut one = json!({
                "key": name,
                "type": if is_file { "file" } else { "text" },
                "description": part["description"],
                "disabled": !required,
            });
            if is_file {
                one["src"] = json!([]);
            } else {
                one["value"] = plain(&example(document, part, 0)).into();
            }
            one
        };
        let parts = schema["properties"].as_object().into_iter().flatten().map(part);
        return json!({ "mode": "formdata", "formdata": parts.collect::<Vec<_>>() });
    }
    match kinds.get("application/json") {
        Some(kind) => json!({
            "mode": "raw",
            "raw": serde_json::to_string_pretty(&example(document, &kind["schema"], 0)).expect("plain data"),
            "options": { "raw": { "language": "json" } },
        }),
        None => json!({ "mode": "file", "file": { "src": "" } }),
    }
}

fn resolved<'a>(document: &'a Value, schema: &'a Value) -> &'a Value {
    let pointer = schema["$ref"].as_str().and_then(|reference| reference.strip_prefix('#'));
    pointer.and_then(|pointer| document.pointer(pointer)).unwrap_or(schema)
}

/// Something that the schema allows: its example, else the first of its choices, else the least of its type.
fn example(document: &Value, schema: &Value, depth: usize) -> Value {
    let schema = resolved(document, schema);
    let given = schema.get("example").or_else(|| schema["examples"].get(0)).or_else(|| schema["enum"].get(0));
    if let Some(given) = given {
        return given.clone();
    }
    if depth > DEPTH_MAX {
        return Value::Null;
    }
    let kind = match &schema["type"] {
        Value::Array(kinds) => kinds.iter().find(|kind| **kind != "null").unwrap_or(&Value::Null),
        kind => kind,
    };
    match kind.as_str() {
        Some("object") => {
            let required = array(&schema["required"]);
            let first = array(&schema["oneOf"]).first().map_or(&[][..], |choice| array(&choice["required"]));
            let wanted = |name: &String, one: &Value| {
                required.contains(&json!(name))
                    || first.contains(&json!(name))
                    || one.get("example").is_some()
            };
            let properties = schema["properties"].as_object().into_iter().flatten();
            let properties = properties.filter(|(name, one)| wanted(name, one));
            properties.map(|(name, one)| (name.clone(), example(document, one, depth + 1))).collect()
        }
        Some("array") => json!([example(document, &schema["items"], depth + 1)]),
        Some("string") if schema["format"] == "uuid" => json!("01890a5d-ac96-774b-bcce-b302099a8057"),
        Some("string") => json!(""),
        Some("integer" | "number") => schema.get("minimum").cloned().unwrap_or(json!(1)),
        Some("boolean") => json!(true),
        _ => array(&schema["oneOf"])
            .iter()
            .chain(array(&schema["anyOf"]))
            .find(|choice| choice["type"] != "null")
            .map_or(Value::Null, |choice| example(document, choice, depth + 1)),
    }
}

/// A value where only text has a place.
fn plain(value: &Value) -> String {
    value
        .as_str()
        .map_or_else(|| if value.is_null() { String::new() } else { value.to_string() }, str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_collection_in_the_repository_is_the_one_that_the_description_makes() {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/millrace.postman_collection.json");
        let there = std::fs::read_to_string(file).unwrap_or_default();
        assert!(
            there == text_of_collection(),
            "run `make postman`: {file} is not what the description makes"
        );
    }

    #[test]
    fn every_call_is_in_it_once() {
        let (document, collection) = (super::super::document(), collection());
        let described =
            document["paths"].as_object().unwrap().values().flat_map(|path| path.as_object().unwrap().keys());
        let items: Vec<&Value> =
            array(&collection["item"]).iter().flat_map(|folder| array(&folder["item"])).collect();
        assert_eq!(items.len(), described.count());
        let submit = items.iter().find(|one| {
            one["request"]["url"]["raw"] == "{{baseUrl}}/jobs" && one["request"]["method"] == "POST"
        });
        let body: Value =
            serde_json::from_str(submit.unwrap()["request"]["body"]["raw"].as_str().unwrap()).unwrap();
        let (spec, _) = crate::JobSpec::parse(body.to_string().as_bytes()).unwrap();
        assert_eq!(serde_json::to_value(spec).unwrap(), body, "the example is a spec");
        let read =
            items.iter().find(|one| one["request"]["url"]["raw"] == "{{baseUrl}}/jobs/:job_id").unwrap();
        assert_eq!(read["request"]["url"]["variable"][0]["key"], "job_id");
    }
}
