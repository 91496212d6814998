//! Images for containers: found by any of their names, and what a container remembers of them.

use images::{Image, ImageId, Lease};

use crate::app::App;
use crate::config::Config;
use crate::container::plan::{FoundSource, ImageDefaults};
use crate::container::spec::ContainerSpec;
use crate::container::{self, Container, MountedImage};
use crate::error::{Error, Result};
use crate::instance::Instance;
use crate::signal;

/// Where the root directory has images.
const DIRECTORY: &str = "images";

/// An image that a container starts from. While the lease lives, its layers stay.
#[derive(Debug)]
pub struct Found {
    /// What lists tell of it.
    pub image: Image,
    layers: Vec<String>,
    stop_signal: Option<u32>,
    /// What it says of processes.
    pub defaults: ImageDefaults,
    /// Keeps its layers.
    pub lease: Lease,
}

/// How the image store is opened.
pub fn config(config: &Config, instance: &Instance) -> images::Config {
    images::Config {
        directory: instance.root.join(DIRECTORY),
        registry: images::registry::Config {
            hosts_dirs: config.images.hosts_dirs.clone(),
            limits: config.limits.images.clone(),
            ..Default::default()
        },
        pinned: Vec::new(),
        platform: None,
    }
}

/// Finds an image that is here.
///
/// # Errors
/// `NotFound`: images are pulled by PullImage, never by a create.
pub fn find(app: &App, name: &str) -> Result<Found> {
    let image = app.images.status(name)?.ok_or_else(|| Error::Failed {
        doing: format!("find image {name}"),
        source: "it is not on this node; pull it first".into(),
    })?;
    let config = app.images.config(&image.id)?;
    let lease = app.images.layers(&image.id)?;
    let layers = relative_layers(app, &lease)?;
    Ok(Found {
        image,
        layers,
        stop_signal: config.stop_signal.as_deref().and_then(signal::parse),
        defaults: ImageDefaults {
            env: config.env,
            entrypoint: config.entrypoint,
            cmd: config.cmd,
            working_dir: config.working_dir,
            user: config.user,
            volumes: config.volumes,
        },
        lease,
    })
}

/// Names of layers relative to the root directory, top first: mount options have little room.
fn relative_layers(app: &App, lease: &Lease) -> Result<Vec<String>> {
    let base = lease.base.strip_prefix(&app.instance.root).map_err(|_| Error::Failed {
        doing: format!("use the layers in {}", lease.base.display()),
        source: "they are not below the root directory".into(),
    })?;
    Ok(lease.lowers.iter().map(|layer| base.join(layer).to_string_lossy().into_owned()).collect())
}

impl Found {
    /// What a container remembers of its image.
    pub fn remembered(&self, spec: &ContainerSpec) -> container::Image {
        let id = self.image.id.to_string();
        let first = |names: &[String]| names.first().cloned();
        container::Image {
            reference: first(&self.image.repo_digests).unwrap_or_else(|| id.clone()),
            name: first(&self.image.repo_tags).unwrap_or_else(|| spec.image.clone()),
            id,
            layers: self.layers.clone(),
            stop_signal: self.stop_signal,
        }
    }
}

/// The layers of an image that is mounted into a container, which keeps them from now on.
///
/// # Errors
/// As [`find`].
pub fn mount_source(app: &App, container: &Container, name: &str) -> Result<FoundSource> {
    let found = find(app, name)?;
    let source = FoundSource::Image {
        base: app.instance.root.to_string_lossy().into_owned(),
        lowers: found.layers.clone(),
    };
    let mounted = MountedImage { id: found.image.id.to_string(), layers: found.layers };
    container.change(|record| record.mounted_images.push(mounted));
    hold(app, container, &found.image.id, found.lease);
    Ok(source)
}

/// Takes layers again that a container had before a restart of the daemon.
///
/// # Errors
/// They are gone, or the record is not of this version.
pub fn hold_again(app: &App, container: &Container, id: &str, layers: &[String]) -> Result<()> {
    let id: ImageId = id.parse()?;
    let name = |layer: &String| layer.rsplit('/').next().unwrap_or_default().to_owned();
    let lease = app.images.lease_for(&id, &layers.iter().map(name).collect::<Vec<_>>())?;
    hold(app, container, &id, lease);
    Ok(())
}

/// Gives layers to a container. The kubelet knows nothing of containers of `berth run`, so it must not collect their images.
pub fn hold(app: &App, container: &Container, id: &ImageId, lease: Lease) {
    let local = container.record().spec.local.is_some();
    container.hold(lease, local.then(|| app.images.pin(id)));
}

/// The digest by which an image is known here; empty where it is not.
pub fn reference_of(app: &App, name: &str) -> String {
    let image = app.images.status(name).ok().flatten();
    let reference = image
        .map(|image| image.repo_digests.first().cloned().unwrap_or_else(|| image.id.to_string()));
    reference.unwrap_or_default()
}

/// What is known of an image, as JSON; none where there is none of that name.
///
/// # Errors
/// The name cannot be one.
pub fn inspect(app: &App, name: &str) -> Result<Option<String>> {
    let Some(image) = app.images.status(name)? else { return Ok(None) };
    let json = serde_json::json!({
        "kind": "image",
        "id": image.id.to_string(),
        "tags": image.repo_tags,
        "digests": image.repo_digests,
        "size": image.size,
    });
    Ok(Some(json.to_string()))
}
