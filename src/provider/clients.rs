//! The HTTP clients: one for each way in which connections to a provider are made.
//!
//! Where a connection goes is judged when it is opened, by the addresses that the resolver has just found, since a name
//! may lead elsewhere with each question. Behind a proxy nobody here resolves the name: it is judged by its spelling, and
//! the proxy's rules are the operator's.

use std::collections::HashMap;
use std::error::Error;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hyper_util::client::proxy::matcher::Matcher;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use url::Url;

use super::tls::{self, Authorities};
use crate::client::outbound::Outbound;
use crate::reply::Reply;
use crate::tls::TlsError;

/// How a connection is made.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Way {
    outbound: Arc<Outbound>,
    pooled: bool,
    proxied: bool,
}

/// Makes each client when it is first needed: profiles may change while the process runs.
pub(super) struct Clients {
    connect_timeout: Duration,
    /// The proxies that the environment names, asked by the code that the client asks itself.
    proxies: Matcher,
    authorities: Authorities,
    made: Mutex<HashMap<Way, reqwest::Client>>,
}

impl Clients {
    pub(super) fn new(connect_timeout: Duration) -> Self {
        Self {
            connect_timeout,
            proxies: Matcher::from_system(),
            authorities: Authorities::default(),
            made: Mutex::default(),
        }
    }

    /// The client for a request to `url`, or why there is none.
    pub(super) fn client(
        &self,
        url: &Url,
        outbound: &Arc<Outbound>,
        pooled: bool,
    ) -> Result<reqwest::Client, Reply> {
        let unsent = |code: &str| Reply::NotSent(code.to_owned());
        // The resolver is not asked for hosts that are addresses.
        if !outbound.admits_spelling(url) {
            return Err(unsent(FORBIDDEN));
        }
        let uri = url.as_str().parse().map_err(|_| unsent("token_url_unusable"))?;
        let proxied = self.proxies.intercept(&uri).is_some();
        let way = Way { outbound: Arc::clone(outbound), pooled, proxied };
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = made.get(&way) {
            return Ok(client.clone());
        }
        let client = self.make(&way).map_err(|error| {
            tracing::warn!(%error, "no connection to the provider can be secured");
            unsent("tls_unusable")
        })?;
        made.insert(way, client.clone());
        Ok(client)
    }

    fn make(&self, way: &Way) -> Result<reqwest::Client, TlsError> {
        let client = reqwest::Client::builder()
            .user_agent(concat!("perennial/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(self.connect_timeout)
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never())
            .pool_max_idle_per_host(if way.pooled { 4 } else { 0 })
            .tls_backend_preconfigured(tls::configuration(&way.outbound, &self.authorities)?);
        let client = if way.proxied {
            client
        } else {
            client.no_proxy().dns_resolver(Arc::new(Guard(Arc::clone(&way.outbound))))
        };
        client.build().map_err(|error| TlsError::Library(error.to_string()))
    }
}

/// The code of requests that would have gone where the profile does not allow.
const FORBIDDEN: &str = "forbidden_address";

/// A name that leads only where the profile does not allow.
#[derive(Debug, thiserror::Error)]
#[error("the name leads to no address that the provider's profile allows")]
struct Forbidden;

/// The system's resolver, less what the profile does not allow.
struct Guard(Arc<Outbound>);

impl Resolve for Guard {
    fn resolve(&self, name: Name) -> Resolving {
        let outbound = Arc::clone(&self.0);
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            let admitted = admitted(found, &outbound)?;
            Ok(Box::new(admitted.into_iter()) as Addrs)
        })
    }
}

fn admitted(
    found: impl Iterator<Item = SocketAddr>,
    outbound: &Outbound,
) -> Result<Vec<SocketAddr>, Forbidden> {
    let admitted: Vec<_> = found.filter(|address| outbound.admits(address.ip())).collect();
    if admitted.is_empty() { Err(Forbidden) } else { Ok(admitted) }
}

/// A request that failed without an answer: only a connection that never stood is sure not to have carried it.
pub(super) fn unsent_or_unknown(error: &reqwest::Error) -> Reply {
    if error.is_builder() {
        return Reply::NotSent("request_not_built".into());
    }
    if error.is_connect() {
        let code = if cause::<Forbidden>(error).is_some() {
            FORBIDDEN
        } else if let Some(error) = cause::<rustls::Error>(error) {
            tls::code(error)
        } else if error.is_dns() {
            "dns"
        } else if error.is_timeout() {
            "connect_timeout"
        } else {
            "connect"
        };
        return Reply::NotSent(code.into());
    }
    let code = if error.is_timeout() { "timeout" } else { "connection_lost" };
    Reply::Unknown { code: code.into(), server_fault: false, after: None }
}

/// The error of this kind that lies at the bottom, wrapped in others.
fn cause<'a, E: Error + 'static>(error: &'a (dyn Error + 'static)) -> Option<&'a E> {
    let mut current = Some(error);
    while let Some(error) = current {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        // What an `io::Error` is made of is not its source, but its source's parent.
        let inside = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        current = inside.map(|inside| inside as &(dyn Error + 'static)).or_else(|| error.source());
    }
    None
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn of_an_answer_only_what_is_admissible_is_tried() {
        let answer = |addresses: &[&str]| {
            let addresses: Vec<SocketAddr> =
                addresses.iter().map(|address| address.parse().expect("an address")).collect();
            admitted(addresses.into_iter(), &Outbound::default())
        };
        let mixed = answer(&["10.0.0.1:0", "1.1.1.1:0", "[fd00:ec2::254]:0", "[2606:4700::1111]:0"]);
        let left = mixed.expect("two are public").iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(left, ["1.1.1.1:0", "[2606:4700::1111]:0"]);
        assert!(answer(&["169.254.169.254:0", "[::ffff:127.0.0.1]:0"]).is_err());
    }

    /// As a name that its owner has lead to this machine: spelt, nothing is wrong with it.
    #[tokio::test]
    async fn a_name_that_leads_to_a_forbidden_address_is_not_connected_to() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
        listener.set_nonblocking(true).expect("a socket");
        let url = format!("http://localhost:{}/", listener.local_addr().expect("it is bound").port());
        let clients = Clients::new(Duration::from_secs(5));
        let way = |loopback| Way {
            outbound: Arc::new(Outbound { loopback, ..Outbound::default() }),
            pooled: false,
            proxied: false,
        };
        let client = clients.make(&way(false)).expect("TLS");
        let bound = Duration::from_secs(10);
        let refused =
            tokio::time::timeout(bound, client.get(&url).send()).await.expect("nobody is waited for");
        let error = refused.expect_err("it leads to loopback");
        assert_eq!(unsent_or_unknown(&error), Reply::NotSent(FORBIDDEN.into()));
        let nobody = listener.accept().expect_err("no connection");
        assert_eq!(nobody.kind(), io::ErrorKind::WouldBlock);

        // The same is connected to where it is allowed.
        let client = clients.make(&way(true)).expect("TLS");
        let asking = tokio::spawn(client.get(&url).send());
        let connected = async {
            while listener.accept().is_err() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(bound, connected).await.expect("a connection");
        asking.abort();
    }
}
