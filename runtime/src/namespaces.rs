//! The namespaces of a pod, made by a short-lived child of the shim and held as descriptors,
//! and the pod's init where it shares a PID namespace.

use std::io::Write as _;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, UnmountFlags, fsconfig_create,
    fsconfig_set_string, fsmount, fsopen, move_mount,
};
use rustix::process::DumpableBehavior;
use rustix::thread::{LinkNameSpaceType, UnshareFlags};

use crate::child::{Line, Step};
use crate::error::{Doing, Error, Result};
use crate::rootfs::{
    FILES_DIRECTORY, MASK_DIRECTORY, MASK_FILE, ROOT_DIRECTORY, SCRATCH_DIRECTORY, SHM_DIRECTORY,
};
use crate::spec::{MakeNamespaces, NamespacesMade, reply};
use crate::sys::mount::{Attributes, set_attributes};

/// Bytes that the holder's own tmpfs may take: a few small files.
const HOLDER_SIZE: &str = "4m";

/// What a pod has of its own. None where it shares the node's.
#[derive(Debug)]
pub struct Namespaces {
    /// The mount namespace from which containers start.
    pub holder: OwnedFd,
    /// The null device of the holder, for reading and writing.
    pub null: OwnedFd,
    /// The network namespace.
    pub network: Option<OwnedFd>,
    /// A NETLINK_ROUTE socket in it.
    pub route: Option<OwnedFd>,
    /// The IPC namespace.
    pub ipc: Option<OwnedFd>,
    /// The UTS namespace.
    pub uts: Option<OwnedFd>,
}

impl Namespaces {
    /// Takes the descriptors in the order in which the child reports them.
    ///
    /// # Errors
    /// `Invalid` where some are missing.
    pub fn from_report(wanted: &MakeNamespaces, fds: Vec<OwnedFd>) -> Result<Namespaces> {
        let mut fds = fds.into_iter();
        let mut next = |name: &str| {
            fds.next().ok_or_else(|| Error::Invalid(format!("no descriptor of the {name}")))
        };
        Ok(Namespaces {
            holder: next("holder")?,
            null: next("null device")?,
            network: if wanted.network { Some(next("network namespace")?) } else { None },
            route: if wanted.network { Some(next("route socket")?) } else { None },
            ipc: if wanted.ipc { Some(next("IPC namespace")?) } else { None },
            uts: if wanted.uts { Some(next("UTS namespace")?) } else { None },
        })
    }
}

/// Makes them, reports them and ends. Call it in a process cloned for it. `mount_point` is
/// any directory of the host, such as the sandbox's.
pub fn run(wanted: &MakeNamespaces, mount_point: &Path, line: &Line<'_>) -> ! {
    line.at(Step::Namespaces);
    match make(wanted, mount_point) {
        Ok(namespaces) => {
            let Namespaces { holder, null, network, route, ipc, uts } = &namespaces;
            let mut fds = vec![holder.as_fd(), null.as_fd()];
            fds.extend([network, route, ipc, uts].into_iter().flatten().map(AsFd::as_fd));
            line.report(reply::Result::NamespacesMade(NamespacesMade { init_pid: 0 }), &fds);
            crate::sys::clone::exit_now(0)
        }
        Err(error) => line.fail(&error),
    }
}

fn make(wanted: &MakeNamespaces, mount_point: &Path) -> Result<Namespaces> {
    let mut flags = UnshareFlags::NEWNS;
    flags.set(UnshareFlags::NEWNET, wanted.network);
    flags.set(UnshareFlags::NEWIPC, wanted.ipc);
    flags.set(UnshareFlags::NEWUTS, wanted.uts);
    if wanted.network && !wanted.netns_path.is_empty() {
        // The pin must be seen by the node: it is mounted before this process has mounts of its own.
        crate::sys::clone::unshare(UnshareFlags::NEWNET).doing(|| "make the network namespace")?;
        pin(&wanted.netns_path)?;
        flags.remove(UnshareFlags::NEWNET);
    }
    crate::sys::clone::unshare(flags).doing(|| "make the pod's namespaces")?;
    if wanted.uts && !wanted.hostname.is_empty() {
        rustix::system::sethostname(wanted.hostname.as_bytes())
            .doing(|| format!("set hostname {}", wanted.hostname))?;
    }
    let route = if wanted.network { Some(start_loopback()?) } else { None };
    set_sysctls(wanted)?;
    let open = |name: &str| {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        rustix::fs::open(Path::new("/proc/self/ns").join(name), flags, Mode::empty())
            .doing(|| format!("open the {name} namespace"))
    };
    let open_if = |wanted: bool, name: &str| if wanted { open(name).map(Some) } else { Ok(None) };
    let (network, ipc, uts) =
        (open_if(wanted.network, "net")?, open_if(wanted.ipc, "ipc")?, open_if(wanted.uts, "uts")?);
    let holder = open("mnt")?;
    let null = build_holder(wanted, mount_point)?;
    Ok(Namespaces { holder, null, network, route, ipc, uts })
}

