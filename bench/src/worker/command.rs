//! The worker's own ffmpeg arguments, as somebody would type them by hand: bare for the whole ladder, and one command
//! for each rendition.
//!
//! They are taken from the running process and not from the worker's library: what is compared is then what really
//! runs. What is not understood is an error and never a guess, since a wrong comparison would still give a number.

use std::path::Path;

use anyhow::{Context as _, Result, bail};

/// What the worker adds for its own sake, with the number of values that follow: progress and log that it reads, and
/// limits against hostile inputs. None of it changes what is made.
const OWN: [(&str, usize); 13] = [
    ("-hide_banner", 0),
    ("-nostats", 0),
    ("-loglevel", 1),
    ("-progress", 1),
    ("-stats_period", 1),
    ("-max_alloc", 1),
    ("-protocol_whitelist", 1),
    ("-format_whitelist", 1),
    ("-max_pixels", 1),
    ("-max_streams", 1),
    ("-probesize", 1),
    ("-analyzeduration", 1),
    ("-xerror", 0),
];
/// How the last word of an output ends.
const MANIFEST: &str = ".mpd";

/// One ffmpeg that makes every rendition from one decode.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ladder {
    /// All arguments, without the program.
    arguments: Vec<String>,
    graph: Graph,
    input: String,
}

/// The filters of a ladder, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Graph {
    /// `0:0`: the picture that all of it is made of.
    source: String,
    /// Filters that all renditions share: `fps=24/1:start_time=0`.
    shared: String,
    /// Filters of each rendition.
    branches: Vec<String>,
}

impl Graph {
    /// Reads `[0:0]A,split=2[s0][s1];[s0]B[v0];[s1]C[v1]`.
    fn parse(text: &str) -> Option<Self> {
        let mut chains = text.split(';');
        let (source, rest) = chains.next()?.strip_prefix('[')?.split_once(']')?;
        let (shared, split) = rest.rsplit_once(",split=")?;
        let branches: Vec<String> = chains
            .enumerate()
            .map(|(index, chain)| {
                let filters = chain.strip_prefix(&format!("[s{index}]"))?;
                filters.strip_suffix(&format!("[v{index}]")).map(str::to_owned)
            })
            .collect::<Option<_>>()?;
        let count: usize = split.split_once('[')?.0.parse().ok()?;
        (count == branches.len() && count > 0).then(|| Self {
            source: source.to_owned(),
            shared: shared.to_owned(),
            branches,
        })
    }
}

impl Ladder {
    /// Reads the command line of the worker's encode, program first, and puts `input` in the place of its own.
    ///
    /// # Errors
    /// It is no ladder as the worker makes them.
    pub fn bare(command_line: &[String], input: &Path) -> Result<Self> {
        let input = input.to_str().context("the clip's path is no text")?.to_owned();
        let mut arguments = ["-v", "error"].map(str::to_owned).to_vec();
        let (mut inputs, mut graphs) = (0, Vec::new());
        let mut words = command_line.iter().skip(1);
        while let Some(word) = words.next() {
            if let Some((_, values)) = OWN.iter().find(|(own, _)| own == word) {
                words.by_ref().take(*values).for_each(drop);
                continue;
            }
            arguments.push(word.clone());
            if !matches!(word.as_str(), "-i" | "-filter_complex") {
                continue;
            }
            let value = words.next().with_context(|| format!("{word} has no value"))?;
            if word == "-i" {
                inputs += 1;
                arguments.push(input.clone());
            } else {
                graphs.push(Graph::parse(value).with_context(|| format!("not a ladder's filters: {value}"))?);
                arguments.push(value.clone());
            }
        }
        match (inputs, graphs.pop(), graphs.is_empty()) {
            (1, Some(graph), true) => Ok(Self { arguments, graph, input }),
            _ => bail!("not a ladder's command line: {}", command_line.join(" ")),
        }
    }

    /// Its arguments, without the program.
    pub fn arguments(&self) -> &[String] {
        &self.arguments
    }

    /// How many renditions of the picture it makes.
    pub fn renditions(&self) -> usize {
        self.graph.branches.len()
    }

