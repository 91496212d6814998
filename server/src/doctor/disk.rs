//! The disk: whether the root directory can hold images and writable layers, and what the state is on.

use std::path::{Path, PathBuf};

use rustix::fs::{Dir, FileType, Mode, OFlags, StatVfsMountFlags};

use super::{Check, Paths, Verdict};
use crate::error::{Doing, Result, chain};

const AREA: &str = "disk";
/// Less than this part of a disk, or of its inodes, free is little; kubelet evicts at 10 % too.
const LITTLE: u64 = 10;
/// So much is enough, however large the disk is.
const ENOUGH: u64 = 20 << 30;
/// With less no image of any size can be pulled.
const LEAST: u64 = 256 << 20;
const FEW_INODES: u64 = 1000;

/// Numbers of statfs(2), linux/magic.h and the file systems' own headers.
const FILE_SYSTEMS: [(u64, &str, Use); 18] = [
    (0xef53, "ext4", Use::Good),
    (0x5846_5342, "xfs", Use::Good),
    (0x9123_683e, "btrfs", Use::Good),
    (0xf2f5_2010, "f2fs", Use::Good),
    (0xca45_1a4e, "bcachefs", Use::Good),
    (0x2fc1_2fc1, "zfs", Use::Good),
    (TMPFS, "tmpfs", Use::Memory),
    (0x8584_58f6, "ramfs", Use::Memory),
    (0x794c_7630, "overlay", Use::Bad),
    (0x6969, "nfs", Use::Bad),
    (0x6573_5546, "fuse", Use::Bad),
    (0x4d44, "vfat", Use::Bad),
    (0x2011_bab0, "exfat", Use::Bad),
    (0x0102_1997, "9p", Use::Bad),
    (0xff53_4d42, "cifs", Use::Bad),
    (0xfe53_4d42, "smb", Use::Bad),
    (0x7371_7368, "squashfs", Use::Bad),
    (0xf15f, "ecryptfs", Use::Bad),
];
const TMPFS: u64 = 0x0102_1994;

