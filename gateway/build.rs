//! Gathers the page's files for the binary: `web/` and, when npm has put them there, hls.js and Swagger UI.
//!
//! Every file is kept twice, as it is and gzipped, with a tag of its content. Addresses inside the page get
//! `?v=VERSION`, a hash over all files: such an address never changes its meaning, so browsers keep it for good, and one
//! version for all spares an order in which modules that import each other would have to be hashed.

use std::env;
use std::error::Error;
use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use flate2::{Compression, GzBuilder};
use sha2::{Digest, Sha256};

/// What npm puts below `web/`, and under which name it is served. The licence is the last of each.
struct Library {
    /// Its name and licence, for a notice in front of its code.
    notice: &'static str,
    /// What is missing without it.
    without: &'static str,
    files: &'static [(&'static str, &'static str)],
}

const PLAYER: Library = Library {
    notice: "hls.js, Apache-2.0",
    without: "most browsers can play its streams only as mp4",
    files: &[
        ("node_modules/hls.js/dist/hls.min.js", "hls.min.js"),
        ("node_modules/hls.js/LICENSE", "hls.LICENSE.txt"),
    ],
};
const DOCS: Library = Library {
    notice: "Swagger UI, Apache-2.0",
    without: "/docs leads only to /openapi.json",
    files: &[
        ("node_modules/swagger-ui-dist/swagger-ui-bundle.js", "swagger-ui-bundle.js"),
        ("node_modules/swagger-ui-dist/swagger-ui.css", "swagger-ui.css"),
        ("node_modules/swagger-ui-dist/LICENSE", "swagger-ui.LICENSE.txt"),
    ],
};
/// The page for each set of parts that a listener can offer.
const PARTS: [&str; 3] = ["jobs pools", "jobs", "pools"];

struct File {
    name: String,
    bytes: Vec<u8>,
}

fn main() -> Result<(), Box<dyn Error>> {
    let web = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?).join("web");
    let out = PathBuf::from(env::var("OUT_DIR")?);
    let mut files = own(&web)?;
    for file in &mut files {
        file.bytes = bare(file)?.into_bytes();
    }
    let (player, docs) = (library(&web, &PLAYER)?, library(&web, &DOCS)?);
    let has_player = !player.is_empty();
    let theirs: Vec<File> = player.into_iter().chain(docs).collect();
    let version = version(files.iter().chain(&theirs));
    let names: Vec<String> = files.iter().chain(&theirs).map(|file| file.name.clone()).collect();
    for file in files.iter_mut().filter(|file| !file.name.ends_with(".css")) {
        file.bytes = address(&file.bytes, &names, &version, has_player)?;
    }
    files.extend(theirs);
    let mut page = |name: &str| {
        let place = files.iter().position(|file| file.name == name).ok_or(format!("no {name}"));
        place.map(|place| files.remove(place))
    };
    let (index, docs) = (page("index.html")?, page("docs.html")?);

    let mut code = format!("pub(super) const VERSION: &str = {version:?};\n");
    writeln!(code, "pub(super) const HAS_PLAYER: bool = {has_player};")?;
    writeln!(code, "pub(super) static INDEX: [Asset; {}] = [", PARTS.len())?;
    let html = String::from_utf8(index.bytes)?;
    for (place, parts) in PARTS.iter().enumerate() {
        let bytes = replace(&html, "data-parts=\"\"", &format!("data-parts=\"{parts}\""))?.into_bytes();
        put(&out, &mut code, &File { name: format!("index-{place}.html"), bytes })?;
    }
    writeln!(code, "];\npub(super) static DOCS: Asset =")?;
    put(&out, &mut code, &docs)?;
    code.truncate(code.trim_end().trim_end_matches(',').len());
    writeln!(code, ";\npub(super) static ASSETS: [Asset; {}] = [", files.len())?;
    for file in &files {
        put(&out, &mut code, file)?;
    }
    writeln!(code, "];")?;
    fs::write(out.join("page.rs"), code)?;
    Ok(())
}

/// The page's own files, by name.
fn own(web: &Path) -> Result<Vec<File>, Box<dyn Error>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(web)? {
        let path = entry?.path();
        let served =
            path.extension().is_some_and(|kind| ["html", "js", "css", "svg"].iter().any(|k| kind == *k));
        if served && path.is_file() {
            let name = path.file_name().ok_or("a file without a name")?.to_string_lossy().into_owned();
            println!("cargo::rerun-if-changed={}", path.display());
            files.push(File { name, bytes: fs::read(&path)? });
        }
    }
    files.sort_by(|a, b| a.name.cmp(&b.name));
    // A directory counts as changed when something comes or goes in it (cargo looks at what lies below, too, so the tests
    // and npm's files count as well; they change rarely).
    println!("cargo::rerun-if-changed={}", web.display());
    Ok(files)
}

