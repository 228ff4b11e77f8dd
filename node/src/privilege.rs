//! Giving up what the daemon needs no more: capabilities, new privileges, most of the file system, and system calls
//! that start or take over programs.
//!
//! All of it is per thread and inherited by threads made later, so it happens on the first thread before the runtime
//! starts. What stays is what was opened before: sockets, and the file descriptors of the gate's maps.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use landlock::{
    ABI, Access as _, AccessFs, CompatLevel, Compatible as _, PathBeneath, PathFd, Ruleset, RulesetAttr as _,
    RulesetCreatedAttr as _, RulesetStatus,
};
use rustix::process::DumpableBehavior;
use rustix::thread::{Gid, Uid};

/// What the daemon may still touch in the file system.
#[derive(Debug, Default)]
pub struct Paths {
    /// Directories and files it reads.
    pub read: Vec<PathBuf>,
    /// Directories of its own: it makes, changes and removes files there.
    pub own: Vec<PathBuf>,
    /// Files that exist and that it writes to.
    pub write: Vec<PathBuf>,
}

/// Files of the system that name resolution, certificates, time zones and per-CPU counters need.
const SYSTEM: [&str; 14] = [
    "/etc/resolv.conf",
    "/etc/hosts",
    "/etc/host.conf",
    "/etc/nsswitch.conf",
    "/etc/gai.conf",
    "/etc/services",
    "/etc/ssl",
    "/etc/ld.so.cache",
    "/etc/localtime",
    "/usr",
    "/lib",
    "/lib64",
    "/proc/self",
    "/sys/devices/system/cpu",
];

/// Becomes `user` (if one is named), drops every capability, and confines this thread and all that it makes.
pub fn drop(user: Option<&str>, paths: &Paths) -> anyhow::Result<()> {
    let account = user.map(account).transpose()?;
    if let Some(account) = account {
        hand_over(paths, &account)?;
        rustix::thread::set_thread_groups(&[account.gid]).context("setgroups")?;
        rustix::thread::set_thread_gid(account.gid).context("setgid")?;
        rustix::thread::set_thread_uid(account.uid).context("setuid")?;
    }
    for set in
        [caps::CapSet::Ambient, caps::CapSet::Effective, caps::CapSet::Permitted, caps::CapSet::Inheritable]
    {
        caps::clear(None, set).context("dropping capabilities")?;
    }
    rustix::thread::set_no_new_privs(true).context("no_new_privs")?;
    // Keys are in memory: no core file, and nobody without privileges looks in.
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable).context("dumpable")?;
    confine_files(paths)?;
    confine_calls()
}

/// Whether there is such a user to become; the error names what is wrong with it.
pub fn check_user(name: &str) -> anyhow::Result<()> {
    account(name)?;
    Ok(())
}

/// The capabilities this thread still has; empty after [`drop`].
pub fn capabilities() -> anyhow::Result<Vec<String>> {
    let left = caps::read(None, caps::CapSet::Permitted)?;
    Ok(left.into_iter().map(|capability| capability.to_string()).collect())
}

struct Account {
    uid: Uid,
    gid: Gid,
}

/// Looks a user up in `/etc/passwd` (5); accounts from elsewhere are not asked for, since a daemon's is local.
fn account(name: &str) -> anyhow::Result<Account> {
    let text = std::fs::read_to_string("/etc/passwd").context("/etc/passwd")?;
    for line in text.lines() {
        let fields: Vec<&str> = line.split(':').collect();
        if let [found, _, uid, gid, ..] = fields.as_slice()
            && *found == name
        {
            let uid: u32 = uid.parse().with_context(|| format!("uid of {name}"))?;
            let gid: u32 = gid.parse().with_context(|| format!("gid of {name}"))?;
            anyhow::ensure!(uid != 0, "`user = \"{name}\"` is root: leave the key out to stay uid 0");
            return Ok(Account { uid: Uid::from_raw(uid), gid: Gid::from_raw(gid) });
        }
    }
    anyhow::bail!("there is no user `{name}` in /etc/passwd")
}

/// Gives its own directories with their files, and the single files it writes to, to the account.
fn hand_over(paths: &Paths, account: &Account) -> anyhow::Result<()> {
    let give = |path: &Path| {
        rustix::fs::chownat(
            rustix::fs::CWD,
            path,
            Some(account.uid),
            Some(account.gid),
            rustix::fs::AtFlags::SYMLINK_NOFOLLOW,
        )
        .with_context(|| path.display().to_string())
    };
    for directory in &paths.own {
        give(directory)?;
        for entry in std::fs::read_dir(directory).with_context(|| directory.display().to_string())? {
            give(&entry?.path())?;
        }
    }
    paths.write.iter().try_for_each(|file| give(file))
}