/// Keeps the network namespace for as long as the file is mounted, and gives it a path.
fn pin(path: &str) -> Result<()> {
    rustix::mount::mount_bind("/proc/self/ns/net", path)
        .doing(|| format!("pin the network namespace at {path}"))
}

/// Brings up lo, and keeps the socket for whoever configures the rest.
fn start_loopback() -> Result<OwnedFd> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
    let doing = || "bring up the loopback link";
    let flags = SocketFlags::CLOEXEC;
    // NETLINK_ROUTE is protocol 0.
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None)
        .doing(|| "open a route socket")?;
    // struct nlmsghdr, struct ifinfomsg (netlink(7), rtnetlink(7)): RTM_NEWLINK with an answer, link 1, IFF_UP.
    const RTM_NEWLINK: u16 = 16;
    const REQUEST_ACK: u16 = 5;
    let mut message = Vec::with_capacity(32);
    let mut put = |bytes: &[u8]| message.write_all(bytes).expect("a vector takes everything");
    put(&32u32.to_ne_bytes());
    put(&RTM_NEWLINK.to_ne_bytes());
    put(&REQUEST_ACK.to_ne_bytes());
    put(&[0; 8]);
    put(&[0; 4]);
    put(&1i32.to_ne_bytes());
    put(&1u32.to_ne_bytes());
    put(&1u32.to_ne_bytes());
    rustix::net::send(&socket, &message, rustix::net::SendFlags::empty()).doing(doing)?;
    let mut answer = [0; 256];
    let (length, _) = rustix::net::recv(&socket, &mut answer[..], rustix::net::RecvFlags::empty())
        .doing(doing)?;
    let errno = answer
        .get(16..20)
        .filter(|_| length >= 20)
        .map_or(-libc::EPROTO, |bytes| i32::from_ne_bytes(bytes.try_into().expect("four bytes")));
    if errno == 0 {
        Ok(socket)
    } else {
        Err(std::io::Error::from_raw_os_error(-errno)).doing(doing)
    }
}

/// /proc is the node's, but net, ipc and uts settings there are those of this process's namespaces.
fn set_sysctls(wanted: &MakeNamespaces) -> Result<()> {
    if wanted.sysctls.is_empty() {
        return Ok(());
    }
    let root = crate::root::Root::open(Path::new("/proc/sys"))?;
    for sysctl in &wanted.sysctls {
        let file = root.resolve_beneath(Path::new(&sysctl.name), OFlags::WRONLY, 0);
        let file = match file {
            Ok(file) => file,
            Err(error) if error.errno() == Some(libc::ENOENT) => {
                return Err(Error::Invalid(format!(
                    "sysctl {} does not exist on this kernel",
                    shown(&sysctl.name)
                )));
            }
            Err(error) => return Err(error),
        };
        std::fs::File::from(file)
            .write_all(sysctl.value.as_bytes())
            .doing(|| format!("set sysctl {} to {:?}", shown(&sysctl.name), sysctl.value))?;
    }
    Ok(())
}

/// The path of a sysctl as sysctl(8) writes it: dots and slashes have changed places.
fn shown(path: &str) -> String {
    let swapped = path.chars().map(|c| match c {
        '/' => '.',
        '.' => '/',
        other => other,
    });
    swapped.collect()
}

