//! Tests of a real server behind the listener, with clients that speak gRPC or bytes.

use std::path::{Path, PathBuf};

use hyper_util::rt::TokioIo;
use proto::cri as v1;
use proto::cri::image_service_client::ImageServiceClient;
use proto::cri::image_service_server::{ImageService, ImageServiceServer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Server, Uri};
use tonic::{Request, Status};

use super::super::{Peer, accept, bind};
use super::codec::{Table, Way};

/// A server for as long as it is kept.
struct Served {
    folder: tempfile::TempDir,
    _task: tokio::task::JoinHandle<Result<(), tonic::transport::Error>>,
    _file: Box<dyn Send>,
}

impl Served {
    fn socket(&self) -> PathBuf {
        self.folder.path().join("berth.sock")
    }
}

/// A service that needs no daemon behind it: it has no images.
struct Empty;

#[tonic::async_trait]
impl ImageService for Empty {
    type StreamImagesStream = tonic::codegen::BoxStream<v1::StreamImagesResponse>;

    async fn list_images(
        &self,
        _: Request<v1::ListImagesRequest>,
    ) -> Result<tonic::Response<v1::ListImagesResponse>, Status> {
        Ok(tonic::Response::new(v1::ListImagesResponse::default()))
    }

    async fn stream_images(
        &self,
        _: Request<v1::StreamImagesRequest>,
    ) -> Result<tonic::Response<Self::StreamImagesStream>, Status> {
        Err(Status::unimplemented("not here"))
    }

    async fn image_status(
        &self,
        _: Request<v1::ImageStatusRequest>,
    ) -> Result<tonic::Response<v1::ImageStatusResponse>, Status> {
        Err(Status::unimplemented("not here"))
    }

    async fn pull_image(
        &self,
        _: Request<v1::PullImageRequest>,
    ) -> Result<tonic::Response<v1::PullImageResponse>, Status> {
        Err(Status::unimplemented("not here"))
    }

    async fn remove_image(
        &self,
        _: Request<v1::RemoveImageRequest>,
    ) -> Result<tonic::Response<v1::RemoveImageResponse>, Status> {
        Err(Status::unimplemented("not here"))
    }

    async fn image_fs_info(
        &self,
        _: Request<v1::ImageFsInfoRequest>,
    ) -> Result<tonic::Response<v1::ImageFsInfoResponse>, Status> {
        Err(Status::unimplemented("not here"))
    }
}

/// Serves lists of images to at most `bound` connections, and only to this process.
fn serve(bound: usize) -> Served {
    let folder = tempfile::tempdir().unwrap();
    let (listener, file) =
        bind(&folder.path().join("berth.sock"), "berth").unwrap().into_tokio().unwrap();
    let service = ImageServiceServer::with_interceptor(Empty, |request: Request<()>| {
        let us = i32::try_from(std::process::id()).unwrap();
        match request.extensions().get::<Peer>() {
            Some(peer) if peer.pid == Some(us) => Ok(request),
            other => Err(Status::permission_denied(format!("{other:?}"))),
        }
    });
    let server = Server::builder().add_service(service);
    let task = tokio::spawn(server.serve_with_incoming(accept(listener, bound)));
    Served { folder, _task: task, _file: Box::new(file) }
}

pub(crate) async fn client(socket: &Path) -> ImageServiceClient<Channel> {
    let socket = socket.to_owned();
    let connect = tower::service_fn(move |_: Uri| {
        let socket = socket.clone();
        async move { Ok::<_, std::io::Error>(TokioIo::new(UnixStream::connect(socket).await?)) }
    });
    let endpoint = Endpoint::from_static("http://localhost");
    ImageServiceClient::new(endpoint.connect_with_connector(connect).await.unwrap())
}

