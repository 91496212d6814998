//! Calls of the CRI about images.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use images::registry::{AuthConfig, Credentials, Secret};
use images::{Image, PullRequest, Pulled, Reference};
use proto::cri as v1;

use super::Backend;
use crate::app::{App, now};
use crate::blocking;
use crate::error::{Error, Result};

pub(super) fn list(app: &App, request: &v1::ListImagesRequest) -> Result<v1::ListImagesResponse> {
    let wanted = request.filter.as_ref().and_then(|filter| filter.image.as_ref());
    let found = match wanted.map(|spec| spec.image.as_str()) {
        None | Some("") => app.images.list(),
        Some(name) => app.images.status(name)?.into_iter().collect(),
    };
    Ok(v1::ListImagesResponse { images: found.into_iter().map(image).collect() })
}

/// An image that is not here is no error: the kubelet asks that way whether to pull.
pub(super) async fn status(
    app: &Arc<App>,
    request: v1::ImageStatusRequest,
) -> Result<v1::ImageStatusResponse> {
    let name = name(request.image)?;
    let Some(found) = app.images.status(&name)? else {
        return Ok(v1::ImageStatusResponse::default());
    };
    let mut info = BTreeMap::new();
    if request.verbose {
        let (app, id) = (app.clone(), found.id);
        let config =
            blocking::run("read the config", move || Ok(app.images.config_document(&id)?)).await?;
        let config: serde_json::Value = serde_json::from_slice(&config).unwrap_or_default();
        // The key and its form are containerd's: crictl shows them, scripts read them.
        info.insert("info".into(), serde_json::json!({ "imageSpec": config }).to_string());
    }
    Ok(v1::ImageStatusResponse { image: Some(image(found)), info })
}

/// Ends with its client: layers that are whole stay for the next try, and equal pulls of others go on.
pub(super) async fn pull(
    backend: &Backend,
    request: v1::PullImageRequest,
) -> Result<v1::PullImageResponse> {
    let name = name(request.image)?;
    tracing::Span::current().record("image", &name);
    let auth = request.auth.unwrap_or_default();
    let credentials = Credentials::new(&AuthConfig {
        username: auth.username,
        password: Secret::new(auth.password),
        auth: Secret::new(auth.auth),
        server_address: auth.server_address,
        identity_token: Secret::new(auth.identity_token),
        registry_token: Secret::new(auth.registry_token),
    })?;
    let reference: Reference = name.parse()?;
    let request = PullRequest { reference, credentials, platform: None };
    let pulled = wait(backend, backend.app.images.pull(request)).await?;
    Ok(v1::PullImageResponse { image_ref: pulled.image_id.to_string() })
}

/// Waits for a pull; a daemon that ends keeps nobody waiting.
pub(super) async fn wait(backend: &Backend, pulling: images::Pulling) -> Result<Pulled> {
    tokio::select! {
        pulled = pulling.wait() => {
            let pulled = pulled?;
            tracing::info!(image = %pulled.image_id, timeline = ?pulled.timeline, "pulled");
            Ok(pulled)
        }
        () = backend.calls.stopping.cancelled() => Err(Error::ending()),
    }
}

/// Removing what is not here is no error. An image that containers use goes, too; they keep its layers.
pub(super) async fn remove(
    backend: &Backend,
    request: v1::RemoveImageRequest,
) -> Result<v1::RemoveImageResponse> {
    let name = name(request.image)?;
    let images = backend.app.images.clone();
    backend.calls.detach(async move { Ok(images.remove(&name).await?) }).await?;
    Ok(v1::RemoveImageResponse {})
}

/// From memory: the kubelet gives up on a node where this takes time.
pub(super) fn fs_info(app: &Arc<App>) -> v1::ImageFsInfoResponse {
    let timestamp = now();
    let usage = |directory: &Path, bytes, inodes| v1::FilesystemUsage {
        timestamp,
        fs_id: Some(v1::FilesystemIdentifier {
            mountpoint: directory.to_string_lossy().into_owned(),
        }),
        used_bytes: Some(v1::UInt64Value { value: bytes }),
        inodes_used: Some(v1::UInt64Value { value: inodes }),
    };
    let images = app.images.usage();
    let containers = app.layers.total(app);
    let root = &app.instance.root;
    v1::ImageFsInfoResponse {
        image_filesystems: vec![usage(&root.join("images"), images.bytes, images.inodes)],
        container_filesystems: vec![usage(
            &root.join("containers"),
            containers.bytes,
            containers.inodes,
        )],
    }
}

fn name(spec: Option<v1::ImageSpec>) -> Result<String> {
    let name = spec.map(|spec| spec.image).unwrap_or_default();
    if name.is_empty() {
        return Err(Error::invalid("image.image", "must not be empty; name an image"));
    }
    Ok(name)
}

fn image(image: Image) -> v1::Image {
    let (uid, username) = user(&image.user);
    v1::Image {
        spec: Some(v1::ImageSpec { image: image.id.to_string(), ..Default::default() }),
        id: image.id.to_string(),
        repo_tags: image.repo_tags,
        repo_digests: image.repo_digests,
        size: image.size,
        uid,
        username,
        pinned: image.pinned,
    }
}

/// The user of an image's config: a number or a name, its group left out. The kubelet
/// decides runAsNonRoot by it, and takes none for root.
fn user(user: &str) -> (Option<v1::Int64Value>, String) {
    let name = user.split(':').next().unwrap_or_default();
    match name.parse() {
        Ok(value) => (Some(v1::Int64Value { value }), String::new()),
        Err(_) => (None, name.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_a_number_or_a_name_and_never_a_group() {
        let check = |text: &str, uid: Option<i64>, name: &str| {
            assert_eq!(user(text), (uid.map(|value| v1::Int64Value { value }), name.to_owned()));
        };
        check("", None, "");
        check("0", Some(0), "");
        check("1000:1000", Some(1000), "");
        check("www-data", None, "www-data");
        check("www-data:33", None, "www-data");
        check(":33", None, "");
        check("99999999999999999999", None, "99999999999999999999");
    }
}
