//! Tests of berth under a whole Kubernetes: a cluster of one node, which `hack/cluster test` starts before it runs these.
//!
//! | module | what it shows |
//! |---|---|
//! | `node` | the node: ready, its statistics, drained, its kubelet and its daemon killed and upgraded |
//! | `streams` | the verbs of kubectl that reach into a container |
//! | `volumes` | volumes that come from the API server |
//! | `workloads` | Deployments, Services, Jobs, DaemonSets, sidecars, probes that fail |
//!
//! They share the cluster and run one after the other. Each has a namespace of its own.

mod node;
mod space;
mod streams;
mod volumes;
mod workloads;
