//! The MPEG-DASH manifest (ISO/IEC 23009-1) over the same segments as the playlists, from what was measured.
//!
//! Times are of the presentation, as the edit lists make it: a picture's take back what reordering added, the sound's
//! skips the encoder's priming. Every player that fits segments into a buffer applies them, so the sound's timeline
//! begins at 0 with a first segment that is shorter by the priming, and no `presentationTimeOffset` takes it off twice.

use std::io;

use quick_xml::Writer;
use quick_xml::events::{BytesDecl, Event};

use super::bandwidth;
use super::track::Track;
use crate::ffmpeg::args;
use crate::ladder::{AudioPlan, PicturePlan};

/// The file name of the manifest.
pub const MANIFEST: &str = "manifest.mpd";
/// Live: segments by number and timeline. A static presentation may use it as well, and every player reads it.
const PROFILE: &str = "urn:mpeg:dash:profile:isoff-live:2011";
const CHANNELS_SCHEME: &str = "urn:mpeg:dash:23003:3:audio_channel_configuration:2011";

type Xml = Writer<Vec<u8>>;

/// The manifest of the renditions of a picture, the highest first, and of the sound; ids are their indices, as in the
/// names of their files.
pub fn manifest(
    picture: Option<(&PicturePlan, &[Track])>,
    sound: Option<(&AudioPlan, &Track)>,
    duration_s: f64,
) -> String {
    let mut xml = Writer::new_with_indent(Vec::new(), b' ', 2);
    presentation(&mut xml, picture, sound, duration_s).expect("a vector takes every byte");
    let mut text = String::from_utf8(xml.into_inner()).expect("only text was written");
    text.push('\n');
    text
}

fn presentation(
    xml: &mut Xml,
    picture: Option<(&PicturePlan, &[Track])>,
    sound: Option<(&AudioPlan, &Track)>,
    duration_s: f64,
) -> io::Result<()> {
    xml.write_event(Event::Decl(BytesDecl::new("1.0", Some("UTF-8"), None)))?;
    let duration = format!("PT{duration_s:.6}S");
    // Whoever receives at a representation's bandwidth, its peak over segments, has to wait for one of them.
    let tracks = picture.map_or(&[][..], |(_, tracks)| tracks).iter().chain(sound.map(|(_, track)| track));
    let longest_s = tracks.map(longest_s).fold(0.0, f64::max);
    let attributes = [
        ("xmlns", "urn:mpeg:dash:schema:mpd:2011"),
        ("profiles", PROFILE),
        ("type", "static"),
        ("mediaPresentationDuration", &duration),
        ("minBufferTime", &format!("PT{longest_s:.6}S")),
    ];
    let period = [("id", "0"), ("start", "PT0S"), ("duration", &duration)];
    xml.create_element("MPD").with_attributes(attributes).write_inner_content(|xml| {
        xml.create_element("Period").with_attributes(period).write_inner_content(|xml| {
            if let Some((plan, tracks)) = picture {
                picture_set(xml, plan, tracks)?;
            }
            if let Some((plan, track)) = sound {
                let index = picture.map_or(0, |(_, tracks)| tracks.len());
                sound_set(xml, plan, track, index)?;
            }
            Ok(())
        })?;
        Ok(())
    })?;
    Ok(())
}

fn longest_s(track: &Track) -> f64 {
    track.segments.iter().map(|segment| track.presented_s(segment)).fold(0.0, f64::max)
}

fn picture_set(xml: &mut Xml, plan: &PicturePlan, tracks: &[Track]) -> io::Result<()> {
    let set = [
        ("id", "0"),
        ("contentType", "video"),
        ("mimeType", "video/mp4"),
        ("segmentAlignment", "true"),
        ("startWithSAP", "1"),
    ];
    xml.create_element("AdaptationSet").with_attributes(set).write_inner_content(|xml| {
        for (index, (rung, track)) in plan.rungs.iter().zip(tracks).enumerate() {
            let attributes = [
                ("id", index.to_string()),
                ("bandwidth", bandwidth::peak(track, None).to_string()),
                ("codecs", track.codec.clone()),
                ("width", rung.width.to_string()),
                ("height", rung.height.to_string()),
                ("frameRate", plan.fps.to_string()),
                ("sar", "1:1".to_owned()),
            ];
            let attributes = attributes.iter().map(|(name, value)| (*name, value.as_str()));
            let representation = xml.create_element("Representation").with_attributes(attributes);
            representation.write_inner_content(|xml| template(xml, track))?;
        }
        Ok(())
    })?;
    Ok(())
}

fn sound_set(xml: &mut Xml, plan: &AudioPlan, track: &Track, index: usize) -> io::Result<()> {
    let set = [
        ("id", "1"),
        ("contentType", "audio"),
        ("mimeType", "audio/mp4"),
        ("segmentAlignment", "true"),
        ("startWithSAP", "1"),
    ];
    xml.create_element("AdaptationSet").with_attributes(set).write_inner_content(|xml| {
        let attributes = [
            ("id", index.to_string()),
            ("bandwidth", bandwidth::peak(track, None).to_string()),
            ("codecs", track.codec.clone()),
            ("audioSamplingRate", plan.sample_rate.to_string()),
        ];
        let attributes = attributes.iter().map(|(name, value)| (*name, value.as_str()));
        let representation = xml.create_element("Representation").with_attributes(attributes);
        representation.write_inner_content(|xml| {
            let channels = plan.channels.to_string();
            let channels = [("schemeIdUri", CHANNELS_SCHEME), ("value", &channels)];
            xml.create_element("AudioChannelConfiguration").with_attributes(channels).write_empty()?;
            template(xml, track)
        })?;
        Ok(())
    })?;
    Ok(())
}