/// Landlock: reading what is configured and what the system needs, writing in few directories, executing nothing.
/// A kernel without Landlock gets a warning, not a failure: it is the second lock on the door.
fn confine_files(paths: &Paths) -> anyhow::Result<()> {
    let abi = ABI::V3;
    let read = AccessFs::ReadFile | AccessFs::ReadDir;
    let own = AccessFs::from_all(abi) & !AccessFs::Execute;
    let write = AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::Truncate;
    let mut ruleset = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(abi))
        .context("landlock")?
        .create()
        .context("landlock")?;
    for path in SYSTEM.iter().map(Path::new).chain(paths.read.iter().map(PathBuf::as_path)) {
        // What does not exist needs no rule.
        let Ok(descriptor) = PathFd::new(path) else { continue };
        let access = if path.is_dir() { read } else { AccessFs::ReadFile.into() };
        ruleset = ruleset.add_rule(PathBeneath::new(descriptor, access)).context("landlock")?;
    }
    // `/dev/null` and the random device are opened by libraries.
    let devices = ["/dev/null", "/dev/urandom"].map(PathBuf::from);
    let writing = paths.write.iter().chain(&devices).map(|path| (path, write));
    for (path, access) in paths.own.iter().map(|path| (path, own)).chain(writing) {
        let descriptor = PathFd::new(path).with_context(|| path.display().to_string())?;
        ruleset = ruleset.add_rule(PathBeneath::new(descriptor, access)).context("landlock")?;
    }
    if ruleset.restrict_self().context("landlock")?.ruleset == RulesetStatus::NotEnforced {
        tracing::warn!("this kernel has no Landlock: the daemon's file access is not confined");
    }
    Ok(())
}

/// Seccomp: calls that no part of the daemon makes answer EPERM.
fn confine_calls() -> anyhow::Result<()> {
    use seccompiler::{
        BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
        SeccompRule, TargetArch, apply_filter,
    };
    /// `enum bpf_cmd` of `include/uapi/linux/bpf.h`.
    const BPF_MAP_LOOKUP_ELEM: u64 = 1;
    const BPF_MAP_UPDATE_ELEM: u64 = 2;
    const BPF_MAP_DELETE_ELEM: u64 = 3;
    const BPF_MAP_GET_NEXT_KEY: u64 = 4;
    const BPF_OBJ_GET_INFO_BY_FD: u64 = 15;
    const BPF_MAP_LOOKUP_AND_DELETE_ELEM: u64 = 21;
    let refused = [
        libc::SYS_execve,
        libc::SYS_execveat,
        libc::SYS_ptrace,
        libc::SYS_process_vm_writev,
        libc::SYS_mount,
        libc::SYS_umount2,
        libc::SYS_pivot_root,
        libc::SYS_chroot,
        libc::SYS_unshare,
        libc::SYS_setns,
        libc::SYS_init_module,
        libc::SYS_finit_module,
        libc::SYS_kexec_load,
        libc::SYS_reboot,
        libc::SYS_perf_event_open,
        libc::SYS_userfaultfd,
    ];
    let Ok(arch) = TargetArch::try_from(std::env::consts::ARCH) else {
        tracing::warn!("no system call filter on {}", std::env::consts::ARCH);
        return Ok(());
    };
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = refused.into_iter().map(|call| (call, vec![])).collect();
    // Of the gate the tables of authorised peers and sessions are written, and link states read: descriptors that are
    // still open must not detach it. Those of ports and administrators' prefixes are closed by now.
    let commands = [
        BPF_MAP_LOOKUP_ELEM,
        BPF_MAP_UPDATE_ELEM,
        BPF_MAP_DELETE_ELEM,
        BPF_MAP_GET_NEXT_KEY,
        BPF_MAP_LOOKUP_AND_DELETE_ELEM,
        BPF_OBJ_GET_INFO_BY_FD,
    ];
    let other =
        commands.map(|command| SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Ne, command));
    let other = other.into_iter().collect::<Result<Vec<_>, _>>().context("seccomp")?;
    rules.insert(libc::SYS_bpf, vec![SeccompRule::new(other).context("seccomp")?]);
    let filter = SeccompFilter::new(
        rules,
        SeccompAction::Allow,
        SeccompAction::Errno(1), // EPERM
        arch,
    )
    .context("seccomp")?;
    let program: BpfProgram = filter.try_into().context("seccomp")?;
    apply_filter(&program).context("seccomp")
}
