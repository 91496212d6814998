//! The calls that berth serves by name: what each is to the log, and how often and how fast
//! it was.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use Kind::{Change, Read};

/// What a call is to the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Changes something: one line at level info.
    Change,
    /// Changes nothing, or is asked for all the time as probes are: debug.
    Read,
}

/// Every call of the CRI and of the control API. A test keeps it complete.
const METHODS: [(&str, Kind); 65] = [
    ("/runtime.v1.RuntimeService/Version", Read),
    ("/runtime.v1.RuntimeService/RunPodSandbox", Change),
    ("/runtime.v1.RuntimeService/StopPodSandbox", Change),
    ("/runtime.v1.RuntimeService/RemovePodSandbox", Change),
    ("/runtime.v1.RuntimeService/PodSandboxStatus", Read),
    ("/runtime.v1.RuntimeService/ListPodSandbox", Read),
    ("/runtime.v1.RuntimeService/StreamPodSandboxes", Read),
    ("/runtime.v1.RuntimeService/CreateContainer", Change),
    ("/runtime.v1.RuntimeService/StartContainer", Change),
    ("/runtime.v1.RuntimeService/StopContainer", Change),
    ("/runtime.v1.RuntimeService/RemoveContainer", Change),
    ("/runtime.v1.RuntimeService/ListContainers", Read),
    ("/runtime.v1.RuntimeService/StreamContainers", Read),
    ("/runtime.v1.RuntimeService/ContainerStatus", Read),
    ("/runtime.v1.RuntimeService/UpdateContainerResources", Change),
    ("/runtime.v1.RuntimeService/ReopenContainerLog", Change),
    ("/runtime.v1.RuntimeService/ExecSync", Read),
    ("/runtime.v1.RuntimeService/Exec", Change),
    ("/runtime.v1.RuntimeService/Attach", Change),
    ("/runtime.v1.RuntimeService/PortForward", Change),
    ("/runtime.v1.RuntimeService/ContainerStats", Read),
    ("/runtime.v1.RuntimeService/ListContainerStats", Read),
    ("/runtime.v1.RuntimeService/StreamContainerStats", Read),
    ("/runtime.v1.RuntimeService/PodSandboxStats", Read),
    ("/runtime.v1.RuntimeService/ListPodSandboxStats", Read),
    ("/runtime.v1.RuntimeService/StreamPodSandboxStats", Read),
    ("/runtime.v1.RuntimeService/UpdateRuntimeConfig", Change),
    ("/runtime.v1.RuntimeService/Status", Read),
    ("/runtime.v1.RuntimeService/CheckpointContainer", Change),
    ("/runtime.v1.RuntimeService/CheckpointPod", Change),
    ("/runtime.v1.RuntimeService/RestorePod", Change),
    ("/runtime.v1.RuntimeService/GetContainerEvents", Read),
    ("/runtime.v1.RuntimeService/ListMetricDescriptors", Read),
    ("/runtime.v1.RuntimeService/ListPodSandboxMetrics", Read),
    ("/runtime.v1.RuntimeService/StreamPodSandboxMetrics", Read),
    ("/runtime.v1.RuntimeService/RuntimeConfig", Read),
    ("/runtime.v1.RuntimeService/UpdatePodSandboxResources", Change),
    ("/runtime.v1.ImageService/ListImages", Read),
    ("/runtime.v1.ImageService/StreamImages", Read),
    ("/runtime.v1.ImageService/ImageStatus", Read),
    ("/runtime.v1.ImageService/PullImage", Change),
    ("/runtime.v1.ImageService/RemoveImage", Change),
    ("/runtime.v1.ImageService/ImageFsInfo", Read),
    ("/berth.v1.Control/Run", Change),
    ("/berth.v1.Control/Exec", Change),
    ("/berth.v1.Control/Logs", Read),
    ("/berth.v1.Control/ListContainers", Read),
    ("/berth.v1.Control/ListPods", Read),
    ("/berth.v1.Control/Inspect", Read),
    ("/berth.v1.Control/Stop", Change),
    ("/berth.v1.Control/Kill", Change),
    ("/berth.v1.Control/Remove", Change),
    ("/berth.v1.Control/Pause", Change),
    ("/berth.v1.Control/Resume", Change),
    ("/berth.v1.Control/Stats", Read),
    ("/berth.v1.Control/Pull", Change),
    ("/berth.v1.Control/ListImages", Read),
    ("/berth.v1.Control/RemoveImage", Change),
    ("/berth.v1.Control/ImportImage", Change),
    ("/berth.v1.Control/ExportImage", Read),
    ("/berth.v1.Control/PruneImages", Change),
    ("/berth.v1.Control/Doctor", Read),
    ("/berth.v1.Control/Info", Read),
    ("/berth.v1.Control/Attach", Change),
    ("/berth.v1.Control/PortForward", Read),
];

