//! Who a process runs as: names and groups from a container's /etc/passwd and /etc/group.

use std::path::Path;

use crate::error::{Error, Result};
use crate::root::Root;
use crate::spec;

/// Larger files are refused; the largest seen in the wild have some hundred kilobytes.
const MAX_FILE: u64 = 10 << 20;
/// setgroups(2): NGROUPS_MAX.
const MAX_GROUPS: usize = 65536;

/// A user as numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// User id.
    pub uid: u32,
    /// Primary group id.
    pub gid: u32,
    /// All groups; the primary one is the first.
    pub groups: Vec<u32>,
    /// Home directory of the user's passwd entry, `/` without one.
    pub home: Vec<u8>,
}

/// Turns what was asked for into numbers, with the files of the container's root.
///
/// A number stays that number, whatever names the files hold; a name must be in them.
///
/// # Errors
/// `Invalid` for a name that is not there, and for files that are no regular files of bounded size.
pub fn resolve(root: &Root, user: &spec::User) -> Result<Identity> {
    let passwd = read(root, "/etc/passwd")?;
    let (uid, entry) = match &user.user {
        Some(spec::user::User::Username(name)) => {
            let entry = passwd_entries(&passwd)
                .find(|entry| entry.name == name.as_bytes())
                .ok_or_else(|| {
                    Error::Invalid(format!("user {name:?} is not in the container's /etc/passwd"))
                })?;
            (entry.uid, Some(entry))
        }
        Some(spec::user::User::Uid(uid)) => {
            (*uid, passwd_entries(&passwd).find(|entry| entry.uid == *uid))
        }
        None => (0, passwd_entries(&passwd).find(|entry| entry.uid == 0)),
    };
    let needs_groups = user.merge_groups && entry.is_some()
        || matches!(user.group, Some(spec::user::Group::Groupname(_)));
    let group = if needs_groups { read(root, "/etc/group")? } else { Vec::new() };
    let gid = match &user.group {
        Some(spec::user::Group::Gid(gid)) => *gid,
        Some(spec::user::Group::Groupname(name)) => {
            let found = group_entries(&group).find(|entry| entry.name == name.as_bytes());
            found
                .ok_or_else(|| {
                    Error::Invalid(format!("group {name:?} is not in the container's /etc/group"))
                })?
                .gid
        }
        None => entry.as_ref().map_or(0, |entry| entry.gid),
    };
    let mut groups = vec![gid];
    groups.extend(&user.additional_gids);
    if let (true, Some(entry)) = (user.merge_groups, &entry) {
        groups.extend(
            group_entries(&group).filter(|group| group.has(entry.name)).map(|group| group.gid),
        );
    }
    Ok(Identity {
        uid,
        gid,
        groups: distinct(groups)?,
        home: entry
            .map(|entry| entry.home.to_vec())
            .filter(|home| !home.is_empty())
            .unwrap_or_else(|| b"/".to_vec()),
    })
}

fn distinct(groups: Vec<u32>) -> Result<Vec<u32>> {
    let mut seen = std::collections::HashSet::new();
    let groups: Vec<u32> = groups.into_iter().filter(|gid| seen.insert(*gid)).collect();
    if groups.len() > MAX_GROUPS {
        return Err(Error::Invalid(format!(
            "{} groups, the kernel takes {MAX_GROUPS}",
            groups.len()
        )));
    }
    Ok(groups)
}

/// An image may do without the file.
fn read(root: &Root, path: &str) -> Result<Vec<u8>> {
    match root.read(Path::new(path), MAX_FILE) {
        Err(error) if matches!(error.errno(), Some(libc::ENOENT | libc::ENOTDIR)) => Ok(Vec::new()),
        other => other,
    }
}

struct PasswdEntry<'a> {
    name: &'a [u8],
    uid: u32,
    gid: u32,
    home: &'a [u8],
}

/// Lines that are no entries are passed over, as the C library does (passwd(5)).
fn passwd_entries(file: &[u8]) -> impl Iterator<Item = PasswdEntry<'_>> {
    lines(file).filter_map(|line| {
        let mut fields = line.split(|byte| *byte == b':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        let _password = fields.next()?;
        let (uid, gid) = (number(fields.next()?)?, number(fields.next()?)?);
        let _comment = fields.next();
        Some(PasswdEntry { name, uid, gid, home: fields.next().unwrap_or_default() })
    })
}

