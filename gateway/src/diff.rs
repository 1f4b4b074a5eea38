//! What one routing file changes against another, key by key.
//!
//! The files' own keys are compared, so that a section that is added to the configuration is covered without a word
//! here. Whether a difference means anything is asked of the configuration itself: a key that only says what is the
//! default, or the same time in other words, changes nothing when it is put alone into the old file.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use millrace_runtime::config::{Error, File};
use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use crate::config::Config;

/// Words in a key's name whose value is not for logs and terminals.
const SECRET: [&str; 5] = ["hash", "secret", "password", "token", "key"];
/// In the message of a change that a running gateway cannot make; [`crate::reload`] writes it.
pub const NEEDS_RESTART: &str = "needs a restart";

/// One difference.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// The key, pools by name and endpoints by address: `pools.aws.weight`, `pools.aws.endpoints.10.0.0.1:9001`.
    pub key: String,
    /// What it is now; without, it is not there, or left to its default.
    pub before: Option<String>,
    /// What it would be.
    pub after: Option<String>,
    /// A running gateway cannot change it: it would refuse the file.
    pub restart: bool,
}

impl Change {
    /// As a line: `+` for a pool or endpoint that comes, `-` for one that goes, `~` for the rest.
    pub fn line(&self) -> String {
        let whole = self.key.starts_with("pools.") && (self.before.is_none() || self.after.is_none());
        let restart = if self.restart { format!("  ({NEEDS_RESTART})") } else { String::new() };
        match (&self.before, &self.after) {
            (None, Some(after)) if whole && !self.is_setting() => format!("+ {}: {after}", self.key),
            (Some(before), None) if whole && !self.is_setting() => format!("- {}: {before}", self.key),
            (before, after) => {
                let show = |value: &Option<String>| value.clone().unwrap_or_else(|| "(default)".to_owned());
                format!("~ {}: {} -> {}{restart}", self.key, show(before), show(after))
            }
        }
    }

    /// Whether it is a value of a pool, not a pool or an endpoint.
    fn is_setting(&self) -> bool {
        let of_pool = self.key.strip_prefix("pools.").unwrap_or("");
        // An endpoint's address has dots of its own, and a pool's name may.
        !of_pool.contains(".endpoints.")
            && [&self.before, &self.after].iter().all(|value| {
                value
                    .as_ref()
                    .is_none_or(|value| !value.ends_with("endpoints") && !value.ends_with("endpoint"))
            })
    }
}

/// What `wanted` changes against `now`, which is in force; both are valid. `accept` says whether a running gateway
/// would take a file.
///
/// # Errors
/// When one of the two is not valid after all.
pub fn changes(
    path: &Path,
    now: &str,
    wanted: &str,
    accept: impl Fn(&File) -> Result<Config, Error>,
) -> Result<Vec<Change>, Error> {
    let file = |text: &str| File::from_text(path, text);
    let in_force = Config::from_file(&file(now))?;
    if in_force == Config::from_file(&file(wanted))? {
        return Ok(Vec::new());
    }
    let (now, wanted): (Table, Table) = (file(now).parse()?, file(wanted).parse()?);
    let mut changes = Vec::new();
    let mut compare = |at: &[&str], before: &Table, after: &Table| {
        let (before, after) = (flat(before), flat(after));
        for path in before.keys().chain(after.keys()).collect::<BTreeSet<_>>() {
            let (was, is) = (before.get(path), after.get(path));
            if was == is {
                continue;
            }
            let whole: Vec<&str> = at.iter().copied().chain(path.iter().map(String::as_str)).collect();
            // The old file with this change alone: does it mean anything, and can it be made?
            let alone = with(&now, &whole, is).and_then(|table| toml::to_string(&table).ok());
            let taken = alone.map(|text| accept(&file(&text)));
            if matches!(&taken, Some(Ok(config)) if *config == in_force) {
                continue;
            }
            let restart = matches!(&taken, Some(Err(error)) if error.message.contains(NEEDS_RESTART));
            let show = |value: Option<&Value>| value.map(|value| shown(path, value));
            changes.push(Change { key: whole.join("."), before: show(was), after: show(is), restart });
        }
    };
    let (empty, mut outer) = (Table::new(), [now.clone(), wanted]);
    let [old, new] = outer.each_mut().map(|table| pools(table.remove("pools")));
    compare(&[], &outer[0], &outer[1]);
    for name in old.keys().filter(|name| new.contains_key(*name)) {
        let settings =
            |pools: &BTreeMap<String, Pool>| pools.get(name).map_or(empty.clone(), |p| p.settings.clone());
        compare(&["pools", name], &settings(&old), &settings(&new));
    }
    for name in old.keys().chain(new.keys()).collect::<BTreeSet<_>>() {
        let key = format!("pools.{name}");
        match (old.get(name), new.get(name)) {
            (Some(old), Some(new)) => endpoints(&key, old, new, &mut changes),
            (old, new) => {
                let (before, after) = (old.map(Pool::summary), new.map(Pool::summary));
                changes.push(Change { key, before, after, restart: false });
            }
        }
    }
    Ok(changes)
}

