//! Calls of the CRI about images.

use proto::cri as v1;

use super::Backend;
use crate::error::{Error, Result};

#[expect(clippy::unused_async, reason = "every call has one form")]
pub(super) async fn list(
    backend: &Backend,
    request: v1::ListImagesRequest,
) -> Result<v1::ListImagesResponse> {
    let _ = (backend, request);
    Ok(Default::default())
}

#[expect(clippy::unused_async, reason = "every call has one form")]
pub(super) async fn status(
    backend: &Backend,
    request: v1::ImageStatusRequest,
) -> Result<v1::ImageStatusResponse> {
    let _ = (backend, request);
    Ok(Default::default())
}

#[expect(clippy::unused_async, reason = "every call has one form")]
pub(super) async fn pull(
    backend: &Backend,
    request: v1::PullImageRequest,
) -> Result<v1::PullImageResponse> {
    let _ = (backend, request);
    Err(Error::Unimplemented { what: "PullImage".into() })
}

#[expect(clippy::unused_async, reason = "every call has one form")]
pub(super) async fn remove(
    backend: &Backend,
    request: v1::RemoveImageRequest,
) -> Result<v1::RemoveImageResponse> {
    let _ = (backend, request);
    Ok(Default::default())
}

#[expect(clippy::unused_async, reason = "every call has one form")]
pub(super) async fn fs_info(
    backend: &Backend,
    request: v1::ImageFsInfoRequest,
) -> Result<v1::ImageFsInfoResponse> {
    let _ = (backend, request);
    Ok(Default::default())
}
