//! The CRI's ImageService: one call, one line.

use proto::cri as v1;
use proto::cri::image_service_server::ImageService;
use tonic::codegen::BoxStream;
use tonic::{Request, Response, Status};

use super::{Backend, answer, batch, images};

type Answer<T> = Result<Response<T>, Status>;

/// The service.
#[derive(Debug, Clone)]
pub struct Images(pub Backend);

#[tonic::async_trait]
impl ImageService for Images {
    type StreamImagesStream = BoxStream<v1::StreamImagesResponse>;

    async fn list_images(
        &self,
        request: Request<v1::ListImagesRequest>,
    ) -> Answer<v1::ListImagesResponse> {
        answer(images::list(&self.0.app, request.get_ref()))
    }

    async fn stream_images(
        &self,
        request: Request<v1::StreamImagesRequest>,
    ) -> Answer<Self::StreamImagesStream> {
        let request = v1::ListImagesRequest { filter: request.into_inner().filter };
        let found = images::list(&self.0.app, &request).map(|list| list.images);
        batch::stream(found, |images| v1::StreamImagesResponse { images })
    }

    async fn image_status(
        &self,
        request: Request<v1::ImageStatusRequest>,
    ) -> Answer<v1::ImageStatusResponse> {
        answer(images::status(&self.0.app, request.into_inner()).await)
    }

    async fn pull_image(
        &self,
        request: Request<v1::PullImageRequest>,
    ) -> Answer<v1::PullImageResponse> {
        answer(images::pull(&self.0, request.into_inner()).await)
    }

    async fn remove_image(
        &self,
        request: Request<v1::RemoveImageRequest>,
    ) -> Answer<v1::RemoveImageResponse> {
        answer(images::remove(&self.0, request.into_inner()).await)
    }

    async fn image_fs_info(
        &self,
        _: Request<v1::ImageFsInfoRequest>,
    ) -> Answer<v1::ImageFsInfoResponse> {
        answer(Ok(images::fs_info(&self.0.app)))
    }
}
