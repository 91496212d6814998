//! The end-to-end tests of berth: one binary, run by `hack/e2e` as root. `e2e/src/lib.rs` has the map of the harness.
//!
//! | module | what it shows |
//! |---|---|
//! | `service` | the socket: what answers from the first moment, who may connect, which clients are understood |
//! | `sandbox` | pods: life, status, lists, namespaces |
//! | `container` | containers: life, process, files, limits, logs |
//! | `events` | GetContainerEvents: what a kubelet is told instead of asking |
//! | `exec` | ExecSync |
//! | `image` | pulls and everything that goes wrong with them |
//! | `kubelet` | what a kubelet drives: static pods on a kubelet of Kubernetes |
//! | `streaming` | Exec, Attach and PortForward, with the clients that users have |
//! | `network` | the built-in network |
//! | `restart` | a daemon or a shim that is killed, at any moment, and a machine that starts anew |
//! | `stats` | what pods use; lists as streams |
//! | `cni` | CNI plugins, real ones and one that does everything wrong |
//! | `cli` | the command line |
//! | `attack` | hostile images, pods and registries; each test has the id that the list of threats gives it |

mod attack;
mod cli;
mod cni;
mod container;
mod events;
mod exec;
mod image;
mod kubelet;
mod network;
mod restart;
mod sandbox;
mod service;
mod stats;
mod streaming;
