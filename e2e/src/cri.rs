//! The CRI through the client of the crate k8s-cri, which others wrote: the outside check of the wire format.
//!
//! Each call is a method that returns what a test looks at, or the status as it came over the wire. The crate has the
//! API of Kubernetes 1.32; for what is newer there is [`Cri::newer`].

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use hyper_util::rt::TokioIo;
use k8s_cri::v1::image_service_client::ImageServiceClient;
use k8s_cri::v1::runtime_service_client::RuntimeServiceClient;
use k8s_cri::v1::*;
use proto::control::control_client::ControlClient;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Code, Status};

/// What a kubelet's client accepts in one reply.
const RECEIVE_LIMIT: usize = 16 << 20;

/// What a call returns.
pub type Reply<T> = std::result::Result<T, Status>;

/// A client of both CRI services and of the control API on one socket; connects again by itself.
#[derive(Clone, Debug)]
pub struct Cri {
    channel: Channel,
    runtime: RuntimeServiceClient<Channel>,
    image: ImageServiceClient<Channel>,
}

impl Cri {
    /// A client of a socket that need not be there yet. Needs a tokio runtime.
    pub fn new(socket: &Path) -> Result<Cri> {
        let socket = socket.to_owned();
        let connect = tower::service_fn(move |_: Uri| {
            let socket = socket.clone();
            async move { Ok::<_, std::io::Error>(TokioIo::new(UnixStream::connect(socket).await?)) }
        });
        let channel = Endpoint::try_from("http://localhost")?
            .timeout(crate::scaled(Duration::from_secs(120)))
            .connect_with_connector_lazy(connect);
        Ok(Cri {
            runtime: RuntimeServiceClient::new(channel.clone())
                .max_decoding_message_size(RECEIVE_LIMIT),
            image: ImageServiceClient::new(channel.clone())
                .max_decoding_message_size(RECEIVE_LIMIT),
            channel,
        })
    }

    /// The client of the newest CRI, as this repository has it.
    pub fn newer(&self) -> proto::cri::runtime_service_client::RuntimeServiceClient<Channel> {
        proto::cri::runtime_service_client::RuntimeServiceClient::new(self.channel.clone())
    }

    /// As [`Cri::newer`], for images.
    pub fn newer_images(&self) -> proto::cri::image_service_client::ImageServiceClient<Channel> {
        proto::cri::image_service_client::ImageServiceClient::new(self.channel.clone())
    }

    /// The client of berth's own API.
    pub fn control(&self) -> ControlClient<Channel> {
        ControlClient::new(self.channel.clone()).max_decoding_message_size(RECEIVE_LIMIT)
    }

    /// The clients as the crate makes them, for a call that has no method here.
    pub fn raw(&self) -> (RuntimeServiceClient<Channel>, ImageServiceClient<Channel>) {
        (self.runtime.clone(), self.image.clone())
    }

    /// Version
    pub async fn version(&self) -> Reply<VersionResponse> {
        let request = VersionRequest { version: "0.1.0".into() };
        Ok(self.runtime.clone().version(request).await?.into_inner())
    }

    /// Status
    pub async fn status(&self) -> Reply<StatusResponse> {
        Ok(self.runtime.clone().status(StatusRequest { verbose: true }).await?.into_inner())
    }

