//! What ffmpeg may do: read its input, write its outputs, compute. Nothing else.
//!
//! ffmpeg parses hostile bytes with a million lines of C, so it runs as a process that gave its rights away before
//! the first byte was read. The worker starts *itself* as `millrace-worker cage … -- ffmpeg …`; that process sets its
//! limits and then becomes ffmpeg. Rejected: doing the same between fork and exec of the worker (needs `unsafe`, and
//! forks a process with a hundred threads), and a container per job (needs rights that a pod should not have).
//!
//! Seccomp is mandatory: no sockets, no new processes, no way to raise a limit again. Landlock is used where the
//! kernel has it and reported where not. Because nothing can be forked, killing one process id kills everything.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use landlock::{
    ABI, Access as _, AccessFs, AccessNet, CompatLevel, Compatible as _, LandlockStatus, Ruleset,
    RulesetAttr as _, RulesetCreatedAttr as _, RulesetStatus, Scope, path_beneath_rules,
};
use rustix::process::{Pid, Resource, Rlimit, Signal};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};

/// Exit code of a cage that could not be built. ffmpeg itself never ends with it.
pub const EXIT_NO_CAGE: u8 = 125;
/// How a cage's own lines on standard error begin.
pub const LINE_PREFIX: &str = "millrace-cage: ";

/// What every program needs to start: its libraries, and a few facts about the machine. Not `/proc` as a whole:
/// it shows the environment of every process of the same user.
const SYSTEM_PATHS: [&str; 16] = [
    "/usr",
    "/lib",
    "/lib64",
    "/bin",
    "/etc/alternatives",
    "/etc/ld.so.cache",
    "/etc/ld.so.preload",
    "/etc/localtime",
    "/opt",
    "/nix/store",
    "/proc/cpuinfo",
    "/proc/meminfo",
    "/proc/sys/vm/overcommit_memory",
    "/sys/devices/system/cpu",
    "/dev/urandom",
    "/dev/null",
];
const OPEN_FILES_MAX: u64 = 256;

/// The arguments of `millrace-worker cage`.
#[derive(Debug, Clone, clap::Args)]
pub struct Arguments {
    /// Process id of the parent; a cage whose parent is already another one ends at once.
    #[arg(long)]
    pub parent: i32,
    /// CPU seconds, of all threads together.
    #[arg(long)]
    pub cpu_seconds: u64,
    /// Bytes of address space.
    #[arg(long)]
    pub memory: u64,
    /// Bytes of any one file that it writes.
    #[arg(long)]
    pub file: u64,
    /// May be read; may be repeated.
    #[arg(long)]
    pub read: Vec<PathBuf>,
    /// May be read and written, with everything beneath; may be repeated.
    #[arg(long)]
    pub write: Vec<PathBuf>,
    /// Say on standard error what was achieved.
    #[arg(long)]
    pub report: bool,
    /// The program, by absolute path, and its arguments.
    #[arg(last = true, required = true)]
    pub program: Vec<OsString>,
}

impl Arguments {
    /// The arguments as the command line that [`run`] is started with.
    pub fn to_command_line(&self) -> Vec<OsString> {
        let mut line: Vec<OsString> = vec!["cage".into()];
        let mut option = |name: &str, value: OsString| line.extend([OsString::from(name), value]);
        option("--parent", self.parent.to_string().into());
        option("--cpu-seconds", self.cpu_seconds.to_string().into());
        option("--memory", self.memory.to_string().into());
        option("--file", self.file.to_string().into());
        self.read.iter().for_each(|path| option("--read", path.into()));
        self.write.iter().for_each(|path| option("--write", path.into()));
        line.extend(self.report.then(|| "--report".into()));
        line.push("--".into());
        line.extend(self.program.iter().cloned());
        line
    }
}

/// Builds the cage around this process, then becomes the program. Returns only when that failed.
pub fn run(arguments: &Arguments) -> ExitCode {
    let failed = match enter(arguments) {
        Ok(achieved) => {
            if arguments.report {
                eprintln!("{LINE_PREFIX}{achieved}");
            }
            let (program, rest) = arguments.program.split_first().expect("clap requires a program");
            let error = Command::new(program).args(rest).exec();
            format!("cannot run {}: {error}", Path::new(program).display())
        }
        Err(reason) => reason,
    };
    eprintln!("{LINE_PREFIX}{failed}");
    ExitCode::from(EXIT_NO_CAGE)
}