/// What a file system is to the layers of containers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Use {
    Good,
    Memory,
    /// No upper layer of an overlay can be on it.
    Bad,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Facts {
    /// The directory, or the nearest above it that exists.
    path: PathBuf,
    /// statfs's f_type.
    magic: u64,
    bytes: Amount,
    inodes: Amount,
    noexec: bool,
    readonly: bool,
    /// readdir(3) tells what an entry is; overlay needs that.
    file_types: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Amount {
    free: u64,
    total: u64,
}

pub(super) fn check(paths: &Paths) -> Vec<Check> {
    let mut checks = match look(&paths.root) {
        Ok(facts) => judge_root(&facts),
        Err(error) => vec![unreadable("root", "name another directory with --root", &error)],
    };
    checks.push(match look(&paths.state) {
        Ok(facts) => judge_state(&facts),
        Err(error) => unreadable("state", "name another directory with --state", &error),
    });
    checks
}

fn unreadable(name: &'static str, advice: &str, error: &crate::error::Error) -> Check {
    Check::gap(Verdict::Failed, (AREA, name), chain(error), advice)
}

fn look(path: &Path) -> Result<Facts> {
    let existing = path.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    let doing = || format!("look at {}", existing.display());
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = rustix::fs::open(existing, flags, Mode::empty()).doing(doing)?;
    let kind = rustix::fs::fstatfs(&directory).doing(doing)?.f_type;
    let stat = rustix::fs::fstatvfs(&directory).doing(doing)?;
    let mut entries = Dir::read_from(&directory).doing(doing)?;
    let unknown = |entry: rustix::io::Result<rustix::fs::DirEntry>| {
        entry.is_ok_and(|entry| entry.file_type() == FileType::Unknown)
    };
    Ok(Facts {
        path: existing.to_owned(),
        // The field is signed on some machines; the numbers are of 32 bits.
        magic: u64::from(u32::try_from(kind & 0xffff_ffff).unwrap_or_default()),
        bytes: Amount {
            free: stat.f_bavail.saturating_mul(stat.f_frsize),
            total: stat.f_blocks.saturating_mul(stat.f_frsize),
        },
        inodes: Amount { free: stat.f_favail, total: stat.f_files },
        noexec: stat.f_flag.contains(StatVfsMountFlags::NOEXEC),
        readonly: stat.f_flag.contains(StatVfsMountFlags::RDONLY),
        // "." is always there, so some entry tells.
        file_types: !entries.any(unknown),
    })
}

fn judge_root(facts: &Facts) -> Vec<Check> {
    vec![judge_file_system(facts), judge_mount(facts), judge_space(facts), judge_inodes(facts)]
}

fn judge_file_system(facts: &Facts) -> Check {
    let place = (AREA, "file system");
    let path = facts.path.display();
    let advice =
        "name a root directory on ext4, xfs or btrfs (--root, or root in the configuration)";
    let known = FILE_SYSTEMS.iter().find(|(magic, ..)| *magic == facts.magic);
    match known {
        Some((_, name, Use::Bad)) => Check::gap(
            Verdict::Failed,
            place,
            format!("{path} is on {name}, which cannot hold writable layers"),
            advice,
        ),
        Some((_, name, _)) if !facts.file_types => Check::gap(
            Verdict::Failed,
            place,
            format!("{path} is on {name} without file types in directories (d_type)"),
            format!("make the file system anew (mkfs.xfs -n ftype=1), or {advice}"),
        ),
        Some((_, name, Use::Memory)) => Check::gap(
            Verdict::Warning,
            place,
            format!("{path} is on {name}: images take memory and are gone after a reboot"),
            advice,
        ),
        Some((_, name, Use::Good)) => Check::ok(AREA, place.1, format!("{path} is on {name}")),
        None => Check::gap(
            Verdict::Warning,
            place,
            format!("{path} is on a file system that berth does not know ({:#x})", facts.magic),
            advice,
        ),
    }
}

fn judge_mount(facts: &Facts) -> Check {
    let place = (AREA, "mount options");
    let path = facts.path.display();
    let remount = |option: &str| {
        format!("mount -o remount,{option} the file system of {path}, and change /etc/fstab")
    };
    if facts.readonly {
        return Check::gap(Verdict::Failed, place, format!("{path} is read-only"), remount("rw"));
    }
    if facts.noexec {
        let found = format!("{path} is mounted noexec: neither shims nor containers can run");
        return Check::gap(Verdict::Failed, place, found, remount("exec"));
    }
    Check::ok(AREA, place.1, "programs can run")
}

fn judge_space(facts: &Facts) -> Check {
    let place = (AREA, "space");
    let Amount { free, total } = facts.bytes;
    let found = format!("{} of {} free", shown(free), shown(total));
    let advice = "berth image prune -a, or a larger disk";
    if free < LEAST {
        Check::gap(Verdict::Failed, place, found, advice)
    } else if free < ENOUGH && free < total / LITTLE {
        Check::gap(Verdict::Warning, place, found, advice)
    } else {
        Check::ok(AREA, place.1, found)
    }
}

fn judge_inodes(facts: &Facts) -> Check {
    let place = (AREA, "inodes");
    let Amount { free, total } = facts.inodes;
    let found = format!("{free} of {total} free");
    let advice = "berth image prune -a, or a file system with more inodes (mkfs.ext4 -i 8192)";
    match (free, total) {
        // btrfs makes them as they are needed.
        (_, 0) => Check::ok(AREA, place.1, "without limit"),
        (..FEW_INODES, _) => Check::gap(Verdict::Failed, place, found, advice),
        _ if free < total / LITTLE => Check::gap(Verdict::Warning, place, found, advice),
        _ => Check::ok(AREA, place.1, found),
    }
}

fn judge_state(facts: &Facts) -> Check {
    let path = facts.path.display();
    if facts.readonly {
        let advice = "name a directory that can be written with --state";
        return Check::gap(
            Verdict::Failed,
            (AREA, "state"),
            format!("{path} is read-only"),
            advice,
        );
    }
    if facts.magic == TMPFS {
        return Check::ok(AREA, "state", format!("{path} is on tmpfs"));
    }
    Check::gap(
        Verdict::Warning,
        (AREA, "state"),
        format!("{path} is on a disk: each start and end of a container waits for it"),
        "name a directory on tmpfs, as /run is (--state)",
    )
}

fn shown(bytes: u64) -> String {
    const UNITS: [(&str, u64); 3] = [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20)];
    let (unit, size) =
        UNITS.into_iter().find(|(_, size)| bytes >= *size).unwrap_or(("KiB", 1 << 10));
    format!("{}.{} {unit}", bytes / size, bytes % size * 10 / size)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts() -> Facts {
        Facts {
            path: "/var/lib".into(),
            magic: 0xef53,
            bytes: Amount { free: 50 << 30, total: 100 << 30 },
            inodes: Amount { free: 500_000, total: 1_000_000 },
            noexec: false,
            readonly: false,
            file_types: true,
        }
    }

    #[track_caller]
    fn check_one(check: Check, verdict: Verdict, found: &str, advice: &str) {
        assert_eq!(check.verdict, verdict, "{check:?}");
        assert!(check.found.contains(found) && check.advice.contains(advice), "{check:?}");
        assert_eq!(check.advice.is_empty(), verdict == Verdict::Ok, "{check:?}");
    }

    #[test]
    fn a_common_disk_is_fine() {
        for check in judge_root(&facts()) {
            assert_eq!(check.verdict, Verdict::Ok, "{check:?}");
        }
    }

    #[test]
    fn file_systems_without_overlay_are_refused() {
        let on = |magic| judge_file_system(&Facts { magic, ..facts() });
        check_one(on(0x9123_683e), Verdict::Ok, "btrfs", "");
        check_one(on(0x6969), Verdict::Failed, "on nfs", "ext4, xfs or btrfs");
        check_one(on(0x794c_7630), Verdict::Failed, "on overlay", "--root");
        check_one(on(TMPFS), Verdict::Warning, "gone after a reboot", "--root");
        check_one(on(0x1234), Verdict::Warning, "0x1234", "--root");
        let old = Facts { magic: 0x5846_5342, file_types: false, ..facts() };
        check_one(judge_file_system(&old), Verdict::Failed, "d_type", "ftype=1");
    }

    #[test]
    fn mount_options_keep_programs_from_running() {
        let noexec = Facts { noexec: true, ..facts() };
        check_one(judge_mount(&noexec), Verdict::Failed, "noexec", "remount,exec");
        let readonly = Facts { readonly: true, ..facts() };
        check_one(judge_mount(&readonly), Verdict::Failed, "read-only", "remount,rw");
        check_one(judge_state(&readonly), Verdict::Failed, "read-only", "--state");
    }

    #[track_caller]
    fn check_space(free: u64, total: u64, verdict: Verdict, found: &str) {
        let check = judge_space(&Facts { bytes: Amount { free, total }, ..facts() });
        assert_eq!((check.verdict, check.found.as_str()), (verdict, found));
    }

    #[test]
    fn little_space_is_told_before_none_is_left() {
        check_space(50 << 30, 1 << 40, Verdict::Ok, "50.0 GiB of 1.0 TiB free");
        check_space(5 << 30, 40 << 30, Verdict::Ok, "5.0 GiB of 40.0 GiB free");
        check_space(3 << 30, 40 << 30, Verdict::Warning, "3.0 GiB of 40.0 GiB free");
        check_space(100 << 20, 500 << 20, Verdict::Failed, "100.0 MiB of 500.0 MiB free");
        check_space(0, 1 << 40, Verdict::Failed, "0.0 KiB of 1.0 TiB free");
    }

    #[test]
    fn few_inodes_are_told() {
        let with = |free, total| judge_inodes(&Facts { inodes: Amount { free, total }, ..facts() });
        check_one(with(0, 0), Verdict::Ok, "without limit", "");
        check_one(with(999, 1_000_000), Verdict::Failed, "999 of", "prune");
        check_one(with(90_000, 1_000_000), Verdict::Warning, "90000 of", "prune");
    }

    #[test]
    fn the_state_belongs_on_tmpfs() {
        check_one(judge_state(&Facts { magic: TMPFS, ..facts() }), Verdict::Ok, "tmpfs", "");
        check_one(judge_state(&facts()), Verdict::Warning, "on a disk", "--state");
    }

    #[test]
    fn a_directory_that_is_not_there_is_looked_at_from_above() {
        let found = look(Path::new("/proc/none/such")).unwrap();
        assert_eq!(found.path, Path::new("/proc"));
        assert!(found.file_types);
    }
}
