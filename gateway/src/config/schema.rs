//! The routing file's JSON schema, by which editors complete and check it.
//!
//! It is worked out by asking the reader of the file itself: which keys a table has, what a key takes and which keys
//! must be there are read off its answers to tiny files. So a key that is added to the file is in the schema, and none
//! can be in only one of the two. Deriving it from the types was rejected: they carry places in the file, which would
//! have to be explained away at each of their fields. What a key is for is read from the commented example.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::Raw;

/// The example, whose comments explain the keys.
const EXAMPLE: &str = include_str!("../../routing.example.toml");
/// A key that no table has.
const NO_KEY: &str = "no-key-of-ours";

/// What a place in the file takes.
struct Taken {
    schema: Value,
    /// A value that it takes, as TOML.
    sample: String,
}

/// The schema, as JSON Schema draft 7 (the one that editors of TOML know).
pub fn schema() -> Value {
    let about = explanations();
    let file = |inner: &str| inner.to_owned();
    let mut schema =
        table(&file, &unknown(&format!("{NO_KEY} = 1")).unwrap_or_default(), "", &about, true).schema;
    schema["$schema"] = json!("http://json-schema.org/draft-07/schema#");
    schema["title"] = json!("The routing file of millrace-gateway");
    schema
}

/// What the reader says against a file; nothing, if it only misses keys.
fn objection(file: &str) -> Option<String> {
    let message = toml::from_str::<Raw>(file).err()?.message().to_owned();
    (!message.starts_with("missing field")).then_some(message)
}

