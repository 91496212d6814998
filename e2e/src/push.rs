//! Pushing images to a registry by plain HTTP: as much of the OCI distribution spec as a test needs.

use anyhow::{Context, Result, bail};
use base64::Engine;
use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE, LOCATION};
use http::{Method, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;

use crate::image::{Content, Image};

/// A registry to push to.
#[derive(Clone, Debug)]
pub struct Target {
    /// `host:port`.
    pub address: String,
    /// User and password for basic authentication.
    pub login: Option<(String, String)>,
}

type HttpClient = Client<HttpConnector, Full<Bytes>>;

/// Pushes an image to a repository and points a tag at it.
pub async fn push(target: &Target, repository: &str, tag: &str, image: &Image) -> Result<()> {
    let client = Client::builder(TokioExecutor::new()).build_http();
    for blob in &image.blobs {
        push_blob(&client, target, repository, blob).await?;
    }
    for manifest in &image.manifests {
        put_manifest(&client, target, repository, &manifest.digest, manifest).await?;
    }
    put_manifest(&client, target, repository, tag, &image.root).await
}

/// Spec section "Pushing a blob monolithically": POST for a place, PUT of all the bytes there.
async fn push_blob(
    client: &HttpClient,
    target: &Target,
    repository: &str,
    blob: &Content,
) -> Result<()> {
    let url = format!("http://{}/v2/{repository}/blobs/{}", target.address, blob.digest);
    if send(client, target, Method::HEAD, &url, "", Bytes::new()).await?.status() == StatusCode::OK
    {
        return Ok(());
    }
    let url = format!("http://{}/v2/{repository}/blobs/uploads/", target.address);
    let place = send(client, target, Method::POST, &url, "", Bytes::new()).await?;
    let location =
        place.headers().get(LOCATION).context("an upload without a location")?.to_str()?;
    let location = match location.strip_prefix('/') {
        Some(path) => format!("http://{}/{path}", target.address),
        None => location.to_owned(),
    };
    let separator = if location.contains('?') { '&' } else { '?' };
    let url = format!("{location}{separator}digest={}", blob.digest);
    let reply =
        send(client, target, Method::PUT, &url, "application/octet-stream", blob.bytes.clone())
            .await?;
    expect(reply, StatusCode::CREATED, &blob.digest).await
}

async fn put_manifest(
    client: &HttpClient,
    target: &Target,
    repository: &str,
    name: &str,
    manifest: &Content,
) -> Result<()> {
    let url = format!("http://{}/v2/{repository}/manifests/{name}", target.address);
    let reply =
        send(client, target, Method::PUT, &url, &manifest.media_type, manifest.bytes.clone())
            .await?;
    expect(reply, StatusCode::CREATED, &format!("{repository}:{name}")).await
}

async fn send(
    client: &HttpClient,
    target: &Target,
    method: Method,
    url: &str,
    media_type: &str,
    body: Bytes,
) -> Result<Response<hyper::body::Incoming>> {
    let mut request = Request::builder().method(method).uri(url.parse::<Uri>()?);
    if !media_type.is_empty() {
        request = request.header(CONTENT_TYPE, media_type);
    }
    if let Some((user, password)) = &target.login {
        let token = base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}"));
        request = request.header(AUTHORIZATION, format!("Basic {token}"));
    }
    client.request(request.body(Full::new(body))?).await.with_context(|| format!("send to {url}"))
}

async fn expect(
    reply: Response<hyper::body::Incoming>,
    status: StatusCode,
    what: &str,
) -> Result<()> {
    let got = reply.status();
    let body = reply.into_body().collect().await?.to_bytes();
    if got != status {
        bail!("push {what}: {got}: {}", String::from_utf8_lossy(&body));
    }
    Ok(())
}
