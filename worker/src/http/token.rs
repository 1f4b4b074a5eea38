//! Permissions in a media URL's path: `/media/{job_id}/{token}/{name}`.
//!
//! Playlists and manifests name their files relatively, and a player sends neither headers nor a query along with
//! them: what stands in the path before the name is the only thing that reaches every file. The token covers the job's
//! internal name, so that a job id which is used again one day is another permission.

use std::time::Duration;

use hmac::{Hmac, Mac};
use sha2::Sha256;

use super::tenant::is_tenant;
use crate::store::TENANT_DEFAULT;

/// Why a token is no permission.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Invalid {
    /// Not made with this key for this job, or changed.
    Forged,
    /// It was one.
    Expired,
}

/// What stands behind the signature of another tenant's token: whose job it is.
fn suffix(tenant: &str) -> String {
    if tenant == TENANT_DEFAULT { String::new() } else { format!("-{tenant}") }
}

/// Whose job a token is about, if it is written as one. That is believed with the token, which covers the job's own
/// name: no other tenant has a job of that.
pub(super) fn tenant(token: &str) -> Option<&str> {
    match token.splitn(3, '-').nth(2) {
        None => Some(TENANT_DEFAULT),
        Some(tenant) => (is_tenant(tenant) && tenant != TENANT_DEFAULT).then_some(tenant),
    }
}

fn mac(key: &[u8], job_uid: &str, expires: i64) -> Hmac<Sha256> {
    let mut mac = <Hmac<Sha256> as Mac>::new_from_slice(key).expect("HMAC takes keys of any length");
    // The first line keeps it apart from what else this key signs.
    mac.update(format!("MEDIA\n{job_uid}\n{expires}").as_bytes());
    mac
}

/// A token that holds for `least` or up to half as long again, counted from `now` in seconds since 1970. For half of
/// `least` at a time it is the same one: caches know a file by its URL.
pub(super) fn issue(key: &[u8], tenant: &str, job_uid: &str, now: i64, least: Duration) -> String {
    let least = i64::try_from(least.as_secs()).unwrap_or(i64::MAX / 4).max(1);
    let step = (least / 2).max(1);
    let expires = (now.div_euclid(step) + 1) * step + least;
    let signature = hex::encode(mac(key, job_uid, expires).finalize().into_bytes());
    format!("{expires:x}-{signature}{}", suffix(tenant))
}

/// How many seconds a token still holds.
///
/// # Errors
/// Whether it never was one or is no more; the first is looked at first, in constant time.
pub(super) fn seconds_left(key: &[u8], job_uid: &str, token: &str, now: i64) -> Result<i64, Invalid> {
    // One permission has one spelling, or each spelling would be another URL to a cache.
    let lower = |text: &str| text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    let mut parts = token.splitn(3, '-');
    let (expires, signature) = parts.next().zip(parts.next()).ok_or(Invalid::Forged)?;
    if !lower(expires) || !lower(signature) || expires.starts_with('0') {
        return Err(Invalid::Forged);
    }
    let expires = i64::from_str_radix(expires, 16).map_err(|_| Invalid::Forged)?;
    let signature = hex::decode(signature).map_err(|_| Invalid::Forged)?;
    mac(key, job_uid, expires).verify_slice(&signature).map_err(|_| Invalid::Forged)?;
    if now < expires { Ok(expires - now) } else { Err(Invalid::Expired) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW: i64 = 1_700_000_000;

    #[test]
    fn a_token_is_for_one_job_one_key_and_one_time() {
        let token = issue(b"k", TENANT_DEFAULT, "job-1", NOW, Duration::from_secs(100));
        let left = seconds_left(b"k", "job-1", &token, NOW).unwrap();
        assert_eq!(seconds_left(b"k", "job-1", &token, NOW + left - 1), Ok(1));
        assert_eq!(seconds_left(b"k", "job-1", &token, NOW + left), Err(Invalid::Expired));
        assert_eq!(seconds_left(b"k", "job-2", &token, NOW), Err(Invalid::Forged));
        assert_eq!(seconds_left(b"K", "job-1", &token, NOW), Err(Invalid::Forged));
        // Long past its time, a forged one is still called forged.
        assert_eq!(seconds_left(b"k", "job-2", &token, NOW * 2), Err(Invalid::Forged));
        let (expires, signature) = token.split_once('-').unwrap();
        let later = i64::from_str_radix(expires, 16).unwrap() + 1;
        for forged in [
            String::new(),
            "-".to_owned(),
            format!("{expires}-"),
            format!("-{signature}"),
            format!("{later:x}-{signature}"),
            format!("0{expires}-{signature}"),
            format!("+{expires}-{signature}"),
            format!("{expires}-{}", signature.to_uppercase()),
            format!("{expires}-{}", &signature[..32]),
            format!("{expires}-{signature}00"),
            format!("{}-{signature}", "f".repeat(99)),
        ] {
            assert_eq!(seconds_left(b"k", "job-1", &forged, NOW), Err(Invalid::Forged), "{forged}");
        }
    }

    #[test]
    fn a_token_says_whose_job_it_is_in_one_way() {
        let own = issue(b"k", TENANT_DEFAULT, "job-1", NOW, Duration::from_secs(100));
        let other = issue(b"k", "a-b.c", "job-1", NOW, Duration::from_secs(100));
        assert_eq!((tenant(&own), tenant(&other)), (Some(TENANT_DEFAULT), Some("a-b.c")));
        assert_eq!(other, format!("{own}-a-b.c"));
        assert!(seconds_left(b"k", "job-1", &other, NOW).is_ok());
        for bad in ["-", "-default", "-a/b", "-.", "-a b", "-\u{e9}"] {
            assert_eq!(tenant(&format!("{own}{bad}")), None, "{bad}");
        }
    }

    #[test]
    fn a_media_signature_is_no_upload_signature() {
        let token = issue(b"k", TENANT_DEFAULT, "job-1", NOW, Duration::from_secs(100));
        let other = <Hmac<Sha256> as Mac>::new_from_slice(b"k").unwrap().chain_update(b"PUT\njob-1\n1");
        assert!(!token.ends_with(&hex::encode(other.finalize().into_bytes())));
    }

    proptest! {
        #[test]
        fn it_holds_at_least_as_long_as_was_asked(now in 0..4_000_000_000_i64, least in 1..700_000_u64) {
            let token = issue(b"k", TENANT_DEFAULT, "job", now, Duration::from_secs(least));
            let left = seconds_left(b"k", "job", &token, now).unwrap();
            let least = least as i64;
            prop_assert!(left >= least && left <= least + (least / 2).max(1), "{left} of {least}");
        }

        #[test]
        fn it_stays_the_same_for_half_of_its_time(step in 1..300_000_i64, at in 0..10_000_i64) {
            let (least, begin) = (Duration::from_secs(2 * step as u64), at * step);
            let last = begin + step - 1;
            prop_assert_eq!(issue(b"k", TENANT_DEFAULT, "job", begin, least), issue(b"k", TENANT_DEFAULT, "job", last, least));
            prop_assert_ne!(issue(b"k", TENANT_DEFAULT, "job", begin, least), issue(b"k", TENANT_DEFAULT, "job", last + 1, least));
        }

        #[test]
        fn no_text_breaks_the_reader(token in "\\PC{0,90}") {
            prop_assert!(seconds_left(b"k", "job", &token, NOW).is_err());
        }
    }
}