/// A file without what is only for people: indentation, the types of modules and comments that have lines of their own,
/// the spaces of style sheets. No minifier is needed for a few kilobytes; in return no text in a module may look like
/// `/**`, and none over several lines like a comment.
fn bare(file: &File) -> Result<String, Box<dyn Error>> {
    let mut text = std::str::from_utf8(&file.bytes)?.to_owned();
    let (is_module, is_style) = (file.name.ends_with(".js"), file.name.ends_with(".css"));
    while let Some(begins) = text.find("/**").filter(|_| is_module) {
        let length = text[begins..].find("*/").ok_or("a comment without an end")? + 2;
        text.replace_range(begins..begins + length, "");
    }
    let mut kept = String::new();
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
        if !(is_module && line.starts_with("//")) {
            kept.push_str(line);
            kept.push('\n');
        }
    }
    if is_style {
        for (from, to) in [(" {", "{"), ("{ ", "{"), ("; }", "}"), ("; ", ";"), (": ", ":"), (", ", ",")] {
            kept = kept.replace(from, to);
        }
    }
    Ok(kept)
}

/// A library's files; nothing when one of them is not there.
fn library(web: &Path, library: &Library) -> Result<Vec<File>, Box<dyn Error>> {
    let mut files = Vec::new();
    let (_, licence) = library.files.last().ok_or("a library without files")?;
    for (path, name) in library.files {
        let path = web.join(path);
        if !path.is_file() {
            println!(
                "cargo::warning=the gateway is built without {}, so {}; run `npm ci --prefix gateway/web` and build again",
                library.notice, library.without
            );
            return Ok(Vec::new());
        }
        let mut bytes = fs::read(&path)?;
        if name != licence {
            // A minified file has lost its licence's name, and its source map is not served.
            let code = String::from_utf8(bytes)?;
            let code = code.split("# sourceMappingURL=").next().unwrap_or_default();
            let code = code.trim_end_matches(['/', '*', ' ', '\n']);
            bytes = format!("/*! {}: /assets/{licence} */\n{code}\n", library.notice).into_bytes();
        }
        files.push(File { name: (*name).to_owned(), bytes });
    }
    Ok(files)
}

fn version<'a>(files: impl Iterator<Item = &'a File>) -> String {
    let mut hash = Sha256::new();
    for file in files {
        hash.update(format!("{}\n{}\n", file.name, file.bytes.len()));
        hash.update(&file.bytes);
    }
    short(&hash.finalize())
}

/// Puts the version into what `bytes` says of other assets: `/assets/NAME` in HTML, `"./NAME"` in modules.
fn address(
    bytes: &[u8],
    names: &[String],
    version: &str,
    has_player: bool,
) -> Result<Vec<u8>, Box<dyn Error>> {
    let mut text = std::str::from_utf8(bytes)?.to_owned();
    if !has_player {
        for (_, name) in PLAYER.files {
            text = text.replace(&format!("\"/assets/{name}\""), "\"\"");
        }
    }
    for name in names {
        for at in ["/assets/", "./"] {
            text = text.replace(&format!("\"{at}{name}\""), &format!("\"{at}{name}?v={version}\""));
        }
    }
    Ok(text.into_bytes())
}

fn replace(text: &str, from: &str, to: &str) -> Result<String, Box<dyn Error>> {
    if text.matches(from).count() != 1 {
        return Err(format!("index.html must have {from} once").into());
    }
    Ok(text.replace(from, to))
}

/// Writes both forms of a file and its line of the table.
fn put(out: &Path, code: &mut String, file: &File) -> Result<(), Box<dyn Error>> {
    let (plain, packed) = (out.join(&file.name), out.join(format!("{}.gz", file.name)));
    // No time and no name in it: the same files make the same binary.
    let mut gzip = GzBuilder::new().write(Vec::new(), Compression::best());
    gzip.write_all(&file.bytes)?;
    fs::write(&plain, &file.bytes)?;
    fs::write(&packed, gzip.finish()?)?;
    let kind = match file.name.rsplit('.').next() {
        Some("html") => "text/html; charset=utf-8",
        Some("js") => "text/javascript; charset=utf-8",
        Some("css") => "text/css; charset=utf-8",
        Some("svg") => "image/svg+xml",
        Some("txt") => "text/plain; charset=utf-8",
        _ => return Err(format!("no media type is known for {}", file.name).into()),
    };
    let tag = short(&Sha256::digest(&file.bytes));
    writeln!(
        code,
        "    Asset {{ name: {:?}, kind: {kind:?}, tag: {tag:?}, plain: include_bytes!({plain:?}), gzip: include_bytes!({packed:?}) }},",
        file.name
    )?;
    Ok(())
}

fn short(hash: &[u8]) -> String {
    hash.iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}
