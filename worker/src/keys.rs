//! How keys in the object store are made, in one place.
//!
//! `uploads/<uuid>/<filename>` for what clients sent, `uploads/<tenant>/<uuid>/<filename>` for what those of another tenant
//! than the default sent, `jobs/<uid>/<task>/a<n>/` for what attempts wrote, `replicas/<uid>/input-a<n>` for the second copy
//! of an input, `trials/<worker>` for a moment.

use millrace_wire::{PoolId, WorkerId};

use crate::store::{Lease, Part, TENANT_DEFAULT};

/// Longest file name kept of what a client called its upload.
const FILENAME_LENGTH_MAX: usize = 100;

/// Where an attempt writes; every attempt elsewhere, so that a zombie can never touch what was published.
pub fn attempt_prefix(part: Part, lease: &Lease) -> String {
    prefix_of_attempt(&lease.job_uid, part, lease.epoch)
}

/// Where an attempt wrote, by its job's internal name, what it was at, and its number.
pub fn prefix_of_attempt(job_uid: &str, part: Part, number: u64) -> String {
    format!("{}/{}/a{number}", job_prefix(job_uid), part.folder())
}

/// Where an attempt at a whole job puts the source that others shall read, too.
pub fn source(lease: &Lease) -> String {
    format!("{}/source", attempt_prefix(Part::Whole, lease))
}

/// Below which a job's sources lie, and nothing that is published of a job in parts.
pub fn sources_prefix(job_uid: &str) -> String {
    format!("{}/{}", job_prefix(job_uid), Part::Whole.folder())
}

/// What a worker writes to see whether its bucket takes it; removed at once.
pub fn trial(worker: &WorkerId) -> String {
    format!("trials/{worker}")
}

/// Below which all attempts at a job write.
pub fn job_prefix(job_uid: &str) -> String {
    format!("jobs/{job_uid}")
}

/// Where a claim puts the second copy of a job's input.
pub fn second_input(job_uid: &str, claim: u64) -> String {
    format!("replicas/{job_uid}/input-a{claim}")
}

/// A fresh key for an upload.
pub fn upload(tenant: &str, filename: &str) -> String {
    let owner = if tenant == TENANT_DEFAULT { String::new() } else { format!("{tenant}/") };
    format!("uploads/{owner}{}/{}", uuid::Uuid::now_v7().simple(), plain(filename))
}

/// Who may use an upload.
pub fn uploader(key: &str) -> &str {
    match key.split('/').collect::<Vec<_>>()[..] {
        [_, tenant, _, _] => tenant,
        _ => TENANT_DEFAULT,
    }
}

/// `POOL/KEY` into its parts; only uploads are inputs.
pub fn split_input_path(path: &str) -> Option<(PoolId, &str)> {
    let (pool, key) = path.split_once('/')?;
    let plain = |segment: &str| !segment.is_empty() && !segment.starts_with('.');
    (key.starts_with("uploads/") && key.split('/').all(plain)).then_some(())?;
    Some((pool.parse().ok()?, key))
}

/// What is left of a file name when only harmless characters stay.
fn plain(filename: &str) -> String {
    let name = filename.rsplit(['/', '\\']).next().unwrap_or_default();
    let keep = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-') { c } else { '-' };
    let name: String = name.chars().map(keep).take(FILENAME_LENGTH_MAX).collect();
    let name = name.trim_start_matches(['.', '-']);
    if name.is_empty() { "video".to_owned() } else { name.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_name_becomes_harmless() {
        for (given, kept) in [
            ("clip.mp4", "clip.mp4"),
            ("../../etc/passwd", "passwd"),
            ("C:\\Videos\\my clip.mov", "my-clip.mov"),
            (".hidden", "hidden"),
            ("übung.mp4", "bung.mp4"),
            ("", "video"),
            ("///", "video"),
        ] {
            assert_eq!(plain(given), kept, "{given:?}");
        }
    }

    #[test]
    fn an_upload_is_its_tenants() {
        for tenant in [TENANT_DEFAULT, "acme", "0123456789abcdef0123456789abcdef"] {
            let key = upload(tenant, "a/b/clip.mp4");
            assert_eq!(uploader(&key), tenant, "{key}");
            assert!(split_input_path(&format!("aws/{key}")).is_some());
        }
    }

    #[test]
    fn only_uploads_are_inputs() {
        let key = upload(TENANT_DEFAULT, "clip.mp4");
        assert_eq!(split_input_path(&format!("aws/{key}")), Some(("aws".parse().unwrap(), key.as_str())));
        for path in [
            "aws",
            "aws/jobs/1/video/a1/init_0.mp4",
            "aws/uploads/../jobs/x",
            "a b/uploads/x/y",
            "aws/uploads//y",
        ] {
            assert_eq!(split_input_path(path), None, "{path}");
        }
    }
}