/// The code of a ListImages call made byte by byte, as a client does that names `authority`.
async fn raw_list(socket: &Path, calls: u32, authority: &str, way: &Way) -> Vec<String> {
    let mut stream = UnixStream::connect(socket).await.unwrap();
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
    let mut table = Table::new();
    let mut reader = Table::new();
    let mut statuses = Vec::new();
    for call in 0..calls {
        let stream_id = (2 * call + 1).to_be_bytes();
        let field = |name: &str, value: &str| ((name.into(), value.into()), way.clone());
        let block = table.encode(
            None,
            &[
                field(":path", "/runtime.v1.ImageService/ListImages"),
                field(":authority", authority),
                field(":method", "POST"),
                field(":scheme", "http"),
                field("content-type", "application/grpc"),
                field("te", "trailers"),
            ],
        );
        let head = [0, 0, u8::try_from(block.len()).unwrap(), 1, 4];
        let data = [&[0, 0, 5, 0, 1][..], &stream_id, &[0; 5]].concat();
        stream.write_all(&[&head[..], &stream_id, &block, &data].concat()).await.unwrap();
        statuses.push(read_status(&mut stream, &mut reader).await);
    }
    statuses
}

/// Reads frames until one ends a stream, and returns the gRPC status in it.
async fn read_status(stream: &mut UnixStream, table: &mut Table) -> String {
    loop {
        let mut head = [0; 9];
        stream.read_exact(&mut head).await.unwrap();
        let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
        stream.read_exact(&mut payload).await.unwrap();
        match head[3] {
            1 => {
                let fields = table.decode(&payload).unwrap();
                let status = fields.iter().find(|(name, _)| name == b"grpc-status");
                if let Some((_, value)) = status {
                    return String::from_utf8(value.clone()).unwrap();
                }
            }
            3 | 7 => return format!("frame {} {payload:?}", head[3]),
            _ => (),
        }
    }
}

#[tokio::test]
async fn a_tonic_client_is_served_and_known_by_its_credentials() {
    let served = serve(4);
    let answer =
        client(&served.socket()).await.list_images(v1::ListImagesRequest::default()).await.unwrap();
    assert!(answer.into_inner().images.is_empty());
}

#[tokio::test]
async fn clients_are_served_whatever_they_call_the_authority() {
    let served = serve(4);
    for authority in [
        "localhost",
        "/run/berth/berth.sock",
        "run%2Fberth.sock",
        "%2Frun%2Fberth.sock",
        "",
        "a:b:c",
        "ä",
    ] {
        for form in [0x40, 0x10, 0x00] {
            for by_index in [true, false] {
                for huffman in [true, false] {
                    let way = Way {
                        by_index,
                        name_by_index: by_index,
                        newest: true,
                        huffman_name: huffman,
                        huffman_value: huffman,
                        form,
                    };
                    let statuses = raw_list(&served.socket(), 3, authority, &way).await;
                    assert_eq!(statuses, ["0", "0", "0"], "{authority:?}, {way:?}");
                }
            }
        }
    }
}

#[tokio::test]
async fn clients_over_the_bound_wait_for_their_turn() {
    let served = serve(2);
    let first = client(&served.socket()).await;
    let mut second = client(&served.socket()).await;
    second.list_images(v1::ListImagesRequest::default()).await.unwrap();
    let socket = served.socket();
    let mut third = tokio::spawn(async move {
        let mut client = client(&socket).await;
        client.list_images(v1::ListImagesRequest::default()).await.unwrap();
    });
    for _ in 0..100 {
        second.list_images(v1::ListImagesRequest::default()).await.unwrap();
    }
    assert!(!third.is_finished());
    drop(first);
    (&mut third).await.unwrap();
}

#[tokio::test]
async fn a_header_block_without_end_ends_its_connection_only() {
    let served = serve(4);
    let mut flood = UnixStream::connect(served.socket()).await.unwrap();
    let begin = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0\0\0\0\x01\0\0\0\0\x01";
    flood.write_all(begin).await.unwrap();
    let more = b"\0\0\0\x09\0\0\0\0\x01".repeat(100);
    flood.write_all(&more).await.unwrap();
    let mut rest = Vec::new();
    // Reset or closed: the server has left either way.
    flood.read_to_end(&mut rest).await.ok();
    client(&served.socket()).await.list_images(v1::ListImagesRequest::default()).await.unwrap();
}
