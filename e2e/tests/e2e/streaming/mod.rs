//! Exec, Attach and PortForward: the calls, the URLs they give, and what clients get there.

mod attach;
mod command;
mod forward;
mod url;

use anyhow::{Context, Result};
use e2e::Cx;
use e2e::pod::ContainerBuilder;
use k8s_cri::v1::*;

/// A container that runs until it is stopped.
async fn idle(cx: &Cx) -> Result<String> {
    let image = cx.busybox().await?;
    let pod = cx.run_pod(cx.pod()).await?;
    cx.run(&pod, &ContainerBuilder::new(&image).idle()).await
}

/// A request for an exec with stdin, stdout and stderr.
fn request(id: &str, command: &[&str]) -> ExecRequest {
    ExecRequest {
        container_id: id.into(),
        cmd: command.iter().map(ToString::to_string).collect(),
        stdin: true,
        stdout: true,
        stderr: true,
        ..Default::default()
    }
}

async fn exec_url(cx: &Cx, request: ExecRequest) -> Result<String> {
    Ok(cx.cri().raw().0.exec(request).await.context("Exec")?.into_inner().url)
}

/// A line of shell, with stdin, stdout and stderr.
async fn shell_url(cx: &Cx, id: &str, line: &str) -> Result<String> {
    exec_url(cx, request(id, &["sh", "-c", line])).await
}

async fn forward_url(cx: &Cx, pod: &str, ports: &[i32]) -> Result<String> {
    let request = PortForwardRequest { pod_sandbox_id: pod.into(), port: ports.to_vec() };
    Ok(cx.cri().raw().0.port_forward(request).await.context("PortForward")?.into_inner().url)
}
