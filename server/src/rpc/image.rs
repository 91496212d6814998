//! The CRI's ImageService: one call, one line.

use proto::cri as v1;
use proto::cri::image_service_server::ImageService;
use tonic::codegen::BoxStream;
use tonic::{Request, Response, Status};

use super::not_served;

type Answer<T> = Result<Response<T>, Status>;

/// The service.
#[derive(Debug, Clone)]
pub struct Images;

#[tonic::async_trait]
impl ImageService for Images {
    type StreamImagesStream = BoxStream<v1::StreamImagesResponse>;

    async fn list_images(
        &self,
        _: Request<v1::ListImagesRequest>,
    ) -> Answer<v1::ListImagesResponse> {
        not_served("ListImages")
    }

    async fn stream_images(
        &self,
        _: Request<v1::StreamImagesRequest>,
    ) -> Answer<Self::StreamImagesStream> {
        not_served("StreamImages")
    }

    async fn image_status(
        &self,
        _: Request<v1::ImageStatusRequest>,
    ) -> Answer<v1::ImageStatusResponse> {
        not_served("ImageStatus")
    }

    async fn pull_image(&self, _: Request<v1::PullImageRequest>) -> Answer<v1::PullImageResponse> {
        not_served("PullImage")
    }

    async fn remove_image(
        &self,
        _: Request<v1::RemoveImageRequest>,
    ) -> Answer<v1::RemoveImageResponse> {
        not_served("RemoveImage")
    }

    async fn image_fs_info(
        &self,
        _: Request<v1::ImageFsInfoRequest>,
    ) -> Answer<v1::ImageFsInfoResponse> {
        not_served("ImageFsInfo")
    }
}
