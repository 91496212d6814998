//! Pulling and removing the image, as the kubelet asks for it.

use std::time::Instant;

use anyhow::{Context, Result};
use proto::cri as v1;
use proto::cri::image_service_client::ImageServiceClient;

use crate::measure::{self, Target};
use crate::report::Print;

fn spec(target: &Target) -> Option<v1::ImageSpec> {
    Some(v1::ImageSpec {
        image: target.image.clone(),
        runtime_handler: target.handler.clone(),
        ..Default::default()
    })
}

/// Pulls the image, until the server answers.
pub(crate) async fn pull(target: &Target, print: Print) -> Result<()> {
    let mut client = ImageServiceClient::new(measure::channel(target).await?);
    let request = v1::PullImageRequest { image: spec(target), ..Default::default() };
    let begun = Instant::now();
    client.pull_image(request).await.context("PullImage")?;
    print.times("PullImage", vec![begun.elapsed()]);
    Ok(())
}

/// Removes the image, until the server answers. It may give the space back later.
pub(crate) async fn remove(target: &Target, print: Print) -> Result<()> {
    let mut client = ImageServiceClient::new(measure::channel(target).await?);
    let begun = Instant::now();
    client
        .remove_image(v1::RemoveImageRequest { image: spec(target) })
        .await
        .context("RemoveImage")?;
    print.times("RemoveImage", vec![begun.elapsed()]);
    Ok(())
}
