//! Connections: accepted here, not by `axum::serve`, which has neither a header time-out nor a
//! bound of connections, and leaves clients without a problem that send no HTTP.

mod socket;
#[cfg(test)]
mod tests;
mod unread;

use std::convert::Infallible;
use std::error::Error;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::Request;
use axum::response::Response;
use hyper::body::{Frame, Incoming, SizeHint};
use hyper::server::conn::http1::{self, Parts};
use hyper::service::Service;
use hyper_util::rt::TokioIo;
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt as _;

use socket::{Exchange, Exchanges, Socket};

/// How long a client may take to send the headers of a request.
const HEADER_TIMEOUT: Duration = Duration::from_secs(15);
/// How long a connection may be idle between two requests.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
/// Bytes of headers that are held for one connection.
const MAX_HEADER_BYTES: usize = 64 << 10;
/// Headers of one request.
const MAX_HEADERS: usize = 100;
/// How long to wait when the host has no more descriptors.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// Serves `router` on `listener` until `stop`; then lets requests that are being answered end.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    max_connections: usize,
    tracker: &TaskTracker,
    stop: &CancellationToken,
) {
    let permits = Arc::new(Semaphore::new(max_connections));
    loop {
        // A place first: where there is none, the kernel's backlog waits.
        let permit = Arc::clone(&permits).acquire_owned();
        let Some(Ok(permit)) = stop.run_until_cancelled(permit).await else { return };
        let Some(accepted) = stop.run_until_cancelled(listener.accept()).await else { return };
        match accepted {
            Ok((stream, peer)) => {
                let connection = Connection { stream, peer, permit };
                tracker.spawn(connection.serve(router.clone(), stop.clone()));
            }
            Err(error) if is_of_one_connection(&error) => {}
            Err(error) => {
                tracing::error!(%error, "could not accept a connection");
                tokio::time::sleep(ACCEPT_RETRY).await;
            }
        }
    }
}

/// Whether the client has gone before it was accepted, which is nobody's fault.
fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

struct Connection {
    stream: TcpStream,
    peer: SocketAddr,
    permit: OwnedSemaphorePermit,
}

impl Connection {
    async fn serve(self, router: Router, stop: CancellationToken) {
        let Self { stream, peer, permit } = self;
        // An answer of one small packet must not wait for the acknowledgement of the one before.
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%peer, %error, "could not set TCP_NODELAY");
        }
        let exchanges = Arc::new(Exchanges::default());
        let socket = Socket::new(stream, Arc::clone(&exchanges));
        let mut connection = http1::Builder::new()
            .header_read_timeout(None)
            .max_buf_size(MAX_HEADER_BYTES)
            .max_headers(MAX_HEADERS)
            .serve_connection(TokioIo::new(socket), Answering { router, exchanges });
        let served = tokio::select! {
            served = poll_fn(|context| connection.poll_without_shutdown(context)) => served,
            () = stop.cancelled() => {
                Pin::new(&mut connection).graceful_shutdown();
                poll_fn(|context| connection.poll_without_shutdown(context)).await
            }
        };
        let Parts { io, read_buf, .. } = connection.into_parts();
        if let Err(error) = end(served, io.into_inner(), &read_buf).await {
            // Clients leave as they like; only who looks for it wants to know.
            tracing::debug!(%peer, %error, "a connection ended early");
        }
        drop(permit);
    }
}

/// Ends a connection that hyper is done with; tells the client why, if hyper could not.
async fn end(
    served: hyper::Result<()>,
    socket: Socket,
    unread: &[u8],
) -> Result<(), Box<dyn Error + Send + Sync>> {
    let problem = served.as_ref().err().and_then(|error| unread::problem(error, &socket, unread));
    let mut stream = socket.into_stream();
    match problem {
        Some(problem) => unread::tell(problem, stream).await?,
        None => stream.shutdown().await?,
    }
    Ok(served?)
}

/// The router as hyper calls it.
struct Answering {
    router: Router,
    exchanges: Arc<Exchanges>,
}

impl Service<Request<Incoming>> for Answering {
    type Response = Response<Answer>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let exchange = Exchange::begin(&self.exchanges);
        let response = self.router.clone().oneshot(request.map(Body::new));
        Box::pin(async { Ok(response.await?.map(|body| Answer { body, _exchange: exchange })) })
    }
}

/// The body of an answer, which has left when this is dropped.
struct Answer {
    body: Body,
    _exchange: Exchange,
}

impl hyper::body::Body for Answer {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
