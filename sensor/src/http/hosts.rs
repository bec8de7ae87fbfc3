//! Whom a request is for. A web page whose name points to this host (DNS rebinding) has a browser ask in that name;
//! whoever means this host calls it by an address, as scrapers do, or by a name that it knows for its own.

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::http::header::HOST;
use axum::http::uri::Authority;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

/// Names that are answered to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hosts {
    names: Vec<String>,
}

impl Hosts {
    /// This host's own name, localhost, and these (`metrics.allowed_hosts`; "*": any).
    pub fn new(allowed: &[String]) -> Hosts {
        let own = rustix::system::uname().nodename().to_string_lossy().into_owned();
        let short = own.split('.').next().unwrap_or_default().to_owned();
        let names = ["localhost".to_owned(), short, own].into_iter().chain(allowed.iter().cloned());
        Hosts { names: names.map(|name| name.trim_end_matches('.').to_ascii_lowercase()).collect() }
    }

    /// Whether a Host header is one of ours, or an address. `None`: there is none, and no browser asks without.
    fn knows(&self, host: Option<&[u8]>) -> bool {
        let Some(host) = host else { return true };
        let Ok(authority) = Authority::try_from(host) else { return false };
        let name = authority.host().trim_end_matches('.').to_ascii_lowercase();
        let bare = name.trim_start_matches('[').trim_end_matches(']');
        bare.parse::<IpAddr>().is_ok() || self.names.iter().any(|known| *known == name || known == "*")
    }
}

/// Answers only to requests that mean this host.
pub(super) async fn known(State(hosts): State<Arc<Hosts>>, request: Request, next: Next) -> Response {
    if hosts.knows(request.headers().get(HOST).map(|host| host.as_bytes())) {
        return next.run(request).await;
    }
    let why = "this host is not known by that name; ask by its address, or add the name to metrics.allowed_hosts\n";
    (StatusCode::MISDIRECTED_REQUEST, why).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_names_of_this_host_are_known_and_no_others() {
        let hosts = Hosts { names: ["localhost", "edge1", "edge1.example.org"].map(str::to_owned).into() };
        for host in [
            "127.0.0.1:9469",
            "198.18.0.1",
            "[2001:db8::1]:9469",
            "[::1]",
            "LocalHost",
            "edge1:9469",
            "edge1.example.org.",
        ] {
            assert!(hosts.knows(Some(host.as_bytes())), "{host}");
        }
        for host in ["evil.example.org", "edge1.evil.example.org", "127.0.0.1.example.org", "", "a b", "\u{fc}"] {
            assert!(!hosts.knows(Some(host.as_bytes())), "{host}");
        }
        assert!(hosts.knows(None), "HTTP/1.0");
        assert!(Hosts::new(&["*".to_owned()]).knows(Some(b"anything.example.org")));
        assert!(!Hosts::new(&[]).knows(Some(b"anything.example.org")));
    }
}