fn enter(arguments: &Arguments) -> Result<String, String> {
    die_with_parent(arguments.parent)?;
    set_limits(arguments).map_err(|error| format!("set resource limits: {error}"))?;
    // Before seccomp: with it, no further right can be asked for. Both set no_new_privs.
    let landlock = restrict_files(arguments).map_err(|error| format!("set up landlock: {error}"))?;
    deny_calls().map_err(|error| format!("seccomp cannot be applied: {error}"))?;
    Ok(format!("seccomp; {landlock}"))
}

/// The signal fires when the parent's *thread* ends that started us, hence the one permanent spawner thread.
fn die_with_parent(parent: i32) -> Result<(), String> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
        .map_err(|error| format!("set the parent death signal: {error}"))?;
    // The parent may have died before the line above: then the signal never comes.
    let actual = rustix::process::getppid().map(Pid::as_raw_nonzero).map(i32::from);
    if actual != Some(parent) {
        return Err(format!("the parent is {actual:?} and not {parent}"));
    }
    Ok(())
}

fn set_limits(arguments: &Arguments) -> rustix::io::Result<()> {
    // A soft CPU limit would let ffmpeg end as if it had been asked to; five seconds later nothing does.
    let limits = [
        (Resource::Cpu, arguments.cpu_seconds, arguments.cpu_seconds.saturating_add(5)),
        (Resource::As, arguments.memory, arguments.memory),
        (Resource::Fsize, arguments.file, arguments.file),
        (Resource::Core, 0, 0),
        (Resource::Nofile, OPEN_FILES_MAX, OPEN_FILES_MAX),
    ];
    for (resource, current, maximum) in limits {
        // A limit that is lower already stays: raising it needs rights that we may not have.
        let held = rustix::process::getrlimit(resource);
        let maximum = held.maximum.map_or(maximum, |held| held.min(maximum));
        let limit = Rlimit { current: Some(current.min(maximum)), maximum: Some(maximum) };
        rustix::process::setrlimit(resource, limit)?;
    }
    Ok(())
}

fn restrict_files(arguments: &Arguments) -> Result<String, landlock::RulesetError> {
    let abi = ABI::V6;
    let program = arguments.program.first().map(PathBuf::from);
    let status = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(abi))?
        .handle_access(AccessNet::from_all(abi))?
        .scope(Scope::from_all(abi))?
        .create()?
        .add_rules(path_beneath_rules(SYSTEM_PATHS, AccessFs::from_read(abi)))?
        .add_rules(path_beneath_rules(program, AccessFs::from_read(abi)))?
        .add_rules(path_beneath_rules(["/dev/null"], AccessFs::ReadFile | AccessFs::WriteFile))?
        .add_rules(path_beneath_rules(&arguments.read, AccessFs::ReadFile | AccessFs::ReadDir))?
        .add_rules(path_beneath_rules(&arguments.write, AccessFs::from_all(abi) & !AccessFs::Execute))?
        .restrict_self()?;
    Ok(match (status.ruleset, status.landlock) {
        (RulesetStatus::NotEnforced, _) => "no landlock in this kernel".to_owned(),
        (_, LandlockStatus::Available { effective_abi, .. }) => {
            format!("landlock abi {}", effective_abi as i32)
        }
        (_, LandlockStatus::NotEnabled | LandlockStatus::NotImplemented) => {
            "no landlock in this kernel".to_owned()
        }
    })
}

/// Calls that ffmpeg never makes and that only somebody who took it over would. A list of what is denied, not of
/// what is allowed: the latter differs between versions of libc and would break on a distribution's next update.
const DENIED: &[libc::c_long] = &[
    // The network.
    libc::SYS_socket,
    libc::SYS_socketpair,
    libc::SYS_connect,
    libc::SYS_bind,
    libc::SYS_listen,
    libc::SYS_accept,
    libc::SYS_accept4,
    // Ways around a filter on calls.
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    // Other processes.
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_process_madvise,
    libc::SYS_kcmp,
    libc::SYS_pidfd_open,
    libc::SYS_pidfd_getfd,
    libc::SYS_pidfd_send_signal,
    libc::SYS_kill,
    libc::SYS_tkill,
    libc::SYS_rt_sigqueueinfo,
    libc::SYS_rt_tgsigqueueinfo,
    libc::SYS_setsid,
    libc::SYS_setpgid,
    // Limits, once set.
    libc::SYS_setrlimit,
    // The kernel's own machinery.
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_keyctl,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_kexec_file_load,
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_acct,
    libc::SYS_quotactl,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_personality,
    // The file system's shape.
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_unshare,
    libc::SYS_setns,
    libc::SYS_open_by_handle_at,
    libc::SYS_name_to_handle_at,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    libc::SYS_mount_setattr,
];