/// The names in backticks behind a message's `expected`.
fn expected(message: &str) -> Vec<String> {
    let names = message.split_once("expected").map_or("", |(_, names)| names);
    names.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

/// The keys of a table, if an unknown one was objected to.
fn unknown(file: &str) -> Option<Vec<String>> {
    objection(file).filter(|message| message.starts_with("unknown field")).map(|message| expected(&message))
}

/// Asks what a place takes; `place` puts a value there.
fn ask(place: &dyn Fn(&str) -> String, path: &str, about: &BTreeMap<String, String>) -> Taken {
    // Of an enum of names the reader says what it wanted, where of other types it says what is invalid.
    let refuses = |message: &str| message.starts_with("invalid type") || message.starts_with("wanted ");
    let takes = |value: &str| !objection(&place(value)).is_some_and(|message| refuses(&message));
    let mut all = Vec::new();
    let mut simple = |kind: &str, sample: &str| {
        all.push(Taken { schema: json!({ "type": kind }), sample: sample.to_owned() });
    };
    if takes("true") {
        simple("boolean", "true");
    }
    if takes("1.5") {
        simple("number", "1.5");
    } else if takes("1") {
        simple("integer", "1");
    }
    if takes("\"x\"") {
        let variants = objection(&place("\"x\"")).filter(|message| message.starts_with("unknown variant"));
        match variants.map(|message| expected(&message)) {
            Some(names) => {
                let sample = format!("{:?}", names.first().cloned().unwrap_or_default());
                all.push(Taken { schema: json!({ "enum": names }), sample });
            }
            None => simple("string", "\"x\""),
        }
    }
    let keys = unknown(&place(&format!("{{ {NO_KEY} = 1 }}")));
    // A table whose keys are known could be read from a list of its values, too; that is nothing to write.
    if keys.is_none() && takes("[]") {
        let item = ask(&|value| place(&format!("[{value}]")), path, about);
        all.push(Taken { schema: json!({ "type": "array", "items": item.schema }), sample: "[]".to_owned() });
    }
    if takes("{}") {
        match keys {
            Some(keys) => {
                let inner = |value: &str| place(&format!("{{ {value} }}"));
                all.push(table(&inner, &keys, path, about, false));
            }
            None => all.push(Taken { schema: json!({ "type": "object" }), sample: "{}".to_owned() }),
        }
    }
    let sample = all.first().map_or_else(|| "1".to_owned(), |taken| taken.sample.clone());
    let mut schemas: Vec<Value> = all.into_iter().map(|taken| taken.schema).collect();
    let schema = if schemas.len() == 1 { schemas.remove(0) } else { json!({ "anyOf": schemas }) };
    Taken { schema, sample }
}

/// A table with these keys; `place` puts its content there, in lines for the file itself.
fn table(
    place: &dyn Fn(&str) -> String,
    keys: &[String],
    path: &str,
    about: &BTreeMap<String, String>,
    lines: bool,
) -> Taken {
    let mut properties = Map::new();
    let mut samples = BTreeMap::new();
    for key in keys {
        let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
        let mut taken = ask(&|value| place(&format!("{key} = {value}")), &path, about);
        if let Some(text) = about.get(&path) {
            taken.schema["description"] = json!(text);
        }
        properties.insert(key.clone(), taken.schema);
        samples.insert(key.clone(), taken.sample);
    }
    // Each missing key is put there, until none is missing, or one of a table further out.
    let (mut required, mut content) = (Vec::new(), Vec::new());
    let separator = if lines { "\n" } else { ", " };
    while let Err(error) = toml::from_str::<Raw>(&place(&content.join(separator))) {
        let missing =
            error.message().strip_prefix("missing field").map_or("", |rest| rest.trim().trim_matches('`'));
        let (Some(sample), false) = (samples.get(missing), required.iter().any(|known| known == missing))
        else {
            break;
        };
        content.push(format!("{missing} = {sample}"));
        required.push(missing.to_owned());
    }
    let mut schema = json!({ "type": "object", "properties": properties, "additionalProperties": false });
    if !required.is_empty() {
        schema["required"] = json!(required);
    }
    Taken { schema, sample: format!("{{ {} }}", content.join(", ")) }
}

/// What the example's comments say of each table and key: the lines above it, or what stands behind it.
fn explanations() -> BTreeMap<String, String> {
    let (mut about, mut table, mut above) = (BTreeMap::new(), String::new(), Vec::new());
    for line in EXAMPLE.lines() {
        if let Some(comment) = line.strip_prefix("# ") {
            above.push(comment.trim());
            continue;
        }
        let mut text = above.join(" ");
        above.clear();
        let key = if let Some(name) = line.strip_prefix('[') {
            table = name.trim_matches(|c| c == '[' || c == ']').to_owned();
            table.clone()
        } else if let Some((key, value)) = line.split_once('=') {
            if text.is_empty() {
                text = value.rsplit_once(" # ").map_or("", |(_, comment)| comment.trim()).to_owned();
            }
            if table.is_empty() { key.trim().to_owned() } else { format!("{table}.{}", key.trim()) }
        } else {
            continue;
        };
        if !text.is_empty() {
            about.entry(key).or_insert(text);
        }
    }
    about
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json_of(file: &str) -> Value {
        serde_json::to_value(toml::from_str::<toml::Value>(file).unwrap()).unwrap()
    }

    #[test]
    fn the_example_fits_the_schema_and_what_the_reader_refuses_does_not() {
        let schema = schema();
        jsonschema::draft7::meta::validate(&schema).unwrap();
        let validator = jsonschema::draft7::new(&schema).unwrap();
        let fits = |file: &str| validator.is_valid(&json_of(file));
        if let Err(error) = validator.validate(&json_of(EXAMPLE)) {
            panic!("{error} at {}", error.instance_path());
        }
        for (from, to) in [
            ("wait_usd_per_hour = 1.0", "wait_usd_per_hour = \"dear\""),
            ("wait_usd_per_hour", "wait_usd_per_huor"),
            ("name = \"aws\"", "title = \"aws\""),
            ("drain = false\n", "drain = 0\n"),
            ("admin = ", "amdin = "),
            ("\"127.0.0.1:9001\", {", "9001, {"),
        ] {
            let file = EXAMPLE.replacen(from, to, 1);
            assert_ne!(file, EXAMPLE, "{from}");
            assert!(!fits(&file), "{to} fits");
            assert!(toml::from_str::<Raw>(&file).is_err(), "{to} can be read");
        }
    }

    #[test]
    fn every_key_of_every_table_is_in_it_with_what_must_be_there() {
        let schema = schema();
        let file = |text: &str| unknown(text).unwrap();
        let keys = |of: &Value| of["properties"].as_object().unwrap().keys().cloned().collect::<Vec<_>>();
        let sorted = |mut names: Vec<String>| {
            names.sort();
            names
        };
        assert_eq!(keys(&schema), sorted(file("no = 1")));
        for table in ["listen", "routing", "timeouts", "page"] {
            let read = sorted(file(&format!("[{table}]\nno = 1")));
            assert_eq!(keys(&schema["properties"][table]), read, "{table}");
        }
        let pool = &schema["properties"]["pools"]["items"];
        assert_eq!(keys(pool), sorted(file("[[pools]]\nno = 1")));
        assert!(schema["required"].as_array().unwrap().contains(&json!("listen")));
        assert!(pool["required"].as_array().unwrap().contains(&json!("name")));
        assert_eq!(pool["properties"]["weight"]["type"], "number");
        let endpoint = &pool["properties"]["endpoints"]["items"]["anyOf"];
        assert_eq!((&endpoint[0]["type"], &endpoint[1]["required"]), (&json!("string"), &json!(["address"])));
        assert_eq!(
            schema["properties"]["timeouts"]["properties"]["connect"]["description"],
            "connecting to a worker"
        );
    }
}
