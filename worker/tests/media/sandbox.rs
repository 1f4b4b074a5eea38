//! What a process in the cage cannot do, tried with a shell in ffmpeg's place; each with the same try outside of it,
//! so that a failure here is the cage's doing.

use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Output};

use millrace_worker::ffmpeg::{Error, Ffmpeg, Settings};

use super::clip::{WORKER, ffmpeg, settings};

const BASH: &str = "/bin/bash";

struct Cage<'a> {
    write: &'a Path,
    parent: u32,
}

impl Cage<'_> {
    fn run(&self, program: &[&str]) -> Output {
        let mut command = Command::new(WORKER);
        command.args(["cage", "--parent", &self.parent.to_string(), "--cpu-seconds", "20"]);
        command.args(["--memory", "1000000000", "--file", "1000000", "--report"]);
        command.arg("--write").arg(self.write).arg("--").args(program);
        command.output().unwrap()
    }

    fn bash(&self, script: &str) -> Output {
        self.run(&[BASH, "-c", script])
    }
}

fn cage(write: &Path) -> Cage<'_> {
    Cage { write, parent: std::process::id() }
}

fn said(output: &Output) -> String {
    format!("{output:?}")
}

#[test]
fn no_socket() {
    let directory = tempfile::tempdir().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let script = format!("exec 3<>/dev/tcp/127.0.0.1/{}", listener.local_addr().unwrap().port());
    let outside = Command::new(BASH).args(["-c", &script]).output().unwrap();
    assert!(outside.status.success(), "the try itself works: {outside:?}");
    listener.accept().unwrap();
    let inside = cage(directory.path()).bash(&script);
    assert!(!inside.status.success(), "{inside:?}");
    listener.set_nonblocking(true).unwrap();
    assert!(listener.accept().is_err(), "nothing connected");
}

#[test]
fn no_call_around_the_filter() {
    let directory = tempfile::tempdir().unwrap();
    // Numbers that are the same on every architecture: io_uring_setup, pidfd_open, mount_setattr; clone3 says ENOSYS.
    let script = "for (425, 434, 442, 435) { $r = syscall($_, 0, 0, 0, 0); print $_, ' ', $r == -1 ? $!+0 : 'passed', qq(\\n) }";
    let inside = cage(directory.path()).run(&["/usr/bin/perl", "-e", script]);
    assert_eq!(String::from_utf8_lossy(&inside.stdout), "425 1\n434 1\n442 1\n435 38\n", "{inside:?}");
}

#[test]
fn no_process_no_signal_and_no_limit_raised() {
    let directory = tempfile::tempdir().unwrap();
    let tries = [
        ("/bin/true; echo passed", true),
        ("(:) && echo passed", true),
        ("kill -0 $PPID && echo passed", true),
        ("ulimit -c unlimited && echo passed", false),
    ];
    for (script, works_outside) in tries {
        let outside = Command::new(BASH).args(["-c", script]).output().unwrap();
        let passed = |output: &Output| String::from_utf8_lossy(&output.stdout).contains("passed");
        assert!(passed(&outside) || !works_outside, "the try itself works: {script}: {outside:?}");
        let inside = cage(directory.path()).bash(script);
        assert!(!passed(&inside), "{script}: {inside:?}");
    }
}

#[tokio::test]
async fn no_file_outside_its_directory() {
    let (own, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let secret = other.path().join("secret");
    std::fs::write(&secret, "secret\n").unwrap();
    let inside = cage(own.path()).bash(&format!("echo fine > {}/out", own.path().display()));
    assert!(inside.status.success() && own.path().join("out").exists(), "{inside:?}");
    let tries = [
        format!("echo x > {}/out", other.path().display()),
        format!("read -r line < {}", secret.display()),
        "read -r line < /etc/passwd".to_owned(),
        "read -r -d '' line < /proc/$PPID/environ; [ -n \"$line\" ]".to_owned(),
    ];
    // Without landlock in the kernel only the report is left to check: it must say so.
    let enforced = said(&inside).contains("seccomp; landlock abi ");
    assert!(enforced || said(&inside).contains("seccomp; no landlock in this kernel"), "{inside:?}");
    for script in tries {
        let outside = Command::new(BASH).args(["-c", &script]).output().unwrap();
        assert!(outside.status.success(), "the try itself works: {script}: {outside:?}");
        let inside = cage(own.path()).bash(&script);
        assert_eq!(inside.status.success(), !enforced, "{script}: {inside:?}");
    }
    let sandbox = ffmpeg().await.sandbox().to_owned();
    assert_eq!(sandbox.contains("landlock abi"), enforced, "{sandbox}");
}

#[test]
fn no_file_over_its_size_and_no_memory_over_its_limit() {
    let directory = tempfile::tempdir().unwrap();
    let script = format!("printf '%02000000d' 0 > {}/big", directory.path().display());
    let inside = cage(directory.path()).bash(&script);
    assert!(!inside.status.success(), "{inside:?}");
    assert!(std::fs::metadata(directory.path().join("big")).unwrap().len() <= 1_000_000);
    let script = "ulimit -v; ulimit -c; ulimit -t";
    let inside = cage(directory.path()).bash(script);
    assert_eq!(String::from_utf8_lossy(&inside.stdout), "976562\n0\n20\n", "{inside:?}");
}

#[test]
fn a_cage_of_another_parent_does_not_start() {
    let directory = tempfile::tempdir().unwrap();
    let inside = Cage { write: directory.path(), parent: 1 }.bash("echo passed");
    assert_eq!(inside.status.code(), Some(125), "{inside:?}");
    assert!(inside.stdout.is_empty());
    assert!(said(&inside).contains("millrace-cage: the parent is"), "{inside:?}");
    let missing = cage(directory.path()).run(&["/no/such/program"]);
    assert_eq!(missing.status.code(), Some(125), "{missing:?}");
}

#[tokio::test]
async fn ffmpeg_is_refused_where_it_cannot_be_caged_or_found() {
    async fn error(settings: Settings) -> Error {
        Ffmpeg::start(settings).await.unwrap_err()
    }
    let missing = error(Settings { ffmpeg: "no-such-ffmpeg".into(), ..settings() }).await;
    assert_eq!(missing.kind(), "not_found", "{missing}");
    // In place of the cage: a program that says what a cage without seccomp says.
    let directory = tempfile::tempdir().unwrap();
    let script = directory.path().join("cage");
    std::fs::write(&script, "#!/bin/sh\necho 'millrace-cage: seccomp cannot be applied' >&2\nexit 125\n")
        .unwrap();
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
    let no_seccomp = error(Settings { cage: script, ..settings() }).await;
    assert_eq!(no_seccomp.kind(), "cage", "{no_seccomp}");
    let uncaged = error(Settings { cage: "/bin/true".into(), ..settings() }).await;
    assert_eq!(uncaged.kind(), "broken", "a cage that reports nothing is none: {uncaged}");
    let other = error(Settings { ffmpeg: "/bin/echo".into(), ..settings() }).await;
    assert_eq!(other.kind(), "no_encoder", "{other}");
    let fine = ffmpeg().await;
    assert!(fine.version().starts_with("ffmpeg version ") && fine.sandbox().starts_with("seccomp; "));
}