/// The x32 way of calling the same kernel: the same numbers with this bit, and some of its own.
#[cfg(target_arch = "x86_64")]
const X32_BIT: i64 = 0x4000_0000;

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

fn when(
    conditions: Vec<(u8, SeccompCmpArgLen, SeccompCmpOp, u64)>,
) -> Result<SeccompRule, seccompiler::BackendError> {
    let conditions: Result<Vec<_>, _> = conditions
        .into_iter()
        .map(|(argument, length, operator, value)| SeccompCondition::new(argument, length, operator, value))
        .collect();
    SeccompRule::new(conditions?)
}

fn denied_rules() -> Result<Rules, seccompiler::BackendError> {
    use SeccompCmpArgLen::{Dword, Qword};
    // No rule for a call means: whatever its arguments.
    let mut rules: Rules = DENIED.iter().map(|call| (*call, Vec::new())).collect();
    #[cfg(target_arch = "x86_64")]
    rules.extend([libc::SYS_fork, libc::SYS_vfork].map(|call| (call, Vec::new())));
    // Threads yes, processes no.
    let threads = u64::from(libc::CLONE_THREAD.unsigned_abs());
    let no_thread = when(vec![(0, Qword, SeccompCmpOp::MaskedEq(threads), 0)])?;
    rules.insert(libc::SYS_clone, vec![no_thread]);
    // A signal to itself is how abort() works; to anybody else it is an attack.
    let own = u64::from(std::process::id());
    rules.insert(libc::SYS_tgkill, vec![when(vec![(0, Dword, SeccompCmpOp::Ne, own)])?]);
    // Reading a limit passes no new one.
    rules.insert(libc::SYS_prlimit64, vec![when(vec![(2, Qword, SeccompCmpOp::Ne, 0)])?]);
    let death = u64::from(libc::PR_SET_PDEATHSIG.unsigned_abs());
    rules.insert(libc::SYS_prctl, vec![when(vec![(0, Dword, SeccompCmpOp::Eq, death)])?]);
    #[cfg(target_arch = "x86_64")]
    {
        let x32: Vec<i64> = rules.keys().map(|call| call | X32_BIT).collect();
        rules.extend(
            x32.into_iter().chain((512..=547).map(|call| call | X32_BIT)).map(|call| (call, Vec::new())),
        );
    }
    Ok(rules)
}

fn apply(rules: Rules, errno: i32) -> Result<(), seccompiler::Error> {
    let arch = std::env::consts::ARCH.try_into()?;
    let answer = SeccompAction::Errno(errno.unsigned_abs());
    let program: BpfProgram = SeccompFilter::new(rules, SeccompAction::Allow, answer, arch)?.try_into()?;
    seccompiler::apply_filter(&program)
}

fn deny_calls() -> Result<(), seccompiler::Error> {
    // clone3 hides its flags behind a pointer that no filter can read; libc falls back to clone when told so.
    apply(BTreeMap::from([(libc::SYS_clone3, Vec::new())]), libc::ENOSYS)?;
    apply(denied_rules()?, libc::EPERM)
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        arguments: Arguments,
    }

    #[test]
    fn a_command_line_reads_back() {
        let arguments = Arguments {
            parent: 7,
            cpu_seconds: 60,
            memory: 1 << 30,
            file: 1 << 20,
            read: vec!["/in/a b".into()],
            write: vec!["/out".into(), "/-x".into()],
            report: true,
            program: vec!["/usr/bin/ffmpeg".into(), "-i".into(), "--read".into(), "--".into()],
        };
        let back = Line::try_parse_from(arguments.to_command_line()).unwrap().arguments;
        assert_eq!(format!("{back:?}"), format!("{arguments:?}"));
    }

    #[test]
    fn the_filter_compiles_for_both_architectures() {
        for arch in [seccompiler::TargetArch::x86_64, seccompiler::TargetArch::aarch64] {
            let filter = SeccompFilter::new(
                denied_rules().unwrap(),
                SeccompAction::Allow,
                SeccompAction::Errno(1),
                arch,
            );
            let program: BpfProgram = filter.unwrap().try_into().unwrap();
            assert!(
                program.len() < 4096,
                "the kernel takes at most 4096 instructions, not {}",
                program.len()
            );
        }
    }
}
