//! Several gRPC services behind one listener: the first part of the path names the service.
//!
//! tonic's own router brings axum along; a map does the same.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::{BoxFuture, Service, http};
use tonic::server::NamedService;

type Answer = BoxFuture<http::Response<Body>, Infallible>;
type Route = Arc<dyn Fn(http::Request<Body>) -> Answer + Send + Sync>;

/// The services by name.
#[derive(Clone, Default)]
pub(crate) struct Routes {
    routes: BTreeMap<&'static str, Route>,
}

impl Routes {
    /// With one more service.
    pub(crate) fn with<S>(mut self, service: S) -> Self
    where
        S: NamedService + Clone + Send + Sync + 'static,
        S: Service<
                http::Request<Body>,
                Response = http::Response<Body>,
                Error = Infallible,
                Future = Answer,
            >,
    {
        // Services of tonic are always ready: they have no state of their own to wait for.
        let route = move |request| service.clone().call(request);
        self.routes.insert(S::NAME, Arc::new(route));
        self
    }
}

impl Service<http::Request<Body>> for Routes {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Answer;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Answer {
        let name = request.uri().path().split('/').nth(1).unwrap_or_default();
        match self.routes.get(name) {
            Some(route) => route(request),
            None => {
                let text = format!("no service {name:?} here");
                Box::pin(async move { Ok(Status::unimplemented(text).into_http()) })
            }
        }
    }
}