/// Whatever else a client asks for; all such calls count as one method.
const OTHER: (&str, Kind) = ("/other", Read);

/// The upper bounds of a latency histogram's cells: 0.25 ms, doubled from cell to cell. The
/// last cell, after these, has no bound.
pub const LATENCY_BOUNDS: [Duration; 19] = bounds();

const fn bounds() -> [Duration; 19] {
    let mut bounds = [Duration::ZERO; 19];
    let mut at = 0;
    while at < bounds.len() {
        bounds[at] = Duration::from_micros(250 << at);
        at += 1;
    }
    bounds
}

/// One call of the interface and its counters.
#[derive(Debug)]
pub struct Method {
    /// Such as `/runtime.v1.RuntimeService/Version`.
    pub path: &'static str,
    /// What it is to the log.
    pub kind: Kind,
    /// Calls that began.
    pub begun: AtomicU64,
    /// Calls that failed.
    pub failed: AtomicU64,
    /// Calls whose client went before the answer.
    pub abandoned: AtomicU64,
    /// Calls that ended, by their duration; see [`LATENCY_BOUNDS`].
    pub latency: [AtomicU64; LATENCY_BOUNDS.len() + 1],
}

/// All methods, found by path.
#[derive(Debug)]
pub struct Methods {
    all: Vec<&'static Method>,
    by_path: HashMap<&'static str, &'static Method>,
    other: &'static Method,
}

impl Method {
    fn new((path, kind): (&'static str, Kind)) -> Method {
        Method {
            path,
            kind,
            begun: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            abandoned: AtomicU64::new(0),
            latency: [const { AtomicU64::new(0) }; LATENCY_BOUNDS.len() + 1],
        }
    }

    /// The last part of the path.
    pub fn name(&self) -> &'static str {
        self.path.rsplit('/').next().unwrap_or(self.path)
    }

    pub(super) fn record(&self, duration: Duration) {
        let cell = LATENCY_BOUNDS.partition_point(|bound| *bound < duration);
        self.latency[cell].fetch_add(1, Relaxed);
    }
}

impl Methods {
    /// All methods, with their counters at 0. The memory is never given back: a daemon
    /// makes these once.
    pub(super) fn new() -> Methods {
        let keep = |method| -> &'static Method { Box::leak(Box::new(Method::new(method))) };
        let all: Vec<_> = METHODS.into_iter().chain([OTHER]).map(keep).collect();
        let by_path = all.iter().map(|method| (method.path, *method)).collect();
        let other = all[METHODS.len()];
        Methods { all, by_path, other }
    }

    /// The method of a request's path.
    pub fn find(&self, path: &str) -> &'static Method {
        self.by_path.get(path).copied().unwrap_or(self.other)
    }

    /// Every method, in the order of the interfaces.
    pub fn iter(&self) -> impl Iterator<Item = &'static Method> + '_ {
        self.all.iter().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `/PACKAGE.SERVICE/CALL` of each call in a proto file.
    fn paths(proto: &str) -> Vec<String> {
        let word = |line: &str, at: usize| {
            line.split([' ', ';', '(', '{']).nth(at).unwrap_or_default().to_owned()
        };
        let (mut package, mut service, mut paths) = (String::new(), String::new(), Vec::new());
        for line in proto.lines().map(str::trim) {
            match word(line, 0).as_str() {
                "package" => package = word(line, 1),
                "service" => service = word(line, 1),
                "rpc" => paths.push(format!("/{package}.{service}/{}", word(line, 1))),
                _ => (),
            }
        }
        paths
    }

    #[test]
    fn every_call_of_the_interfaces_has_its_line() {
        let mut written = paths(include_str!("../../../proto/runtime/v1/api.proto"));
        assert_eq!(written.len(), 43);
        written.extend(paths(include_str!("../../../proto/berth/v1/control.proto")));
        assert_eq!(METHODS.map(|(path, _)| path.to_owned()).to_vec(), written);
    }

    #[test]
    fn an_unknown_path_counts_as_other() {
        let methods = Methods::new();
        assert_eq!(methods.find("/runtime.v1.ImageService/PullImage").name(), "PullImage");
        assert_eq!(methods.find("/runtime.v1alpha2.RuntimeService/Version").path, "/other");
        assert_eq!(methods.iter().count(), METHODS.len() + 1);
    }

    #[test]
    fn a_duration_counts_in_the_cell_of_its_bound() {
        let check = |duration: Duration, cell: usize| {
            let method = Method::new(OTHER);
            method.record(duration);
            assert_eq!(
                method.latency.iter().position(|count| count.load(Relaxed) == 1),
                Some(cell),
                "{duration:?}"
            );
        };
        check(Duration::ZERO, 0);
        check(Duration::from_micros(250), 0);
        check(Duration::from_micros(251), 1);
        check(Duration::from_millis(1), 2);
        check(Duration::from_secs(65), 18);
        check(Duration::from_secs(3600), 19);
    }
}