    /// One command for each rendition, each with a decode of its own and the same settings; the first makes the sound
    /// as well.
    ///
    /// # Errors
    /// An option of which it is not clear to which rendition it belongs.
    pub fn separate(&self) -> Result<Vec<Vec<String>>> {
        (0..self.renditions()).map(|index| self.only(index)).collect()
    }

    /// The picture's output with one rendition left, and the sound's, which is an output of its own, with the first.
    fn only(&self, index: usize) -> Result<Vec<String>> {
        let ends = |word: &String| word.ends_with(MANIFEST);
        let end = self.arguments.iter().position(ends).context("no output in the ladder's command")?;
        let (picture, sound) = self.arguments.split_at(end + 1);
        let mut kept = self.picture_only(index, picture)?;
        if index == 0 {
            kept.extend_from_slice(sound);
        }
        Ok(kept)
    }

    fn picture_only(&self, index: usize, arguments: &[String]) -> Result<Vec<String>> {
        let graph = &self.graph;
        let mut kept = Vec::new();
        let mut words = arguments.iter();
        while let Some(word) = words.next() {
            let mut value = || words.next().with_context(|| format!("{word} has no value"));
            if word == "-filter_complex" {
                value()?;
                let filters = format!("[{}]{},{}[v0]", graph.source, graph.shared, graph.branches[index]);
                kept.extend([word.clone(), filters]);
            } else if word == "-map" {
                let stream = value()?;
                let picture = stream.strip_prefix("[v").and_then(|rest| rest.strip_suffix(']'));
                match picture.map(str::parse::<usize>) {
                    Some(Ok(of)) if of == index => kept.extend([word.clone(), "[v0]".to_owned()]),
                    Some(Ok(_)) => {}
                    _ => bail!("-map {stream} is no picture of the ladder's"),
                }
            } else if let Some((option, of)) = word.split_once(":v:").filter(|_| word.starts_with('-')) {
                let of: usize = of.parse().with_context(|| format!("read the rendition of {word}"))?;
                let value = value()?;
                if of == index {
                    kept.extend([format!("{option}:v:0"), value.clone()]);
                }
            } else if word == "-adaptation_sets" {
                value()?;
                kept.extend([word.clone(), "id=0,streams=0".to_owned()]);
            } else {
                kept.push(word.clone());
            }
        }
        Ok(kept)
    }

    /// Compares two encodes of every rendition with the source, scaled as the ladder scales it: the arguments of one
    /// ffmpeg that decodes the source once. `encodes` holds, for each rendition, the files of both.
    ///
    /// Frames are paired by their number and not by their time, so that no rounding of a container's clock can pair a
    /// frame with its neighbour. What is found is said under the names `ssim@first_N` and `ssim@second_N`.
    ///
    /// # Errors
    /// Another number of renditions, or a path that is no text.
    pub fn ssim(&self, encodes: &[[&Path; 2]]) -> Result<Vec<String>> {
        if encodes.len() != self.renditions() {
            bail!("{} encodes of {} renditions", encodes.len(), self.renditions());
        }
        let Graph { source, shared, branches } = &self.graph;
        let numbered = "settb=AVTB,setpts=N*1000";
        let heads: String = (0..branches.len()).map(|index| format!("[s{index}]")).collect();
        let mut chains = vec![format!("[{source}]{shared},{numbered},split={}{heads}", branches.len())];
        for (index, branch) in branches.iter().enumerate() {
            let (first, second) = (1 + 2 * index, 2 + 2 * index);
            chains.push(format!("[s{index}]{branch},split=2[a{index}][b{index}]"));
            chains.push(format!("[{first}:v]{numbered}[x{index}]"));
            chains.push(format!("[{second}:v]{numbered}[y{index}]"));
            chains.push(format!("[x{index}][a{index}]ssim@first_{index}"));
            chains.push(format!("[y{index}][b{index}]ssim@second_{index}"));
        }
        let mut arguments =
            ["-nostdin", "-hide_banner", "-nostats", "-v", "info"].map(str::to_owned).to_vec();
        let mut input = |path: &str| arguments.extend(["-i".to_owned(), path.to_owned()]);
        input(&self.input);
        for path in encodes.iter().flatten() {
            input(path.to_str().context("a path is no text")?);
        }
        arguments.extend(["-filter_complex".to_owned(), chains.join(";")]);
        arguments.extend(["-fps_mode", "passthrough", "-f", "null", "-"].map(str::to_owned));
        Ok(arguments)
    }
}