/// A pool of the file: its endpoints by address, each with whether it is drained, and everything else.
#[derive(Debug, Default)]
struct Pool {
    settings: Table,
    endpoints: BTreeMap<String, bool>,
}

impl Pool {
    fn summary(&self) -> String {
        let count = self.endpoints.len();
        format!("{count} endpoint{}", if count == 1 { "" } else { "s" })
    }
}

fn pools(array: Option<Value>) -> BTreeMap<String, Pool> {
    let Some(Value::Array(array)) = array else { return BTreeMap::new() };
    let tables = array.into_iter().filter_map(|pool| match pool {
        Value::Table(table) => Some(table),
        _ => None,
    });
    let pool = |mut settings: Table| {
        let name = settings.remove("name")?.as_str()?.to_owned();
        let listed =
            settings.remove("endpoints").and_then(|listed| listed.as_array().cloned()).unwrap_or_default();
        let endpoint = |listed: Value| match listed {
            Value::Table(table) => {
                let drain = table.get("drain").and_then(Value::as_bool).unwrap_or(false);
                Some((table.get("address")?.as_str()?.to_owned(), drain))
            }
            other => Some((other.as_str()?.to_owned(), false)),
        };
        let endpoints = listed.into_iter().filter_map(endpoint).collect();
        Some((name, Pool { settings, endpoints }))
    };
    tables.filter_map(pool).collect()
}

fn endpoints(key: &str, old: &Pool, new: &Pool, changes: &mut Vec<Change>) {
    for address in old.endpoints.keys().chain(new.endpoints.keys()).collect::<BTreeSet<_>>() {
        let (was, is) = (old.endpoints.get(address), new.endpoints.get(address));
        if was == is {
            continue;
        }
        let show = |drain: Option<&bool>| drain.map(|drain| format!("drain = {drain}"));
        let key = format!("{key}.endpoints.{address}");
        changes.push(Change { key, before: show(was), after: show(is), restart: false });
    }
}

/// Every value that is no table, by its path.
fn flat(table: &Table) -> BTreeMap<Vec<String>, Value> {
    let mut all = BTreeMap::new();
    for (key, value) in table {
        match value {
            Value::Table(table) => {
                for (mut path, value) in flat(table) {
                    path.insert(0, key.clone());
                    all.insert(path, value);
                }
            }
            value => {
                all.insert(vec![key.clone()], value.clone());
            }
        }
    }
    all
}

/// The table with another value at that path, or none; pools are found by name.
fn with(table: &Table, path: &[&str], value: Option<&Value>) -> Option<Table> {
    let mut whole = table.clone();
    let mut rest = path;
    let mut at = &mut whole;
    if let ["pools", name, of_pool @ ..] = path {
        let pools = at.get_mut("pools")?.as_array_mut()?;
        let named = |pool: &&mut Value| pool.get("name").and_then(Value::as_str) == Some(name);
        at = pools.iter_mut().find(named)?.as_table_mut()?;
        rest = of_pool;
    }
    let (last, tables) = rest.split_last()?;
    for key in tables {
        at = at.entry(*key).or_insert_with(|| Value::Table(Table::new())).as_table_mut()?;
    }
    match value {
        Some(value) => at.insert((*last).to_owned(), value.clone()),
        None => at.remove(*last),
    };
    Some(whole)
}

