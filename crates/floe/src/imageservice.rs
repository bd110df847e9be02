//! The image service of kubelet's containerd, heard on its way: what a pod's secrets say of an image (`imagePullSecrets`) is sent
//! with the call that has it pulled, and nowhere else.
//!
//! kubelet is told to ask here (`--image-service-endpoint`). Every call goes on to containerd as it came, and so does the answer;
//! of `PullImage` the credentials are noted, for the time of the call, and longer if it succeeds. No layer has to be fetched in that call for the image to be lazy, and what is read later is fetched with
//! them.
//!
//! They are kept until the next boot only. An image that was had with them, and is not all here, is not there after that as far as `ImageStatus`
//! goes: so kubelet has it pulled again, with the pod's secret, before a container stands on what cannot be fetched.

use std::path::Path;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll};

use anyhow::Context;
use containerd::cri::{AuthConfig, ImageSpec, ImageStatusRequest, PullImageRequest};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use prost::Message;
use registry::{ImageName, Login, Offer, Reference, Secret};
use tonic::body::Body;
use tonic::codegen::{BoxFuture, Service, http};
use tonic::server::NamedService;
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::daemon::grpc::{self, At, Serving, Socket};
use crate::engine::Engine;

/// The longest call or answer that is held here, in bytes: kubelet's own limit.
const LONGEST: usize = 16 << 20;

/// What begins a message: whether it is compressed, and its length.
const PREFIX: usize = 5;

const PULL: &str = "/runtime.v1.ImageService/PullImage";
const STATUS: &str = "/runtime.v1.ImageService/ImageStatus";

/// Hears what is asked at a socket, and hands it on to a containerd, which need not be there yet.
pub(crate) fn serve(engine: &Arc<Engine>, at: At<'_>, containerd: &Path) -> anyhow::Result<Serving> {
    let socket = Socket::listen(at, "images")?;
    let address = containerd.to_owned();
    let connector = tower::service_fn(move |_| grpc::dial(address.clone()));
    let services = || {
        let endpoint = tonic::transport::Endpoint::from_static("http://containerd");
        let channel = endpoint.connect_with_connector_lazy(connector);
        let containerd = containerd.display().to_string().into();
        let proxy = Proxy { channel, engine: engine.clone(), containerd };
        tonic::transport::Server::builder().add_service(proxy)
    };
    socket.serve(services).context("serving kubelet")
}

/// What stands between kubelet and containerd.
#[derive(Clone)]
struct Proxy {
    channel: Channel,
    engine: Arc<Engine>,
    containerd: Arc<str>,
}

impl NamedService for Proxy {
    const NAME: &'static str = "runtime.v1.ImageService";
}

impl Service<http::Request<Body>> for Proxy {
    type Response = http::Response<Body>;
    type Error = std::convert::Infallible;
    type Future = BoxFuture<Self::Response, Self::Error>;

    fn poll_ready(&mut self, _: &mut TaskContext<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(())) // a containerd that is away is an answer
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let proxy = self.clone();
        Box::pin(async move { Ok(proxy.answer(request).await.unwrap_or_else(Status::into_http)) })
    }
}

impl Proxy {
    async fn answer(mut self, request: http::Request<Body>) -> Result<http::Response<Body>, Status> {
        match request.uri().path() {
            PULL => self.pull(request).await,
            STATUS => self.status(request).await,
            _ => self.hand_on(request).await,
        }
    }

    async fn pull(&mut self, request: http::Request<Body>) -> Result<http::Response<Body>, Status> {
        let (head, body) = request.into_parts();
        let body = held(body).await?;
        let offer = body.message().and_then(|asked| self.offered(asked));
        let (head, body) = self.hand_on(http::Request::from_parts(head, body.again())).await?.into_parts();
        let body = held(body).await?;
        let status = body.trailers.as_ref().and_then(Status::from_header_map);
        let status = status.or_else(|| Status::from_header_map(&head.headers));
        if let Some(offer) = offer
            && status.is_some_and(|status| status.code() == Code::Ok)
        {
            // A file is written.
            let accepted = tokio::task::spawn_blocking(|| offer.accept()).await;
            if let Ok(Err(error)) = accepted {
                tracing::warn!("{error}; they are known until this daemon ends");
            }
        }
        Ok(http::Response::from_parts(head, body.again()))
    }

