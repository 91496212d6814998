//! Tests of the hold on the directories, in temporary ones.

use super::*;
use std::os::unix::fs::{PermissionsExt, symlink};

struct Place {
    folder: tempfile::TempDir,
    config: Config,
}

fn place() -> Place {
    let folder = tempfile::tempdir().unwrap();
    let config = Config {
        root: folder.path().join("a/root"),
        state: folder.path().join("b/state"),
        ..Config::default()
    };
    Place { folder, config }
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

#[track_caller]
fn check_refused(config: &Config, expected: &str) {
    let error = prepare(config).expect_err("refused").to_string();
    assert!(error.contains(expected), "{error}");
}

#[test]
fn the_instance_id_is_a_function_of_the_state_directory() {
    // printf /run/berth | sha256sum
    assert_eq!(InstanceId::of(Path::new("/run/berth")).to_string(), "2ddea3f0");
    assert_ne!(InstanceId::of(Path::new("/run/berth")), InstanceId::of(Path::new("/run/berth2")));
}

#[test]
fn missing_directories_are_made_with_their_modes() {
    let place = place();
    let instance = prepare(&place.config).unwrap();
    assert_eq!(mode(&place.config.root), 0o700);
    assert_eq!(mode(&place.config.state), 0o711);
    assert_eq!(mode(&place.config.state.join("lock")), 0o600);
    assert_eq!(instance.id, InstanceId::of(&instance.state));
}

#[test]
fn a_second_daemon_is_told_who_has_the_directories() {
    let place = place();
    let held = prepare(&place.config).unwrap();
    let pid = std::process::id();
    let root_only = Config { state: place.folder.path().join("c"), ..place.config.clone() };
    check_refused(&root_only, &format!("the lock of the root directory {}", held.root.display()));
    check_refused(&root_only, &format!("berth with pid {pid} has it"));
    let state_only = Config { root: place.folder.path().join("c"), ..place.config.clone() };
    std::fs::remove_dir_all(&state_only.root).ok();
    check_refused(
        &state_only,
        &format!("the lock of the state directory {}", held.state.display()),
    );
    drop(held);
    prepare(&place.config).unwrap();
}

#[test]
fn a_link_to_a_directory_is_the_directory() {
    let place = place();
    let instance = prepare(&place.config).unwrap();
    let link = place.folder.path().join("link");
    symlink(&place.config.state, &link).unwrap();
    let through_link =
        Config { state: link, root: place.folder.path().join("c"), ..place.config.clone() };
    check_refused(&through_link, "has it; stop that one");
    drop(instance);
    let id = prepare(&through_link).unwrap().id;
    assert_eq!(id, prepare(&place.config).unwrap().id);
}

#[test]
fn directories_that_meet_through_links_are_refused() {
    let place = place();
    drop(prepare(&place.config).unwrap());
    std::fs::create_dir(place.config.root.join("inner")).unwrap();
    let link = place.folder.path().join("link");
    symlink(place.config.root.join("inner"), &link).unwrap();
    check_refused(
        &Config { state: link, ..place.config.clone() },
        "links resolved; name directories side by side",
    );
}

#[test]
fn an_empty_directory_gets_the_mode_of_a_new_one() {
    let place = place();
    for made in [0o755, 0o700, 0o777] {
        for dir in [&place.config.root, &place.config.state] {
            std::fs::create_dir_all(dir.join("lost+found")).unwrap();
            std::fs::set_permissions(dir, PermissionsExt::from_mode(made)).unwrap();
        }
        prepare(&place.config).unwrap();
        assert_eq!((mode(&place.config.root), mode(&place.config.state)), (0o700, 0o711));
    }
}

#[test]
fn a_directory_of_others_is_never_closed_to_them() {
    let place = place();
    std::fs::create_dir_all(&place.config.state).unwrap();
    std::fs::set_permissions(&place.config.state, PermissionsExt::from_mode(0o1777)).unwrap();
    std::fs::write(place.config.state.join("theirs"), "").unwrap();
    check_refused(
        &place.config,
        "holds files that are not berth's and is open to others, mode 1777",
    );
    assert_eq!(mode(&place.config.state), 0o1777);
    std::fs::set_permissions(&place.config.state, PermissionsExt::from_mode(0o700)).unwrap();
    prepare(&place.config).unwrap();
    assert_eq!(mode(&place.config.state), 0o700, "closed more than needed is left as it is");
}

#[test]
fn a_lock_that_is_not_a_file_is_refused() {
    let place = place();
    std::fs::create_dir_all(&place.config.root).unwrap();
    symlink("/etc/passwd", place.config.root.join("lock")).unwrap();
    check_refused(&place.config, "open ");
    std::fs::remove_file(place.config.root.join("lock")).unwrap();
    rustix::fs::mkfifoat(
        rustix::fs::CWD,
        place.config.root.join("lock"),
        Mode::from_raw_mode(0o600),
    )
    .unwrap();
    check_refused(&place.config, "lock is not a file; remove it");
}