/// A value as an operator reads it, unless it is a secret or may contain one.
fn shown(path: &[String], value: &Value) -> String {
    let secret = |key: &String| SECRET.iter().any(|word| key.contains(word));
    let nested = matches!(value, Value::Array(array) if array.iter().any(Value::is_table));
    if path.iter().any(secret) || nested {
        return "(not shown)".to_owned();
    }
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: &str = "listen = { http = \"127.0.0.1:1\", admin = \"127.0.0.1:2\" }\n\
        [timeouts]\nread = \"60s\"\n\
        [[pools]]\nname = \"a.b\"\nweight = 2\nendpoints = [\"10.0.0.1:1\", \"10.0.0.2:1\"]\n\
        [[pools]]\nname = \"gcp\"\nendpoints = [\"10.0.1.1:1\"]\n";

    fn lines(now: &str, wanted: &str) -> Vec<String> {
        let fixed = Config::from_file(&File::from_text("routing.toml", now)).unwrap().listen;
        let accept = |file: &File| {
            let config = Config::from_file(file)?;
            match config.listen.admin == fixed.admin && config.listen.http == fixed.http {
                true => Ok(config),
                false => Err(file.error("listen", format!("it {NEEDS_RESTART}"))),
            }
        };
        let changes = changes(Path::new("routing.toml"), now, wanted, accept).unwrap();
        changes.iter().map(Change::line).collect()
    }

    #[test]
    fn the_same_in_other_words_is_no_change() {
        assert!(lines(NOW, NOW).is_empty());
        let reworded = NOW
            .replace("\"60s\"", "\"1m\"\nidle = \"10s\"")
            .replace("weight = 2", "weight = 2.0\ndrain = false")
            .replace(
                "\"10.0.0.1:1\", \"10.0.0.2:1\"",
                "\"10.0.0.2:1\", { address = \"10.0.0.1:1\", drain = false }",
            );
        assert!(lines(NOW, &reworded).is_empty());
        assert_eq!(lines(NOW, &reworded.replace("\"1m\"", "\"2m\"")), ["~ timeouts.read: 60s -> 2m"]);
    }

    #[test]
    fn every_change_is_named_by_pool_and_address() {
        let wanted = NOW
            .replace("weight = 2", "drain = true")
            .replace(
                "\"10.0.0.1:1\", \"10.0.0.2:1\"",
                "{ address = \"10.0.0.1:1\", drain = true }, \"10.0.0.3:1\"",
            )
            .replace("\"gcp\"", "\"azure\"")
            .replace("127.0.0.1:1\"", "127.0.0.1:9\"")
            .replace("[timeouts]\nread = \"60s\"\n", "");
        assert_eq!(
            lines(NOW, &wanted),
            [
                "~ listen.http: 127.0.0.1:1 -> 127.0.0.1:9  (needs a restart)",
                "~ timeouts.read: 60s -> (default)",
                "~ pools.a.b.drain: (default) -> true",
                "~ pools.a.b.weight: 2 -> (default)",
                "~ pools.a.b.endpoints.10.0.0.1:1: drain = false -> drain = true",
                "- pools.a.b.endpoints.10.0.0.2:1: drain = false",
                "+ pools.a.b.endpoints.10.0.0.3:1: drain = false",
                "+ pools.azure: 1 endpoint",
                "- pools.gcp: 1 endpoint",
            ]
        );
    }

    #[test]
    fn secrets_are_not_shown() {
        let path = |key: &str| vec!["auth".to_owned(), key.to_owned()];
        assert_eq!(shown(&path("key_hash"), &Value::from("abc")), "(not shown)");
        assert_eq!(shown(&path("issuer"), &Value::from("abc")), "abc");
        let keys = Value::Array(vec![Value::Table(Table::from_iter([("x".to_owned(), Value::from("abc"))]))]);
        assert_eq!(shown(&path("users"), &keys), "(not shown)");
    }
}