struct GroupEntry<'a> {
    name: &'a [u8],
    gid: u32,
    members: &'a [u8],
}

impl GroupEntry<'_> {
    fn has(&self, user: &[u8]) -> bool {
        self.members.split(|byte| *byte == b',').any(|member| member.trim_ascii() == user)
    }
}

fn group_entries(file: &[u8]) -> impl Iterator<Item = GroupEntry<'_>> {
    lines(file).filter_map(|line| {
        let mut fields = line.split(|byte| *byte == b':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        let _password = fields.next()?;
        let gid = number(fields.next()?)?;
        Some(GroupEntry { name, gid, members: fields.next().unwrap_or_default() })
    })
}

fn lines(file: &[u8]) -> impl Iterator<Item = &[u8]> {
    file.split(|byte| *byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line))
}

/// 4294967295 is no id: the kernel takes it for "leave as it is".
fn number(field: &[u8]) -> Option<u32> {
    let digits = std::str::from_utf8(field)
        .ok()
        .filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()))?;
    digits.parse().ok().filter(|id| *id != u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::user::{Group, User};

    fn root(passwd: &str, group: &str) -> (tempfile::TempDir, Root) {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("etc")).unwrap();
        std::fs::write(dir.path().join("etc/passwd"), passwd).unwrap();
        std::fs::write(dir.path().join("etc/group"), group).unwrap();
        let root = Root::open(dir.path()).unwrap();
        (dir, root)
    }

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n\n#:bad\nweb:x:33:34:,,:/srv:/bin/false\r\n1000:x:0:0::/evil:/bin/sh\nbig:x:4294967295:0::/:\n";
    const GROUP: &str =
        "root:x:0:\nweb:x:34:\nmedia:x:50:other,web\nall:x:51:web , root,1000\nbroken\n";

    #[track_caller]
    fn check(
        user: Option<User>,
        group: Option<Group>,
        merge: bool,
        expected: (u32, u32, &[u32], &str),
    ) {
        let (_dir, root) = root(PASSWD, GROUP);
        let user = spec::User { user, group, additional_gids: vec![7, 7], merge_groups: merge };
        let found = resolve(&root, &user).unwrap();
        let home = String::from_utf8(found.home).unwrap();
        assert_eq!((found.uid, found.gid, found.groups.as_slice(), home.as_str()), expected);
    }

    #[test]
    fn names_numbers_and_groups_are_found() {
        check(None, None, true, (0, 0, &[0, 7, 51], "/root"));
        check(Some(User::Username("web".into())), None, true, (33, 34, &[34, 7, 50, 51], "/srv"));
        check(Some(User::Username("web".into())), None, false, (33, 34, &[34, 7], "/srv"));
        check(Some(User::Uid(33)), Some(Group::Gid(1)), true, (33, 1, &[1, 7, 50, 51], "/srv"));
        check(
            Some(User::Uid(33)),
            Some(Group::Groupname("media".into())),
            false,
            (33, 50, &[50, 7], "/srv"),
        );
        check(Some(User::Uid(99)), None, true, (99, 0, &[0, 7], "/"));
    }

    #[test]
    fn a_number_is_never_taken_for_a_name() {
        check(Some(User::Uid(1000)), None, true, (1000, 0, &[0, 7], "/"));
    }

    #[test]
    fn unknown_names_are_refused() {
        let (_dir, root) = root(PASSWD, GROUP);
        for user in [
            spec::User { user: Some(User::Username("nobody".into())), ..Default::default() },
            spec::User { user: Some(User::Username("big".into())), ..Default::default() },
            spec::User { group: Some(Group::Groupname("nobody".into())), ..Default::default() },
        ] {
            assert!(matches!(resolve(&root, &user), Err(Error::Invalid(_))), "{user:?}");
        }
    }

    #[test]
    fn an_image_may_do_without_the_files() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::open(dir.path()).unwrap();
        let found = resolve(
            &root,
            &spec::User { user: Some(User::Uid(5)), merge_groups: true, ..Default::default() },
        );
        assert_eq!(
            found.unwrap(),
            Identity { uid: 5, gid: 0, groups: vec![0], home: b"/".to_vec() }
        );
    }

    #[test]
    fn files_that_are_none_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("etc")).unwrap();
        std::fs::create_dir(dir.path().join("etc/passwd")).unwrap();
        let root = Root::open(dir.path()).unwrap();
        assert!(resolve(&root, &spec::User::default()).is_err());
    }
}