    /// RunPodSandbox; returns the id.
    pub async fn run_pod(&self, config: &PodSandboxConfig, handler: &str) -> Reply<String> {
        let request =
            RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: handler.into() };
        Ok(self.runtime.clone().run_pod_sandbox(request).await?.into_inner().pod_sandbox_id)
    }

    /// StopPodSandbox
    pub async fn stop_pod(&self, id: &str) -> Reply<()> {
        let request = StopPodSandboxRequest { pod_sandbox_id: id.into() };
        self.runtime.clone().stop_pod_sandbox(request).await.map(drop)
    }

    /// RemovePodSandbox
    pub async fn remove_pod(&self, id: &str) -> Reply<()> {
        let request = RemovePodSandboxRequest { pod_sandbox_id: id.into() };
        self.runtime.clone().remove_pod_sandbox(request).await.map(drop)
    }

    /// PodSandboxStatus, verbose.
    pub async fn pod_status(&self, id: &str) -> Reply<PodSandboxStatusResponse> {
        let request = PodSandboxStatusRequest { pod_sandbox_id: id.into(), verbose: true };
        Ok(self.runtime.clone().pod_sandbox_status(request).await?.into_inner())
    }

    /// ListPodSandbox
    pub async fn list_pods(&self, filter: Option<PodSandboxFilter>) -> Reply<Vec<PodSandbox>> {
        Ok(self
            .runtime
            .clone()
            .list_pod_sandbox(ListPodSandboxRequest { filter })
            .await?
            .into_inner()
            .items)
    }

    /// CreateContainer; returns the id.
    pub async fn create(
        &self,
        pod: &str,
        config: &ContainerConfig,
        sandbox: &PodSandboxConfig,
    ) -> Reply<String> {
        let request = CreateContainerRequest {
            pod_sandbox_id: pod.into(),
            config: Some(config.clone()),
            sandbox_config: Some(sandbox.clone()),
        };
        Ok(self.runtime.clone().create_container(request).await?.into_inner().container_id)
    }

    /// StartContainer
    pub async fn start(&self, id: &str) -> Reply<()> {
        let request = StartContainerRequest { container_id: id.into() };
        self.runtime.clone().start_container(request).await.map(drop)
    }

    /// StopContainer with a grace period in seconds.
    pub async fn stop(&self, id: &str, timeout: i64) -> Reply<()> {
        let request = StopContainerRequest { container_id: id.into(), timeout };
        self.runtime.clone().stop_container(request).await.map(drop)
    }

    /// RemoveContainer
    pub async fn remove(&self, id: &str) -> Reply<()> {
        let request = RemoveContainerRequest { container_id: id.into() };
        self.runtime.clone().remove_container(request).await.map(drop)
    }

    /// ContainerStatus, verbose: status and the information beside it.
    pub async fn container_status(&self, id: &str) -> Reply<ContainerStatusResponse> {
        let request = ContainerStatusRequest { container_id: id.into(), verbose: true };
        Ok(self.runtime.clone().container_status(request).await?.into_inner())
    }

    /// ListContainers
    pub async fn list(&self, filter: Option<ContainerFilter>) -> Reply<Vec<Container>> {
        Ok(self
            .runtime
            .clone()
            .list_containers(ListContainersRequest { filter })
            .await?
            .into_inner()
            .containers)
    }

    /// ExecSync with a deadline in seconds, 0 for none.
    pub async fn exec_sync(
        &self,
        id: &str,
        command: &[&str],
        timeout: i64,
    ) -> Reply<ExecSyncResponse> {
        let cmd = command.iter().map(|word| (*word).to_owned()).collect();
        let request = ExecSyncRequest { container_id: id.into(), cmd, timeout };
        Ok(self.runtime.clone().exec_sync(request).await?.into_inner())
    }

    /// ReopenContainerLog
    pub async fn reopen_log(&self, id: &str) -> Reply<()> {
        let request = ReopenContainerLogRequest { container_id: id.into() };
        self.runtime.clone().reopen_container_log(request).await.map(drop)
    }

    /// UpdateContainerResources
    pub async fn update(&self, id: &str, linux: LinuxContainerResources) -> Reply<()> {
        let request = UpdateContainerResourcesRequest {
            container_id: id.into(),
            linux: Some(linux),
            ..Default::default()
        };
        self.runtime.clone().update_container_resources(request).await.map(drop)
    }

    /// ContainerStats
    pub async fn stats(&self, id: &str) -> Reply<Option<ContainerStats>> {
        let request = ContainerStatsRequest { container_id: id.into() };
        Ok(self.runtime.clone().container_stats(request).await?.into_inner().stats)
    }

    /// ListContainerStats
    pub async fn list_stats(
        &self,
        filter: Option<ContainerStatsFilter>,
    ) -> Reply<Vec<ContainerStats>> {
        Ok(self
            .runtime
            .clone()
            .list_container_stats(ListContainerStatsRequest { filter })
            .await?
            .into_inner()
            .stats)
    }

    /// PullImage; returns the image id.
    pub async fn pull(&self, image: &str, auth: Option<AuthConfig>) -> Reply<String> {
        let request =
            PullImageRequest { image: Some(image_spec(image)), auth, sandbox_config: None };
        Ok(self.image.clone().pull_image(request).await?.into_inner().image_ref)
    }

    /// ImageStatus, verbose.
    pub async fn image_status(&self, image: &str) -> Reply<ImageStatusResponse> {
        let request = ImageStatusRequest { image: Some(image_spec(image)), verbose: true };
        Ok(self.image.clone().image_status(request).await?.into_inner())
    }

    /// ListImages
    pub async fn images(&self) -> Reply<Vec<Image>> {
        let request = ListImagesRequest { filter: None };
        Ok(self.image.clone().list_images(request).await?.into_inner().images)
    }

    /// RemoveImage
    pub async fn remove_image(&self, image: &str) -> Reply<()> {
        let request = RemoveImageRequest { image: Some(image_spec(image)) };
        self.image.clone().remove_image(request).await.map(drop)
    }

    /// ImageFsInfo
    pub async fn fs_info(&self) -> Reply<ImageFsInfoResponse> {
        Ok(self.image.clone().image_fs_info(ImageFsInfoRequest {}).await?.into_inner())
    }

    /// The process id that a verbose status names: a container's init, or a pod's oldest process.
    pub async fn pid(&self, container: &str) -> Result<i32> {
        let reply = self.container_status(container).await?;
        info(&reply.info)?["pid"]
            .as_i64()
            .and_then(|pid| i32::try_from(pid).ok())
            .context("no pid in verbose info")
    }
}

/// The JSON under the key `info` of a verbose reply.
pub fn info(map: &std::collections::HashMap<String, String>) -> Result<serde_json::Value> {
    let text = map.get("info").context("the verbose reply has no key `info`")?;
    Ok(serde_json::from_str(text)?)
}

/// An image as a request names it.
pub fn image_spec(image: &str) -> ImageSpec {
    ImageSpec { image: image.into(), ..Default::default() }
}

/// That a call has failed, and its text names all the given words. Returns the code.
#[track_caller]
pub fn refused<T: std::fmt::Debug>(what: &str, reply: Reply<T>, words: &[&str]) -> Code {
    match reply {
        Ok(answer) => panic!("{what}: must be refused, but got {answer:?}"),
        Err(status) => {
            for word in words {
                let text = status.message().to_lowercase();
                assert!(
                    text.contains(&word.to_lowercase()),
                    "{what}: the error does not name `{word}`: {status:?}"
                );
            }
            assert!(!status.message().is_empty(), "{what}: an error without a text");
            status.code()
        }
    }
}