fn template(xml: &mut Xml, track: &Track) -> io::Result<()> {
    let timescale = track.timescale.to_string();
    let attributes = [
        ("timescale", timescale.as_str()),
        ("startNumber", "1"),
        ("initialization", args::INIT_TEMPLATE),
        ("media", args::SEGMENT_TEMPLATE),
    ];
    xml.create_element("SegmentTemplate").with_attributes(attributes).write_inner_content(|xml| {
        xml.create_element("SegmentTimeline").write_inner_content(|xml| {
            for run in timeline(track) {
                let (t, d, r) = (run.start.to_string(), run.duration.to_string(), run.more.to_string());
                let s = xml
                    .create_element("S")
                    .with_attribute(("t", t.as_str()))
                    .with_attribute(("d", d.as_str()));
                let s = if run.more > 0 { s.with_attribute(("r", r.as_str())) } else { s };
                s.write_empty()?;
            }
            Ok(())
        })?;
        Ok(())
    })?;
    Ok(())
}

/// Segments of one length, one after the other, in ticks of the presentation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Run {
    start: u64,
    duration: u64,
    more: u64,
}

fn timeline(track: &Track) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for segment in &track.segments {
        let (start, duration) = track.presented(segment);
        match runs.last_mut() {
            Some(run) if run.duration == duration => run.more += 1,
            _ => runs.push(Run { start, duration, more: 0 }),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ladder::tests::{plan_of, plan_of_sound};
    use crate::package::verify::tests::{picture, sound};

    #[test]
    fn a_manifest_is_exact() {
        let plan = plan_of(640, 360, true);
        let video = [picture(&plan, 0, 270, 1000)];
        let audio = sound(plan.segment, 9, 300);
        let text = manifest(
            plan.picture.as_ref().map(|plan| (plan, &video[..])),
            plan.audio.as_ref().zip(Some(&audio)),
            9.009,
        );
        let want = r#"<?xml version="1.0" encoding="UTF-8"?>
<MPD xmlns="urn:mpeg:dash:schema:mpd:2011" profiles="urn:mpeg:dash:profile:isoff-live:2011" type="static" mediaPresentationDuration="PT9.009000S" minBufferTime="PT4.010667S">
  <Period id="0" start="PT0S" duration="PT9.009000S">
    <AdaptationSet id="0" contentType="video" mimeType="video/mp4" segmentAlignment="true" startWithSAP="1">
      <Representation id="0" bandwidth="244556" codecs="avc1.64001e" width="640" height="360" frameRate="30000/1001" sar="1:1">
        <SegmentTemplate timescale="30000" startNumber="1" initialization="init_$RepresentationID$.mp4" media="seg_$RepresentationID$_$Number%05d$.m4s">
          <SegmentTimeline>
            <S t="0" d="120120" r="1"/>
            <S t="240240" d="30030"/>
          </SegmentTimeline>
        </SegmentTemplate>
      </Representation>
    </AdaptationSet>
    <AdaptationSet id="1" contentType="audio" mimeType="audio/mp4" segmentAlignment="true" startWithSAP="1">
      <Representation id="1" bandwidth="115364" codecs="mp4a.40.2" audioSamplingRate="48000">
        <AudioChannelConfiguration schemeIdUri="urn:mpeg:dash:23003:3:audio_channel_configuration:2011" value="2"/>
        <SegmentTemplate timescale="48000" startNumber="1" initialization="init_$RepresentationID$.mp4" media="seg_$RepresentationID$_$Number%05d$.m4s">
          <SegmentTimeline>
            <S t="0" d="191488"/>
            <S t="191488" d="192512"/>
            <S t="384000" d="48128"/>
          </SegmentTimeline>
        </SegmentTemplate>
      </Representation>
    </AdaptationSet>
  </Period>
</MPD>
"#;
        assert_eq!(text, want);
    }

    #[test]
    fn sound_alone_is_the_only_set_and_its_ids_begin_at_zero() {
        let plan = plan_of_sound();
        let text = manifest(None, plan.audio.as_ref().zip(Some(&sound(plan.segment, 9, 300))), 9.0);
        assert_eq!(text.matches("<AdaptationSet").count(), 1);
        assert!(
            text.contains("contentType=\"audio\"") && text.contains("<Representation id=\"0\""),
            "{text}"
        );
    }

    #[test]
    fn two_hours_have_no_hole() {
        let plan = plan_of(640, 360, true);
        assert_eq!(timeline(&picture(&plan, 0, 216_000, 1)).len(), 1);
        let runs = timeline(&sound(plan.segment, 7200, 300));
        let mut ends = runs.iter().map(|run| run.start + run.duration * (run.more + 1));
        let starts = runs.iter().skip(1).map(|run| run.start);
        assert_eq!(ends.clone().take(runs.len() - 1).collect::<Vec<_>>(), starts.collect::<Vec<_>>());
        assert_eq!(ends.next_back(), Some(7200 * 48_000));
    }
}