/// The mounts of the holder: one small tmpfs as root, and the pod's /dev/shm. Returns the null device.
fn build_holder(wanted: &MakeNamespaces, mount_point: &Path) -> Result<OwnedFd> {
    let doing = || "build the pod's mount namespace";
    let host_root =
        rustix::fs::open("/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).doing(doing)?;
    let private = Attributes { propagation: libc::MS_PRIVATE, ..Default::default() };
    set_attributes(&host_root, private, true).doing(|| "keep the node's mounts apart")?;
    let root = tmpfs(&[("size", HOLDER_SIZE), ("mode", "700")]).doing(doing)?;
    for directory in
        [ROOT_DIRECTORY, SCRATCH_DIRECTORY, "/mask", MASK_DIRECTORY, FILES_DIRECTORY, SHM_DIRECTORY]
    {
        rustix::fs::mkdirat(&root, &directory[1..], Mode::from_raw_mode(0o755)).doing(doing)?;
    }
    rustix::process::umask(Mode::empty());
    let mode = Mode::from_raw_mode(0o666);
    let device = rustix::fs::makedev(1, 3);
    rustix::fs::mknodat(&root, &MASK_FILE[1..], FileType::CharacterDevice, mode, device)
        .doing(doing)?;
    let null =
        rustix::fs::openat(&root, &MASK_FILE[1..], OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
            .doing(doing)?;
    for file in &wanted.files {
        let path = Path::new(&FILES_DIRECTORY[1..]).join(&file.name);
        let create = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
        let fd =
            rustix::fs::openat(&root, &path, create, Mode::from_raw_mode(0o644)).doing(doing)?;
        std::fs::File::from(fd)
            .write_all(&file.content)
            .doing(|| format!("write the pod's {}", file.name))?;
    }
    move_mount(&root, "", rustix::fs::CWD, mount_point, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .doing(doing)?;
    if wanted.shm_size != 0 {
        let size = wanted.shm_size.to_string();
        let shm =
            tmpfs(&[("size", &size), ("mode", "1777")]).doing(|| "make the pod's /dev/shm")?;
        let attributes = libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV | libc::MOUNT_ATTR_NOEXEC;
        set_attributes(&shm, Attributes { set: attributes, ..Default::default() }, false)
            .doing(doing)?;
        move_mount(&shm, "", &root, &SHM_DIRECTORY[1..], MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
            .doing(doing)?;
    }
    rustix::process::fchdir(&root).doing(doing)?;
    rustix::process::pivot_root(".", ".").doing(|| "leave the node's root")?;
    rustix::mount::unmount(".", UnmountFlags::DETACH).doing(|| "leave the node's mounts")?;
    Ok(null)
}

fn tmpfs(options: &[(&str, &str)]) -> rustix::io::Result<OwnedFd> {
    let fs = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(fs.as_fd(), "source", "berth")?;
    for (key, value) in options {
        fsconfig_set_string(fs.as_fd(), *key, *value)?;
    }
    fsconfig_create(fs.as_fd())?;
    fsmount(fs.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())
}

/// The pod's pid 1: it only reaps. Call it in a process cloned as pid 1 of the pod's namespace.
///
/// It lives in an empty directory of the holder, so that /proc/1/root shows nothing, and cannot be traced.
pub fn run_init(namespaces: &Namespaces, line: &Line<'_>) -> ! {
    if let Err(error) = set_up_init(namespaces, line) {
        line.fail(&error);
    }
    line.report(reply::Result::Done(Default::default()), &[]);
    if crate::sys::fds::close_all_but(&[]).is_err() {
        crate::sys::clone::exit_now(1);
    }
    let mut child = nix::sys::signal::SigSet::empty();
    child.add(nix::sys::signal::Signal::SIGCHLD);
    loop {
        let _any = child.wait();
        while let Ok(Some(_)) = rustix::process::wait(rustix::process::WaitOptions::NOHANG) {}
    }
}

fn set_up_init(namespaces: &Namespaces, line: &Line<'_>) -> Result<()> {
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .doing(|| "hide the pod's init")?;
    let Namespaces { holder, network, ipc, uts, .. } = namespaces;
    let mut keep = vec![line.as_fd(), holder.as_fd()];
    keep.extend([network, ipc, uts].into_iter().flatten().map(AsFd::as_fd));
    crate::sys::fds::close_all_but(&keep).doing(|| "close what is the shim's")?;
    // Containers see this process; the shim's arguments are paths of the node.
    crate::sys::program::set_title(b"berth-init").doing(|| "name the pod's init")?;
    rustix::process::setsid().doing(|| "begin a session")?;
    nix::sys::signal::SigSet::all().thread_set_mask().doing(|| "block signals")?;
    for (namespace, kind) in [
        (network, LinkNameSpaceType::Network),
        (ipc, LinkNameSpaceType::InterProcessCommunication),
        (uts, LinkNameSpaceType::HostNameAndNISDomainName),
    ] {
        if let Some(namespace) = namespace {
            rustix::thread::move_into_link_name_space(namespace.as_fd(), Some(kind))
                .doing(|| "enter the pod's namespaces")?;
        }
    }
    rustix::thread::move_into_link_name_space(holder.as_fd(), Some(LinkNameSpaceType::Mount))
        .doing(|| "enter the pod's mount namespace")?;
    rustix::process::chroot(MASK_DIRECTORY).doing(|| "enter an empty directory")?;
    rustix::process::chdir("/").doing(|| "enter an empty directory")?;
    rustix::thread::set_name(c"berth-init").doing(|| "name the pod's init")
}