/// A command as it can be pasted into a shell.
pub fn shell(program: &str, arguments: &[String]) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,+%@".contains(c);
    let quoted = arguments.iter().map(|argument| match !argument.is_empty() && argument.chars().all(plain) {
        true => argument.clone(),
        false => format!("'{}'", argument.replace('\'', r"'\''")),
    });
    std::iter::once(program.to_owned()).chain(quoted).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    fn ladder() -> Ladder {
        let line = "/usr/bin/ffmpeg -hide_banner -y -nostdin -nostats -loglevel level+verbose -progress pipe:1 \
                    -stats_period 0.5 -max_alloc 1 -protocol_whitelist file -probesize 20M -threads 2 -i file:/s/input \
                    -filter_complex [0:0]fps=24/1:start_time=0,split=2[s0][s1];[s0]scale=64:36,setsar=1[v0];\
                    [s1]scale=32:18[v1] -map [v0] -map [v1] -sn -map_metadata -1 -c:v libx264 -crf 22 \
                    -maxrate:v:0 500 -bufsize:v:0 1000 -maxrate:v:1 250 -bufsize:v:1 500 -f dash \
                    -adaptation_sets id=0,streams=0_id=1,streams=1 picture.mpd -map 0:1 -af aresample=async=1 \
                    -c:a aac -b:a 128000 -f dash -adaptation_sets id=0,streams=0 sound.mpd";
        Ladder::bare(&words(line), Path::new("/clips/a.mp4")).unwrap()
    }

    #[test]
    fn what_the_worker_adds_for_its_own_sake_is_left_out() {
        let said = ladder().arguments().join(" ");
        assert!(
            said.starts_with("-v error -y -nostdin -threads 2 -i /clips/a.mp4 -filter_complex [0:0]"),
            "{said}"
        );
        assert!(said.contains("-maxrate:v:1 250") && said.ends_with("sound.mpd"), "{said}");
    }

    #[test]
    fn each_rendition_alone_has_its_own_filters_and_caps_and_the_first_has_the_sound() {
        let alone: Vec<String> = ladder().separate().unwrap().iter().map(|words| words.join(" ")).collect();
        assert_eq!(
            alone,
            [
                "-v error -y -nostdin -threads 2 -i /clips/a.mp4 -filter_complex \
                 [0:0]fps=24/1:start_time=0,scale=64:36,setsar=1[v0] -map [v0] -sn -map_metadata -1 \
                 -c:v libx264 -crf 22 -maxrate:v:0 500 -bufsize:v:0 1000 -f dash -adaptation_sets id=0,streams=0 \
                 picture.mpd -map 0:1 -af aresample=async=1 -c:a aac -b:a 128000 -f dash \
                 -adaptation_sets id=0,streams=0 sound.mpd",
                "-v error -y -nostdin -threads 2 -i /clips/a.mp4 -filter_complex \
                 [0:0]fps=24/1:start_time=0,scale=32:18[v0] -map [v0] -sn -map_metadata -1 \
                 -c:v libx264 -crf 22 -maxrate:v:0 250 -bufsize:v:0 500 -f dash -adaptation_sets id=0,streams=0 \
                 picture.mpd",
            ]
        );
    }

    #[test]
    fn what_is_no_ladder_is_refused() {
        for line in [
            "ffmpeg -i a -f null -",
            "ffmpeg -i a -filter_complex [0:0]scale=64:36[v0] -map [v0] out.mp4",
            "ffmpeg -i a -filter_complex [0:0]fps=1,split=2[s0][s1];[s0]null[v0] out.mp4",
            "ffmpeg -i a -i b -filter_complex [0:0]fps=1,split=1[s0];[s0]null[v0] out.mp4",
            "ffmpeg -i a -filter_complex",
        ] {
            assert!(Ladder::bare(&words(line), Path::new("/a")).is_err(), "{line}");
        }
    }

    #[test]
    fn a_command_can_be_pasted() {
        let arguments =
            ["-filter_complex".to_owned(), "[0:0]a;b".to_owned(), "it's".to_owned(), String::new()];
        assert_eq!(shell("ffmpeg", &arguments), r"ffmpeg -filter_complex '[0:0]a;b' 'it'\''s' ''");
    }
}
