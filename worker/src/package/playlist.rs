//! HLS playlists (RFC 8216) as text, from what was measured. Every URI is a plain file name beside the playlist.
//!
//! ffmpeg's own understate BANDWIDTH by half and lack AVERAGE-BANDWIDTH, FRAME-RATE and INDEPENDENT-SEGMENTS.

use std::fmt::Write as _;

use millrace_wire::job::{AudioRendition, Rendition};

use super::track::Track;

/// The file name of the multivariant playlist.
pub const MASTER: &str = "master.m3u8";
/// The file name of the sound's playlist.
pub const AUDIO: &str = "audio.m3u8";
const GROUP: &str = "audio";

/// The multivariant playlist. Sound is a rendition of its own beside pictures; alone it is the one variant.
pub fn master(pictures: &[Rendition], sound: Option<&AudioRendition>) -> String {
    let mut text = String::from("#EXTM3U\n#EXT-X-VERSION:7\n#EXT-X-INDEPENDENT-SEGMENTS\n");
    match sound {
        Some(sound) if pictures.is_empty() => {
            let (peak, average) = (sound.bandwidth, sound.average_bandwidth);
            let _ = variant(&mut text, peak, average, &sound.codecs);
            let _ = writeln!(text, "\n{}", sound.url.as_deref().unwrap_or_default());
        }
        Some(sound) => {
            let _ = writeln!(
                text,
                "#EXT-X-MEDIA:TYPE=AUDIO,GROUP-ID=\"{GROUP}\",NAME=\"Audio\",DEFAULT=YES,AUTOSELECT=YES,\
                 CHANNELS=\"{}\",URI=\"{}\"",
                sound.channels,
                sound.url.as_deref().unwrap_or_default()
            );
        }
        None => {}
    }
    for one in pictures {
        let _ = variant(&mut text, one.bandwidth, one.average_bandwidth, &one.codecs);
        let _ = write!(text, ",RESOLUTION={}x{},FRAME-RATE={:.3}", one.width, one.height, one.frame_rate);
        if sound.is_some() {
            let _ = write!(text, ",AUDIO=\"{GROUP}\"");
        }
        let _ = writeln!(text, "\n{}", one.url.as_deref().unwrap_or_default());
    }
    text
}

/// What every variant says of itself.
fn variant(text: &mut String, peak: u64, average: u64, codecs: &str) -> std::fmt::Result {
    write!(text, "#EXT-X-STREAM-INF:BANDWIDTH={peak},AVERAGE-BANDWIDTH={average},CODECS=\"{codecs}\"")
}

/// Seconds of `EXT-X-TARGETDURATION`: every EXTINF, rounded to the nearest second, is at most that (RFC 8216, 4.3.3.1).
pub fn target_duration(track: &Track) -> u64 {
    let rounded = track.segments.iter().map(|segment| track.presented_s(segment).round() as u64);
    rounded.max().unwrap_or(1).max(1)
}

/// The media playlist of one track. Lengths are as presented, so the first of the sound lacks the encoder's run-up:
/// players add them up to find where a segment begins, and counting what the edit list skips would put every later one
/// 21 ms too late.
pub fn media(track: &Track) -> String {
    let target = target_duration(track);
    let mut text = format!(
        "#EXTM3U\n#EXT-X-VERSION:7\n#EXT-X-TARGETDURATION:{target}\n#EXT-X-MEDIA-SEQUENCE:1\n\
         #EXT-X-PLAYLIST-TYPE:VOD\n#EXT-X-INDEPENDENT-SEGMENTS\n#EXT-X-MAP:URI=\"{}\"\n",
        track.init
    );
    for segment in &track.segments {
        let _ = write!(text, "#EXTINF:{:.6},\n{}\n", track.presented_s(segment), segment.name);
    }
    text.push_str("#EXT-X-ENDLIST\n");
    text
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::ladder::tests::plan_of;
    use crate::package::verify::tests::{picture, sound as sound_track};

    #[test]
    fn a_media_playlist_is_exact() {
        let plan = plan_of(640, 360, false);
        let text = media(&picture(&plan, 0, 270, 100));
        let want = "#EXTM3U\n#EXT-X-VERSION:7\n#EXT-X-TARGETDURATION:4\n#EXT-X-MEDIA-SEQUENCE:1\n\
                    #EXT-X-PLAYLIST-TYPE:VOD\n#EXT-X-INDEPENDENT-SEGMENTS\n#EXT-X-MAP:URI=\"init_0.mp4\"\n\
                    #EXTINF:4.004000,\nseg_0_00001.m4s\n#EXTINF:4.004000,\nseg_0_00002.m4s\n\
                    #EXTINF:1.001000,\nseg_0_00003.m4s\n#EXT-X-ENDLIST\n";
        assert_eq!(text, want);
    }

    #[test]
    fn the_encoders_run_up_counts_in_no_playlist() {
        let text = media(&sound_track(Duration::from_secs(4), 9, 300));
        let lengths: Vec<f64> = text
            .lines()
            .filter_map(|line| line.strip_prefix("#EXTINF:")?.strip_suffix(',')?.parse().ok())
            .collect();
        assert_eq!(lengths, [3.989_333, 3.989_333, 1.024], "{text}");
    }

    #[test]
    fn a_short_clip_has_a_target_of_a_second() {
        let plan = plan_of(640, 360, false);
        assert!(media(&picture(&plan, 0, 3, 100)).contains("#EXT-X-TARGETDURATION:1\n"));
    }

    fn sound() -> AudioRendition {
        AudioRendition {
            bandwidth: 131_000,
            average_bandwidth: 129_000,
            codecs: "mp4a.40.2".into(),
            channels: 2,
            sample_rate: 48_000,
            url: Some("audio.m3u8".into()),
            mp4: None,
        }
    }

    #[test]
    fn sound_alone_is_the_one_variant() {
        let want = "#EXTM3U\n#EXT-X-VERSION:7\n#EXT-X-INDEPENDENT-SEGMENTS\n\
                    #EXT-X-STREAM-INF:BANDWIDTH=131000,AVERAGE-BANDWIDTH=129000,CODECS=\"mp4a.40.2\"\n\
                    audio.m3u8\n";
        assert_eq!(master(&[], Some(&sound())), want);
    }

    #[test]
    fn a_master_playlist_names_every_rendition() {
        let rendition = Rendition {
            name: "720p".into(),
            width: 1280,
            height: 720,
            bandwidth: 3_000_000,
            average_bandwidth: 2_000_000,
            codecs: "avc1.64001f,mp4a.40.2".into(),
            frame_rate: 30_000.0 / 1001.0,
            url: Some("720p.m3u8".into()),
            mp4: None,
        };
        let text = master(std::slice::from_ref(&rendition), Some(&sound()));
        let want = "#EXTM3U\n#EXT-X-VERSION:7\n#EXT-X-INDEPENDENT-SEGMENTS\n\
                    #EXT-X-MEDIA:TYPE=AUDIO,GROUP-ID=\"audio\",NAME=\"Audio\",DEFAULT=YES,AUTOSELECT=YES,\
                    CHANNELS=\"2\",URI=\"audio.m3u8\"\n\
                    #EXT-X-STREAM-INF:BANDWIDTH=3000000,AVERAGE-BANDWIDTH=2000000,\
                    CODECS=\"avc1.64001f,mp4a.40.2\",RESOLUTION=1280x720,FRAME-RATE=29.970,AUDIO=\"audio\"\n\
                    720p.m3u8\n";
        assert_eq!(text, want);
        assert!(!master(&[rendition], None).contains("AUDIO"));
    }
}
