//! What is not answered, whoever asks: requests that came another way than from a program of this machine.
//!
//! A proxy of any kind, a browser, or a name of somebody else's that leads to 127.0.0.1 (DNS rebinding) puts requests
//! on a loopback port that nobody on this machine meant to send (server-side request forgery). Each leaves a trace in
//! the request itself.

use std::net::SocketAddr;

use http::header::{FORWARDED, HOST, HeaderName, ORIGIN, VIA};
use http::request::Parts;
use http::uri::Authority;

use super::problem::Problem;
use crate::client::is_this_machine;

/// Refuses a request that was forwarded, or meant for another host.
pub(super) fn admit(request: &Parts, is_local: bool) -> Result<(), Problem> {
    if request.uri.authority().is_some() || request.uri.scheme().is_some() {
        return Err(Problem::ForwardedRequest("an absolute-form target"));
    }
    let mut hosts = 0;
    for (name, value) in &request.headers {
        if let Some(trace) = trace(name) {
            return Err(Problem::ForwardedRequest(trace));
        }
        if name == HOST {
            hosts += 1;
            if is_local && !value.to_str().is_ok_and(is_here) {
                return Err(Problem::AnotherHost);
            }
        }
    }
    if hosts > 1 { Err(Problem::AnotherHost) } else { Ok(()) }
}

fn trace(name: &HeaderName) -> Option<&'static str> {
    match name.as_str() {
        "x-forwarded-for" => Some("X-Forwarded-For"),
        _ if name == FORWARDED => Some("Forwarded"),
        _ if name == VIA => Some("Via"),
        _ if name == ORIGIN => Some("Origin"),
        // The `fetch` of Node.js says this alone; browsers never say it without `Sec-Fetch-Site` (W3C Fetch Metadata).
        "sec-fetch-mode" => None,
        name if name.starts_with("sec-fetch-") => Some("Sec-Fetch-*"),
        _ => None,
    }
}

/// An address with a port, as nearly everybody writes it, is read as that: it is quicker than as an authority.
fn is_here(host: &str) -> bool {
    if let Ok(address) = host.parse::<SocketAddr>() {
        return address.ip().is_loopback();
    }
    host.parse::<Authority>().is_ok_and(|host| !host.as_str().contains('@') && is_this_machine(&host))
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn admitted(target: &str, headers: &[(&str, &str)]) -> bool {
        let request =
            headers.iter().fold(Request::get(target), |request, (name, value)| request.header(*name, *value));
        admit(&request.body(()).expect("a request").into_parts().0, true).is_ok()
    }

    #[test]
    fn what_was_forwarded_or_meant_for_another_host_is_refused() {
        for host in ["127.0.0.1:2774", "localhost:2774", "[::1]:2774", "127.0.0.2", "LOCALHOST"] {
            assert!(admitted("/v1/token/a", &[("host", host), ("user-agent", "x")]), "{host}");
        }
        assert!(admitted("/v1/token/a", &[]), "HTTP/1.0 names no host");
        let elsewhere = ["10.0.0.1", "10.0.0.1:2774", "0.0.0.0:2774", "[::ffff:127.0.0.1]:2774", "[::]:2774"];
        let named = ["evil.example", "evil.example:2774", "localhost.evil.example", "x@127.0.0.1:2774"];
        for host in elsewhere.iter().chain(&named).chain(&["", "127.0.0.1:x:y"]) {
            assert!(!admitted("/v1/token/a", &[("host", host)]), "{host}");
        }
        assert!(!admitted("/v1/token/a", &[("host", "localhost"), ("host", "localhost")]));
        for trace in ["X-Forwarded-For", "Forwarded", "Via", "Origin", "Sec-Fetch-Site", "Sec-Fetch-Dest"] {
            let browser = [("host", "localhost"), ("sec-fetch-mode", "cors"), (trace, "x")];
            assert!(!admitted("/v1/token/a", &browser), "{trace}");
        }
        assert!(admitted("/v1/token/a", &[("host", "localhost"), ("sec-fetch-mode", "cors")]), "Node.js");
        assert!(!admitted("http://127.0.0.1/v1/token/a", &[("host", "127.0.0.1")]));
    }
}
