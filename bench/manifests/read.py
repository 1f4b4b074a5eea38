"""Reads an HLS multivariant playlist and a DASH manifest as m3u8 and mpegdash understand them; prints JSON.

    python read.py MASTER_URL MPD_URL

Every address in it is whole, every time in seconds. What is missing is null: judging is the caller's.
"""

import json
import re
import sys
import urllib.request
from urllib.parse import urljoin

import m3u8
from mpegdash.parser import MPEGDASHParser

TIMEOUT_S = 20
# What is read is on loopback; a proxy of the environment has no part in it.
OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def fetch(url):
    """The text behind a URL and the URL that it was found at, after redirects."""
    with OPENER.open(url, timeout=TIMEOUT_S) as answer:
        return answer.read().decode("utf-8"), answer.url


def read_playlist(url):
    text, url = fetch(url)
    playlist = m3u8.loads(text, uri=url)
    return {
        "type": playlist.playlist_type,
        "version": playlist.version,
        "target_duration": playlist.target_duration,
        "independent_segments": playlist.is_independent_segments,
        "ends": playlist.is_endlist,
        "init": playlist.segment_map[0].absolute_uri if playlist.segment_map else None,
        "segments": [{"url": one.absolute_uri, "seconds": one.duration} for one in playlist.segments],
    }


def read_hls(url):
    text, url = fetch(url)
    master = m3u8.loads(text, uri=url)
    assert master.is_variant, f"{url} lists no variants"

    def variant(one):
        about = one.stream_info
        return {
            "bandwidth": about.bandwidth,
            "average_bandwidth": about.average_bandwidth,
            "codecs": about.codecs,
            "resolution": about.resolution,
            "frame_rate": about.frame_rate,
            "audio": about.audio,
            "playlist": read_playlist(one.absolute_uri),
        }

    def audio(one):
        return {"group": one.group_id, "playlist": read_playlist(one.absolute_uri)}

    return {
        "independent_segments": master.is_independent_segments,
        "version": master.version,
        "variants": [variant(one) for one in master.playlists],
        "audio": [audio(one) for one in master.media if one.type == "AUDIO"],
    }


def iso_seconds(text):
    """Seconds of an xs:duration without years and months, which no video has."""
    match = re.fullmatch(r"P(?:(\d+)D)?(?:T(?:(\d+)H)?(?:(\d+)M)?(?:([\d.]+)S)?)?", text)
    assert match, f"{text} is no duration"
    days, hours, minutes, seconds = (float(part or 0) for part in match.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


def fill(template, representation, number=None, time=None):
    """Puts values into a template's $Name$ and $Name%05d$."""
    values = {"RepresentationID": representation.id, "Number": number, "Time": time, "Bandwidth": representation.bandwidth}

    def value(match):
        name, width = match.groups()
        return (width or "%s") % values[name]

    return re.sub(r"\$(\w+)(%0\d+d)?\$", value, template)


def read_segments(template, representation, base, period_seconds):
    """The segments of a SegmentTimeline, or of a fixed duration, as ISO/IEC 23009-1 5.3.9 counts them."""
    timescale = template.timescale or 1
    offset = template.presentation_time_offset or 0
    number = 1 if template.start_number is None else template.start_number
    spans = []
    if template.segment_timelines:
        time = 0
        for one in template.segment_timelines[0].Ss:
            time = time if one.t is None else one.t
            assert (one.r or 0) >= 0, "an open repeat has no place in a finished stream"
            for _ in range((one.r or 0) + 1):
                spans.append((time, one.d))
                time += one.d
    else:
        end = period_seconds * timescale
        time = offset
        while time - offset < end:
            spans.append((time, min(template.duration, end - (time - offset))))
            time += template.duration
    return [
        {
            "url": urljoin(base, fill(template.media, representation, number + place, time)),
            "start": (time - offset) / timescale,
            "seconds": duration / timescale,
        }
        for place, (time, duration) in enumerate(spans)
    ]


def read_dash(url):
    text, url = fetch(url)
    mpd = MPEGDASHParser.parse(text)
    seconds = iso_seconds(mpd.media_presentation_duration)
    assert len(mpd.periods) == 1, "one period"

    def read(group, one):
        template = (one.segment_templates or group.segment_templates)[0]
        base = url
        for level in (mpd, mpd.periods[0], group, one):
            base = urljoin(base, level.base_urls[0].base_url_value) if level.base_urls else base
        return {
            "id": one.id,
            "mime_type": one.mime_type or group.mime_type,
            "codecs": one.codecs or group.codecs,
            "bandwidth": one.bandwidth,
            "width": one.width or group.width,
            "height": one.height or group.height,
            "frame_rate": one.frame_rate or group.frame_rate,
            "init": urljoin(base, fill(template.initialization, one)),
            "segments": read_segments(template, one, base, seconds),
        }

    return {
        "type": mpd.type,
        "seconds": seconds,
        "representations": [
            read(group, one) for group in mpd.periods[0].adaptation_sets for one in group.representations
        ],
    }


def main():
    master, mpd = sys.argv[1:]
    json.dump({"hls": read_hls(master), "dash": read_dash(mpd)}, sys.stdout)


main()
