//! Cgroups whose files stay open from one question to the next. A kubelet asks for all of a node every ten seconds, and
//! opening the files would be nearly all of the work.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use proto::shim::Cgroup;
use runtime::cgroup::stats::{Meter, Stats};

/// Descriptors that all meters hold.
static HELD: AtomicUsize = AtomicUsize::new(0);

/// The meter of one object's cgroup; closed when the object goes.
#[derive(Debug, Default)]
pub struct Kept(Mutex<Option<Meter>>);

impl Kept {
    /// Reads a cgroup, which is asked for where its files are not open yet. Its files stay open as long as all meters
    /// together hold no more than `most`. Blocks.
    pub fn read(&self, cgroup: impl Fn() -> Cgroup, most: usize) -> Stats {
        let mut kept = self.0.lock().expect("nobody panics with this lock");
        let stats = kept.as_mut().map(Meter::read).unwrap_or_default();
        if stats != Stats::default() {
            return stats;
        }
        // Not open yet; or the cgroup is gone, and another may have its path now.
        close(&mut kept);
        let mut meter = Meter::new(cgroup());
        let stats = meter.read();
        let open = meter.open_files();
        if stats != Stats::default() && HELD.fetch_add(open, Relaxed) + open <= most {
            *kept = Some(meter);
        } else if stats != Stats::default() {
            HELD.fetch_sub(open, Relaxed);
        }
        stats
    }

    /// Closes the files: the cgroup is going, or gone.
    pub fn close(&self) {
        close(&mut self.0.lock().expect("nobody panics with this lock"));
    }
}

fn close(kept: &mut Option<Meter>) {
    if let Some(meter) = kept.take() {
        HELD.fetch_sub(meter.open_files(), Relaxed);
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.close();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::shim::CgroupDirectory;

    #[test]
    fn files_stay_open_within_the_bound_and_a_new_cgroup_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let directory = folder.path().join("cgroup");
        let make = |processes: &str| {
            std::fs::create_dir(&directory).unwrap();
            std::fs::write(directory.join("pids.current"), processes).unwrap();
        };
        let cgroup = || {
            let path = directory.to_string_lossy().into_owned();
            let directory = CgroupDirectory { controller: String::new(), path };
            Cgroup { unified: true, directories: vec![directory] }
        };
        make("7\n");
        let kept = Kept::default();
        assert_eq!(kept.read(cgroup, 0).pids, Some(7));
        assert!(kept.0.lock().unwrap().is_none());
        assert_eq!(kept.read(cgroup, usize::MAX).pids, Some(7));
        assert_eq!(kept.0.lock().unwrap().as_ref().unwrap().open_files(), 1);
        kept.close();
        std::fs::remove_dir_all(&directory).unwrap();
        assert_eq!(kept.read(cgroup, usize::MAX), Stats::default());
        make("8\n");
        assert_eq!(kept.read(cgroup, usize::MAX).pids, Some(8));
    }
}