    async fn status(&mut self, request: http::Request<Body>) -> Result<http::Response<Body>, Status> {
        let (head, body) = request.into_parts();
        let body = held(body).await?;
        let asked = body.message().and_then(|asked: ImageStatusRequest| named(asked.image));
        if let Some(image) = asked {
            let engine = self.engine.clone();
            let lacks = move || crate::snapshotter::lacks_secret(&engine, &image).then_some(image);
            // Files of the store are looked at.
            if let Ok(Some(image)) = tokio::task::spawn_blocking(lacks).await {
                let image = Reference::Registry(image);
                tracing::info!(%image, "kubelet is to pull it again: the pod's secret is not known any more");
                return Ok(nothing());
            }
        }
        self.hand_on(http::Request::from_parts(head, body.again())).await
    }

    /// Notes the credentials in a call, if there are any for this image.
    fn offered(&self, asked: PullImageRequest) -> Option<Offer> {
        let (image, auth) = (named(asked.image)?, asked.auth?);
        self.engine.handed()?.offer(&image, &login(&auth), &auth.server_address)
    }

    async fn hand_on(&mut self, request: http::Request<Body>) -> Result<http::Response<Body>, Status> {
        let failed = |error: tonic::transport::Error| {
            Status::unavailable(format!("asking containerd at {}: {error}", self.containerd))
        };
        let mut channel = self.channel.clone();
        std::future::poll_fn(|task| channel.poll_ready(task)).await.map_err(failed)?;
        channel.call(request).await.map_err(failed)
    }
}

/// A whole body.
struct Held {
    messages: Bytes,
    trailers: Option<http::HeaderMap>,
}

impl Held {
    /// Returns the one message; kubelet compresses none.
    fn message<T: Message + Default>(&self) -> Option<T> {
        let (prefix, message) = self.messages.split_at_checked(PREFIX)?;
        (prefix[0] == 0).then(|| T::decode(message).ok())?
    }

    fn again(self) -> Body {
        let trailers = self.trailers.map(Ok);
        Body::new(Full::new(self.messages).with_trailers(async { trailers }))
    }
}

async fn held(body: Body) -> Result<Held, Status> {
    let whole = Limited::new(body, LONGEST).collect().await.map_err(|error| {
        Status::resource_exhausted(format!("handing on a message of the image service: {error}"))
    })?;
    let trailers = whole.trailers().cloned();
    Ok(Held { messages: whole.to_bytes(), trailers })
}

/// Returns the image that is meant, if it is one of a registry, as everything that clients of containerd call an image is.
fn named(image: Option<ImageSpec>) -> Option<ImageName> {
    match format!("docker://{}", image?.image).parse().ok()? {
        Reference::Registry(image) => Some(image),
        _ => None,
    }
}

/// Returns the answer that there is no such image: a message without fields.
fn nothing() -> http::Response<Body> {
    let mut trailers = http::HeaderMap::new();
    trailers.insert(Status::GRPC_STATUS, http::HeaderValue::from_static("0"));
    let body = Held { messages: Bytes::from_static(&[0; PREFIX]), trailers: Some(trailers) }.again();
    let mut answer = http::Response::new(body);
    answer.headers_mut().insert(http::header::CONTENT_TYPE, tonic::metadata::GRPC_CONTENT_TYPE);
    answer
}

fn login(auth: &AuthConfig) -> Login {
    let given = |text: &String| (!text.is_empty()).then(|| text.clone());
    let secret = |text: &String| given(text).map(Secret::new);
    Login {
        auth: secret(&auth.auth),
        username: given(&auth.username),
        password: secret(&auth.password),
        identitytoken: secret(&auth.identity_token),
        registrytoken: secret(&auth.registry_token),
    }
}
